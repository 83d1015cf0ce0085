//! Data whose every value is drawn from one Gaussian: the best model of it is known in closed form, for every
//! timestep and whatever it predicts. It takes the place of a network in tests of samplers and likelihoods.

use std::f64::consts::{E, TAU};

use super::Process;
use super::normal::log_density;
use crate::diffusion::Prediction;

/// `x_0 ~ N(mean, variance)`, independent values.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct GaussianData {
    /// Mean of a value.
    pub mean: f64,
    /// Variance of a value.
    pub variance: f64,
}

impl GaussianData {
    /// Variance of `x_t`.
    pub fn variance_at(&self, process: &Process, t: usize) -> f64 {
        process.alpha_bar(t) * self.variance + process.noise(t)
    }

    /// The best prediction of a model that sees `x_t`.
    pub fn predict(&self, process: &Process, prediction: Prediction, t: usize, x_t: f64) -> f64 {
        let (alpha_bar, noise) = (process.alpha_bar(t), process.noise(t));
        let (signal, deviation) = (alpha_bar.sqrt(), noise.sqrt());
        let scaled = (x_t - signal * self.mean) / self.variance_at(process, t);
        match prediction {
            Prediction::Epsilon => deviation * scaled,
            Prediction::Sample => self.mean + signal * self.variance * scaled,
            Prediction::V => signal * deviation * (1.0 - self.variance) * scaled - deviation * self.mean,
            Prediction::Mean => {
                let posterior = process.posterior(t);
                let x0 = self.mean + signal * self.variance * scaled;
                posterior.of_x0 * x0 + posterior.of_xt * x_t
            }
        }
    }

    /// The mean squared error of [`predict`](Self::predict): no model's is lower.
    pub fn least_error(&self, process: &Process, prediction: Prediction, t: usize) -> f64 {
        let of_v = self.variance / self.variance_at(process, t);
        match prediction {
            Prediction::Epsilon => process.alpha_bar(t) * of_v,
            Prediction::Sample => process.noise(t) * of_v,
            Prediction::V => of_v,
            Prediction::Mean => process.posterior(t).of_x0.powi(2) * process.noise(t) * of_v,
        }
    }

    /// Logarithm of the variance of the exact reverse step `p(x_{t-1} | x_t)`, which makes the bound tight.
    pub fn log_variance(&self, process: &Process, t: usize) -> f64 {
        let before = if t == 0 { self.variance } else { self.variance_at(process, t - 1) };
        (before * process.beta(t) / self.variance_at(process, t)).ln()
    }

    /// The same as an output of a model for a learned range.
    pub fn range_output(&self, process: &Process, t: usize) -> f64 {
        if t == 0 {
            let (small, large) = (process.posterior(0).log_variance, process.beta(0).ln());
            return 2.0 * (self.log_variance(process, 0) - small) / (large - small) - 1.0;
        }
        // At large t the ends are nearly one: their ratios, less 1, without a difference.
        let gain = process.alpha_bar_before(t) * process.beta(t) / process.noise_before(t);
        let ours = self.variance * gain / self.variance_at(process, t);
        2.0 * ours.ln_1p() / gain.ln_1p() - 1.0
    }

    /// Entropy of a value, nats: the mean of `-ln p`, below which no model's bound falls.
    pub fn entropy(&self) -> f64 {
        0.5 * (TAU * E * self.variance).ln()
    }

