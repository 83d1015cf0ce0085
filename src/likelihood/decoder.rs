//! The likelihood of an image's levels under a VAE's decoder, and the importance-weighted bound. Nats, summed
//! over values.

use super::discretised::{Cdf, log_probability, value_of};
use super::normal::log_mean_exp;

/// The law of a value around the decoder's output, cut into the 256 levels of a byte, whose probabilities add
/// up to 1.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum LevelLaw {
    /// `N(mean, deviation^2)`: of squared errors.
    Gaussian {
        /// In units of the image, which is in [-1, 1].
        deviation: f64,
    },
    /// `exp(-|x - mean| / scale) / (2 scale)`: of absolute errors.
    Laplace {
        /// The mean absolute error.
        scale: f64,
    },
    /// Density `exp(x logit)` over [0, 1], each of whose 256 parts is a level (Loaiza-Ganem & Cunningham
    /// 2019, arXiv:1907.06845): of cross entropies.
    ContinuousBernoulli,
}

impl LevelLaw {
    /// `ln P` of a level where the decoder's image has the value `mean`, in [-1, 1].
    pub fn log_probability(self, level: u8, mean: f64) -> f64 {
        match self {
            LevelLaw::Gaussian { deviation } => log_probability(Cdf::Exact, level, mean, deviation.ln()),
            LevelLaw::Laplace { scale } => laplace(level, mean, scale),
            LevelLaw::ContinuousBernoulli => {
                // An f32 image comes no nearer to certainty than this.
                let p = (0.5 + 0.5 * mean).clamp(3e-8, 1.0 - 3e-8);
                continuous_bernoulli(level, p.ln() - (-p).ln_1p())
            }
        }
    }

    /// The sum over an image: its levels, and the decoder's values in [-1, 1].
    #[track_caller]
    pub fn of_image(self, levels: &[u8], means: &[f32]) -> f64 {
        assert_eq!(levels.len(), means.len(), "levels and means");
        levels.iter().zip(means).map(|(&level, &mean)| self.log_probability(level, f64::from(mean))).sum()
    }
}

/// A level stands for the interval of 1/255 to both sides; the first and the last reach to infinity.
fn laplace(level: u8, mean: f64, scale: f64) -> f64 {
    let (centre, half) = ((value_of(level) - mean) / scale, 1.0 / 255.0 / scale);
    // ln F(z), and by symmetry of what lies above.
    let log_cdf = |z: f64| if z < 0.0 { z - std::f64::consts::LN_2 } else { (-0.5 * (-z).exp()).ln_1p() };
    match level {
        0 => log_cdf(centre + half),
        u8::MAX => log_cdf(half - centre),
        _ => {
            let c = centre.abs();
            if c > half {
                // One side: exp(-c) sinh(half), which may be narrow.
                -c + half - std::f64::consts::LN_2 + (-(-2.0 * half).exp_m1()).ln()
            } else {
                (-0.5 * ((c - half).exp() + (-c - half).exp())).ln_1p()
            }
        }
    }
}

/// `ln` of the integral of `exp(x logit)` over part `level` of 256, of that over [0, 1].
fn continuous_bernoulli(level: u8, logit: f64) -> f64 {
    let (l, place) = (logit.abs(), if logit > 0.0 { 255 - level } else { level });
    // From the likely end on, exp(-l x) falls.
    if l < 1e-9 {
        return -256_f64.ln();
    }
    -l * f64::from(place) / 256.0 + (-(-l / 256.0).exp_m1()).ln() - (-(-l).exp_m1()).ln()
}

/// `ln N(z; 0, 1) - ln N(z; mean, exp(log_variance))` summed over a latent: with `ln p(x | z)` the logarithm
/// of an importance weight.
#[track_caller]
pub fn log_density_ratio(z: &[f32], mean: &[f32], log_variance: &[f32]) -> f64 {
    assert!(z.len() == mean.len() && z.len() == log_variance.len(), "values of a latent");
    let of = |((&z, &mean), &log_variance): ((&f32, &f32), &f32)| {
        let [z, mean, log_variance] = [z, mean, log_variance].map(f64::from);
        0.5 * ((z - mean).powi(2) * (-log_variance).exp() + log_variance - z * z)
    };
    z.iter().zip(mean).zip(log_variance).map(of).sum()
}

