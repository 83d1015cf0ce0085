//! The kinds of noise schedules, by name.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The betas of the forward process. In a recipe: their name, or a list.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "Value", into = "Value")]
pub enum Betas {
    /// From start to end in equal steps (Ho et al. 2020).
    Linear,
    /// Their square roots in equal steps (Rombach et al. 2022).
    ScaledLinear,
    /// alpha-bar as a squared cosine, beta at most 0.999 (Nichol & Dhariwal 2021, equation 17).
    Cosine,
    /// alpha-bar as `exp(-12 t / T)`.
    Exponential,
    /// alpha-bar of a Laplace distribution of log-SNR (Hang et al. 2024, arXiv:2407.03297).
    Laplace,
    /// From start to end along a sigmoid over [-6, 6] (GeoDiff).
    Sigmoid,
    /// alpha-bar along a sigmoid over [-3, 3] (Chen 2023, arXiv:2301.10972), beta at most 0.999.
    SigmoidChen,
    /// alpha-bar of the variance preserving equation, `exp(-0.1 u - 9.95 u^2)` at `u = t / T` (Song et al.
    /// 2021, arXiv:2011.13456): of continuous betas from 0.1 to 20.
    Vp,
    /// `sigma = sqrt((1 - alpha_bar) / alpha_bar)` from 0.002 to 80, their seventh roots in equal steps
    /// (Karras et al. 2022, arXiv:2206.00364, equation 5).
    Edm,
    /// A list.
    Given(Vec<f64>),
}

/// The names of the schedules: those in the diffusers library, then those that it lacks.
const BETAS: [(&str, Betas); 9] = [
    ("linear", Betas::Linear),
    ("scaled_linear", Betas::ScaledLinear),
    ("squaredcos_cap_v2", Betas::Cosine),
    ("sigmoid", Betas::Sigmoid),
    ("laplace", Betas::Laplace),
    ("exp", Betas::Exponential),
    ("sigmoid_chen", Betas::SigmoidChen),
    ("vp", Betas::Vp),
    ("edm", Betas::Edm),
];

impl Betas {
    /// The schedule of this name.
    pub fn named(name: &str) -> Option<Betas> {
        BETAS.into_iter().find(|(known, _)| *known == name).map(|(_, betas)| betas)
    }

    /// The name; a list has none.
    pub fn name(&self) -> Option<&'static str> {
        BETAS.into_iter().find(|(_, betas)| betas == self).map(|(name, _)| name)
    }

    /// Whether the diffusers library has it.
    pub(crate) fn is_of_library(&self) -> bool {
        !matches!(self, Betas::SigmoidChen | Betas::Vp | Betas::Edm)
    }

    /// All names.
    pub fn names() -> [&'static str; BETAS.len()] {
        BETAS.map(|(name, _)| name)
    }
}

impl From<Betas> for Value {
    fn from(betas: Betas) -> Value {
        match betas {
            Betas::Given(betas) => betas.into(),
            named => named.name().into(),
        }
    }
}

impl TryFrom<Value> for Betas {
    type Error = String;

    fn try_from(written: Value) -> Result<Self, String> {
        let Some(name) = written.as_str() else {
            return serde_json::from_value(written).map(Betas::Given).map_err(|e| e.to_string());
        };
        Betas::named(name)
            .ok_or_else(|| format!("no schedule called {name:?}: choose {}", Betas::names().join(", ")))
    }
}
