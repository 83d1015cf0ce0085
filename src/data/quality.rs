//! Quality of reconstructions: PSNR, SSIM, and the number of active units of a latent code.

use rayon::prelude::*;

/// The range of pixels, from -1 to 1.
const PEAK: f64 = 2.0;
/// Most of an image in [`psnr`], in dB: an exact one would make the mean infinite.
const MAX_PSNR: f64 = 100.0;
/// Widest window of [`ssim`] and the deviation of its weights, in pixels.
const WINDOW: usize = 11;
const SIGMA: f64 = 1.5;
/// Variance from which on a unit is active.
const ACTIVE: f64 = 0.01;

/// Peak signal-to-noise ratio in dB: the mean over images of `10 log10(2^2 / MSE of the image)`.
///
/// `a` and `b` are `n` images each, `[N, H, W, C]` in [-1, 1], hence the 2. An image counts 100 dB at most:
/// one that came back exactly would be infinite. NaN in an image makes the result NaN.
///
/// # Panics
/// If `a` and `b` do not hold `n` images of the same size, or there is nothing in them.
#[track_caller]
pub fn psnr(a: &[f32], b: &[f32], n: usize) -> f64 {
    let fits = n > 0 && !a.is_empty() && a.len() == b.len() && a.len().is_multiple_of(n);
    assert!(fits, "psnr: {} and {} values are not {n} images each", a.len(), b.len());
    let size = a.len() / n;
    let one = |(a, b): (&[f32], &[f32])| {
        let squares: f64 = a.iter().zip(b).map(|(&a, &b)| (f64::from(a) - f64::from(b)).powi(2)).sum();
        let db = 10.0 * (PEAK * PEAK * size as f64 / squares).log10();
        if db > MAX_PSNR { MAX_PSNR } else { db } // `min` would turn NaN into the best of all values
    };
    mean(&a.par_chunks_exact(size).zip(b.par_chunks_exact(size)).map(one).collect::<Vec<_>>())
}

/// Structural similarity, 1 for equal images: the mean over images, channels and places of a window of
///
/// ```text
/// (2 mean_a mean_b + (0.01 * 2)^2) (2 cov_ab + (0.03 * 2)^2)
/// ------------------------------------------------------------
/// (mean_a^2 + mean_b^2 + (0.01 * 2)^2) (var_a + var_b + (0.03 * 2)^2)
/// ```
///
/// with Gaussian weights of deviation 1.5 in a window of 11 x 11 pixels that lies within the image (Wang et
/// al. 2004, "Image quality assessment: from error visibility to structural similarity", section III.B and
/// C). Along a side of fewer than 11 pixels the window is as long as the side. `a` and `b` are
/// `[N, H, W, C]` in [-1, 1]. NaN in an image makes the result NaN.
///
/// # Panics
/// If `a` and `b` are not `[n, h, w, c]`, or there is nothing in them.
#[track_caller]
pub fn ssim(a: &[f32], b: &[f32], n: usize, [h, w, c]: [usize; 3]) -> f64 {
    let size = h * w * c;
    let fits = n * size > 0 && a.len() == n * size && b.len() == n * size;
    assert!(fits, "ssim: {} and {} values are not [{n}, {h}, {w}, {c}] each", a.len(), b.len());
    let (down, across) = (gaussian(WINDOW.min(h)), gaussian(WINDOW.min(w)));
    let (c1, c2) = ((0.01 * PEAK).powi(2), (0.03 * PEAK).powi(2));
    let one = |(a, b): (&[f32], &[f32])| {
        let local = |value: &dyn Fn(f64, f64) -> f64| {
            let values: Vec<f64> = a.iter().zip(b).map(|(&a, &b)| value(a.into(), b.into())).collect();
            let rows = slide(&across, &values, w * c, c);
            slide(&down, &rows, rows.len(), rows.len() / h)
        };
        let [ma, mb] = [local(&|a, _| a), local(&|_, b| b)];
        let [aa, bb, ab] = [local(&|a, _| a * a), local(&|_, b| b * b), local(&|a, b| a * b)];
        let at = |i: usize| {
            let [va, vb, cov] = [aa[i] - ma[i] * ma[i], bb[i] - mb[i] * mb[i], ab[i] - ma[i] * mb[i]];
            let (above, below) = (2.0 * ma[i] * mb[i] + c1, ma[i] * ma[i] + mb[i] * mb[i] + c1);
            above * (2.0 * cov + c2) / (below * (va + vb + c2))
        };
        mean(&(0..ma.len()).map(at).collect::<Vec<_>>())
    };
    mean(&a.par_chunks_exact(size).zip(b.par_chunks_exact(size)).map(one).collect::<Vec<_>>())
}

