//! Memory and launches of a training step, counted before anything is allocated.

use super::micro_batch;
use super::objective::Objective;
use super::step::{ACCUMULATED, Recorded, record_optimiser};
use crate::codec::Codec;
use crate::device::Device;
use crate::program::Plan;
use crate::recipe::Recipe;
use crate::tape::Tape;

/// The plan of a step, for `--dry-run`.
#[derive(Clone, Debug)]
pub struct DryRun {
    /// Trainable numbers.
    pub parameters: usize,
    /// Of a step, all its batches included.
    pub launches: usize,
    /// Of these, those of the backward pass that make once more what was not kept.
    pub repeated: usize,
    /// Operations and bytes moved that they add to a step, in percent.
    pub repeated_percent: [f64; 2],
    /// Of one copy of the weights.
    pub parameter_bytes: u64,
    /// Of one set of gradients, or of two where they are accumulated.
    pub gradient_bytes: u64,
    /// Adam's two moments and the EMA copy.
    pub optimiser_bytes: u64,
    /// As tensors share memory that are never alive together.
    pub activation_bytes_shared: u64,
    /// If each tensor had memory of its own.
    pub activation_bytes_separate: u64,
    /// With sharing, if nothing were made once more.
    pub activation_bytes_kept: u64,
    /// Bytes of the largest tensor that a kernel binds.
    pub largest_binding: u64,
}

impl DryRun {
    /// Plans the step of a recipe. Allocates nothing on the device. `codec`: the VAE of latent diffusion.
    pub fn new(recipe: &Recipe, device: &Device, codec: Option<&Codec>) -> DryRun {
        let mut objective = Objective::new(recipe, codec);
        micro_batch::split(&mut objective, device);
        let (options, Recorded { tape, .. }) = objective.recorded();
        let (accumulation, accumulates) = (options.accumulation as usize, options.accumulation > 1);
        let params = &objective.params;
        let plan = Plan::new(&tape, &[], device);
        let kept = Plan::keeping_all(&tape, &[], device);
        let added = |with: u64, without: u64| (with as f64 / without.max(1) as f64 - 1.0).max(0.0) * 100.0;
        let (with, without) = (plan.cost(), kept.cost());
        let flat = params.borrow().elements() as u64 * 4;
        let optimiser_launches = if accumulates {
            let tape = Tape::new();
            record_optimiser(&tape, &options, params.borrow().elements(), ACCUMULATED);
            Plan::new(&tape, &[], device).launches()
        } else {
            0
        };
        DryRun {
            parameters: params.borrow().count(),
            launches: plan.launches() * accumulation + optimiser_launches,
            repeated: plan.repeated() * accumulation,
            repeated_percent: [added(with.flops, without.flops), added(with.bytes, without.bytes)],
            parameter_bytes: flat,
            gradient_bytes: flat * if accumulates { 2 } else { 1 },
            optimiser_bytes: 3 * flat,
            activation_bytes_shared: plan.shared_bytes(),
            activation_bytes_separate: plan.separate_bytes(),
            activation_bytes_kept: kept.shared_bytes(),
            largest_binding: plan.largest_binding(),
        }
    }
}
