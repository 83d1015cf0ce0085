//! The trainer: a compiled step over an objective, its weights and moments on the device.

mod explain;
mod submit;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;

use super::batch::{Batch, BatchWriter, Loss, Slot};
use super::codes::STATISTICS;
use super::options::TrainOptions;
use super::outcome::{Outcome, Pending};
use super::overflow::check_overflow;
use super::ranks::{Ranks, Shards};
use super::step::{ACCUMULATED, METRICS, Metrics, Record, STATE, STORES, record_batch, record_optimiser};
use crate::checkpoint::{self, Values};
use crate::device::{Buffer, Device, Precision};
use crate::diffusion::Model;
use crate::error::Result;
use crate::nn::{Params, Scope};
use crate::program::{Plan, Program, Sharing};
use crate::sample::Denoiser;
use crate::state::State;
use crate::tape::Tape;

/// Steps that a GPU may be ahead of the newest numbers that were read.
const STEPS_IN_FLIGHT: usize = 2;

/// A model in training: any objective that an [`nn::Scope`](Scope) can record, with Adam, clipping, a
/// learning rate that changes, accumulated batches, a moving average of the weights, and checkpoints.
///
/// ```
/// use denoir::prelude::*;
/// # fn main() -> Result<()> {
/// // Fits y = 2 x + 1.
/// const X: Input<f32, 2> = Input::new("x", [4, 1]);
/// const Y: Input<f32, 2> = Input::new("y", [4, 1]);
/// let options = TrainOptions { lr: 0.1, batch_size: 4, ..TrainOptions::default() };
/// let mut trainer = Trainer::new(&Device::open("cpu")?, options, |net, batch| {
///     mse(&linear(net, &batch.input(X), 1), &batch.input(Y), None)
/// })?;
/// let mut last = f32::MAX;
/// for _ in 0..200 {
///     let outcome = trainer.step(|batch| {
///         batch.write(X, &[-1.0, 0.0, 1.0, 2.0])?;
///         batch.write(Y, &[-1.0, 1.0, 3.0, 5.0])
///     })?;
///     last = outcome.map_or(last, |outcome| outcome.loss);
/// }
/// assert!(last < 1e-3, "{last}");
/// # Ok(())
/// # }
/// ```
pub struct Trainer {
    device: Device,
    options: TrainOptions,
    record: Box<Record<'static>>,
    params: Rc<RefCell<Params>>,
    metrics: Metrics,
    /// In the order of `STORES`.
    buffers: [Buffer; 4],
    state: Buffer,
    inputs: Vec<Slot>,
    batch: Program,
    optimiser: Option<Program>,
    /// The step's shards, where there are several.
    shards: Option<Shards>,
    /// Processes that share them.
    ranks: Option<Rc<Ranks>>,
    /// Steps done, or submitted.
    done: u64,
    /// Submitted steps whose numbers were not read yet, in order.
    pending: VecDeque<Pending>,
}

impl Trainer {
    /// Records `objective`, the loss of a batch, compiles the step, and draws the initial weights. The
    /// objective asks the scope for parameters and the batch for inputs; it may be recorded again later.
    ///
    /// # Errors
    /// When memory is too small, or the driver cannot build a kernel.
    ///
    /// # Panics
    /// When the loss is not one number, or no parameter was asked for.
    #[track_caller]
    pub fn new<L: Into<Loss>>(
        device: &Device,
        options: TrainOptions,
        objective: impl Fn(&Scope, &Batch) -> L + 'static,
    ) -> Result<Trainer> {
        let record = Box::new(move |scope: &Scope, batch: &Batch| objective(scope, batch).into());
        let seed = options.seed;
        Trainer::compile(device, options, Rc::default(), record, None, |params| params.initial(seed))
    }

