//! Whether samples are copies: their distances to the nearest training images, against those of fresh images
//! of the same kind (Meehan et al. 2020, arXiv:2004.05675).

use super::Features;
use super::sweep::{Squared, sweep};

/// The nearest of some images to another.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbour {
    /// Which one; the first of several.
    pub index: usize,
    /// Euclidean distance.
    pub distance: f64,
}

/// The comparison of generated with fresh images.
#[derive(Clone, Debug, PartialEq)]
pub struct Memorisation {
    /// Pairs of a generated and a fresh image where the generated one is nearer to the training set; an equal
    /// pair counts half.
    pub u: f64,
    /// Deviations of `u` above what equal laws would give. Above 3 the model copies; far below, its samples
    /// are unlike the training images.
    pub z: f64,
    /// `u` as a share of all pairs: 1/2 for equal laws, 1 for copies.
    pub share: f64,
    /// Of each generated image the nearest training image.
    pub nearest: Vec<Neighbour>,
}

/// Of each query its nearest point.
pub fn nearest(queries: &Features, points: &Features) -> Vec<Neighbour> {
    let start = || Neighbour { index: 0, distance: f64::INFINITY };
    let keep = |nearest: &mut Neighbour, _, index: usize, distance: f64| {
        if distance < nearest.distance {
            *nearest = Neighbour { index, distance };
        }
    };
    let mut nearest = sweep::<Squared, _>(queries, points, start, keep);
    nearest.iter_mut().for_each(|nearest| nearest.distance = nearest.distance.sqrt());
    nearest
}

/// Compares `generated` images with `fresh` ones, which training never saw, by their distances to the
/// training images. Fresh images must be drawn as the training images were.
#[track_caller]
pub fn memorisation(generated: &Features, fresh: &Features, training: &Features) -> Memorisation {
    generated.assert_fits(training);
    fresh.assert_fits(training);
    let found = nearest(generated, training);
    let distances = |found: &[Neighbour]| found.iter().map(|n| n.distance).collect::<Vec<f64>>();
    let [u, z] = mann_whitney(&distances(&found), &distances(&nearest(fresh, training)));
    Memorisation { u, z, share: u / (generated.len() * fresh.len()) as f64, nearest: found }
}

/// Mann and Whitney's `[U, z]`: the number of pairs with `a < b`, ties half, and its deviations above
/// `m n / 2`, whose variance is `m n (m + n + 1) / 12` without ties.
///
/// # Panics
/// If a side is empty or has a NaN.
#[track_caller]
pub fn mann_whitney(a: &[f64], b: &[f64]) -> [f64; 2] {
    let fits = ![a, b].iter().any(|side| side.is_empty() || side.iter().any(|v| v.is_nan()));
    assert!(fits, "{} and {} values, all numbers, are compared", a.len(), b.len());
    let mut sorted = b.to_vec();
    sorted.sort_by(f64::total_cmp);
    let above = |&value: &f64| {
        let [below, upto] = [sorted.partition_point(|&b| b < value), sorted.partition_point(|&b| b <= value)];
        (b.len() - upto) as f64 + 0.5 * (upto - below) as f64
    };
    let u: f64 = a.iter().map(above).sum();
    let (m, n) = (a.len() as f64, b.len() as f64);
    [u, (u - m * n / 2.0) / (m * n * (m + n + 1.0) / 12.0).sqrt()]
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::normal;
    use super::*;

    #[test]
    fn pairs_by_hand() {
        // 1 < 2, 3, 4; 2 = 2 (half) and < 3, 4; 5 is above all.
        let [u, z] = mann_whitney(&[1.0, 2.0, 5.0], &[2.0, 3.0, 4.0]);
        assert_eq!(u, 5.5);
        assert!((z - 1.0 / 5.25_f64.sqrt()).abs() <= 1e-15, "{z}");
        // 0 and -0 are equal.
        assert_eq!(mann_whitney(&[-0.0], &[0.0])[0], 0.5);
    }

    #[test]
    fn the_nearest_is_the_first_of_several() {
        let set = |values: &[f64]| Features::new(values, 2).unwrap();
        let points = set(&[0.0, 0.0, 3.0, 4.0, 3.0, 4.0]);
        let found = nearest(&set(&[3.0, 5.0, 0.0, 0.0]), &points);
        let wanted = [Neighbour { index: 1, distance: 1.0 }, Neighbour { index: 0, distance: 0.0 }];
        assert_eq!(found, wanted);
    }

    #[test]
    fn copies_are_found_and_fresh_images_are_none() {
        let (training, fresh) = (normal(500, 8, 1), normal(300, 8, 2));
        let honest = memorisation(&normal(300, 8, 3), &fresh, &training);
        assert!(honest.z.abs() < 3.0 && (honest.share - 0.5).abs() < 0.07, "{} {}", honest.z, honest.share);
        // A fifth of the samples are copies.
        let mut values: Vec<f64> = normal(300, 8, 3).rows().flatten().copied().collect();
        for i in 0..60 {
            values[i * 8..][..8].copy_from_slice(training.row(2 * i));
        }
        let copies = memorisation(&Features::new(&values, 8).unwrap(), &fresh, &training);
        assert!(copies.z > 3.0, "{}", copies.z);
        assert_eq!(copies.nearest[7], Neighbour { index: 14, distance: 0.0 });
    }
}
