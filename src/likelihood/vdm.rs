//! The bound of variational diffusion models (Kingma et al. 2021, arXiv:2107.00630): continuous time.
//!
//! `gamma(t) = -ln SNR` rises along t in [0, 1]; `alpha^2 = sigmoid(-gamma)`, `sigma^2 = sigmoid(gamma)`.
//! Data is `2 (k + 1/2) / 256 - 1`. In continuous time the bound depends on the ends of gamma alone; what
//! lies between changes the variance of its estimate.

use super::gaussian_kl;

/// A straight `gamma` from its value at t = 0 to that at t = 1: -13.3 and 5 in the published CIFAR run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Vdm {
    /// gamma at t = 0.
    pub least: f64,
    /// gamma at t = 1.
    pub most: f64,
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

impl Vdm {
    /// gamma at time `t`.
    pub fn gamma(&self, t: f64) -> f64 {
        self.least + (self.most - self.least) * t
    }

    /// `[alpha, sigma]` at time `t`: factors of the data and of the noise in `z_t`.
    pub fn factors(&self, t: f64) -> [f64; 2] {
        let gamma = self.gamma(t);
        [sigmoid(-gamma).sqrt(), sigmoid(gamma).sqrt()]
    }

    /// The value of a level.
    pub fn value_of(level: u8) -> f64 {
        (f64::from(level) + 0.5) / 128.0 - 1.0
    }

    /// The latent term of a value, nats: `KL(q(z_1 | x) || N(0, 1))`.
    pub fn latent(&self, x: f64) -> f64 {
        gaussian_kl(sigmoid(-self.most).sqrt() * x, sigmoid(self.most).ln(), 0.0, 0.0)
    }

    /// What the squared error of the noise is multiplied with, nats, in continuous time: `gamma' / 2` at a
    /// uniform t.
    pub fn weight(&self) -> f64 {
        0.5 * (self.most - self.least)
    }

    /// The same for `steps` timesteps, at a uniform one of `t = 1/T, 2/T .. 1`:
    /// `T/2 (exp(gamma(t) - gamma(t - 1/T)) - 1)`, never less.
    pub fn step_weight(&self, steps: usize) -> f64 {
        0.5 * steps as f64 * ((self.most - self.least) / steps as f64).exp_m1()
    }

    /// `-ln p(x | z_0)` of a level, nats: among the 256 levels, by their squared distances from
    /// `z_0 / alpha`.
    pub fn reconstruction(&self, level: u8, z0: f64) -> f64 {
        let (x, per) = (z0 / sigmoid(-self.least).sqrt(), 0.5 * (-self.least).exp());
        let logit = |level: u8| -per * (x - Vdm::value_of(level)).powi(2);
        let logits: Vec<f64> = (0..=255).map(logit).collect();
        let most = logits.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        most + logits.iter().map(|l| (l - most).exp()).sum::<f64>().ln() - logit(level)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::likelihood::bound_tests::over_noise;
    use crate::likelihood::close;
    use std::f64::consts::LN_2;

    const VDM: Vdm = Vdm { least: -13.3, most: 5.0 };

    /// Least squared error of the noise for x ~ N(.1, .25).
    fn floor(t: f64) -> f64 {
        let [a2, s2] = VDM.factors(t).map(|f| f * f);
        a2 * 0.25 / (a2 * 0.25 + s2)
    }

    #[test]
    fn diffusion_loss_of_a_gaussian() {
        // Simpson's rule over t.
        let n = 20_000;
        let weight = |i: usize| {
            if i == 0 || i == n {
                1.0
            } else if i % 2 == 1 {
                4.0
            } else {
                2.0
            }
        };
        let integral = (0..=n).map(|i| weight(i) * floor(i as f64 / n as f64)).sum::<f64>() / (3 * n) as f64;
        let continuous = VDM.weight() * integral;
        close(continuous, 5.95601463362, 1e-9);
        close(continuous / LN_2, 8.59271277538, 1e-9);
        // It depends on the ends of the signal-to-noise ratio alone.
        let [first, last] = [-VDM.least, -VDM.most].map(|log_snr| (0.25 * log_snr.exp()).ln_1p());
        close(continuous, 0.5 * (first - last), 1e-9);
        for (steps, wanted) in [(10, 22.6900792581), (100, 9.35687332824), (1000, 8.66516802116)] {
            let mean = (1..=steps).map(|i| floor(i as f64 / steps as f64)).sum::<f64>() / steps as f64;
            close(VDM.step_weight(steps) * mean / LN_2, wanted, 1e-9);
        }
    }

    #[test]
    fn latent_term_of_a_gaussian() {
        // Quadratic in x: two points have the mean of the law.
        close((VDM.latent(0.1 - 0.5) + VDM.latent(0.1 + 0.5)) / 2.0, 8.81319402574e-4, 1e-9);
    }

    #[test]
    fn reconstruction_of_levels() {
        let [alpha, sigma] = VDM.factors(0.0);
        close(sigma * 128.0, 0.1656, 1e-3);
        for (level, wanted) in [(0, 0.005226594015), (100, 0.01045318803), (255, 0.005226594015)] {
            let z = |e: f64| alpha * Vdm::value_of(level) + sigma * e;
            close(over_noise(|e| VDM.reconstruction(level, z(e))) / LN_2, wanted, 1e-9);
        }
    }
}