    /// Compiles the step, and fills in the values of a checkpoint after a number of steps, or initial ones.
    #[track_caller]
    pub(super) fn compile(
        device: &Device,
        options: TrainOptions,
        params: Rc<RefCell<Params>>,
        record: Box<Record<'static>>,
        resume: Option<(u64, &Values)>,
        initial: impl FnOnce(&Params) -> Vec<f32>,
    ) -> Result<Trainer> {
        let options = TrainOptions {
            loss_scaling: options.loss_scaling || device.precision() == Precision::F16,
            ..options
        };
        check_overflow(device)?;
        let mut recorded = record_batch(&*record, &params, &options, options.accumulation <= 1);
        let plan = Plan::new(&recorded.tape, &[], device);
        let elements = params.borrow().elements();
        // Weights, moments, EMA, and their copy while a checkpoint is written; one or two sets of gradients;
        // and the inputs, constants and activations of a batch.
        let others = plan.stores().filter(|(name, _)| !STORES.contains(name)).map(|(_, bytes)| bytes as u64);
        device.check_memory(2 * 4 * elements as u64 * 4 + others.sum::<u64>() + plan.shared_bytes())?;
        let [p, ema, m, v] = STORES.map(|name| device.alloc(name, elements * 4));
        let buffers = [p?, ema?, m?, v?];
        let numbers = device.alloc(METRICS, recorded.metrics.elements() * 4)?;
        let mut bound: Vec<(&str, &Buffer)> = STORES.into_iter().zip(&buffers).collect();
        bound.push((METRICS, &numbers));
        // An objective that draws nothing does not read it, but the optimiser does.
        let state = device.alloc(STATE, State::WORDS * 4)?;
        bound.push((STATE, &state));
        bound.extend(recorded.declared.bound.iter().map(|(name, buffer)| (*name, buffer)));
        let batch = Program::compile(&plan, device, &bound, Sharing::Shared)?;
        let is_used = |name: &str| plan.stores().any(|(used, _)| used == name);
        for (name, values) in recorded.declared.constants.iter().filter(|(name, _)| is_used(name)) {
            batch.write(name, values)?;
        }
        let optimiser = if options.accumulation > 1 {
            let tape = Tape::new();
            record_optimiser(&tape, &options, &params.borrow(), ACCUMULATED);
            let mut bound = bound.clone();
            let shared = [ACCUMULATED].into_iter().chain(options.codebook.map(|_| STATISTICS));
            bound.extend(shared.map(|store| (store, batch.store(store))));
            Some(Program::compile(&Plan::new(&tape, &[], device), device, &bound, Sharing::Shared)?)
        } else {
            None
        };
        let batches = options.accumulation as usize;
        let shards = (options.shards > 1).then(|| Shards::new(batches, options.shards, [0, 1]));
        recorded.declared.inputs.iter_mut().for_each(|slot| slot.used = is_used(slot.name));
        let mut trainer = Trainer {
            device: device.clone(),
            inputs: recorded.declared.inputs,
            metrics: recorded.metrics,
            options,
            record,
            params,
            buffers,
            state,
            batch,
            optimiser,
            shards,
            ranks: None,
            done: 0,
            pending: VecDeque::new(),
        };
        match resume {
            Some((done, values)) => trainer.set_values(done, &values.sets)?,
            None => {
                let weights = initial(&trainer.params.borrow());
                trainer.set_values(0, [&weights; 2])?;
            }
        }
        Ok(trainer)
    }

    /// Shares the shards of each step with other processes, whose trainers are the same and take the same
    /// steps: [`Trainer::step`] writes and computes the batches of this process alone. The weights are those
    /// of one process with as many shards, bit for bit. [`open_mpi`](crate::group::open_mpi) gives the group
    /// of an `mpirun`.
    ///
    /// # Panics
    /// When so many ranks cannot share the shards of [`TrainOptions`].
    #[track_caller]
    pub fn join(&mut self, ranks: Rc<Ranks>) {
        let shards = Shards::new(self.batches(), self.options.shards, [ranks.rank(), ranks.size()]);
        self.shards = Some(shards).filter(|_| self.options.shards > 1);
        self.ranks = Some(ranks);
    }

    /// Batches of a step, of all ranks.
    pub(super) fn batches(&self) -> usize {
        self.options.accumulation as usize
    }