/// The units of a latent code that tell one image from another, and how many there are.
///
/// `means` `[N, units]`, the means of the posteriors `q(z | x)` of `n` images. A unit is active when its
/// variance over the images exceeds 0.01 (Burda et al. 2016, "Importance weighted autoencoders",
/// arXiv:1509.00519, section 5.3). A unit with a NaN is not active.
///
/// # Panics
/// If `n` is 0 or `means` are not `n` rows.
#[track_caller]
pub(crate) fn active_units(means: &[f32], n: usize) -> (usize, usize) {
    assert!(n > 0 && means.len().is_multiple_of(n), "active_units: {} values are not {n} rows", means.len());
    let units = means.len() / n;
    let column = |unit: usize| means[unit..].iter().step_by(units).map(|&v| f64::from(v));
    let variance = |unit: usize| {
        let mean = column(unit).sum::<f64>() / n as f64;
        column(unit).map(|v| (v - mean).powi(2)).sum::<f64>() / n as f64
    };
    ((0..units).filter(|&unit| variance(unit) > ACTIVE).count(), units)
}

fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// The weights of a window of `length` pixels; they add up to 1.
fn gaussian(length: usize) -> Vec<f64> {
    let centre = (length - 1) as f64 / 2.0;
    let weight = |i: usize| (-((i as f64 - centre) / SIGMA).powi(2) / 2.0).exp();
    let all: f64 = (0..length).map(weight).sum();
    (0..length).map(|i| weight(i) / all).collect()
}

