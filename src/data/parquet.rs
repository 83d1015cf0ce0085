//! `parquet:FILE_OR_DIR`: pictures in Parquet files, as Hugging Face's `datasets` writes them: a column
//! `image` of structs with the `bytes` of a picture file, and `text` (a caption or a list of them) or `label`
//! (the number of a class).
//!
//! The reader is our own: it takes memory for what a file has and not for what it says that it has, and
//! finds one picture without unpacking those before it. The common library does neither: a number in a
//! damaged file may end the program, for want of memory or of stack.

mod footer;
mod pages;
mod thrift;

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use self::footer::{BYTES, Column, Footer, Group, INT32, INT64};
use self::pages::{Cell, cells};
use super::captions::Captions;
use super::digest;
use super::{Options, Split};
use crate::error::{Error, Result, lock};
use crate::files;

/// What is wrong with a file, in words that follow its name.
type Wrong = String;
/// The values of some rows of a column.
type Rows = std::result::Result<Vec<Vec<Cell>>, Wrong>;

/// Memory for files of pictures: those that have more are read again for each picture.
const KEPT: u64 = 1 << 30;
/// Bytes of captions that a file may have beyond its length: one that many rows share is written once.
const MORE_TEXT: u64 = 64 << 20;
/// Most values of a page.
const MOST_VALUES: u64 = 1 << 26;

/// The rows of some files.
pub(super) struct Table {
    dir: PathBuf,
    shards: Vec<Shard>,
    keep: bool,
}

struct Shard {
    /// Within the folder.
    name: PathBuf,
    footer: Footer,
    image: usize,
    /// The pictures of each group that was read, where they are kept; or why they cannot be.
    kept: Vec<Mutex<Option<Rows>>>,
}

/// The files that a spec names, within their folder, and whether they are all of one part, which `split` is
/// then no part of.
fn shards(path: &Path, split: Split) -> Result<(PathBuf, Vec<PathBuf>, bool)> {
    if path.is_file() {
        let dir = path.parent().unwrap_or(Path::new("")).to_owned();
        return Ok((dir, path.file_name().map(PathBuf::from).into_iter().collect(), false));
    }
    let listed = |dir: &Path| -> Result<Vec<PathBuf>> {
        let unreadable = |e| Error::new(format!("folder {} cannot be listed", dir.display())).caused_by(e);
        let mut names = Vec::new();
        for entry in fs::read_dir(dir).map_err(unreadable)? {
            let name = PathBuf::from(entry.map_err(unreadable)?.file_name());
            let hidden = name.as_os_str().as_encoded_bytes().starts_with(b".");
            names.extend((!hidden && name.extension().is_some_and(|e| e == "parquet")).then_some(name));
        }
        names.sort_unstable();
        Ok(names)
    };
    let mut dir = path.to_owned();
    let mut names = listed(&dir)?;
    if names.is_empty() && dir.join("data").is_dir() {
        dir.push("data");
        names = listed(&dir)?;
    }
    if names.is_empty() {
        return Err(Error::new(format!("folder {} holds no .parquet files", path.display()))
            .hint("give the file, or the folder that holds train-00000-of-00001.parquet or data/train-..."));
    }
    let part = |part: &str| -> Vec<PathBuf> {
        let of = |name: &&PathBuf| name.as_os_str().as_encoded_bytes().starts_with(part.as_bytes());
        names.iter().filter(of).cloned().collect()
    };
    let train = part("train");
    if train.is_empty() {
        return Ok((dir, names, false));
    }
    let held_out = ["validation", "test"].into_iter().map(part).find(|names| !names.is_empty());
    Ok(match (held_out, split) {
        (Some(held_out), Split::HeldOut) => (dir, held_out, true),
        (held_out, _) => (dir, train, held_out.is_some()),
    })
}

/// The rows of the files that a spec names, and whether they are all of one part, else the whole.
pub(super) fn open(path: &Path, options: &Options) -> Result<(Table, bool)> {
    let (dir, names, is_part) = shards(path, options.split)?;
    let shards = names.into_iter().map(|name| Shard::open(&dir, name)).collect::<Result<Vec<_>>>()?;
    let bytes = shards.iter().map(|shard| shard.footer.length).fold(0, u64::saturating_add);
    let table = Table { dir, shards, keep: bytes <= KEPT };
    if table.names().is_empty() {
        return Err(Error::new(format!("{} holds no images", path.display())).hint("give a file with rows"));
    }
    Ok((table, is_part))
}