    /// Goes on after `done` steps from the flat values of the first sets of a checkpoint.
    fn set_values<'a>(&mut self, done: u64, sets: impl IntoIterator<Item = &'a Vec<f32>>) -> Result<()> {
        self.done = done;
        let mut sets = self.buffers.iter().zip(sets);
        sets.try_for_each(|(buffer, set)| self.device.write(buffer, 0, bytemuck::cast_slice(set)))
    }

    /// Goes on from a checkpoint that [`Trainer::save`] wrote. Later steps give the same bytes as those of a
    /// training that was not interrupted.
    ///
    /// # Errors
    /// When the file is missing, damaged, or of a model with other parameters.
    pub fn resume(&mut self, path: &Path) -> Result<()> {
        let saved = checkpoint::read(path)?;
        let values = saved.values(&self.params.borrow())?;
        self.pending.clear();
        self.set_values(saved.header.step, &values.sets)
    }

    /// Writes a checkpoint: weights, moving average and moments, as safetensors.
    ///
    /// # Errors
    /// When a weight is not finite, the disk is full, or the driver reports an error.
    pub fn save(&self, path: &Path) -> Result<()> {
        let values = self.values()?;
        values.check_finite(self.done)?;
        checkpoint::save(path, &self.params.borrow(), self.done, None, &values)
    }

    /// The flat values of a checkpoint.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn values(&self) -> Result<Values> {
        let elements = self.params.borrow().elements();
        let mut sets = [const { Vec::new() }; 4];
        for (set, buffer) in sets.iter_mut().zip(&self.buffers) {
            set.resize(elements, 0.0_f32);
            self.device.read(buffer, 0, bytemuck::cast_slice_mut(set))?;
        }
        Ok(Values { sets })
    }

    /// Steps done, or submitted.
    pub fn done(&self) -> u64 {
        self.done
    }

    /// Makes the next step draw the numbers of the one after `done` steps; the weights stay as they are.
    pub(crate) fn set_step(&mut self, done: u64) {
        self.done = done;
    }

    /// The launches of a batch; without accumulation, of the whole step.
    pub(crate) fn program(&self) -> &Program {
        &self.batch
    }

    /// Operations of a step, all its batches included.
    pub(super) fn operations(&self) -> u64 {
        let optimiser = self.optimiser.as_ref().map_or(0, |optimiser| optimiser.cost().flops);
        self.batch.cost().flops * self.options.accumulation + optimiser
    }

    /// The device that it trains on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Names, shapes and places of the parameters.
    pub fn params(&self) -> &Rc<RefCell<Params>> {
        &self.params
    }

    /// The moving average of the weights, flat.
    pub fn ema(&self) -> &Buffer {
        &self.buffers[1]
    }

    /// `model` with the moving average of its weights, to sample from: it asks for the same parameters as the
    /// objective did. `shape`: `[H, W, C]` of a sample.
    pub fn denoiser<'a>(&self, model: &'a Model, shape: [usize; 3]) -> Denoiser<'a> {
        let (device, params, weights) = (self.device.clone(), Rc::clone(&self.params), self.ema().clone());
        Denoiser::new(device, model, params, weights, shape)
    }

    /// Submits one step on `accumulation` batches, whose inputs `write` gives, and returns the numbers of the
    /// newest step that has any: on the CPU device those of this step; on a GPU, which never waits for the
    /// host, of the one two steps before.
    ///
    /// # Errors
    /// When a loss or gradient is not finite (for gradients see [`TrainOptions::loss_scaling`]; the weights
    /// stay as they were; on a GPU perhaps not those of later steps), or the driver or `write` reports an
    /// error.
    ///
    /// # Panics
    /// When `write` leaves out an input that was never written.
    #[track_caller]
    pub fn step(&mut self, write: impl FnMut(&mut BatchWriter) -> Result<()>) -> Result<Option<Outcome>> {
        self.submit(write, Program::run)?;
        // Ranks wait for one another in each step, and meet its end together.
        let in_flight = if self.is_late() && self.ranks.is_none() { STEPS_IN_FLIGHT } else { 0 };
        if self.pending.len() > in_flight { self.collect() } else { Ok(None) }
    }

    /// Waits for the oldest step whose numbers were not returned yet; `None`: there is none.
    ///
    /// # Errors
    /// As [`Trainer::step`]; there is no later step to wait for then.
    pub fn collect(&mut self) -> Result<Option<Outcome>> {
        let Some(mut step) = self.pending.pop_front() else { return Ok(None) };
        let diverged = match step.read(&self.device, &self.metrics, &self.options)? {
            Ok(outcome) => return Ok(Some(outcome)),
            Err(diverged) => diverged,
        };
        self.pending.clear();
        let own = self.shards.as_ref().map_or(0..usize::MAX, Shards::own);
        let is_own = own.contains(&diverged.micro);
        // Later steps have written over the inputs of the batch.
        if let Some(inputs) = step.inputs.get(diverged.micro.wrapping_sub(own.start)).filter(|_| is_own) {
            inputs.iter().try_for_each(|input| input.restore(&self.batch))?;
            self.write_state(step.done, diverged.micro)?;
        }
        let explained = if is_own { Err(self.explain(step.done, &diverged)) } else { Ok(()) };
        match &self.ranks {
            Some(ranks) => ranks.agree(explained, |()| Vec::new()).map(|_| None),
            None => explained.map(|()| None),
        }
    }

    /// Writes the words of a batch of the step after `done` steps.
    fn write_state(&self, done: u64, micro: usize) -> Result<()> {
        let words = self.options.state_at(done, micro).words();
        self.device.write(&self.state, 0, bytemuck::cast_slice(&words))
    }

    /// Whether the device's numbers come later than its steps are submitted.
    fn is_late(&self) -> bool {
        matches!(self.device, Device::Gpu(_))
    }
}
