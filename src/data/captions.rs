//! Captions: what a set of pictures says of each in words.
//!
//! Of a folder they are in `metadata.jsonl` or `metadata.csv`, there or in folders below it, each of which
//! names files within its own; or in a text file beside each picture.

use std::borrow::Cow;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fmt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use serde_json::Value;

use super::digest::{Digest, OF_ENDLESS};
use crate::error::{Error, Result};
use crate::files;
use crate::names::shown_path;

/// Files of captions in a folder.
pub(super) const METADATA: [&str; 2] = ["metadata.jsonl", "metadata.csv"];
/// Bytes of one that are read.
const MOST: u64 = 2 << 30;

/// The captions of each picture of a set, at least one each, by the picture's number in it.
#[derive(Clone)]
pub struct Captions(Kind);

impl fmt::Debug for Captions {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_list().entries(self.iter()).finish()
    }
}

#[derive(Clone)]
enum Kind {
    Listed(Vec<Vec<String>>),
    /// Of pictures without end: made of a picture's number.
    Made(Arc<dyn Fn(u64) -> Vec<String> + Send + Sync>),
}

impl Captions {
    /// Those that `of` makes of a picture's number, at least one.
    pub(crate) fn made(of: impl Fn(u64) -> Vec<String> + Send + Sync + 'static) -> Captions {
        Captions(Kind::Made(Arc::new(of)))
    }

    /// Those of the picture with this number, as [`Dataset::read`](super::Dataset::read) counts them.
    ///
    /// # Panics
    /// If there is none.
    #[track_caller]
    pub fn of(&self, index: u64) -> Cow<'_, [String]> {
        match &self.0 {
            Kind::Listed(all) => Cow::Borrowed(&all[index as usize]),
            Kind::Made(of) => Cow::Owned(of(index)),
        }
    }

    /// All captions, picture by picture; none of pictures without end.
    pub fn iter(&self) -> impl Iterator<Item = &[String]> {
        let all = if let Kind::Listed(all) = &self.0 { &all[..] } else { &[] };
        all.iter().map(Vec::as_slice)
    }

    /// Tells them from others; those that are made by the first of them.
    pub fn digest(&self) -> String {
        let mut digest = Digest::default();
        let mut add = |captions: &[String]| {
            digest.field(&(captions.len() as u64).to_le_bytes());
            digest.names(captions);
        };
        match &self.0 {
            Kind::Listed(all) => all.iter().for_each(|captions| add(captions)),
            Kind::Made(of) => (0..OF_ENDLESS).for_each(|index| add(&of(index))),
        }
        digest.text()
    }

    /// Of the pictures `files` below `dir`; an error with this hint if one has none.
    pub(super) fn new(
        dir: &Path,
        files: &[PathBuf],
        captions: Vec<Vec<String>>,
        hint: &str,
    ) -> Result<Captions> {
        let mut without = files.iter().zip(&captions).filter(|(_, captions)| captions.is_empty());
        let Some((first, _)) = without.next() else { return Ok(Captions(Kind::Listed(captions))) };
        let (count, all, dir) = (1 + without.count(), files.len(), dir.display());
        let first = shown_path(first);
        Err(Error::new(format!("{count} of {all} pictures in {dir} have no caption, the first is {first}"))
            .hint(hint))
    }

    /// Of the pictures `files` below `dir`, which may have others; `None`: the folder has no captions.
    ///
    /// # Errors
    /// Captions in more than one of the ways, of pictures that are not there, or not of all; a line that is
    /// none.
    pub(super) fn of_folder(dir: &Path, files: &[PathBuf]) -> Result<Option<Captions>> {
        let folders: BTreeSet<&Path> = files.iter().flat_map(|file| file.ancestors().skip(1)).collect();
        let there = |name: &str| -> Vec<PathBuf> {
            folders.iter().map(|folder| folder.join(name)).filter(|file| dir.join(file).is_file()).collect()
        };
        let [jsonl, csv] = METADATA.map(there);
        let beside: Vec<Option<PathBuf>> = (files.iter().map(|file| file.with_extension("txt")))
            .map(|text| dir.join(&text).is_file().then_some(text))
            .collect();
        let ways: Vec<&PathBuf> =
            [jsonl.first(), csv.first(), beside.iter().flatten().next()].into_iter().flatten().collect();
        if let [first, second, ..] = ways[..] {
            let [first, second] = [first, second].map(|file| shown_path(file));
            return Err(Error::new(format!("{} has captions in {first} and in {second}", dir.display()))
                .hint("use one way: metadata.jsonl, metadata.csv, or a text file beside each picture"));
        }
        if ways.is_empty() {
            return Ok(None);
        }
        if beside.iter().any(Option::is_some) {
            let read = |file: &Option<PathBuf>| match file {
                Some(file) => lines(&dir.join(file)),
                None => Ok(Vec::new()),
            };
            let captions = beside.iter().map(read).collect::<Result<_>>()?;
            let hint = "write a text file of its name beside each, as a.txt for a.png";
            return Captions::new(dir, files, captions, hint).map(Some);
        }
        let numbers: HashMap<&Path, usize> =
            files.iter().enumerate().map(|(i, f)| (f.as_path(), i)).collect();
        let mut captions = vec![Vec::new(); files.len()];
        // Of files that are not there: the line that names each.
        let mut strangers: BTreeMap<PathBuf, String> = BTreeMap::new();
        for file in jsonl.iter().chain(&csv) {
            let folder = file.parent().unwrap_or(Path::new(""));
            for Line { number, file_name, texts } in read(&dir.join(file))? {
                let place = || format!("{}, line {number}", dir.join(file).display());
                let plain = within(Path::new(&file_name)).ok_or_else(|| {
                    Error::new(format!("{}: `{file_name}` is no file of this folder", place()))
                        .hint("names are relative to the file that they stand in")
                })?;
                let picture = folder.join(plain);
                match numbers.get(picture.as_path()) {
                    Some(&i) if captions[i].is_empty() => captions[i] = texts,
                    Some(_) => {
                        return Err(Error::new(format!("{}: {file_name} has captions already", place()))
                            .hint("write all of them in one line, as a list"));
                    }
                    // It may be of the other part of the data.
                    None if dir.join(&picture).is_file() => {}
                    None => _ = strangers.insert(picture, place()),
                }
            }
        }
        if let Some((first, place)) = strangers.first_key_value() {
            let (count, first) = (strangers.len(), shown_path(first));
            let are = if count == 1 {
                "a caption is for a picture that is"
            } else {
                "captions are for pictures that are"
            };
            let many = if count == 1 { String::new() } else { format!("{count} ") };
            return Err(Error::new(format!("{many}{are} not there: {first} ({place})"))
                .hint("take the line out, or put the picture there"));
        }
        Captions::new(dir, files, captions, "give each a line in the file of captions").map(Some)
    }
}

