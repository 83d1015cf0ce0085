//! The diffusion process: schedules, samplers and reverse steps. The model is a function to it; nothing here
//! knows a network.

mod betas;
mod conditioned;
mod levels;
mod linear_form;
mod loss_weight;
mod plan;
mod prediction;
mod schedule;
mod scheduler;
mod timesteps;
mod variance;

pub use betas::Betas;
pub use conditioned::{in_holes, seen_by_model, within};
pub use levels::NoiseLevel;
pub use linear_form::LinearForm;
pub use loss_weight::{LossWeight, Weighting};
pub use plan::{Clip, SamplerPlan, Step};
pub use prediction::Prediction;
pub use schedule::{Rounding, Schedule};
pub use scheduler::{
    DpmSolver, FinalSigma, Keys, Learned, Method, Process, Scheduler, Sigmas, Spacing, UniPc, names,
};
pub(crate) use scheduler::{LIBRARY_VERSION, pretty};
pub use timesteps::TimestepSampling;
pub(crate) use timesteps::cumulative;
pub use variance::Variance;

use crate::nn::Scope;
use crate::tape::Tensor;

/// What a model is told of each sample beside the image and the timestep.
#[derive(Clone, Copy, Debug, Default)]
pub struct Told<'a> {
    /// Its class, in the form that the model takes.
    pub labels: Option<&'a Tensor>,
    /// Its text, embedded: `[N, S, D]`.
    pub text: Option<&'a Tensor>,
}

impl<'a> From<Option<&'a Tensor>> for Told<'a> {
    fn from(labels: Option<&'a Tensor>) -> Self {
        Told { labels, text: None }
    }
}

/// The model as the diffusion process sees it: a function from `(x_t [N, H, W, C], t [N], what it is told)`
/// to a prediction of `x_t`'s shape, that records itself with the parameters of the scope.
pub type Model = dyn Fn(&Scope, &Tensor, &Tensor, Told) -> Tensor;
