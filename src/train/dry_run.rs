//! Memory and launches of a training step, counted before anything is allocated.

use super::micro_batch;
use super::objective::Objective;
use super::picture_cost::PictureCost;
use super::pictures::STRIPS;
use super::step::{ACCUMULATED, Recorded, record_optimiser};
use super::texts::FROZEN;
use crate::codec::Codec;
use crate::device::Device;
use crate::device::gpu::adapters::Traits;
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
    /// Of weights that are read and not trained, as f32.
    pub frozen_bytes: u64,
    /// As tensors share memory that are never alive together.
    pub activation_bytes_shared: u64,
    /// If each tensor had memory of its own.
    pub activation_bytes_separate: u64,
    /// With sharing, if they had 16 bits; `None` where they have, and on a device that has none.
    pub activation_bytes_halved: Option<u64>,
    /// With sharing, if nothing were made once more.
    pub activation_bytes_kept: u64,
    /// Bytes of the largest tensor that a kernel binds.
    pub largest_binding: u64,
    /// Work of the run's pictures. Where the recipe says passes through the data, its steps are those that
    /// an endless set would have.
    pub pictures: Option<PictureCost>,
}

impl DryRun {
    /// Plans the step of a recipe. Allocates nothing on the device. `codec`: the VAE of latent diffusion.
    ///
    /// # Panics
    /// When the recipe is not valid.
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
        let optimiser = accumulates.then(|| {
            let tape = Tape::new();
            record_optimiser(&tape, &options, &params.borrow(), ACCUMULATED);
            Plan::new(&tape, &[], device)
        });
        let of_optimiser = optimiser.as_ref().map_or(0, |optimiser| optimiser.cost().flops);
        let operations = with.flops * options.accumulation + of_optimiser;
        let pictures = PictureCost::new(recipe, device, 0, STRIPS, operations);
        DryRun {
            parameters: params.borrow().count(),
            launches: plan.launches() * accumulation + optimiser.map_or(0, |optimiser| optimiser.launches()),
            repeated: plan.repeated() * accumulation,
            repeated_percent: [added(with.flops, without.flops), added(with.bytes, without.bytes)],
            parameter_bytes: flat,
            gradient_bytes: flat * if accumulates { 2 } else { 1 },
            optimiser_bytes: 3 * flat,
            frozen_bytes: plan
                .stores()
                .filter(|(name, _)| FROZEN.contains(name))
                .map(|(_, n)| n as u64)
                .sum(),
            activation_bytes_shared: plan.shared_bytes(),
            activation_bytes_separate: plan.separate_bytes(),
            activation_bytes_halved: halved(device)
                .map(|halves| Plan::for_adapter(&tape, &[], halves).shared_bytes()),
            activation_bytes_kept: kept.shared_bytes(),
            largest_binding: plan.largest_binding(),
            pictures: pictures.unwrap_or_else(|e| panic!("DryRun: {e}")),
        }
    }
}

/// What a GPU would be if its tensors had 16 bits; `None` where they have.
fn halved(device: &Device) -> Option<Traits> {
    match device {
        Device::Gpu(gpu) if !gpu.halves => Some(Traits { halves: true, ..gpu.traits() }),
        _ => None,
    }
}
