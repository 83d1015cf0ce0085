//! The kernel distance of two sets (KID; Bińkowski et al. 2018, arXiv:1801.01401).

use serde::Serialize;

use super::Features;
use super::sweep::{Dot, sweep};
use crate::philox::{Sequence, Stream};

/// A mean over subsets.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct KernelDistance {
    /// The mean; its expectation does not depend on the size of the subsets, and it may be negative.
    pub mean: f64,
    /// Deviation between subsets, divided by their number as in the published code.
    pub deviation: f64,
}

/// The distance between `subsets` pairs of subsets of `size` images each, drawn without replacement by
/// `seed`; 100 of 1000 are usual. A set with fewer images gives all of them.
///
/// # Panics
/// If the widths differ, a subset would have fewer than two images, or there is no subset.
#[track_caller]
pub fn kernel_distance(a: &Features, b: &Features, subsets: u32, size: usize, seed: u64) -> KernelDistance {
    assert!(subsets > 0, "a kernel distance of no subsets");
    let one = |i: u32| {
        let draw = |set: &Features, side: u32| set.pick(&subset(set.len(), size, seed, i, side));
        kernel_distance_of_all(&draw(a, 0), &draw(b, 1))
    };
    let distances: Vec<f64> = (0..subsets).map(one).collect();
    let mean = distances.iter().sum::<f64>() / f64::from(subsets);
    let squares: f64 = distances.iter().map(|distance| (distance - mean).powi(2)).sum();
    KernelDistance { mean, deviation: (squares / f64::from(subsets)).sqrt() }
}

/// The unbiased estimate from all images of both sets: with `k(x, y) = (x.y / d + 1)^3`, the mean of k
/// between different images of `a`, plus that of `b`, minus twice the mean between both sets.
#[track_caller]
pub fn kernel_distance_of_all(a: &Features, b: &Features) -> f64 {
    let (n, m) = (a.len(), b.len());
    assert!(n > 1 && m > 1, "sets of {n} and {m} images have no kernel distance");
    let pairs = |n: usize| (n * (n - 1)) as f64;
    kernels(a, a, true) / pairs(n) + kernels(b, b, true) / pairs(m)
        - 2.0 * kernels(a, b, false) / (n * m) as f64
}

/// Sum of k over all pairs; of one set with itself, without an image and itself.
fn kernels(a: &Features, b: &Features, same: bool) -> f64 {
    let per = 1.0 / a.width() as f64;
    let add = |sum: &mut f64, i: usize, j: usize, product: f64| {
        let kernel = product.mul_add(per, 1.0);
        *sum += if same && i == j { 0.0 } else { kernel * kernel * kernel };
    };
    sweep::<Dot, f64>(a, b, || 0.0, add).iter().sum()
}

/// `size` different numbers below `n`: the beginning of a shuffle.
fn subset(n: usize, size: usize, seed: u64, step: u32, side: u32) -> Vec<usize> {
    let mut numbers = Sequence::new(seed, Stream::Subset, step, side);
    let mut all: Vec<usize> = (0..n).collect();
    let size = size.min(n);
    for i in 0..size {
        let word = rand::Rng::next_u32(&mut numbers);
        let other = i + ((u64::from(word) * (n - i) as u64) >> 32) as usize;
        all.swap(i, other);
    }
    all.truncate(size);
    all
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::{normal, waves};
    use super::*;

    #[test]
    fn golden_values() {
        let (a, b) = (waves(8, 0.7, 0.1), waves(6, 0.9, 0.3));
        let all = kernel_distance_of_all(&a, &b);
        assert!((all + 0.772216373667).abs() <= 1e-9 * 0.77, "{all}");
        // The form with each image and itself in it.
        let biased = kernels(&a, &a, false) / 64.0 + kernels(&b, &b, false) / 36.0
            - 2.0 * kernels(&a, &b, false) / 48.0;
        assert!((biased - 0.10599683422).abs() <= 1e-9 * 0.1, "{biased}");
        // Subsets of everything are the same but for their order.
        let every = kernel_distance(&a, &b, 3, 1000, 5);
        assert!((every.mean - all).abs() <= 1e-12 && every.deviation <= 1e-12, "{every:?}");
    }

    #[test]
    fn subsets_are_drawn_without_replacement_and_evenly() {
        let mut seen = [0; 10];
        for step in 0..2000 {
            let mut drawn = subset(10, 4, 1, step, 0);
            assert_eq!(drawn, subset(10, 4, 1, step, 0));
            assert_ne!(drawn, subset(10, 4, 1, step + 1, 1));
            drawn.iter().for_each(|&i| seen[i] += 1);
            drawn.sort_unstable();
            drawn.dedup();
            assert_eq!(drawn.len(), 4);
        }
        assert!(seen.iter().all(|n| (700..900).contains(n)), "{seen:?}");
    }

    #[test]
    fn it_is_unbiased_and_sees_a_shift() {
        let a = normal(600, 8, 1);
        let same = kernel_distance(&a, &normal(600, 8, 2), 40, 100, 1);
        assert!(same.mean.abs() < 0.05 && same.deviation > 0.0, "{same:?}");
        let moved: Vec<f64> = normal(600, 8, 2).rows().flatten().map(|value| value + 0.5).collect();
        let other = kernel_distance(&a, &Features::new(&moved, 8).unwrap(), 40, 100, 1);
        assert!(other.mean > 5.0 * other.deviation, "{other:?}");
    }
}