/// The path of a file within a folder; `None`: it leads out of it.
fn within(path: &Path) -> Option<PathBuf> {
    let parts = path.components().filter(|part| *part != Component::CurDir);
    parts.map(|part| if let Component::Normal(name) = part { Some(name) } else { None }).collect()
}

/// The lines of a text file that are not empty, each a caption.
fn lines(path: &Path) -> Result<Vec<String>> {
    let text = files::read_text(path, MOST).map_err(|e| unreadable(path, e))?;
    Ok(text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect())
}

fn unreadable(path: &Path, cause: impl std::fmt::Display) -> Error {
    Error::new(format!("the captions in {} cannot be read: {cause}", path.display()))
}

/// What is said of a picture.
struct Line {
    number: u64,
    file_name: String,
    texts: Vec<String>,
}

fn read(path: &Path) -> Result<Vec<Line>> {
    let text = files::read_text(path, MOST).map_err(|e| unreadable(path, e))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(&text);
    let is_csv = path.extension().is_some_and(|ending| ending == "csv");
    let lines = if is_csv { of_csv(text) } else { of_json(text) };
    lines.map_err(|(number, wrong)| {
        let form = if is_csv {
            "the columns file_name and text"
        } else {
            "{\"file_name\": \"a.png\", \"text\": \"...\"}"
        };
        Error::new(format!("{}, line {number}: {wrong}", path.display())).hint(format!("write {form}"))
    })
}

type Lines = std::result::Result<Vec<Line>, (u64, String)>;

fn of_json(text: &str) -> Lines {
    let of = |value: &Value| match value {
        Value::String(text) => Some(vec![text.clone()]),
        Value::Array(texts) if !texts.is_empty() => {
            texts.iter().map(|text| text.as_str().map(str::to_owned)).collect()
        }
        _ => None,
    };
    let mut lines = Vec::new();
    for (number, line) in (1..).zip(text.lines()).filter(|(_, line)| !line.trim().is_empty()) {
        let said: Value = serde_json::from_str(line).map_err(|e| (number, format!("it is no JSON: {e}")))?;
        let file_name = said["file_name"].as_str().ok_or((number, "it has no `file_name`".to_owned()))?;
        let texts = of(&said["text"])
            .ok_or((number, "its `text` is neither a text nor a list of texts".to_owned()))?;
        lines.push(Line { number, file_name: file_name.to_owned(), texts });
    }
    Ok(lines)
}

fn of_csv(text: &str) -> Lines {
    let mut reader = csv::Reader::from_reader(text.as_bytes());
    let header = reader.headers().map_err(|e| (1, e.to_string()))?;
    let column = |name: &str| {
        let place = header.iter().position(|other| other.trim() == name);
        place.ok_or_else(|| (1, format!("there is no column {name}")))
    };
    let [file_name, caption] = [column("file_name")?, column("text")?];
    let mut lines = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| (e.position().map_or(0, csv::Position::line), e.to_string()))?;
        // The reader sees to it that each line has as many columns as the first.
        let [file_name, text] = [file_name, caption].map(|i| record.get(i).unwrap_or_default().to_owned());
        let number = record.position().map_or(0, csv::Position::line);
        lines.push(Line { number, file_name, texts: vec![text] });
    }
    Ok(lines)
}

#[cfg(test)]
#[path = "captions_tests.rs"]
mod tests;
