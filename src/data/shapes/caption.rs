//! The captions of `shapes`: their grammar, and which of them training never sees.
//!
//! ```text
//! caption = thing | thing relation thing
//! thing   = "a" ["small" | "large"] color kind
//! ```

use std::fmt;
use std::str::FromStr;

use super::super::rng::PictureRng;
use crate::error::{Error, Result};

/// How large a shape is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Size {
    /// About a quarter of the picture wide.
    Small,
    /// About two fifths of the picture wide.
    Large,
}

/// What a shape is filled with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // they are their words
pub enum Color {
    Red,
    Green,
    Blue,
    Yellow,
    White,
}

/// The outline of a shape.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // as above
pub enum Kind {
    Circle,
    Square,
    /// It stands on its base.
    Triangle,
    /// Two bars, upright and level. It is in no picture of the data set: what a model that is trained can
    /// still be taught.
    Cross,
}

/// Where the first of two shapes lies, seen from the second.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)] // as above
pub enum Relation {
    LeftOf,
    Above,
}

pub(super) const SIZES: [(&str, Size); 2] = [("small", Size::Small), ("large", Size::Large)];

pub(super) const COLORS: [(&str, Color); 5] = [
    ("red", Color::Red),
    ("green", Color::Green),
    ("blue", Color::Blue),
    ("yellow", Color::Yellow),
    ("white", Color::White),
];

pub(super) const KINDS: [(&str, Kind); 4] = [
    ("circle", Kind::Circle),
    ("square", Kind::Square),
    ("triangle", Kind::Triangle),
    ("cross", Kind::Cross),
];
/// Kinds that the data set draws; they come first.
const DRAWN: usize = 3;

pub(super) const RELATIONS: [(&str, Relation); 2] =
    [("left of", Relation::LeftOf), ("above", Relation::Above)];

/// What lies around the shapes, red, green and blue in [0, 1].
pub const BACKGROUND: [f32; 3] = [0.1, 0.1, 0.1];

impl Color {
    /// All of them.
    pub const ALL: [Color; 5] = [Color::Red, Color::Green, Color::Blue, Color::Yellow, Color::White];

    /// Red, green and blue in [0, 1].
    pub fn rgb(self) -> [f32; 3] {
        match self {
            Color::Red => [0.90, 0.18, 0.18],
            Color::Green => [0.18, 0.75, 0.25],
            Color::Blue => [0.20, 0.36, 0.95],
            Color::Yellow => [0.95, 0.85, 0.18],
            Color::White => [0.95, 0.95, 0.95],
        }
    }
}

/// One shape of a caption.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Thing {
    /// `None`: the caption does not say.
    pub size: Option<Size>,
    /// Its colour.
    pub color: Color,
    /// Its outline.
    pub kind: Kind,
}

/// What a picture shows. Its text is the caption, which [`str::parse`] reads back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caption {
    /// The only shape, or the one left of or above the other.
    pub first: Thing,
    /// The other shape.
    pub second: Option<(Relation, Thing)>,
}

impl Thing {
    /// Its colour and kind as a number.
    pub(super) fn look(&self) -> usize {
        self.color as usize * DRAWN + self.kind as usize
    }

    fn random(rng: &mut PictureRng) -> Self {
        let size = rng.pick(&[None, Some(Size::Small), Some(Size::Large)]);
        Thing { size, color: rng.pick(&COLORS).1, kind: rng.pick(&KINDS[..DRAWN]).1 }
    }
}

impl Caption {
    /// The shapes, one or two.
    pub fn things(&self) -> impl Iterator<Item = Thing> {
        [Some(self.first), self.second.map(|(_, thing)| thing)].into_iter().flatten()
    }

    /// Whether training never shows this: crosses; and about a tenth of the pairs of shapes, in whatever
    /// order, relation and sizes. Of a shape's fourteen partners it is one or two.
    pub fn is_held_out(&self) -> bool {
        let pair = self.second.is_some_and(|(_, second)| (self.first.look() + second.look()) % 10 == 3);
        pair || self.things().any(|thing| thing.kind == Kind::Cross)
    }

    /// One of four captions is of one shape, others of two that differ in colour or kind; none
    /// [is held out](Self::is_held_out).
    pub(super) fn random(rng: &mut PictureRng) -> Self {
        if rng.chance(0.25) {
            return Caption { first: Thing::random(rng), second: None };
        }
        Caption::random_pair(rng, false)
    }

    pub(super) fn random_pair(rng: &mut PictureRng, held_out: bool) -> Self {
        loop {
            let [first, second] = [Thing::random(rng), Thing::random(rng)];
            let caption = Caption { first, second: Some((rng.pick(&RELATIONS).1, second)) };
            if first.look() != second.look() && caption.is_held_out() == held_out {
                return caption;
            }
        }
    }
}

/// The words of all captions, each once.
pub(super) fn words() -> impl Iterator<Item = &'static str> {
    let relations = RELATIONS.iter().flat_map(|(words, _)| words.split(' '));
    ["a"]
        .into_iter()
        .chain(SIZES.iter().map(|(word, _)| *word))
        .chain(COLORS.iter().map(|(word, _)| *word))
        .chain(KINDS.iter().map(|(word, _)| *word))
        .chain(relations)
}

/// The words for a value of a table.
fn said<T: Copy + PartialEq>(table: &[(&'static str, T)], value: T) -> &'static str {
    table.iter().find(|(_, v)| *v == value).map_or("", |(words, _)| words)
}

impl fmt::Display for Thing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a ")?;
        if let Some(size) = self.size {
            write!(f, "{} ", said(&SIZES, size))?;
        }
        write!(f, "{} {}", said(&COLORS, self.color), said(&KINDS, self.kind))
    }
}

impl fmt::Display for Caption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.first.fmt(f)?;
        match self.second {
            Some((relation, second)) => write!(f, " {} {second}", said(&RELATIONS, relation)),
            None => Ok(()),
        }
    }
}

impl FromStr for Caption {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        // A caption has eleven words at most; others show that a longer text is none.
        let words: Vec<String> = text.split_whitespace().take(12).map(str::to_lowercase).collect();
        let mut left = words.iter().map(String::as_str).collect::<Vec<_>>();
        left.reverse();
        let caption = (|| {
            let first = thing(&mut left)?;
            if left.is_empty() {
                return Some(Caption { first, second: None });
            }
            let relation = take(&mut left, &RELATIONS)?;
            let second = thing(&mut left)?;
            left.is_empty().then_some(Caption { first, second: Some((relation, second)) })
        })();
        caption.ok_or_else(|| {
            // It may be of any length.
            let start: String = text.chars().take(100).collect();
            Error::usage(format!("`{start}` is no caption of `shapes`"))
                .hint("write for example `a small red circle`, or `a red circle left of a blue square`")
        })
    }
}

/// The value of a table whose words come next; `left` holds what is not read yet, the next word last.
fn take<T: Copy>(left: &mut Vec<&str>, table: &[(&str, T)]) -> Option<T> {
    let (words, value) = table
        .iter()
        .find(|(words, _)| words.split(' ').eq(left.iter().rev().take(words.split(' ').count()).copied()))?;
    left.truncate(left.len() - words.split(' ').count());
    Some(*value)
}

fn thing(left: &mut Vec<&str>) -> Option<Thing> {
    take(left, &[("a", ())])?;
    Some(Thing { size: take(left, &SIZES), color: take(left, &COLORS)?, kind: take(left, &KINDS)? })
}
