//! Noise levels, and the predictions of a model at one.

use super::Prediction;
use crate::diffusion::linear_form::LinearForm;
use crate::diffusion::schedule::Rounding;

/// A noise level at unit variance: `x = alpha x0 + sigma eps` with `alpha^2 + sigma^2 = 1`.
#[derive(Clone, Copy, Debug)]
pub(super) struct Level {
    pub alpha: f64,
    pub sigma: f64,
}

impl Level {
    pub(super) fn of_bar(alpha_bar: f64, precision: Rounding) -> Self {
        let keep = |value: f64| precision.keep(value);
        Level { alpha: keep(alpha_bar.sqrt()), sigma: keep(keep(1.0 - alpha_bar).sqrt()) }
    }

    /// From the noise beside an unscaled picture.
    pub(super) fn of_sigma(sigma: f64) -> Self {
        let alpha = 1.0 / (sigma * sigma + 1.0).sqrt();
        Level { alpha, sigma: sigma * alpha }
    }

    pub(super) fn alpha_bar(self) -> f64 {
        self.alpha * self.alpha
    }

    /// Half the logarithm of the signal-to-noise ratio.
    pub(super) fn lambda(self) -> f64 {
        self.alpha.ln() - self.sigma.ln()
    }
}

impl Prediction {
    /// Coefficients of `x` and of the model's output in the predicted clean sample.
    pub(super) fn x0(self, at: Level) -> [f64; 2] {
        match self {
            Prediction::Epsilon => [1.0 / at.alpha, -at.sigma / at.alpha],
            Prediction::Sample => [0.0, 1.0],
            Prediction::V => [at.alpha, -at.sigma],
            // Not by the level alone. A plan that comes here is refused.
            Prediction::Mean => [f64::NAN; 2],
        }
    }

    /// The predicted noise, of the prediction before it is clipped.
    pub(super) fn eps(self, at: Level) -> LinearForm {
        match self {
            Prediction::Epsilon => LinearForm::OUT,
            Prediction::Sample => (LinearForm::X - at.alpha * LinearForm::OUT) / at.sigma,
            Prediction::V => at.alpha * LinearForm::OUT + at.sigma * LinearForm::X,
            Prediction::Mean => f64::NAN * LinearForm::OUT,
        }
    }
}
