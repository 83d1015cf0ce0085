//! What a model of the diffusion process predicts.

use serde::{Deserialize, Serialize};

/// Meaning of the model's output.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Prediction {
    /// The noise.
    #[default]
    Epsilon,
    /// The clean sample.
    Sample,
    /// `sqrt(alpha_bar) eps - sqrt(1 - alpha_bar) x0` (Salimans & Ho 2022, arXiv:2202.00512).
    #[serde(rename = "v_prediction")]
    V,
    /// The mean of the posterior `q(x_{t-1} | x_t, x_0)` (Ho et al. 2020, equation 7).
    Mean,
}
