//! A data set whose classes have the numbers that a run has recorded.

use std::sync::Arc;

use super::{Captions, Dataset, Partner, Whole};
use crate::error::Result;

/// `data`, its classes found by name in `recorded`, where a class's number is its place. One that is not
/// there takes the number of a recorded one that is gone, or one after the last; a class that is gone and
/// not replaced keeps its number, and has no pictures. Data or records without classes stay as they are.
pub(crate) fn numbered(data: Arc<dyn Dataset>, recorded: &[String]) -> Arc<dyn Dataset> {
    if recorded.is_empty() || data.classes().is_empty() || data.classes() == recorded {
        return data;
    }
    let mut free: Vec<bool> = vec![true; recorded.len()];
    // Of names that stand twice, each stands for one.
    let known: Vec<Option<usize>> = (data.classes().iter())
        .map(|name| {
            let place = (0..recorded.len()).find(|&i| free[i] && recorded[i] == *name)?;
            free[place] = false;
            Some(place)
        })
        .collect();
    let mut left = (0..recorded.len()).filter(|&i| free[i]).chain(recorded.len()..);
    let numbers =
        known.into_iter().map(|place| place.or_else(|| left.next()).unwrap_or(0)).collect::<Vec<_>>();
    let mut classes = recorded.to_vec();
    classes.resize(numbers.iter().map(|n| n + 1).max().unwrap_or(0).max(recorded.len()), String::new());
    for (name, &number) in data.classes().iter().zip(&numbers) {
        classes[number].clone_from(name);
    }
    Arc::new(Numbered { data, numbers: numbers.into_iter().map(|n| n as u32).collect(), classes })
}

struct Numbered {
    data: Arc<dyn Dataset>,
    /// Of each of the data's classes.
    numbers: Vec<u32>,
    classes: Vec<String>,
}

impl Numbered {
    fn number(&self, label: u32) -> u32 {
        self.numbers[label as usize]
    }
}

impl Dataset for Numbered {
    fn len(&self) -> Option<u64> {
        self.data.len()
    }

    fn shape(&self) -> [usize; 3] {
        self.data.shape()
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn read(&self, index: u64, out: &mut [f32]) -> Result<u32> {
        self.data.read(index, out).map(|label| self.number(label))
    }

    fn read_cropped(&self, index: u64, place: [f32; 2], out: &mut [f32]) -> Result<u32> {
        self.data.read_cropped(index, place, out).map(|label| self.number(label))
    }

    fn captions(&self) -> Result<Option<Captions>> {
        self.data.captions()
    }

    fn partner(&self) -> Option<Partner> {
        self.data.partner()
    }

    fn read_pair(&self, index: u64, out: &mut [f32], partner: &mut [f32]) -> Result<u32> {
        self.data.read_pair(index, out, partner).map(|label| self.number(label))
    }

    fn whole(&self) -> Option<Whole<'_>> {
        let whole = self.data.whole()?;
        let labels = whole.labels.iter().map(|&label| self.number(label)).collect();
        Some(Whole { labels, ..whole })
    }

    fn shown(&self, index: u64) -> u64 {
        self.data.shown(index)
    }

    fn digest(&self) -> Result<String> {
        self.data.digest()
    }

    fn describe(&self, index: u64) -> String {
        self.data.describe(index)
    }

    fn skipped(&self) -> u64 {
        self.data.skipped()
    }

    fn warnings(&self) -> Vec<String> {
        self.data.warnings()
    }
}

#[cfg(test)]
mod tests {
    use super::super::in_memory::InMemory;
    use super::super::tests::options;
    use super::*;

    fn names(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    #[test]
    fn classes_are_found_by_name_whatever_their_order() {
        for (recorded, now, wanted, numbers) in [
            ("apple pear", "apple pear", "apple pear", [0, 1]),
            ("pear apple", "apple pear", "pear apple", [1, 0]),
            // One is new, one is gone: it takes the free number.
            ("apple pear", "pear zapple", "zapple pear", [1, 0]),
            ("apple kiwi pear", "kiwi pear", "apple kiwi pear", [1, 2]),
            ("pear", "apple pear", "pear apple", [1, 0]),
            ("a a", "a a", "a a", [0, 1]),
            ("b a a", "a a", "b a a", [1, 2]),
            ("", "apple pear", "apple pear", [0, 1]),
        ] {
            let data = InMemory::new(vec![7; 128], vec![0, 1], names(now), [8, 8, 1], &options(8));
            let data = numbered(Arc::new(data), &names(recorded));
            assert_eq!(data.classes(), names(wanted), "{recorded}, then {now}");
            let read = [0, 1].map(|i| data.read(i, &mut [0.0; 64]).unwrap());
            assert_eq!(
                (read, data.whole().unwrap().labels),
                (numbers, numbers.to_vec()),
                "{recorded}, {now}"
            );
        }
        let none = InMemory::new(vec![7; 128], vec![], vec![], [8, 8, 1], &options(8));
        assert_eq!(numbered(Arc::new(none), &names("apple")).classes(), [""; 0]);
    }
}