    /// `ln p(x_0)` as the probability flow gives it from the last timestep on: the end `z` of its exact
    /// solution, and the logarithm of the density, which is that of N(0, 1) at z and the change of volume.
    pub fn by_flow(&self, process: &Process, x0: f64) -> [f64; 2] {
        let last = process.steps() - 1;
        let growth = (self.variance_at(process, last) / self.variance).sqrt();
        let z = process.alpha_bar(last).sqrt() * self.mean + (x0 - self.mean) * growth;
        [z, log_density(z) + growth.ln()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::likelihood::close;
    use crate::likelihood::process::tests::{cosine, linear, scaled_linear};

    const DATA: GaussianData = GaussianData { mean: 0.1, variance: 0.25 };

    // Golden values computed in numpy, f64.
    #[test]
    fn floors_and_best_variances() {
        let process = linear(1000);
        #[rustfmt::skip]
        let rows = [
            (1, 0.99912094822, 2.19762945086e-4, 0.999340711165, 1.19876810313e-4, 0.999087478258),
            (10, 0.991283646102, 0.00217908847445, 0.993462734577, 2.98932899908e-4, 0.987831795874),
            (100, 0.680935995372, 0.0797660011571, 0.760701996529, 0.00208303304278, 0.524680874546),
            (500, 0.0206542906886, 0.244836427328, 0.265490718016, 0.0100536254189, -0.468851296034),
            (999, 1.00898798212e-5, 0.24999747753, 0.25000756741, 0.019999987645, -0.499984710568),
        ];
        for (t, noise, x0, v, variance, output) in rows {
            close(DATA.least_error(&process, Prediction::Epsilon, t), noise, 1e-9);
            close(DATA.least_error(&process, Prediction::Sample, t), x0, 1e-9);
            close(DATA.least_error(&process, Prediction::V, t), v, 1e-9);
            close(DATA.log_variance(&process, t).exp(), variance, 1e-9);
            close(DATA.range_output(&process, t), output, 1e-9);
        }
        let outputs = [-2.89689689505, 0.087453739878, -0.325921467688, -0.470009198148];
        for (t, wanted) in outputs.into_iter().enumerate() {
            close(DATA.range_output(&cosine(4), t), wanted, 1e-9);
        }
    }

    #[test]
    fn losses_of_a_perfect_model() {
        let mean = |process: &Process, of: &dyn Fn(usize) -> f64| {
            (0..process.steps()).map(of).sum::<f64>() / process.steps() as f64
        };
        let plain =
            |process: &Process, prediction| mean(process, &|t| DATA.least_error(process, prediction, t));
        close(plain(&linear(1000), Prediction::Epsilon), 0.173053406084, 1e-9);
        close(plain(&cosine(1000), Prediction::Epsilon), 0.327653427278, 1e-9);
        close(plain(&scaled_linear(1000), Prediction::Epsilon), 0.217637563689, 1e-9);
        close(plain(&linear(1000), Prediction::Sample), 0.206736648479, 1e-9);
        close(plain(&linear(1000), Prediction::V), 0.379790054563, 1e-9);
        // P2 (k = gamma = 1) on the noise; min-SNR-5 on each target.
        let process = linear(1000);
        let weighted = |prediction, weight: &dyn Fn(f64) -> f64| {
            mean(&process, &|t| weight(process.snr(t)) * DATA.least_error(&process, prediction, t))
        };
        close(weighted(Prediction::Epsilon, &|snr| 1.0 / (1.0 + snr)), 0.034153275771, 1e-9);
        close(weighted(Prediction::Epsilon, &|snr| snr.min(5.0) / snr), 0.0969408763965, 1e-9);
        close(weighted(Prediction::Sample, &|snr| snr.min(5.0)), 0.0969408763965, 1e-9);
        close(weighted(Prediction::V, &|snr| snr.min(5.0) / (snr + 1.0)), 0.0969408763965, 1e-9);
    }

    #[test]
    fn the_three_predictions_are_of_one_model() {
        let process = cosine(10);
        for t in 0..10 {
            let (signal, noise) = (process.alpha_bar(t).sqrt(), process.noise(t).sqrt());
            let of = |prediction| DATA.predict(&process, prediction, t, 0.7);
            let (e, x0, v) = (of(Prediction::Epsilon), of(Prediction::Sample), of(Prediction::V));
            close(signal * x0 + noise * e, 0.7, 1e-12);
            assert!((v - (signal * e - noise * x0)).abs() <= 1e-12);
        }
    }

    #[test]
    fn the_flow_ends_where_its_equation_does() {
        let [z, log_p] = DATA.by_flow(&linear(1000), -0.3);
        close(z, -0.79935261061, 1e-9);
        close(log_p, -0.54528878528, 1e-9);
        close(-log_p / std::f64::consts::LN_2 + 127.5_f64.log2(), 7.78103886323, 1e-9);
        close(DATA.entropy(), 0.725791352645, 1e-9);
    }
}
