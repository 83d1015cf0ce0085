//! Log-likelihoods of a VAE's decoder, and the importance-weighted bound. Nats, summed over values.

use std::f64::consts::{LN_2, TAU};

/// `ln N(x; mean, variance)` summed over the values of an image, [-1, 1] or any other scale.
///
/// A loss of summed squares plus KL is this with variance 1/2, but for the constant `D/2 ln(pi)`.
#[track_caller]
pub fn gaussian<F: Copy + Into<f64>>(x: &[F], mean: &[F], variance: f64) -> f64 {
    -0.5 * (squares(x, mean) / variance + x.len() as f64 * (TAU * variance).ln())
}

/// [`gaussian`] with the variance that suits `x` best, its mean squared error (Rybkin et al. 2021,
/// arXiv:2006.13202, "sigma-VAE"), and that variance. Take it over all images of a set, not over one, for a
/// likelihood; an exact reconstruction has no bound.
#[track_caller]
pub fn sigma_vae<F: Copy + Into<f64>>(x: &[F], mean: &[F]) -> [f64; 2] {
    let variance = squares(x, mean) / x.len() as f64;
    [gaussian(x, mean, variance), variance]
}

/// `ln p(x)` of `x` in [0, 1] under `p = sigmoid(logit)`. A likelihood only where each x is 0 or 1; grey
/// values need [`continuous_bernoulli`].
#[track_caller]
pub fn bernoulli<F: Copy + Into<f64>>(x: &[F], logits: &[F]) -> f64 {
    let of = |x: f64, l: f64| x * l - l.max(0.0) - (-l.abs()).exp().ln_1p();
    pairs(x, logits).map(|(x, l)| of(x, l)).sum()
}

/// `ln p(x)` of grey values in [0, 1]: [`bernoulli`] and the normaliser that it lacks there (Loaiza-Ganem &
/// Cunningham 2019, arXiv:1907.06845).
#[track_caller]
pub fn continuous_bernoulli<F: Copy + Into<f64>>(x: &[F], logits: &[F]) -> f64 {
    let normalisers: f64 = logits.iter().map(|&l| continuous_bernoulli_normaliser(l.into())).sum();
    bernoulli(x, logits) + normalisers
}

/// `ln C` of `p = sigmoid(logit)`: `C = 2 atanh(1 - 2p) / (1 - 2p)`, 2 at p = 1/2.
pub fn continuous_bernoulli_normaliser(logit: f64) -> f64 {
    // atanh(1 - 2p) = -logit / 2 and 1 - 2p = -tanh(logit / 2).
    let half = 0.5 * logit;
    let ratio = if half == 0.0 { 1.0 } else { half / half.tanh() };
    LN_2 + ratio.ln()
}

/// `ln N(z; 0, 1) - ln N(z; mean, exp(log_variance))` summed over a latent: with `ln p(x | z)` the logarithm
/// of an importance weight.
#[track_caller]
pub fn log_density_ratio<F: Copy + Into<f64>>(z: &[F], mean: &[F], log_variance: &[F]) -> f64 {
    assert_eq!(z.len(), log_variance.len(), "values of z and of its log variance");
    let of = |((z, mean), &log_variance): ((f64, f64), &F)| {
        let log_variance = log_variance.into();
        0.5 * ((z - mean).powi(2) * (-log_variance).exp() + log_variance - z * z)
    };
    pairs(z, mean).zip(log_variance).map(of).sum()
}

/// The importance-weighted bound on `ln p(x)` of an image from the log weights of k draws of z,
/// `ln mean_k p(x | z_k) p(z_k) / q(z_k | x)` (Burda et al. 2016, arXiv:1509.00519, equation 8). With one
/// draw it is the ELBO, and more draws never lower its expectation.
pub fn importance_bound(log_weights: &[f64]) -> f64 {
    log_mean_exp(log_weights)
}

/// `ln(mean(exp(values)))` without overflow; NaN of none.
pub fn log_mean_exp(values: &[f64]) -> f64 {
    let most = values.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    if most.is_infinite() && !values.is_empty() && !values.iter().any(|v| v.is_nan()) {
        return most; // all are -infinity, or one is +infinity: their differences are not numbers
    }
    most + (values.iter().map(|v| (v - most).exp()).sum::<f64>() / values.len() as f64).ln()
}

#[track_caller]
fn pairs<F: Copy + Into<f64>>(a: &[F], b: &[F]) -> impl Iterator<Item = (f64, f64)> {
    assert_eq!(a.len(), b.len(), "values of the two sides of a likelihood");
    a.iter().zip(b).map(|(&a, &b)| (a.into(), b.into()))
}

