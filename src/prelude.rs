//! All that a program with a network of its own needs: `use denoir::prelude::*;`.
//!
//! | for | items |
//! |---|---|
//! | devices and errors | [`Device`], [`Error`], [`Result`] |
//! | recording and running | [`Tape`], [`Tensor`], [`Plan`], [`Program`], [`Sharing`] |
//! | networks | [`Scope`], [`Params`], [`Init`], [`Layout`], the layers of [`nn`](crate::nn) and the ops below them |
//! | training | [`Trainer`], [`TrainOptions`], [`Input`], [`Batch`], [`Loss`], [`Outcome`], [`LrSchedule`], [`Ema`] |
//! | diffusion | [`Schedule`], [`Scheduler`], [`Variance`], [`Told`], [`Denoiser`], [`SampleOptions`] |
//! | pictures | [`Loader`], [`Dataset`], [`grid`], [`save_png`] |
//!
//! An op of your own needs [`launch`](crate::launch) too; `tools/examples/own_op.rs` is one.

pub use crate::data::{self, Dataset, Loader};
pub use crate::device::Device;
pub use crate::diffusion::{Schedule, Scheduler, Told, Variance};
pub use crate::error::{Error, Result};
pub use crate::figures::grid;
pub use crate::nn::{
    Conv, Init, Layout, Params, Scope, attention_block, conv, conv_transpose, group_norm, linear,
};
pub use crate::ops::activation::{Activation, activation};
pub use crate::ops::arithmetic::{add, affine, mul};
pub use crate::ops::concat::{concat, split};
pub use crate::ops::gaussian_kl::gaussian_kl;
pub use crate::ops::loss::{bce_with_logits, l1, mse};
pub use crate::ops::matmul::matmul;
pub use crate::ops::noising::gaussian;
pub use crate::ops::reparameterise::{Noise, reparameterise};
pub use crate::ops::resample::upsample_nearest;
pub use crate::ops::timestep_embedding::timestep_embedding;
pub use crate::optim::{Ema, EmaWarmup, LrSchedule};
pub use crate::philox::Stream;
pub use crate::program::{Plan, Program, Sharing};
pub use crate::run::save_png;
pub use crate::sample::{Denoiser, Options as SampleOptions, Sampler};
pub use crate::state::State;
pub use crate::tape::{Gradients, Tape, Tensor};
pub use crate::train::{Batch, BatchWriter, Input, Loss, Outcome, TrainOptions, Trainer};
