//! The Fréchet distance of two Gaussians that have the moments of two sets (Heusel et al. 2017,
//! arXiv:1706.08500).

use rayon::prelude::*;

use super::Features;

/// Mean `[d]` and covariance `[d, d]` of a set of features.
#[derive(Clone, Debug, PartialEq)]
pub struct Moments {
    /// Mean of each feature.
    pub mean: Vec<f64>,
    /// Covariance, divided by n - 1.
    pub covariance: Vec<f64>,
}

/// [`Moments::frechet`] of two sets. Take as many images of both, 10,000 for 64 features: two sets of n that
/// are drawn alike are nearly `(2 d + d (d + 1) / 2) / n` apart, for d features of unit variance.
///
/// # Panics
/// If the widths differ, or a set has fewer than two images.
#[track_caller]
pub fn frechet(a: &Features, b: &Features) -> f64 {
    a.assert_fits(b);
    Moments::of(a).frechet(&Moments::of(b))
}

impl Moments {
    /// Of a set of at least two images.
    #[track_caller]
    pub fn of(features: &Features) -> Self {
        let (n, d) = (features.len(), features.width());
        assert!(n > 1, "{n} image has no covariance");
        let mut mean = vec![0.0; d];
        for row in features.rows() {
            mean.iter_mut().zip(row).for_each(|(sum, value)| *sum += value);
        }
        mean.iter_mut().for_each(|sum| *sum /= n as f64);
        /// Images of a task: the sums do not depend on the number of threads.
        const ROWS: usize = 512;
        let part = |first: usize| {
            let mut products = vec![0.0; d * d];
            for i in first..n.min(first + ROWS) {
                let centred: Vec<f64> = features.row(i).iter().zip(&mean).map(|(v, mean)| v - mean).collect();
                for (products, &a) in products.chunks_exact_mut(d).zip(&centred) {
                    products.iter_mut().zip(&centred).for_each(|(sum, b)| *sum += a * b);
                }
            }
            products
        };
        let starts: Vec<usize> = (0..n).step_by(ROWS).collect();
        let parts: Vec<Vec<f64>> = starts.into_par_iter().map(part).collect();
        let sum = |i: usize| parts.iter().map(|part| part[i]).sum::<f64>() / (n - 1) as f64;
        Moments { covariance: (0..d * d).map(sum).collect(), mean }
    }

    /// `|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)`.
    ///
    /// The last trace is the sum of the singular values of `L1^T L2` with `S = L L^T`. Roots of the
    /// eigenvalues of a product would turn an error of 1e-16 into one of 1e-8 wherever a set has fewer images
    /// than features.
    ///
    /// # Panics
    /// If the sizes differ.
    #[track_caller]
    pub fn frechet(&self, other: &Moments) -> f64 {
        let d = self.mean.len();
        let sizes = [self.covariance.len(), other.mean.len(), other.covariance.len()];
        assert_eq!(sizes, [d * d, d, d * d], "moments of {d} features against these");
        let means: f64 = self.mean.iter().zip(&other.mean).map(|(a, b)| (a - b).powi(2)).sum();
        let trace = |moments: &Moments| moments.covariance.iter().step_by(d + 1).sum::<f64>();
        let [a, b] = [factor(&self.covariance, d), factor(&other.covariance, d)];
        let mut product = vec![0.0; d * d];
        for k in 0..d {
            for i in 0..=k {
                let a = a[k * d + i];
                let row = &mut product[i * d..][..d];
                row.iter_mut().zip(&b[k * d..][..d]).for_each(|(sum, b)| *sum += a * b);
            }
        }
        means + trace(self) + trace(other) - 2.0 * singular_values(product, d).iter().sum::<f64>()
    }
}

/// Cholesky's lower factor of a positive semidefinite matrix `[d, d]`. A direction without variance has a
/// column of zeros.
fn factor(matrix: &[f64], d: usize) -> Vec<f64> {
    let mut l = vec![0.0; d * d];
    for j in 0..d {
        let left = |l: &[f64], i: usize| {
            let known: f64 = l[i * d..][..j].iter().zip(&l[j * d..][..j]).map(|(a, b)| a * b).sum();
            matrix[i * d + j] - known
        };
        let pivot = left(&l, j);
        // Of what rounding leaves, nothing is variance. NaN goes on.
        if pivot <= d as f64 * f64::EPSILON * matrix[j * d + j] {
            continue;
        }
        let root = pivot.sqrt();
        for i in j..d {
            l[i * d + j] = left(&l, i) / root;
        }
    }
    l
}