#[track_caller]
fn squares<F: Copy + Into<f64>>(a: &[F], b: &[F]) -> f64 {
    pairs(a, b).map(|(a, b)| (a - b).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::likelihood::close;
    use crate::philox::{Stream, fill_normal};

    #[test]
    fn golden_values_of_bernoulli() {
        let logit = 4f64.ln(); // p = .8
        close(-bernoulli(&[0.3], &[logit]), 1.193549604098, 1e-9);
        close(continuous_bernoulli_normaliser(logit), 0.837459883744, 1e-9);
        close(continuous_bernoulli_normaliser(-logit), 0.837459883744, 1e-9);
        // Near p = 1/2: ln 2 + (4/3) (p - 1/2)^2, and p - 1/2 is about logit / 4.
        close(continuous_bernoulli_normaliser(1e-4), LN_2 + 1e-8 / 12.0, 1e-15);
        assert_eq!(continuous_bernoulli_normaliser(0.0), LN_2);
        // Far out no exponential overflows.
        assert_eq!(bernoulli(&[1.0, 0.0], &[800.0, -800.0]), 0.0);
        assert_eq!(bernoulli(&[0.0], &[800.0]), -800.0);
    }

    #[test]
    fn densities_integrate_to_one() {
        for logit in [0.0, 0.01, -0.03, 1.5, -6.0, 30.0] {
            let n = 40_000;
            let at = |i: i32| continuous_bernoulli(&[(f64::from(i) + 0.5) / f64::from(n)], &[logit]).exp();
            close((0..n).map(at).sum::<f64>() / f64::from(n), 1.0, 1e-6);
        }
    }

    #[test]
    fn gaussians() {
        // By hand: errors .5 and -1, variance 1/2: 1.25 + ln(pi).
        close(gaussian(&[1.0, 0.0], &[0.5, 1.0], 0.5), -1.25 - std::f64::consts::PI.ln(), 1e-12);
        let [best, variance] = sigma_vae(&[1.0_f32, 0.0], &[0.5, 1.0]);
        assert_eq!(variance, 0.625);
        for other in [0.6, 0.65] {
            assert!(gaussian(&[1.0, 0.0], &[0.5, 1.0], other) < best);
        }
    }

    /// z ~ N(0, 1), x | z ~ N(w z, s2): all laws are known, so that with the exact posterior every weight is
    /// p(x), and with another the bound rises to it from below.
    #[test]
    fn the_importance_weighted_bound_of_a_linear_model() {
        let (w, s2, x) = (0.8, 0.3, 1.1);
        let exact = gaussian(&[x], &[0.0], w * w + s2);
        let (mean, variance) = (w * x / (w * w + s2), s2 / (w * w + s2));
        let weight = |z: f64, mean: f64, log_variance: f64| {
            gaussian(&[x], &[w * z], s2) + log_density_ratio(&[z], &[mean], &[log_variance])
        };
        for z in [-2.0, 0.3, 1.9] {
            close(weight(z, mean, variance.ln()), exact, 1e-12);
        }
        let (off, log_wide) = (mean - 0.3, (1.7 * variance).ln());
        let mut noise = vec![0.0; 40_000];
        fill_normal(&mut noise, 3, Stream::Posterior as u32, 0, 0, 0);
        let weights: Vec<f64> = noise
            .iter()
            .map(|&e| weight(off + (0.5 * log_wide).exp() * f64::from(e), off, log_wide))
            .collect();
        let bound = |k: usize| {
            let each = weights.chunks_exact(k).map(importance_bound);
            each.sum::<f64>() / (weights.len() / k) as f64
        };
        let (one, ten, all) = (bound(1), bound(10), bound(weights.len()));
        let kl = crate::likelihood::gaussian_kl(off, log_wide, mean, variance.ln());
        assert!((one - (exact - kl)).abs() < 0.02, "{one}: the ELBO is {}", exact - kl);
        assert!(one < ten && ten < exact && (all - exact).abs() < 0.01, "{one} {ten} {all}, exactly {exact}");
    }

    #[test]
    fn means_of_exponentials() {
        close(log_mean_exp(&[-1000.0, -1000.0 + LN_2]), -1000.0 + 1.5_f64.ln(), 1e-12);
        assert_eq!(log_mean_exp(&[f64::NEG_INFINITY; 2]), f64::NEG_INFINITY);
        assert_eq!(log_mean_exp(&[f64::INFINITY, 0.0]), f64::INFINITY);
        assert!(log_mean_exp(&[f64::NAN, 1.0]).is_nan() && log_mean_exp(&[]).is_nan());
        assert!(log_mean_exp(&[f64::NAN, f64::INFINITY]).is_nan());
    }
}
