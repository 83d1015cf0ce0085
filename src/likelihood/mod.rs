//! How likely images are under a model: the variational bound of diffusion models, in f64 on the host.
//!
//! All likelihoods are in nats and, where it says so, bits per dimension: nats / (ln 2 * number of values).
//! The model is a set of numbers to this module; nothing here runs a network.

mod bound;
mod decoder;
mod discretised;
mod flow;
#[cfg(test)]
mod gaussian;
mod normal;
mod process;
mod tally;

pub use bound::{Bound, Decoder, Term};
pub use decoder::{LevelLaw, importance_bound, log_density_ratio};
pub use discretised::{Cdf, log_probability, value_of};
pub use flow::{Flow, Place, follow, log_density};
#[cfg(test)]
use gaussian::GaussianData;
pub use process::{Posterior, Process, ReverseVariance};
pub use tally::{Estimate, Tally, rate_distortion};

/// `KL(N(mean1, exp(log_variance1)) || N(mean2, exp(log_variance2)))` in nats.
pub fn gaussian_kl(mean1: f64, log_variance1: f64, mean2: f64, log_variance2: f64) -> f64 {
    // exp_m1: the terms cancel where the two laws are nearly one.
    let ratio = log_variance1 - log_variance2;
    0.5 * (ratio.exp_m1() - ratio + (mean1 - mean2).powi(2) * (-log_variance2).exp())
}

#[cfg(test)]
#[track_caller]
fn close(got: f64, wanted: f64, tolerance: f64) {
    assert!((got - wanted).abs() <= tolerance * wanted.abs(), "{got:.15e}, not {wanted:.15e}");
}

#[cfg(test)]
mod bound_tests;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kl_of_two_gaussians() {
        close(gaussian_kl(0.1, -2.0, -0.2, -1.5), 0.254941338022, 1e-9);
        close(gaussian_kl(0.3, 0.25_f64.ln(), 0.0, 0.0), 0.363147180560, 1e-9);
        assert_eq!(gaussian_kl(0.3, -1.0, 0.3, -1.0), 0.0);
        // Nearly equal variances: d^2 / 4.
        close(gaussian_kl(0.0, 1e-6, 0.0, 0.0), 0.25e-12, 1e-5);
    }
}