fn refused(dir: &Path, name: &Path, wrong: &str) -> Error {
    Error::new(format!("{} cannot be read: {wrong}", dir.join(name).display()))
}

impl Shard {
    fn open(dir: &Path, name: PathBuf) -> Result<Shard> {
        let footer = Footer::read(&dir.join(&name))
            .map_err(|wrong| refused(dir, &name, &wrong).hint("fetch or write it again"))?;
        let is_image = |column: &Column| column.kind == BYTES && column.repetition == 0;
        let image = footer.find(&["image", "bytes"]).filter(|&image| is_image(&footer.columns[image]));
        let Some(image) = image else {
            let there: BTreeSet<&str> =
                footer.columns.iter().filter_map(|column| Some(column.path.first()?.as_str())).collect();
            let there = there.into_iter().collect::<Vec<_>>().join(", ");
            let wrong = if there.split(", ").any(|name| name == "image") {
                "its column image has no bytes of pictures".to_owned()
            } else {
                format!("it has no column image; its columns are {there}")
            };
            return Err(refused(dir, &name, &wrong)
                .hint("write it with the library datasets, the pictures as its feature Image"));
        };
        let kept = footer.groups.iter().map(|_| Mutex::new(None)).collect();
        Ok(Shard { name, footer, image, kept })
    }

    /// The column of the captions, or the first of its parts.
    fn text(&self) -> Option<usize> {
        self.footer.columns.iter().position(|column| column.path.first().is_some_and(|name| name == "text"))
    }

    /// Some rows of a column of a group.
    fn rows(&self, dir: &Path, column: usize, group: &Group, rows: Range<usize>) -> Rows {
        let (mut file, _) = files::open(&dir.join(&self.name)).map_err(|e| e.to_string())?;
        let most = self.footer.length.min(MOST_VALUES);
        cells(&mut file, (&self.footer.columns[column], &group.chunks[column]), rows, most)
    }

    /// All rows of a column.
    fn column(&self, dir: &Path, column: usize) -> Result<Vec<Vec<Cell>>> {
        let mut all = Vec::new();
        for group in &self.footer.groups {
            let rows = self.rows(dir, column, group, 0..group.rows);
            all.extend(rows.map_err(|wrong| refused(dir, &self.name, &wrong).hint("fetch it again"))?);
        }
        Ok(all)
    }
}

impl Table {
    /// The name of each row: its file and its number there.
    pub fn names(&self) -> Vec<PathBuf> {
        let of = |shard: &Shard| {
            let rows: usize = shard.footer.groups.iter().map(|group| group.rows).sum();
            (0..rows).map(|row| shard.name.join(row.to_string())).collect::<Vec<_>>()
        };
        self.shards.iter().flat_map(of).collect()
    }

