//! What stands at each timestep of a schedule, in f64 and without the cancellation of `1 - alpha_bar`.

use super::prediction::Prediction;
use super::schedule::{Schedule, Variance};

/// One timestep t of the forward process.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct NoiseLevel {
    /// Variance that the timestep adds.
    pub beta: f64,
    /// `ln(alpha_bar)`; minus infinity where nothing is left of the sample.
    pub log_bar: f64,
    /// That of the timestep before; 0 at the first.
    pub log_bar_before: f64,
    /// The posterior's variance, beta-tilde; that of timestep 0, where it is 0, is timestep 1's, as in the
    /// bound of Nichol & Dhariwal 2021 and of Ho et al. 2020.
    pub posterior_variance: f64,
}

impl NoiseLevel {
    /// `alpha_bar`.
    pub fn signal(&self) -> f64 {
        self.log_bar.exp()
    }

    /// `1 - alpha_bar`.
    pub fn noise(&self) -> f64 {
        -self.log_bar.exp_m1()
    }

    /// `alpha_bar / (1 - alpha_bar)`.
    pub fn snr(&self) -> f64 {
        self.signal() / self.noise()
    }

    /// `ln(alpha_bar / (1 - alpha_bar))`.
    pub fn log_snr(&self) -> f64 {
        self.log_bar - self.noise().ln()
    }

    /// Coefficients of x_0 and x_t in the mean of the posterior `q(x_{t-1} | x_t, x_0)` (Ho et al. 2020,
    /// equation 7).
    pub fn posterior_mean(&self) -> [f64; 2] {
        let noise = self.noise();
        let of_x0 = (0.5 * self.log_bar_before).exp() * self.beta / noise;
        [of_x0, (1.0 - self.beta).sqrt() * -self.log_bar_before.exp_m1() / noise]
    }

    /// Variance of the reverse step in the bound.
    pub fn variance(&self, variance: Variance) -> f64 {
        let first = self.log_bar_before == 0.0;
        match variance {
            Variance::FixedLarge if !first => self.beta,
            _ => self.posterior_variance,
        }
    }
}

impl NoiseLevel {
    /// What a term of the bound of a learned variance is made of: the factor from what is predicted (less
    /// what was to be) to the step's mean, the logarithm of the posterior's variance, and `[c, h]` of
    /// [`Variance`].
    pub fn bound(&self, prediction: Prediction, variance: Variance) -> Option<[f64; 4]> {
        let [of_x0, _] = self.posterior_mean();
        let factor = match prediction {
            // Of x_0, the error of the noise or of v has the other sign.
            Prediction::Epsilon => -of_x0 * (self.noise() / self.signal()).sqrt(),
            Prediction::Sample => of_x0,
            Prediction::V => -of_x0 * self.noise().sqrt(),
            Prediction::Mean => 1.0,
        };
        let [middle, half] = variance.of_output([self.posterior_variance, self.beta])?;
        Some([factor, self.posterior_variance.ln(), middle, half])
    }
}

impl Schedule {
    /// The levels of all timesteps, `[T]`.
    pub fn levels(&self) -> Vec<NoiseLevel> {
        let sum = |so_far: &mut f64, beta: &f64| {
            let before = *so_far;
            *so_far += (-beta).ln_1p();
            Some((*beta, *so_far, before))
        };
        let levels = self.betas.iter().scan(0.0, sum).map(|(beta, log_bar, log_bar_before)| {
            let posterior_variance = beta * log_bar_before.exp_m1() / log_bar.exp_m1();
            NoiseLevel { beta, log_bar, log_bar_before, posterior_variance }
        });
        let mut levels: Vec<NoiseLevel> = levels.collect();
        let second = levels.get(1).map(|level| level.posterior_variance);
        if let Some(first) = levels.first_mut() {
            first.posterior_variance = second.unwrap_or(first.beta);
        }
        levels
    }

    /// `[T, 4]`: `sqrt(alpha_bar)` and `sqrt(1 - alpha_bar)`, and the coefficients of x_0 and of the noise in
    /// what is to be predicted, for the noising kernel.
    pub(crate) fn noising_table(&self, prediction: Prediction) -> Vec<f32> {
        let row = |(a, level): (&f64, NoiseLevel)| {
            let [of_x0, of_eps] = prediction.target(&level);
            [a.sqrt(), (1.0 - a).sqrt(), of_x0, of_eps].map(|c| c as f32)
        };
        self.alpha_bars.iter().zip(self.levels()).flat_map(row).collect()
    }
}

impl Prediction {
    /// Coefficients of x_0 and of the noise in what the model is to predict.
    pub fn target(self, at: &NoiseLevel) -> [f64; 2] {
        let (a, b) = (at.signal().sqrt(), at.noise().sqrt());
        match self {
            Prediction::Epsilon => [0.0, 1.0],
            Prediction::Sample => [1.0, 0.0],
            Prediction::V => [-b, a],
            Prediction::Mean => {
                let [of_x0, of_xt] = at.posterior_mean();
                [of_x0 + of_xt * a, of_xt * b]
            }
        }
    }

    /// Coefficients of x_t and of what the model predicts in x_0.
    pub fn clean(self, at: &NoiseLevel) -> [f64; 2] {
        let (a, b) = (at.signal().sqrt(), at.noise().sqrt());
        match self {
            Prediction::Epsilon => [1.0 / a, -b / a],
            Prediction::Sample => [0.0, 1.0],
            Prediction::V => [a, -b],
            Prediction::Mean => {
                let [of_x0, of_xt] = at.posterior_mean();
                [-of_xt / of_x0, 1.0 / of_x0]
            }
        }
    }

    /// The target's squared error where that of x_0 is 1.
    pub fn error_of_x0(self, at: &NoiseLevel) -> f64 {
        match self {
            Prediction::Epsilon => at.snr(),
            Prediction::Sample => 1.0,
            Prediction::V => 1.0 / at.noise(),
            Prediction::Mean => at.posterior_mean()[0].powi(2),
        }
    }
}
