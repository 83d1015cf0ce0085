//! What made a step's numbers not finite.

use super::Trainer;
use crate::device::Precision;
use crate::error::Error;
use crate::ops::loss_scale::scaler_at;
use crate::train::outcome::Diverged;
use crate::train::step::{LOSS_SCALE, first_bad};

impl Trainer {
    /// Names the first tensor of the batch that went bad. (The optimiser changed no weight if the norm of the
    /// gradient was not finite, so the weights are those that the batch met.)
    pub(super) fn explain(&self, done: u64, &Diverged { loss, norm, scale, .. }: &Diverged) -> Error {
        // Later steps have changed the scale.
        let place = self.params.borrow().find(LOSS_SCALE).map(|spec| spec.first * 4);
        if let Some((scale, place)) = scale.zip(place) {
            let written = self.device.write(&self.buffers[0], place, bytemuck::bytes_of(&scaler_at(scale)));
            debug_assert!(written.is_ok(), "{written:?}");
        }
        let found = first_bad(&*self.record, &self.params, &self.options, &self.batch);
        let culprit = match found {
            Ok(Some(name)) => format!("the first bad tensor is the result of {name}"),
            Ok(None) => "no single tensor is to blame".to_owned(),
            Err(_) => "there is too little memory to find the tensor".to_owned(),
        };
        let what = match norm {
            Some(norm) if loss.is_finite() => format!("the gradient's norm became {norm}"),
            _ => format!("the loss became {loss}"),
        };
        let precision = match self.device.precision() {
            Precision::F16 | Precision::Bf16 => ", or with --precision f32",
            Precision::F32 => "",
        };
        Error::new(format!("step {}: {what}; {culprit}", done + 1)).hint(format!(
            "resume from the last checkpoint, or train again, with a lower lr or with clip_norm{precision}"
        ))
    }
}
