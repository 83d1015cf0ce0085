//! Precision and recall (Kynkäänniemi et al. 2019, arXiv:1904.06991), density and coverage (Naeem et al.
//! 2020, arXiv:2002.09797): what a set covers is the union of balls around its images, each as wide as the
//! distance to the image's k-th neighbour.

use serde::Serialize;

use super::Features;
use super::sweep::{Squared, sweep};

/// Shares of images, and a density.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Manifold {
    /// Share of the generated images in a ball of a real one: are samples real?
    pub precision: f64,
    /// Share of the real images in a ball of a generated one: is everything sampled?
    pub recall: f64,
    /// Balls of real images that a generated one is in, on average, over k: about 1 for two sets drawn alike.
    /// It may exceed 1, and unlike precision it is not fooled by one outlier's wide ball.
    pub density: f64,
    /// Share of the balls of real images with a generated one inside.
    pub coverage: f64,
}

/// All four for `k` neighbours, usually 3, of as many images of both sets (10,000). A ball holds its surface.
///
/// # Panics
/// If the widths differ, `k` is 0, or a set has not more than `k` images.
#[track_caller]
pub fn manifold(real: &Features, generated: &Features, k: usize) -> Manifold {
    real.assert_fits(generated);
    let (n, m) = (real.len(), generated.len());
    assert!(k > 0 && n > k && m > k, "sets of {n} and {m} images have no neighbours of rank {k}");
    let (real_radii, generated_radii) = (radii(real, k), radii(generated, k));
    let balls = sweep::<Squared, usize>(
        generated,
        real,
        || 0,
        |count, _, ball, distance| {
            *count += usize::from(distance <= real_radii[ball]);
        },
    );
    let seen = sweep::<Squared, [bool; 2]>(
        real,
        generated,
        || [false; 2],
        |[inside, holds], i, ball, distance| {
            *inside |= distance <= generated_radii[ball];
            *holds |= distance <= real_radii[i];
        },
    );
    let share = |count: usize, of: usize| count as f64 / of as f64;
    Manifold {
        precision: share(balls.iter().filter(|&&count| count > 0).count(), m),
        recall: share(seen.iter().filter(|[inside, _]| *inside).count(), n),
        density: share(balls.iter().sum(), k * m),
        coverage: share(seen.iter().filter(|[_, holds]| *holds).count(), n),
    }
}

/// Of each image the squared distance to its k-th neighbour.
fn radii(set: &Features, k: usize) -> Vec<f64> {
    let keep = |nearest: &mut Vec<f64>, i: usize, j: usize, distance: f64| {
        if i != j && distance < nearest[k - 1] {
            let place = nearest.partition_point(|&nearer| nearer <= distance);
            nearest.pop();
            nearest.insert(place, distance);
        }
    };
    let nearest = sweep::<Squared, _>(set, set, || vec![f64::INFINITY; k], keep);
    nearest.iter().map(|nearest| nearest[k - 1]).collect()
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::{normal, waves};
    use super::*;

    #[test]
    fn golden_values() {
        let (real, generated) = (waves(8, 0.7, 0.1), waves(6, 0.9, 0.3));
        let three = manifold(&real, &generated, 3);
        assert_eq!((three.precision, three.recall, three.coverage), (1.0, 1.0, 1.0));
        assert!((three.density - 1.277777778).abs() <= 1e-9, "{three:?}");
        let one = manifold(&real, &generated, 1);
        assert_eq!((one.precision, one.recall), (1.0, 0.875));
    }

    #[test]
    fn on_a_line_by_hand() {
        let line = |values: &[f64]| Features::new(values, 1).unwrap();
        // Radii of the real ones for k = 1: 1, 1, 7; of the generated ones: .5, .5, 87.
        let (real, generated) = (line(&[0.0, 1.0, 8.0]), line(&[2.0, 2.5, 89.5]));
        // 2 lies in the balls of 1 (on its surface) and of 8, 2.5 in that of 8. The ball of 89.5 reaches
        // 2.5, so that 8 alone is in a generated ball; 0 has none in its ball.
        let shares = manifold(&real, &generated, 1);
        let third = 1.0 / 3.0;
        let wanted = Manifold { precision: 2.0 * third, recall: third, density: 1.0, coverage: 2.0 * third };
        assert_eq!(shares, wanted);
    }

    #[test]
    fn sets_drawn_alike_and_what_is_missing() {
        let real = normal(800, 6, 1);
        let same = manifold(&real, &normal(800, 6, 2), 3);
        // Coverage of equal laws is 1 - 2^-k.
        assert!(same.precision > 0.8 && same.recall > 0.8, "{same:?}");
        assert!((same.coverage - 0.875).abs() < 0.04, "{same:?}");
        assert!((same.density - 1.0).abs() < 0.1, "{same:?}");
        // Half of the space only: precise, but not diverse.
        let half: Vec<usize> = (0..800).filter(|&i| real.row(i)[0] > 0.0).collect();
        let half = manifold(&normal(800, 6, 2), &real.pick(&half), 3);
        assert!(half.precision > 0.8 && half.recall < 0.7 && half.coverage < 0.8, "{half:?}");
        let far: Vec<f64> = real.rows().flatten().map(|v| v + 50.0).collect();
        let far = manifold(&real, &Features::new(&far, 6).unwrap(), 3);
        assert_eq!(far, Manifold { precision: 0.0, recall: 0.0, density: 0.0, coverage: 0.0 });
    }
}
