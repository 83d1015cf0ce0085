//! What a run is trained on, recorded in its folder and compared when it goes on: the pictures, the numbers
//! of their classes, and how many of them each step takes.

use std::io::{ErrorKind, Write};
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::checkpoint::write_whole;
use crate::data::Dataset;
use crate::error::{Error, Result};
use crate::files;

/// More than the names of a million classes.
const MOST_BYTES: u64 = 1 << 26;

/// The pictures and their classes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct DataRecord {
    /// The name of each class; its number is its place.
    pub classes: Vec<String>,
    /// How many there are; none: they have no end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pictures: Option<u64>,
    /// As [`Dataset::digest`] says.
    pub digest: String,
    /// Tells their captions from others, where the model sees texts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub captions: Option<String>,
}

/// Images of the steps after some steps, up to the next such entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Batches {
    pub after: u64,
    pub images: u64,
}

/// `data.toml` in the folder of a run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Record {
    pub data: DataRecord,
    /// In order; the first is of the first step.
    pub batches: Vec<Batches>,
}

/// Images that the first `done` steps took.
pub(crate) fn seen(batches: &[Batches], done: u64) -> u64 {
    let ends = batches.iter().skip(1).map(|next| next.after).chain([u64::MAX]);
    let steps = |b: &Batches, end: u64| done.min(end).saturating_sub(b.after);
    let of = |(b, end): (&Batches, u64)| steps(b, end).saturating_mul(b.images);
    batches.iter().zip(ends).map(of).fold(0, u64::saturating_add)
}

/// The steps so far, and from `done` on steps of so many images.
pub(crate) fn going_on(batches: &[Batches], done: u64, images: u64) -> Vec<Batches> {
    let mut all: Vec<Batches> = batches.iter().filter(|b| b.after < done).copied().collect();
    if all.last().is_none_or(|last| last.images != images) {
        all.push(Batches { after: if all.is_empty() { 0 } else { done }, images });
    }
    all
}

impl DataRecord {
    /// `sees_texts`: whether captions count.
    pub fn of(data: &dyn Dataset, sees_texts: bool) -> Result<DataRecord> {
        let captions = if sees_texts { data.captions()?.map(|captions| captions.digest()) } else { None };
        let (classes, pictures) = (data.classes().to_vec(), data.len());
        Ok(DataRecord { classes, pictures, digest: data.digest()?, captions })
    }

    /// What `now` has otherwise, in words. The digest holds the names of classes, but not their numbers,
    /// which are no difference.
    pub fn differences(&self, now: &DataRecord) -> Vec<String> {
        let mut all = if now.digest == self.digest { Vec::new() } else { self.other_pictures(now) };
        // A run that does not say what they were is no other.
        let captions = self.captions.as_ref().zip(now.captions.as_ref());
        all.extend(captions.filter(|(was, is)| was != is).map(|_| "other captions".to_owned()));
        all
    }

    fn other_pictures(&self, now: &DataRecord) -> Vec<String> {
        let missing = |from: &DataRecord, of: &DataRecord| -> Vec<String> {
            let names = of.classes.iter().filter(|name| !from.classes.contains(name));
            names.map(|name| format!("{name:?}")).collect()
        };
        let mut all = Vec::new();
        for (what, names) in [("no class", missing(now, self)), ("a new class", missing(self, now))] {
            all.extend((!names.is_empty()).then(|| format!("{what} {}", names.join(", "))));
        }
        if now.pictures != self.pictures {
            let count = |pictures: Option<u64>| pictures.map_or("no end of".to_owned(), |n| n.to_string());
            all.push(format!("{} pictures instead of {}", count(now.pictures), count(self.pictures)));
        }
        if all.is_empty() {
            all.push("other pictures, or the same under other names".to_owned());
        }
        all
    }
}

