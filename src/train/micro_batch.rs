//! Smaller batches for GPUs that cannot bind the tensors of a whole one.

use super::objective::Objective;
use crate::device::Device;
use crate::program::Plan;

/// Makes the objective's batch as small as `device` needs to bind its tensors, and accumulates the gradients
/// of as many more. Returns the number of batches that one of the recipe becomes.
///
/// Random numbers depend on a sample's number in the whole batch, so a step is the same but for the rounding
/// of the gradients' sums; and for timesteps that are drawn by losses, of which later batches know more.
pub(super) fn split(objective: &mut Objective, device: &Device) -> usize {
    if matches!(device, Device::Cpu(_)) {
        return 1;
    }
    let (whole, accumulation) = (objective.recipe.batch_size, objective.recipe.accumulation);
    let parts = (1..=whole).filter(|parts| whole.is_multiple_of(*parts));
    Plan::of_batch(device, parts.map(|parts| whole / parts), |batch| {
        objective.recipe.batch_size = batch;
        objective.recipe.accumulation = accumulation * (whole / batch) as u64;
        // What is computed again binds what was bound before.
        (Plan::keeping_all(&objective.recorded().1.tape, &[], device), ())
    });
    whole / objective.recipe.batch_size
}
