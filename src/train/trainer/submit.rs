//! A step on its way to the device: the batches of this process, the sum of their gradients, the optimiser.

use super::Trainer;
use crate::device::PendingRead;
use crate::error::Result;
use crate::program::Program;
use crate::train::batch::{BatchWriter, Written};
use crate::train::outcome::{Diverged, Pending};
use crate::train::ranks::Shards;
use crate::train::step::{ACCUMULATED, METRICS, Metrics};

/// What came of the batches of a step, or of those of one rank.
#[derive(Default)]
struct Computed {
    numbers: Vec<PendingRead>,
    /// Bytes of the numbers, where other ranks are told them.
    told: Vec<u8>,
    inputs: Vec<Vec<Written>>,
    /// The sum over the shards, where there are several.
    gradient: Option<Vec<f32>>,
}

impl Trainer {
    /// Hands a step to the device; `run` runs the launches of a batch.
    #[track_caller]
    pub(crate) fn submit(
        &mut self,
        mut write: impl FnMut(&mut BatchWriter) -> Result<()>,
        mut run: impl FnMut(&mut Program) -> Result<()>,
    ) -> Result<()> {
        let done = self.done;
        let computed = self.compute(&mut write, &mut run);
        let Computed { mut numbers, inputs, mut gradient, .. } = match &self.ranks {
            None => computed?,
            Some(ranks) => {
                // What came of the batches is known to all before anything is summed.
                let (computed, all) = ranks.agree(computed, |computed| computed.told.clone())?;
                let all = all.concat();
                let batches = all.chunks_exact(self.metrics.elements() * 4);
                let numbers = batches.map(|bytes| PendingRead::Ready(bytes.to_vec())).collect();
                Computed { numbers, ..computed }
            }
        };
        if let (Some(shards), Some(gradient)) = (&self.shards, &mut gradient) {
            shards.sum(gradient, self.ranks.as_deref())?;
            self.device.write(self.batch.store(ACCUMULATED), 0, bytemuck::cast_slice(gradient))?;
        }
        if let Some(optimiser) = &mut self.optimiser {
            optimiser.run()?;
            numbers.push(self.read_numbers()?);
        }
        self.pending.push_back(Pending { done, numbers, inputs });
        self.done += 1;
        Ok(())
    }

    /// The numbers of a step, which follow its launches.
    fn read_numbers(&self) -> Result<PendingRead> {
        self.device.read_later(self.batch.store(METRICS), 0, self.metrics.elements() * 4)
    }

    /// Runs the step's batches, or those of this rank.
    #[track_caller]
    fn compute(
        &mut self,
        write: &mut impl FnMut(&mut BatchWriter) -> Result<()>,
        run: &mut impl FnMut(&mut Program) -> Result<()>,
    ) -> Result<Computed> {
        let done = self.done;
        let mut computed = Computed::default();
        let own = self.shards.as_ref().map_or(0..self.options.accumulation as usize, Shards::own);
        for micro in own {
            let kept = self.is_late().then(Vec::new);
            let slots = &mut self.inputs;
            let first_sample = self.options.state_at(done, micro).first_sample;
            let mut writer =
                BatchWriter { step: done, first_sample, program: &self.batch, inputs: slots, kept };
            write(&mut writer)?;
            computed.inputs.extend(writer.kept);
            if let Some(slot) = self.inputs.iter().find(|slot| slot.used && !slot.written) {
                panic!("step {}: the input {} was never written", done + 1, slot.name);
            }
            self.write_state(done, micro)?;
            run(&mut self.batch)?;
            let metrics = self.read_numbers()?;
            if let PendingRead::Ready(bytes) = &metrics {
                let loss: f32 = bytemuck::pod_read_unaligned(&bytes[Metrics::LOSS * 4..][..4]);
                if !loss.is_finite() {
                    return Err(self.explain(done, &Diverged { micro, loss, norm: None, scale: None }));
                }
            }
            if self.ranks.is_some() {
                let mut bytes = vec![0; self.metrics.elements() * 4];
                self.device.resolve(metrics, &mut bytes)?;
                computed.told.extend(bytes);
            } else {
                computed.numbers.push(metrics);
            }
            if let Some(shards) = self.shards.as_mut().filter(|shards| shards.ends_with(micro)) {
                let sum = self.batch.store(ACCUMULATED);
                let mut gradient = vec![0.0_f32; self.params.borrow().trained()];
                self.device.read(sum, 0, bytemuck::cast_slice_mut(&mut gradient))?;
                self.device.write(sum, 0, bytemuck::cast_slice(&vec![0.0_f32; gradient.len()]))?;
                computed.gradient = shards.add(gradient);
            }
        }
        Ok(computed)
    }
}