/// The importance-weighted bound on `ln p(x)` of an image from the log weights of k draws of z,
/// `ln mean_k p(x | z_k) p(z_k) / q(z_k | x)` (Burda et al. 2016, arXiv:1509.00519, equation 8). With one
/// draw it is the ELBO, and more draws never lower its expectation.
pub fn importance_bound(log_weights: &[f64]) -> f64 {
    log_mean_exp(log_weights)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::likelihood::{close, gaussian_kl};
    use crate::philox::{Stream, fill_normal};

    #[test]
    fn probabilities_of_the_levels_add_up_to_one() {
        let laws = [
            LevelLaw::Gaussian { deviation: 0.07 },
            LevelLaw::Laplace { scale: 0.11 },
            LevelLaw::Laplace { scale: 1e-3 },
            LevelLaw::ContinuousBernoulli,
        ];
        for law in laws {
            for mean in [-1.0, -0.73, 0.0, 1e-12, 0.2, 0.9999] {
                let sum: f64 = (0..=255).map(|level| law.log_probability(level, mean).exp()).sum();
                close(sum, 1.0, 1e-10);
            }
        }
    }

    /// Against densities at the middle of narrow levels.
    #[test]
    fn narrow_levels_are_densities_times_widths() {
        let scale = 0.8;
        let wanted = (-(value_of(200) - 0.1) / scale).exp() / (2.0 * scale) * (2.0 / 255.0);
        close(laplace(200, 0.1, scale), wanted.ln(), 1e-5);
        // p = .8: ln C = ln(2 atanh(1 - 2p) / (1 - 2p)) = .837459883744.
        let (p, x) = (0.8_f64, 100.5 / 256.0);
        let density = x * p.ln() + (1.0 - x) * (1.0 - p).ln() + 0.837459883744;
        close(continuous_bernoulli(100, 4_f64.ln()), density - 256_f64.ln(), 1e-6);
        close(continuous_bernoulli(255 - 100, -4_f64.ln()), density - 256_f64.ln(), 1e-6);
        assert!((continuous_bernoulli(0, 800.0) - (-800.0 * 255.0 / 256.0)).abs() < 0.1);
        assert!(continuous_bernoulli(255, 800.0) < 0.0);
    }

    /// z ~ N(0, 1), x | z ~ N(w z, s2): all laws are known, so that with the exact posterior every weight is
    /// p(x), and with another the bound rises to it from below.
    #[test]
    fn the_importance_weighted_bound_of_a_linear_model() {
        let density = |x: f64, mean: f64, variance: f64| {
            -0.5 * ((x - mean).powi(2) / variance + (std::f64::consts::TAU * variance).ln())
        };
        let (w, s2, x) = (0.8, 0.3, 1.1);
        let exact = density(x, 0.0, w * w + s2);
        let (mean, variance) = (w * x / (w * w + s2), s2 / (w * w + s2));
        let weight = |z: f64, mean: f64, log_variance: f64| {
            density(x, w * z, s2) + log_density_ratio(&[z as f32], &[mean as f32], &[log_variance as f32])
        };
        for z in [-2.0, 0.3, 1.9] {
            assert!((weight(z, mean, variance.ln()) - exact).abs() < 1e-6);
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
        let kl = gaussian_kl(off, log_wide, mean, variance.ln());
        assert!((one - (exact - kl)).abs() < 0.02, "{one}: the ELBO is {}", exact - kl);
        assert!(one < ten && ten < exact && (all - exact).abs() < 0.01, "{one} {ten} {all}, exactly {exact}");
    }
}
