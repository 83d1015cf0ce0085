//! Random choices for generated pictures, one independent stream of numbers for each picture.

use rand::Rng;

use super::Split;
use crate::philox::{Sequence, Stream, uniform};

/// Which generator asks; its number keeps two generators with one seed from drawing alike.
#[derive(Clone, Copy)]
pub(super) enum Generator {
    Digits = 0,
    Faces = 1,
    Shapes = 2,
    /// `shapes` whose caption is given.
    ShapesAsked = 3,
}

pub(super) struct PictureRng(Sequence);

impl PictureRng {
    /// The numbers of one picture. The parts of a set and the generators differ in the top bits of the
    /// counter, so that no index below 2^56 of one meets an index of another.
    pub(super) fn new(seed: u64, generator: Generator, split: Split, index: u64) -> Self {
        let part = u32::from(split == Split::HeldOut) << 31 | (generator as u32) << 24;
        PictureRng(Sequence::new(seed, Stream::Generate, (index >> 32) as u32 ^ part, index as u32))
    }

    /// A whole number in `0..n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        below(&mut self.0, n)
    }

    /// One of `items`, all equally likely.
    pub(super) fn pick<T: Copy>(&mut self, items: &[T]) -> T {
        items[self.below(items.len())]
    }

    /// Evenly spread between `low` and `high`.
    pub(super) fn range(&mut self, low: f32, high: f32) -> f32 {
        low + (high - low) * uniform(self.0.next_u32())
    }

    /// Bell shaped with mean 0 and deviation `spread`, but never beyond 3 `spread`: a normal distribution
    /// would now and then deform a picture beyond recognition.
    pub(super) fn bell(&mut self, spread: f32) -> f32 {
        let sum: f32 = (0..3).map(|_| uniform(self.0.next_u32())).sum();
        (sum - 1.5) * 2.0 * spread
    }

    /// True with probability `p`.
    pub(super) fn chance(&mut self, p: f32) -> bool {
        uniform(self.0.next_u32()) < p
    }
}

/// A whole number in `0..n`, `n` up to 2^32; its bias is below n / 2^32.
pub(super) fn below(rng: &mut impl Rng, n: usize) -> usize {
    ((u64::from(rng.next_u32()) * n as u64) >> 32) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generators_and_parts_draw_differently_and_an_index_always_alike() {
        let first = |generator, split, index| PictureRng::new(3, generator, split, index).range(0.0, 1.0);
        let a = first(Generator::Digits, Split::Train, 5);
        assert_eq!(a, first(Generator::Digits, Split::Train, 5));
        for other in [
            first(Generator::Faces, Split::Train, 5),
            first(Generator::Digits, Split::HeldOut, 5),
            first(Generator::Digits, Split::Train, 6),
            first(Generator::Digits, Split::Train, 5 + (1 << 32)),
        ] {
            assert_ne!(a, other);
        }
    }

    #[test]
    fn numbers_stay_in_their_bounds() {
        let mut rng = PictureRng::new(1, Generator::Digits, Split::Train, 0);
        let mut seen = [0; 7];
        for _ in 0..7000 {
            seen[rng.below(7)] += 1;
            assert!(rng.bell(0.1).abs() <= 0.3);
            assert!((2.0..=3.0).contains(&rng.range(2.0, 3.0)));
        }
        assert!(seen.iter().all(|&n| (850..1150).contains(&n)), "{seen:?}");
    }
}