/// Singular values of a matrix of rows of `d`, by rotations that make each two rows orthogonal (one-sided
/// Jacobi; Hestenes 1958): right to a few units of the largest one's last place.
fn singular_values(mut rows: Vec<f64>, d: usize) -> Vec<f64> {
    let dot = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| a * b).sum::<f64>();
    let n = rows.len() / d;
    let small = d as f64 * f64::EPSILON;
    // It converges in about ten rounds, the last ones quadratically.
    for _ in 0..60 {
        let mut turned = false;
        for p in 0..n {
            for q in p + 1..n {
                let (head, tail) = rows.split_at_mut(q * d);
                let (a, b) = (&mut head[p * d..][..d], &mut tail[..d]);
                let (aa, bb, ab) = (dot(a, a), dot(b, b), dot(a, b));
                if ab.abs() <= small * (aa * bb).sqrt() || ab == 0.0 {
                    continue;
                }
                turned = true;
                let zeta = (bb - aa) / (2.0 * ab);
                let tan = zeta.signum() / (zeta.abs() + zeta.hypot(1.0));
                let cos = 1.0 / tan.hypot(1.0);
                let sin = cos * tan;
                for (a, b) in a.iter_mut().zip(b) {
                    (*a, *b) = (cos * *a - sin * *b, sin * *a + cos * *b);
                }
            }
        }
        if !turned {
            break;
        }
    }
    rows.chunks_exact(d).map(|row| dot(row, row).sqrt()).collect()
}

#[cfg(test)]
mod tests {
    use super::super::features::tests::{normal, waves};
    use super::*;

    fn close(got: f64, wanted: f64, tolerance: f64) {
        assert!((got - wanted).abs() <= tolerance * wanted.abs(), "{got}, not {wanted}");
    }

    // Golden values computed in numpy, f64.
    #[test]
    fn golden_values() {
        let a = Moments {
            mean: vec![0.0, 1.0, 2.0],
            covariance: vec![2.0, 0.5, 0.0, 0.5, 1.0, 0.3, 0.0, 0.3, 1.5],
        };
        let b = Moments {
            mean: vec![0.5, 0.5, 2.5],
            covariance: vec![1.0, -0.2, 0.1, -0.2, 2.0, 0.0, 0.1, 0.0, 0.5],
        };
        close(a.frechet(&b), 1.58923206278, 1e-9);
        close(b.frechet(&a), 1.58923206278, 1e-9);
        close(frechet(&waves(8, 0.7, 0.1), &waves(6, 0.9, 0.3)), 0.354204778335, 1e-9);
    }

    #[test]
    fn covariances_that_commute_have_a_closed_form() {
        // Of Gaussians along the axes: (m1 - m2)^2 + (s1 - s2)^2 each; one axis has no variance at all.
        let of = |mean: [f64; 3], s: [f64; 3]| {
            let covariance = vec![s[0] * s[0], 0.0, 0.0, 0.0, s[1] * s[1], 0.0, 0.0, 0.0, s[2] * s[2]];
            Moments { mean: mean.to_vec(), covariance }
        };
        let (a, b) = (of([0.0, 1.0, 2.0], [3.0, 0.0, 1.0]), of([1.0, 1.0, 0.0], [1.0, 2.0, 1e-3]));
        close(a.frechet(&b), 1.0 + 4.0 + 4.0 + 4.0 + 0.999_f64.powi(2), 1e-14);
    }

    #[test]
    fn a_set_is_no_distance_from_itself_even_with_few_images() {
        for (n, d) in [(5, 16), (40, 16), (1000, 3)] {
            let a = normal(n, d, 1);
            let distance = frechet(&a, &a);
            assert!(distance.abs() <= 1e-12 * d as f64, "[{n}, {d}]: {distance:e}");
        }
        // Few images, moved: the distance is that of the means.
        let a = normal(5, 16, 1);
        let moved: Vec<f64> = a.rows().flatten().map(|value| value + 0.25).collect();
        close(frechet(&a, &Features::new(&moved, 16).unwrap()), 1.0, 1e-12);
    }

    #[test]
    fn two_sets_drawn_alike_are_the_bias_apart() {
        // One such distance varies by an eighth; numpy's mean of 200 is 1.4 % above at n = 200.
        for n in [200, 1000] {
            let one = |i: u64| frechet(&normal(n, 16, 2 * i), &normal(n, 16, 2 * i + 1));
            close((0..12).map(one).sum::<f64>() / 12.0, 168.0 / n as f64, 0.1);
        }
    }

    #[test]
    fn rotations_keep_the_sum_of_squares_and_find_known_values() {
        // Rows of a rotation, scaled.
        let (c, s) = (0.6, 0.8);
        let mut values = singular_values(vec![5.0 * c, 5.0 * s, -0.1 * s, 0.1 * c], 2);
        values.sort_by(f64::total_cmp);
        close(values[0], 0.1, 1e-13);
        close(values[1], 5.0, 1e-13);
        let rows: Vec<f64> = normal(30, 30, 9).rows().flatten().copied().collect();
        let squares: f64 = rows.iter().map(|v| v * v).sum();
        close(singular_values(rows, 30).iter().map(|v| v * v).sum(), squares, 1e-12);
    }
}
