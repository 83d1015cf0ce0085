//! The variance of a reverse step.

use serde::{Deserialize, Serialize};

/// Variance of the reverse step; Ho et al. found both to work alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variance {
    /// The posterior's, beta-tilde: the lower bound.
    FixedSmall,
    /// beta: the upper bound.
    FixedLarge,
    /// Between the two, by their logarithms, as half of the model's output channels say from -1 to 1 (Nichol
    /// & Dhariwal 2021, arXiv:2102.09672, equation 15).
    LearnedRange,
    /// Its logarithm is half of the model's output channels.
    Learned,
}

impl Variance {
    /// Whether half of the model's output channels are of the variance.
    pub fn is_learned(self) -> bool {
        matches!(self, Variance::LearnedRange | Variance::Learned)
    }

    /// What makes the logarithm of the variance, `c + h v`, of a value `v` of the model: `[c, h]`. `range`:
    /// the lower and the upper bound.
    pub(crate) fn of_output(self, range: [f64; 2]) -> Option<[f64; 2]> {
        let [low, high] = range.map(f64::ln);
        match self {
            Variance::LearnedRange => Some([0.5 * (low + high), 0.5 * (high - low)]),
            Variance::Learned => Some([0.0, 1.0]),
            Variance::FixedSmall | Variance::FixedLarge => None,
        }
    }
}