    /// The folder of its files.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn digest(&self) -> String {
        let names: Vec<PathBuf> = self.shards.iter().map(|shard| shard.name.clone()).collect();
        digest::of_files(&self.dir, &names)
    }

    /// The file that is the picture of a row.
    pub fn picture(&self, row: usize) -> std::result::Result<Arc<[u8]>, Wrong> {
        let mut left = row;
        let groups = self
            .shards
            .iter()
            .flat_map(|shard| shard.footer.groups.iter().zip(&shard.kept).map(move |g| (shard, g)));
        for (shard, (group, kept)) in groups {
            if left >= group.rows {
                left -= group.rows;
                continue;
            }
            let read = |rows| shard.rows(&self.dir, shard.image, group, rows);
            let cell = if self.keep {
                let mut kept = lock(kept);
                // What cannot be read is not tried again for each of its rows.
                let all = kept.get_or_insert_with(|| read(0..group.rows)).as_ref().map_err(Wrong::clone)?;
                all.get(left).and_then(|cells| cells.first().cloned())
            } else {
                read(left..left + 1)?.into_iter().flatten().next()
            };
            return match cell {
                Some(Cell::Bytes(bytes)) => Ok(bytes),
                _ => Err("the row has no bytes of a picture".to_owned()),
            };
        }
        Err(format!("there is no row {row}"))
    }

    /// The captions of some of the rows, called by their `names`; `None`: the files have none.
    pub fn captions(&self, rows: &[usize], names: &[PathBuf]) -> Result<Option<Captions>> {
        let columns: Vec<Option<usize>> = self.shards.iter().map(Shard::text).collect();
        if columns.iter().all(Option::is_none) {
            return Ok(None);
        }
        let mut all: Vec<Vec<String>> = Vec::new();
        for (shard, column) in self.shards.iter().zip(columns) {
            let no = |wrong| refused(&self.dir, &shard.name, wrong);
            let column = column.ok_or_else(|| no("it has no column text, which others have"))?;
            let Column { path, kind, repetition, .. } = &shard.footer.columns[column];
            let is_text = *kind == BYTES && (*repetition == 1 || *repetition == 0 && path.len() == 1);
            if !is_text {
                return Err(no("its column text is neither text nor a list of it"));
            }
            // Captions that are written once for many rows could otherwise take any amount of memory.
            let mut left = shard.footer.length.saturating_add(MORE_TEXT);
            for cells in shard.column(&self.dir, column)? {
                let mut texts = Vec::new();
                for cell in cells {
                    let Cell::Bytes(bytes) = cell else { continue };
                    let size = bytes.len() as u64;
                    let rest = left.checked_sub(size);
                    left = rest.ok_or_else(|| no("it is damaged: it has too many bytes of captions"))?;
                    let text = String::from_utf8(bytes.to_vec());
                    texts.push(text.map_err(|_| no("a caption is no UTF-8 text"))?);
                }
                all.push(texts);
            }
        }
        let of = |&row: &usize| all.get_mut(row).map(std::mem::take).unwrap_or_default();
        Captions::new(&self.dir, names, rows.iter().map(of).collect(), "give each row a text").map(Some)
    }

    /// The names of the classes, and the class of each row; none where there are no labels.
    pub fn labels(&self) -> Result<(Vec<String>, Vec<u32>)> {
        let mut numbers = Vec::new();
        let mut names = Vec::new();
        for shard in &self.shards {
            let Some(column) = shard.footer.find(&["label"]) else { return Ok(Default::default()) };
            let is_label = |column: &Column| [INT32, INT64].contains(&column.kind) && column.repetition == 0;
            if !is_label(&shard.footer.columns[column]) {
                return Err(refused(&self.dir, &shard.name, "its column label holds no whole numbers"));
            }
            names = names_of(&shard.footer);
            for (row, cells) in shard.column(&self.dir, column)?.into_iter().enumerate() {
                match cells.first() {
                    Some(&Cell::Int(number))
                        if number >= 0 && (names.is_empty() || (number as u64) < names.len() as u64) =>
                    {
                        numbers.push(number)
                    }
                    other => {
                        let label = match other {
                            Some(Cell::Int(number)) => format!("the label {number}"),
                            _ => "no label".to_owned(),
                        };
                        let wrong = format!("row {row} has {label}, and there are {} classes", names.len());
                        return Err(refused(&self.dir, &shard.name, &wrong));
                    }
                }
            }
        }
        if names.is_empty() {
            // The file does not name its classes: those that there are, by their numbers.
            let there: Vec<i64> = numbers.iter().copied().collect::<BTreeSet<i64>>().into_iter().collect();
            let place = |number: &i64| there.binary_search(number).unwrap_or(0) as u32;
            let labels = numbers.iter().map(place).collect();
            return Ok((there.iter().map(i64::to_string).collect(), labels));
        }
        Ok((names, numbers.into_iter().map(|number| number as u32).collect()))
    }
}

/// The names of the classes of `label` as the library `datasets` leaves them; none if it did not.
fn names_of(footer: &Footer) -> Vec<String> {
    let note = footer.notes.iter().find(|(name, _)| name == "huggingface").map(|(_, text)| text.as_str());
    let said: serde_json::Value = note.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    let names = said["info"]["features"]["label"]["names"].as_array();
    let names = names.map(|names| names.iter().map(|name| name.as_str().map(str::to_owned)).collect());
    let names: Vec<String> = names.flatten().unwrap_or_default();
    // Two classes of one name would be one.
    let different: BTreeSet<&String> = names.iter().collect();
    if different.len() == names.len() { names } else { Vec::new() }
}

#[cfg(test)]
mod tests;
