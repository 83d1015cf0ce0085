//! The probability of a grey level under a Gaussian: the decoder of Ho et al. 2020, equation 13.
//!
//! A pixel is one of 256 levels `x = 2k / 255 - 1`, and level k stands for the interval from `x - 1/255` to
//! `x + 1/255`; the first and the last reach to infinity, so that the 256 probabilities add up to 1.

use super::normal::{log_between, log_cdf};

/// Half the distance between levels.
const HALF: f64 = 1.0 / 255.0;

/// How the normal distribution function is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Cdf {
    /// By the error function: right everywhere.
    #[default]
    Exact,
    /// By tanh, off by up to 1.8e-4, and no probability below 1e-12: as OpenAI's guided-diffusion, for
    /// comparison with published numbers.
    Tanh,
}

/// The value of a level, in [-1, 1].
pub fn value_of(level: u8) -> f64 {
    f64::from(level) / 127.5 - 1.0
}

/// `ln P` of a level under `N(mean, exp(log_scale)^2)`, in nats.
pub fn log_probability(cdf: Cdf, level: u8, mean: f64, log_scale: f64) -> f64 {
    let (centre, per) = (value_of(level) - mean, (-log_scale).exp());
    match cdf {
        Cdf::Exact => match level {
            0 => log_cdf(per * (centre + HALF)),
            u8::MAX => log_cdf(-per * (centre - HALF)),
            _ => log_between(per * centre, per * HALF),
        },
        Cdf::Tanh => {
            let [above, below] = [centre + HALF, centre - HALF].map(|z| tanh_cdf(per * z));
            let probability = match level {
                0 => above,
                u8::MAX => 1.0 - below,
                _ => above - below,
            };
            // `max` would turn NaN into a number.
            if probability < 1e-12 { 1e-12_f64.ln() } else { probability.ln() }
        }
    }
}

/// Page's approximation of the normal distribution function, as OpenAI writes it.
fn tanh_cdf(z: f64) -> f64 {
    0.5 * (1.0 + (std::f64::consts::FRAC_2_PI.sqrt() * (z + 0.044715 * z * z * z)).tanh())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::likelihood::close;

    // k, mean, log scale, exact, by tanh: numpy in f64.
    const GOLDEN: [(u8, f64, f64, f64, f64); 9] = [
        (0, -0.9, -std::f64::consts::LN_10, -1.78182707718, -1.78096872211),
        (0, -0.99, -4.5, -1.2305447587, -1.2303957513),
        (127, -0.2, -3.0, -10.507377589, -10.8793815374),
        (128, 0.0, -3.0, -2.77118420053, -2.77120440616),
        (128, 0.0, -6.0, -0.694703771426, -0.694485228328),
        (128, 0.5, -4.0, -365.23277356, -27.6310211159),
        (200, 0.5, -2.0, -3.89573004226, -3.89625728285),
        (255, 0.9, -2.0, -1.43181861083, -1.43147729937),
        (255, 1.01, -5.0, -0.0195982403507, -0.019521594965),
    ];

    #[test]
    fn golden_values() {
        for (level, mean, log_scale, exact, tanh) in GOLDEN {
            close(log_probability(Cdf::Exact, level, mean, log_scale), exact, 1e-9);
            close(log_probability(Cdf::Tanh, level, mean, log_scale), tanh, 1e-9);
        }
    }

    #[test]
    fn probabilities_add_up_to_one() {
        for (mean, log_scale) in [(0.1, -1.0), (-0.98, -5.0), (3.0, -2.5), (0.004, -9.0), (0.3, 2.0)] {
            let sum: f64 = (0..=255).map(|k| log_probability(Cdf::Exact, k, mean, log_scale).exp()).sum();
            close(sum, 1.0, 1e-12);
        }
    }

    #[test]
    fn far_and_narrow_levels_keep_finite_logarithms() {
        let far = log_probability(Cdf::Exact, 0, 1.0, -9.0);
        close(
            far,
            -0.5 * ((2.0 - HALF) * 9f64.exp()).powi(2) - ((2.0 - HALF) * 9f64.exp()).ln() - 0.9189385,
            1e-8,
        );
        assert!(log_probability(Cdf::Exact, 9, f64::NAN, 0.0).is_nan());
        assert!(log_probability(Cdf::Tanh, 9, f64::NAN, 0.0).is_nan());
    }
}
