//! What the numbers of a table may be: one list for the check and for `denoir help keys`.

use std::fmt;

use crate::error::{Result, need};

/// What a number may be.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Range {
    /// A whole number from the first to the second.
    Whole(usize, usize),
    /// From the first to the second.
    Closed(f64, f64),
    /// At least 0 and below 1.
    Share,
    /// Above 0.
    Positive,
}

impl fmt::Display for Range {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        match self {
            Range::Whole(low, high) => write!(f, "from {low} to {high}"),
            Range::Closed(low, high) => write!(f, "from {low} to {high}"),
            Range::Share => f.write_str("at least 0 and below 1"),
            Range::Positive => f.write_str("above 0"),
        }
    }
}

/// A number of a table, and what it may be.
#[derive(Clone, Debug)]
pub(crate) struct Limit {
    /// Its key in the table.
    pub key: &'static str,
    value: f64,
    /// As it was written, and not as the next f64.
    shown: String,
    /// What it may be.
    pub range: Range,
}

impl Limit {
    pub fn whole(key: &'static str, value: usize, [low, high]: [usize; 2]) -> Self {
        Limit { key, value: value as f64, shown: value.to_string(), range: Range::Whole(low, high) }
    }

    pub fn real(key: &'static str, value: impl Into<f64>, range: Range) -> Self {
        let value = value.into();
        Limit { key, value, shown: (value as f32).to_string(), range }
    }

    fn fits(&self) -> bool {
        let value = self.value;
        match self.range {
            Range::Whole(low, high) => (low as f64..=high as f64).contains(&value),
            Range::Closed(low, high) => (low..=high).contains(&value),
            Range::Share => (0.0..1.0).contains(&value),
            Range::Positive => value > 0.0 && value.is_finite(),
        }
    }
}

/// Checks the numbers of a table.
///
/// # Errors
/// Names the first key whose value does not fit, and what it may be.
pub(crate) fn need_limits(table: &str, limits: &[Limit]) -> Result<()> {
    let Some(Limit { key, shown, range, .. }) = limits.iter().find(|limit| !limit.fits()) else {
        return Ok(());
    };
    need(false, format!("{table}.{key} is {shown}"), format!("it must be {range}"))
}
