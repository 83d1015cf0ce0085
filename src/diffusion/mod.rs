//! The diffusion process: schedules and reverse steps. The model is a function to it; nothing here knows a
//! network.

mod schedule;

pub use schedule::{Schedule, Variance};

use crate::nn::Scope;
use crate::tape::Tensor;

/// The model as the diffusion process sees it: a function from `(x_t [N, H, W, C], t [N], labels)` to a
/// prediction of `x_t`'s shape, that records itself with the parameters of the scope.
pub type Model = dyn Fn(&Scope, &Tensor, &Tensor, Option<&Tensor>) -> Tensor;
