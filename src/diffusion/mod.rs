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
pub use schedule::{Precision, Schedule};
pub use scheduler::{
    DpmSolver, FinalSigma, Keys, Learned, Method, Process, Scheduler, Sigmas, Spacing, UniPc, names,
};
pub(crate) use scheduler::{LIBRARY_VERSION, pretty};
pub use timesteps::TimestepSampling;
pub(crate) use timesteps::cumulative;
pub use variance::Variance;

use crate::nn::Scope;
use crate::tape::Tensor;

/// The model as the diffusion process sees it: a function from `(x_t [N, H, W, C], t [N], labels)` to a
/// prediction of `x_t`'s shape, that records itself with the parameters of the scope.
pub type Model = dyn Fn(&Scope, &Tensor, &Tensor, Option<&Tensor>) -> Tensor;