impl Record {
    /// The record of a file; `None`: there is no such file.
    pub fn read(path: &Path) -> Result<Option<Record>> {
        let text = match files::read_text(path, MOST_BYTES) {
            Err(e) if e.kind() == ErrorKind::NotFound => return Ok(None),
            text => text.map_err(|e| Error::new(format!("cannot read {}", path.display())).caused_by(e))?,
        };
        let damaged = |e: &str| {
            Error::new(format!("{} is damaged", path.display()))
                .hint(
                    "delete it to go on without comparing the data with what the run was trained on; the \
                     images seen so far are then counted as if every step had taken as many as the last",
                )
                .caused_by(e)
        };
        let record: Record = toml::from_str(&text).map_err(|e| damaged(e.message()))?;
        let ordered = record.batches.windows(2).all(|two| two[0].after < two[1].after);
        let some = record.batches.iter().all(|b| b.images > 0);
        match record.batches.first() {
            Some(first) if first.after == 0 && ordered && some => Ok(Some(record)),
            _ => Err(damaged("it does not say how many images a step takes")),
        }
    }

    pub fn write(&self, path: &Path) -> Result<()> {
        let text = toml::to_string(self).unwrap_or_else(|e| unreachable!("a record is a plain table: {e}"));
        let head = "# What the run was trained on. `denoir train --resume` compares it with the data.\n";
        write_whole(path, |file| file.write_all(format!("{head}{text}").as_bytes()))
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn images_are_counted_through_other_batch_sizes() {
        let first = going_on(&[], 0, 2);
        let then = going_on(&first, 4, 6);
        let again = going_on(&then, 6, 6);
        assert_eq!((&again, seen(&again, 3), seen(&again, 4), seen(&again, 7)), (&then, 6, 8, 26));
        // Begun again from before the change; killed before a step after it.
        assert_eq!(seen(&going_on(&then, 2, 3), 4), 2 * 2 + 2 * 3);
        assert_eq!(going_on(&then, 4, 2), first);
        assert_eq!(going_on(&then, 0, 9), [Batches { after: 0, images: 9 }]);
        // A run that does not say knows the batches of its checkpoint.
        assert_eq!(seen(&going_on(&going_on(&[], 0, 5), 3, 7), 5), 3 * 5 + 2 * 7);
    }

    #[test]
    fn differences_are_told() {
        let data = |names: &str, pictures, digest: &str| DataRecord {
            classes: names.split_whitespace().map(str::to_owned).collect(),
            pictures,
            digest: digest.to_owned(),
            captions: None,
        };
        let first = data("apple pear", Some(3), "x");
        let with = |captions: &str| DataRecord { captions: Some(captions.to_owned()), ..first.clone() };
        assert_eq!(with("a").differences(&with("b")), ["other captions"]);
        assert!(first.differences(&with("a")).is_empty() && with("a").differences(&with("a")).is_empty());
        let says = |now: DataRecord, wanted: &[&str]| assert_eq!(first.differences(&now), wanted);
        says(first.clone(), &[]);
        says(data("pear apple", Some(3), "x"), &[]);
        says(data("apple pear", Some(3), "y"), &["other pictures, or the same under other names"]);
        says(data("pear zapple", Some(3), "y"), &[r#"no class "apple""#, r#"a new class "zapple""#]);
        says(data("apple pear", Some(4), "y"), &["4 pictures instead of 3"]);
        says(data("apple pear", None, "y"), &["no end of pictures instead of 3"]);
    }

    #[test]
    fn a_record_survives_its_file_and_a_damaged_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data.toml");
        assert_eq!(Record::read(&path).unwrap(), None);
        for pictures in [Some(7), None] {
            let classes = vec!["12\" \u{1b}disc".to_owned(), "b".to_owned()];
            let captions = pictures.map(|_| "a1".to_owned());
            let data = DataRecord { classes, pictures, digest: "0f".to_owned(), captions };
            let record = Record { data, batches: going_on(&going_on(&[], 0, 5), 3, 7) };
            record.write(&path).unwrap();
            assert_eq!(Record::read(&path).unwrap(), Some(record));
        }
        let whole = fs::read_to_string(&path).unwrap();
        for damaged in
            ["", "x", &whole.replace("after = 3", "after = 0"), &whole.replace("images = 5", "images = 0")]
        {
            fs::write(&path, damaged).unwrap();
            let error = Record::read(&path).unwrap_err().to_string();
            assert!(error.contains("data.toml is damaged; delete it"), "{error}");
        }
    }
}
