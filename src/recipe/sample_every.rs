//! The key `sample_every`: when a run draws its pictures.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error, Visitor};
use serde::ser::{Serialize, Serializer};

use super::set::whole;

/// When a run draws its pictures. In files a number of steps, or `never`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SampleEvery {
    /// No pictures at all.
    Never,
    /// After so many steps, and at the end; 0: at the end only.
    Steps(u64),
}

impl SampleEvery {
    /// Whether pictures are drawn after step `step` of `steps`.
    pub fn is_due(self, step: u64, steps: u64) -> bool {
        match self {
            SampleEvery::Never => false,
            SampleEvery::Steps(every) => step == steps || every > 0 && step.is_multiple_of(every),
        }
    }

    /// How often pictures are drawn after step `done` of `steps`.
    pub fn times(self, done: u64, steps: u64) -> u64 {
        match self {
            SampleEvery::Never => 0,
            SampleEvery::Steps(0) => 1,
            SampleEvery::Steps(every) => {
                steps / every - done.min(steps) / every + u64::from(!steps.is_multiple_of(every))
            }
        }
    }

    /// The number of steps in between; 0 also where there are no pictures.
    pub(super) fn steps(self) -> u64 {
        match self {
            SampleEvery::Never => 0,
            SampleEvery::Steps(every) => every,
        }
    }
}

impl Serialize for SampleEvery {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            SampleEvery::Never => serializer.serialize_str("never"),
            SampleEvery::Steps(every) => serializer.serialize_u64(*every),
        }
    }
}

impl<'de> Deserialize<'de> for SampleEvery {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Written;

        impl Visitor<'_> for Written {
            type Value = SampleEvery;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a number of steps, 0 (at the end only) or never")
            }

            fn visit_i64<E: Error>(self, steps: i64) -> Result<SampleEvery, E> {
                let steps = u64::try_from(steps).map_err(|_| E::custom("the number of steps is below 0"))?;
                Ok(SampleEvery::Steps(steps))
            }

            fn visit_u64<E: Error>(self, steps: u64) -> Result<SampleEvery, E> {
                Ok(SampleEvery::Steps(steps))
            }

            // `--set` gives text where the recipe has `never`.
            fn visit_str<E: Error>(self, word: &str) -> Result<SampleEvery, E> {
                match (word, whole(word)) {
                    ("never", _) => Ok(SampleEvery::Never),
                    (_, Ok(steps)) => Ok(SampleEvery::Steps(steps)),
                    _ => Err(E::custom(format!(
                        "{word:?} is not a number of steps, 0 (at the end only) or never"
                    ))),
                }
            }
        }

        deserializer.deserialize_any(Written)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_come_when_they_are_due_and_are_counted_so() {
        for every in
            [SampleEvery::Never, SampleEvery::Steps(0), SampleEvery::Steps(3), SampleEvery::Steps(40)]
        {
            for (done, steps) in [(0, 9), (0, 10), (4, 10), (6, 10), (9, 10), (0, 1)] {
                let due = (done + 1..=steps).filter(|&step| every.is_due(step, steps)).count() as u64;
                assert_eq!(every.times(done, steps), due, "{every:?} from {done} to {steps}");
            }
        }
        assert!(SampleEvery::Steps(0).is_due(10, 10) && !SampleEvery::Steps(0).is_due(5, 10));
        assert!(!SampleEvery::Never.is_due(10, 10));
    }
}
