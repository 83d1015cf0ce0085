//! Smaller batches: for shards, and for GPUs that cannot bind the tensors of a whole one.

use super::objective::Objective;
use crate::device::Device;
use crate::program::Plan;

/// Makes the objective's batch a shard, or as small as `device` needs to bind its tensors, and accumulates
/// the gradients of as many more. Returns the number of batches that one of the recipe becomes.
///
/// Random numbers depend on a sample's number in the whole batch, so a step is the same but for the rounding
/// of the gradients' sums; and for timesteps that are drawn by losses, of which later batches know more.
pub(super) fn split(objective: &mut Objective, device: &Device) -> usize {
    let (whole, accumulation) = (objective.recipe.batch_size, objective.recipe.accumulation);
    let shards = objective.recipe.shards;
    let cut = |objective: &mut Objective, parts: usize| {
        objective.recipe.batch_size = whole / parts;
        objective.recipe.accumulation = accumulation * parts as u64;
    };
    cut(objective, shards);
    if matches!(device, Device::Gpu(_)) {
        let parts = (shards..=whole).step_by(shards).filter(|parts| whole.is_multiple_of(*parts));
        Plan::of_batch(device, parts, |parts| {
            cut(objective, parts);
            // What is computed again binds what was bound before.
            (Plan::keeping_all(&objective.recorded().1.tape, &[], device), ())
        });
    }
    whole / objective.recipe.batch_size
}
