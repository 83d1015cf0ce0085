//! Learning rates and the moving average of the weights.

use serde::{Deserialize, Serialize};

/// Shape of the learning rate over the steps, after a linear warm-up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LrSchedule {
    /// Stays at its height.
    Constant,
    /// Falls to zero at the last step along half a cosine.
    Cosine,
}

impl LrSchedule {
    /// The factor on the learning rate of step `step` (0 is the first) of `steps`, the first `warmup` of
    /// which rise linearly from zero. The reference library's `get_scheduler`.
    pub fn factor(self, step: u64, warmup: u64, steps: u64) -> f64 {
        if step < warmup {
            return step as f64 / warmup.max(1) as f64;
        }
        match self {
            LrSchedule::Constant => 1.0,
            LrSchedule::Cosine => {
                let progress = (step - warmup) as f64 / steps.saturating_sub(warmup).max(1) as f64;
                (0.5 * (1.0 + (std::f64::consts::PI * progress).cos())).max(0.0)
            }
        }
    }
}

/// Decay of the exponential moving average of the weights: the reference library's `EMAModel`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Ema {
    /// The most that it rises to.
    pub decay: f64,
    /// `1 - (1 + step / inv_gamma)^-power` instead of `(1 + step) / (10 + step)`.
    pub warmup: Option<EmaWarmup>,
}

/// How the decay rises.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct EmaWarmup {
    /// Steps in which it rises at first.
    pub inv_gamma: f64,
    /// Of the rise; 2/3 and 3/4 are usual for long trainings.
    pub power: f64,
}

impl Ema {
    /// The decay at optimisation step `step`, counted from 1. The first step copies the weights.
    pub fn decay_at(&self, step: u64) -> f64 {
        let done = step.saturating_sub(1) as f64;
        if done <= 0.0 {
            return 0.0;
        }
        let rising = match self.warmup {
            Some(EmaWarmup { inv_gamma, power }) => 1.0 - (1.0 + done / inv_gamma).powf(-power),
            None => (1.0 + done) / (10.0 + done),
        };
        rising.clamp(0.0, self.decay)
    }
}