/// The weighted sums over a window that slides along each `row` of values, where neighbours are `step`
/// values apart. The window stays within the row.
fn slide(weights: &[f64], values: &[f64], row: usize, step: usize) -> Vec<f64> {
    let kept = row - (weights.len() - 1) * step;
    let mut out = vec![0.0; values.len() / row * kept];
    for (out, row) in out.chunks_exact_mut(kept).zip(values.chunks_exact(row)) {
        for (i, weight) in weights.iter().enumerate() {
            for (out, v) in out.iter_mut().zip(&row[i * step..]) {
                *out += weight * v;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    // The pair of images and the numbers are those of this script (numpy 2.4.6, scikit-image 0.26.0):
    //
    //   import numpy as np
    //   from skimage.metrics import structural_similarity as ssim, peak_signal_noise_ratio as psnr
    //   def pair(n, h, w, c):  # exact in f32
    //       v = np.arange(n * h * w * c).reshape(n, h, w, c)
    //       a = (v * 37 % 97) / 64 - 0.75
    //       return a, 0.75 * a + (v * 53 % 29) / 64 - 0.25
    //   for shape in [(2, 12, 19, 3), (3, 11, 11, 1), (1, 28, 28, 1)]:
    //       pairs = list(zip(*pair(*shape)))
    //       options = dict(gaussian_weights=True, sigma=1.5, use_sample_covariance=False, data_range=2)
    //       print(shape, np.mean([ssim(x, y, channel_axis=-1, **options) for x, y in pairs]),
    //             np.mean([psnr(x, y, data_range=2) for x, y in pairs]))
    const SCIKIT: [([usize; 4], f64, f64); 3] = [
        ([2, 12, 19, 3], 0.304_048_806_024_553_64, 21.249_979_026_119_032),
        ([3, 11, 11, 1], 0.863_830_140_727_587_5, 21.362_772_741_018_233),
        ([1, 28, 28, 1], 0.420_738_207_150_480_27, 21.328_876_199_805_087),
    ];

    fn pair(elements: usize) -> (Vec<f32>, Vec<f32>) {
        let part = |v: usize, factor: usize, modulus: usize| (v * factor % modulus) as f32 / 64.0;
        let a: Vec<f32> = (0..elements).map(|v| part(v, 37, 97) - 0.75).collect();
        let b = a.iter().enumerate().map(|(v, a)| 0.75 * a + part(v, 53, 29) - 0.25).collect();
        (a, b)
    }

    #[test]
    fn the_numbers_are_those_of_scikit_image() {
        for ([n, h, w, c], similarity, db) in SCIKIT {
            let (a, b) = pair(n * h * w * c);
            let (ours, ours_db) = (ssim(&a, &b, n, [h, w, c]), psnr(&a, &b, n));
            assert!((ours - similarity).abs() <= 1e-12, "[{n}, {h}, {w}, {c}]: {ours}, not {similarity}");
            assert!((ours_db - db).abs() <= 1e-12, "[{n}, {h}, {w}, {c}]: {ours_db} dB, not {db}");
        }
    }

    /// SSIM of one image by its definition: every window, both of its axes at once, centred moments.
    fn ssim_plainly(a: &[f32], b: &[f32], [h, w, c]: [usize; 3]) -> f64 {
        let (kh, kw) = (h.min(11), w.min(11));
        let weight = |dy: usize, dx: usize| {
            let [y, x] = [dy as f64 - (kh - 1) as f64 / 2.0, dx as f64 - (kw - 1) as f64 / 2.0];
            (-(y * y + x * x) / (2.0 * 1.5 * 1.5)).exp()
        };
        let window = || (0..kh).flat_map(|dy| (0..kw).map(move |dx| (dy, dx)));
        let all: f64 = window().map(|(dy, dx)| weight(dy, dx)).sum();
        let (mut total, mut count) = (0.0, 0.0);
        for top in 0..=h - kh {
            for left in 0..=w - kw {
                for k in 0..c {
                    let local = |value: &dyn Fn(f64, f64) -> f64| -> f64 {
                        let at = |dy, dx| ((top + dy) * w + left + dx) * c + k;
                        let term = |(dy, dx)| {
                            weight(dy, dx) * value(a[at(dy, dx)].into(), b[at(dy, dx)].into()) / all
                        };
                        window().map(term).sum()
                    };
                    let (ma, mb) = (local(&|a, _| a), local(&|_, b| b));
                    let va = local(&|a, _| (a - ma) * (a - ma));
                    let vb = local(&|_, b| (b - mb) * (b - mb));
                    let cov = local(&|a, b| (a - ma) * (b - mb));
                    total += (2.0 * ma * mb + 0.0004) * (2.0 * cov + 0.0036)
                        / ((ma * ma + mb * mb + 0.0004) * (va + vb + 0.0036));
                    count += 1.0;
                }
            }
        }
        total / count
    }

    #[test]
    fn small_and_narrow_images_have_smaller_windows() {
        for shape in [[1, 1, 1], [1, 1, 3], [5, 7, 3], [4, 13, 2], [12, 1, 1], [10, 11, 1], [13, 12, 3]] {
            let (a, b) = pair(shape.iter().product());
            let (ours, wanted) = (ssim(&a, &b, 1, shape), ssim_plainly(&a, &b, shape));
            assert!((ours - wanted).abs() <= 1e-12, "{shape:?}: {ours}, not {wanted}");
        }
    }

    #[test]
    fn equal_and_constant_images() {
        let (a, b) = pair(2 * 9 * 13);
        assert!((ssim(&a, &a, 2, [9, 13, 1]) - 1.0).abs() <= 1e-12);
        assert_eq!(psnr(&a, &a, 2), 100.0);
        // One exact image does not hide the other one.
        let half = [&a[..117], &b[117..]].concat();
        assert!((psnr(&a, &half, 2) - (100.0 + psnr(&a[117..], &b[117..], 1)) / 2.0).abs() <= 1e-12);
        // An error far below a grey level counts no more than none.
        assert_eq!(psnr(&[0.0, 0.0], &[1e-7, 0.0], 1), 100.0);
        // Black and white: -1 against 1 leaves the variances 0 and only the means, -1 and 1.
        let (black, white) = (vec![-1.0; 144], vec![1.0; 144]);
        assert!((ssim(&black, &white, 1, [12, 12, 1]) - (-2.0 + 0.0004) / (2.0 + 0.0004)).abs() <= 1e-12);
        assert!((ssim(&white, &white, 1, [12, 12, 1]) - 1.0).abs() <= 1e-12);
        assert_eq!(psnr(&black, &white, 1), 0.0);
    }

    #[test]
    fn what_is_not_a_number_is_no_pass() {
        let (a, mut b) = pair(3 * 12 * 12);
        b[200] = f32::NAN;
        assert!(psnr(&a, &b, 3).is_nan() && psnr(&b, &b, 3).is_nan());
        assert!(ssim(&a, &b, 3, [12, 12, 1]).is_nan() && ssim(&b, &b, 3, [12, 12, 1]).is_nan());
        b[200] = f32::INFINITY;
        assert!(ssim(&a, &b, 3, [12, 12, 1]).is_nan() && psnr(&a, &b, 3) == f64::NEG_INFINITY);
        let bad = [0.0, f32::NAN, 1.0, 0.0, 2.0, f32::INFINITY];
        assert_eq!(active_units(&bad, 3), (1, 2));
    }

    #[test]
    fn units_that_vary_are_active() {
        // Variances 0, 0.0025, 0.0625 and 1e4; the last is far from zero and still constant.
        let rows = [[3.0, 0.0, 0.0, -100.0, 1e6], [3.0, 0.1, 0.5, 100.0, 1e6]];
        assert_eq!(active_units(rows.as_flattened(), 2), (2, 5));
        assert_eq!(active_units(&[5.0, -5.0, 1e9], 1), (0, 3), "one image tells nothing");
        assert_eq!(active_units(&[], 4), (0, 0));
    }

    #[test]
    #[should_panic(expected = "ssim: 6 and 6 values are not [1, 2, 2, 1] each")]
    fn wrong_shapes_panic() {
        ssim(&[0.0; 6], &[0.0; 6], 1, [2, 2, 1]);
    }

    #[test]
    #[should_panic(expected = "psnr: 4 and 6 values are not 2 images each")]
    fn unequal_lengths_panic() {
        psnr(&[0.0; 4], &[0.0; 6], 2);
    }
}
