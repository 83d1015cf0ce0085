//! The numbers of a step, which a GPU sends while it runs the next ones; and how training ended.

use std::fmt;

use super::batch::Written;
use super::options::TrainOptions;
use super::step::Metrics;
use crate::device::{Device, PendingRead};
use crate::error::Result;

/// The numbers of one step.
#[derive(Clone, Debug, PartialEq)]
pub struct Outcome {
    /// Its number, from 1.
    pub step: u64,
    /// Of the step's batches, averaged.
    pub loss: f32,
    /// Numbers that the objective reports with [`Loss::with`](super::Loss::with).
    pub parts: Vec<(&'static str, f32)>,
    /// Losses of the step's samples, in their order, if the objective reports them
    /// ([`Loss::with_samples`](super::Loss::with_samples)).
    pub samples: Vec<f32>,
    /// The times of these samples, in [0, 1).
    pub times: Vec<f32>,
    /// Of the gradient, before it is clipped; infinite where the step was skipped (see
    /// [`TrainOptions::loss_scaling`]).
    pub grad_norm: f32,
    /// The step's learning rate.
    pub lr: f64,
    /// Milliseconds on the GPU's own clock, of the last batch; `None` where the device has none.
    pub device_ms: Option<f64>,
}

impl Outcome {
    /// The number that the objective reported under this name.
    pub fn part(&self, name: &str) -> Option<f32> {
        self.parts.iter().find(|(known, _)| *known == name).map(|(_, number)| *number)
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "step {}: loss {:.4}", self.step, self.loss)?;
        self.parts.iter().try_for_each(|(name, number)| write!(f, ", {name} {number:.4}"))?;
        write!(f, ", gradient {:.3}, lr {:.1e}", self.grad_norm, self.lr)
    }
}

/// A batch whose loss, or gradient if that has been read, is not finite.
pub(super) struct Diverged {
    pub micro: usize,
    pub loss: f32,
    pub norm: Option<f32>,
    /// The scale of the loss, where it is scaled.
    pub scale: Option<f32>,
}

/// Below this scale of the loss, some thirty skipped steps in a row after the first one, a gradient that is
/// not finite is the model's own.
const LEAST_SCALE: f32 = 1e-4;

/// A submitted step.
pub(super) struct Pending {
    /// Steps before it.
    pub done: u64,
    /// Its metrics after each batch, and after an optimiser that is apart.
    pub numbers: Vec<PendingRead>,
    /// Inputs of its batches, as long as a GPU may still have to run them again.
    pub inputs: Vec<Vec<Written>>,
}

impl Pending {
    /// Waits for the numbers.
    pub fn read(
        &mut self,
        device: &Device,
        layout: &Metrics,
        options: &TrainOptions,
    ) -> Result<std::result::Result<Outcome, Diverged>> {
        let accumulation = options.accumulation as usize;
        let mut metrics = vec![0.0_f32; layout.elements()];
        let mut sums = vec![0.0_f64; metrics.len()];
        let (mut samples, mut times, mut time) = (Vec::new(), Vec::new(), None);
        for (micro, read) in self.numbers.drain(..).enumerate() {
            let took = device.resolve(read, bytemuck::cast_slice_mut(&mut metrics))?;
            // The last numbers are of the optimiser alone, where that is apart.
            if micro < accumulation {
                time = took;
                samples.extend_from_slice(&metrics[layout.each()..][..layout.samples]);
                times.extend_from_slice(&metrics[layout.times()..]);
                sums.iter_mut().zip(&metrics).for_each(|(sum, m)| *sum += f64::from(*m));
                let loss = metrics[Metrics::LOSS];
                if !loss.is_finite() {
                    let scale = layout.loss_scale().map(|place| metrics[place]);
                    return Ok(Err(Diverged { micro, loss, norm: None, scale }));
                }
            }
        }
        let mean = |place: usize| (sums[place] / accumulation as f64) as f32;
        let (loss, grad_norm) = (mean(Metrics::LOSS), metrics[Metrics::NORM]);
        let scale = layout.loss_scale().map(mean);
        let skipped = !grad_norm.is_finite() && scale.is_some_and(|scale| scale > LEAST_SCALE);
        if !loss.is_finite() || !(grad_norm.is_finite() || skipped) {
            let norm = Some(grad_norm);
            return Ok(Err(Diverged { micro: accumulation - 1, loss, norm, scale }));
        }
        let parts = layout.parts.iter().enumerate();
        Ok(Ok(Outcome {
            step: self.done + 1,
            loss,
            parts: parts.map(|(i, name)| (*name, mean(Metrics::part(i)))).collect(),
            samples,
            times,
            grad_norm: if skipped { f32::INFINITY } else { grad_norm },
            lr: options.lr_at(self.done),
            device_ms: time.map(|time| time.as_secs_f64() * 1e3),
        }))
    }
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All steps are done.
    Done,
    /// After this many steps, on the user's wish; all is saved.
    Interrupted(u64),
}
