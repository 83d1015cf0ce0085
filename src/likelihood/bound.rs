//! The variational bound of a diffusion model on one image: `L_T + sum_t L_t + L_0`.
//!
//! | term | is |
//! |---|---|
//! | `L_T` | `KL(q(x_T given x_0), N(0, 1))` |
//! | `L_t`, t >= 1 | `KL(q(x_{t-1} given x_t, x_0), N(mean, variance))` of the model's reverse step |
//! | `L_0` | `-ln p(x_0 given x_1)`, of grey levels or of a density |
//!
//! Ho et al. 2020, equation 5. An expectation over `x_t`: every call sees one draw of the noise.

use super::discretised::{log_probability, value_of};
use super::normal::log_density;
use super::{Cdf, Posterior, Process, ReverseVariance, gaussian_kl};
use crate::diffusion::Prediction;

/// What stands at the end of the chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoder {
    /// The probability of one of 256 levels: images.
    Levels(Cdf),
    /// The density of a Gaussian: latents, and data that is no grid. Comparable only with densities of the
    /// same data.
    Density,
}

/// A model's part of the bound at one timestep, means over the values of an image.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Term {
    /// `L_t` or `L_0`, nats per value.
    pub nats: f64,
    /// Squared error of the predicted x_0 (after clipping). Times [`Process::snr`] it is that of the noise.
    pub x0_error: f64,
}

/// How a model's outputs become its bound.
#[derive(Clone, Debug)]
pub struct Bound {
    /// The forward process.
    pub process: Process,
    /// What the model predicts.
    pub prediction: Prediction,
    /// Whether the predicted x_0 is kept within [-1, 1]: right for images, wrong for latents.
    pub clip: bool,
    /// The end of the chain.
    pub decoder: Decoder,
}

impl Bound {
    /// The x_0 that a model's `output` stands for, clipped if asked.
    pub fn x0(&self, t: usize, x_t: f64, output: f64) -> f64 {
        self.at(t).x0(x_t, output)
    }

    /// `L_t`, at t = 0 `L_0`, of one value, in nats.
    ///
    /// # Panics
    /// At t = 0 with [`Decoder::Levels`] if `x0` is not a level.
    pub fn nats(&self, t: usize, x0: f64, x_t: f64, output: f64, variance: ReverseVariance) -> f64 {
        let step = self.at(t);
        step.nats(x0, x_t, step.x0(x_t, output), variance)
    }

    /// The term of timestep `t` for one image: `x0`, `x_t` and the model's `output` for it, any shape but the
    /// same; `variance` of value i, which a model that learns it puts in its last channels.
    ///
    /// # Panics
    /// If the lengths differ or are 0; if the model predicts noise and there is nothing else in `x_t`; at
    /// t = 0 with [`Decoder::Levels`] if `x0` holds anything but levels.
    #[track_caller]
    pub fn term<F: Copy + Into<f64>>(
        &self,
        t: usize,
        x0: &[F],
        x_t: &[F],
        output: &[F],
        variance: impl Fn(usize) -> ReverseVariance,
    ) -> Term {
        let fits = !x0.is_empty() && x0.len() == x_t.len() && x0.len() == output.len();
        assert!(fits, "x0, x_t and the output have {}, {} and {} values", x0.len(), x_t.len(), output.len());
        let blind = self.prediction == Prediction::Epsilon && self.process.alpha_bar(t) == 0.0;
        assert!(!blind, "the noise says nothing of x_0 at timestep {t}, where nothing else is left");
        let (step, n) = (self.at(t), x0.len() as f64);
        let mut sum = Term::default();
        for (i, ((&x0, &x_t), &output)) in x0.iter().zip(x_t).zip(output).enumerate() {
            let (x0, x_t) = (x0.into(), x_t.into());
            let predicted = step.x0(x_t, output.into());
            sum.nats += step.nats(x0, x_t, predicted, variance(i));
            sum.x0_error += (predicted - x0).powi(2);
        }
        Term { nats: sum.nats / n, x0_error: sum.x0_error / n }
    }

    /// `L_T` of an image, nats per value. Far from 0 it says that the schedule does not end in noise.
    #[track_caller]
    pub fn prior<F: Copy + Into<f64>>(&self, x0: &[F]) -> f64 {
        assert!(!x0.is_empty(), "an image without values");
        let last = self.process.steps() - 1;
        let (signal, log_noise) = (self.process.alpha_bar(last).sqrt(), self.process.noise(last).ln());
        let of = |&x0: &F| gaussian_kl(signal * x0.into(), log_noise, 0.0, 0.0);
        x0.iter().map(of).sum::<f64>() / x0.len() as f64
    }

    /// What of a timestep is the same for all values.
    fn at(&self, t: usize) -> At<'_> {
        let (signal, noise) = (self.process.alpha_bar(t).sqrt(), self.process.noise(t).sqrt());
        At { bound: self, t, signal, noise, posterior: self.process.posterior(t) }
    }
}

struct At<'a> {
    bound: &'a Bound,
    t: usize,
    /// Factors of x_0 and of the noise in `x_t`.
    signal: f64,
    noise: f64,
    posterior: Posterior,
}

impl At<'_> {
    fn x0(&self, x_t: f64, output: f64) -> f64 {
        let x0 = match self.bound.prediction {
            Prediction::Epsilon => (x_t - self.noise * output) / self.signal,
            Prediction::Sample => output,
            Prediction::V => self.signal * x_t - self.noise * output,
            Prediction::Mean => (output - self.posterior.of_xt * x_t) / self.posterior.of_x0,
        };
        if self.bound.clip { x0.clamp(-1.0, 1.0) } else { x0 }
    }

    fn nats(&self, x0: f64, x_t: f64, predicted: f64, variance: ReverseVariance) -> f64 {
        let mean = |x0: f64| self.posterior.of_x0 * x0 + self.posterior.of_xt * x_t;
        let of_model = self.posterior.of_model(variance);
        if self.t > 0 {
            return gaussian_kl(mean(x0), self.posterior.log_variance, mean(predicted), of_model);
        }
        match self.bound.decoder {
            Decoder::Levels(cdf) => {
                let level = ((x0 + 1.0) * 127.5).round() as u8;
                assert!((value_of(level) - x0).abs() <= 1e-5, "{x0} is not one of the 256 levels of a pixel");
                -log_probability(cdf, level, mean(predicted), 0.5 * of_model)
            }
            Decoder::Density => {
                0.5 * of_model - log_density((x0 - mean(predicted)) * (-0.5 * of_model).exp())
            }
        }
    }
}
