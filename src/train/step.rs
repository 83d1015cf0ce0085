//! The training step: the loss of a batch, its gradient, and the optimiser. Recorded once, replayed.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;

use super::objective::{IMAGES, KL_WEIGHT, NOISE_LEVELS, Objective, SAMPLES};
use super::resident::{Input, Resident};
use crate::checkpoint::Values;
use crate::codec::Codec;
use crate::data::Whole;
use crate::device::{Buffer, Device, PendingRead};
use crate::diffusion::Model;
use crate::error::{Error, Result};
use crate::nn::{self, Params};
use crate::ops::adam::{AdamTensors, adam};
use crate::ops::grad_norm::grad_norm;
use crate::program::{Plan, Program, Sharing};
use crate::recipe::{Recipe, System, initial_of};
use crate::state::State;
use crate::tape::Tape;

/// Names of the flat stores, in the order of a checkpoint's sets.
const STORES: [&str; 4] = [nn::STORE, "ema", "adam_m", "adam_v"];
/// Where gradients of several batches are added up.
pub(super) const ACCUMULATED: &str = "accumulated";
/// Where these numbers of a step lie: at elements that a binding can begin at.
const METRICS: &str = "metrics";
const LOSS: usize = 0;
const NORM: usize = 64;
const RECONSTRUCTION: usize = 128;
const KL: usize = 192;
const METRICS_LEN: usize = KL + 1;
/// Steps that a GPU may be ahead of the numbers that were looked at.
const STEPS_IN_FLIGHT: usize = 2;

/// Records loss and backward for one batch; and the optimiser, unless gradients are accumulated first.
pub(super) fn record_batch(objective: &Objective, accumulation: u64) -> Tape {
    let tape = Tape::new();
    let loss = objective.record(&tape, &Objective::state(&tape));
    // Gradients of the mean over all accumulated batches.
    let share = tape.stored("share", 0, [1]);
    let gradients = tape.backward(&loss.total, &share);
    nn::place_gradients(&tape, &gradients);
    tape.labelled("loss", || {
        let numbers = [(Some(loss.total), LOSS), (loss.reconstruction, RECONSTRUCTION), (loss.kl, KL)];
        for (number, place) in numbers {
            number.iter().for_each(|number| tape.place(number, METRICS, place));
        }
    });
    let elements = objective.params.borrow().elements();
    if accumulation > 1 {
        let sum = tape.stored(ACCUMULATED, 0, [elements]);
        tape.labelled("optimiser", || tape.accumulate_into(&sum, &tape.stored(nn::GRADIENTS, 0, [elements])));
    } else {
        record_optimiser(&tape, &objective.recipe, elements, nn::GRADIENTS);
    }
    tape
}

/// Records clipping, Adam and EMA on the gradients in `store`.
pub(super) fn record_optimiser(tape: &Tape, recipe: &Recipe, elements: usize, store: &str) {
    tape.labelled("optimiser", || {
        let state = Objective::state(tape);
        let gradients = tape.stored(store, 0, [elements]);
        let [params, ema, m, v] = STORES.map(|s| tape.stored(s, 0, [elements]));
        let norm = grad_norm(&gradients);
        let tensors = AdamTensors { params: &params, grads: &gradients, m: &m, v: &v, ema: &ema };
        adam(recipe.adam(), tensors, &norm, &state);
        tape.place(&norm, METRICS, NORM);
    });
}

/// What one step reports.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    /// Its number, from 1.
    pub step: u64,
    pub loss: f32,
    /// Of a VAE: the reconstruction's part of the loss, and the divergence before its weight.
    pub reconstruction: Option<f32>,
    pub kl: Option<f32>,
    pub grad_norm: f32,
    pub lr: f64,
    /// Milliseconds on the GPU's own clock, of the last batch; `None` where the device has none.
    pub device_ms: Option<f64>,
}

/// A model being trained: its weights and moments on the device, and the compiled step.
pub struct Trainer {
    device: Device,
    objective: Objective,
    /// In the order of `STORES`.
    buffers: [Buffer; 4],
    batch: Program,
    optimiser: Option<Program>,
    /// Steps done, or submitted.
    step: u64,
    /// Those of them that were not collected, in order.
    pending: VecDeque<Pending>,
}

/// A submitted step.
struct Pending {
    /// Steps before it.
    done: u64,
    lr: f64,
    /// Its metrics after each batch, and after an optimiser that is apart.
    numbers: Vec<PendingRead>,
    /// What its batches read, as long as a GPU may still have to run them again.
    inputs: Vec<Input>,
}

impl Trainer {
    /// Compiles the step of a recipe and fills in the initial values, or those of a checkpoint after `step`
    /// steps. `codec`: the VAE of latent diffusion.
    ///
    /// # Errors
    /// When the model is none that is trained here, memory is too small, or the driver cannot build a kernel.
    pub fn new(
        recipe: &Recipe,
        device: &Device,
        codec: Option<&Codec>,
        resume: Option<(u64, &Values)>,
    ) -> Result<Trainer> {
        Trainer::of(Objective::new(recipe, codec), device, resume)
    }

    /// As [`Trainer::new`], with a copy of the whole data set on the device: steps take [`Picks`] of it.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    ///
    /// [`Picks`]: crate::data::Picks
    pub fn with_data(
        recipe: &Recipe,
        device: &Device,
        codec: Option<&Codec>,
        resume: Option<(u64, &Values)>,
        data: &Whole,
    ) -> Result<Trainer> {
        let mut objective = Objective::new(recipe, codec);
        objective.resident = Some(Resident::new(data, device)?);
        Trainer::of(objective, device, resume)
    }

    /// As [`Trainer::new`], for a diffusion model that is not the recipe's U-Net.
    ///
    /// # Errors
    /// As [`Trainer::new`].
    ///
    /// # Panics
    /// When the recipe is not one of a diffusion model of images.
    pub fn with_model(recipe: &Recipe, device: &Device, model: Box<Model>) -> Result<Trainer> {
        Trainer::of(Objective::of_model(recipe, model), device, None)
    }

    fn of(objective: Objective, device: &Device, resume: Option<(u64, &Values)>) -> Result<Trainer> {
        let recipe = &objective.recipe;
        recipe.check_trainable()?;
        let plan = Plan::new(&record_batch(&objective, recipe.accumulation), &[], device);
        let elements = objective.params.borrow().elements();
        // Weights, moments, EMA, and their copy while a checkpoint is written; one or two sets of gradients;
        // and the images, tables and activations of a batch.
        let others = plan.stores().filter(|(name, _)| !STORES.contains(name)).map(|(_, bytes)| bytes as u64);
        device.check_memory(2 * 4 * elements as u64 * 4 + others.sum::<u64>() + plan.shared_bytes())?;
        let alloc = |name: &str| device.alloc(name, elements * 4);
        let [p, ema, m, v] = STORES.map(alloc);
        let buffers = [p?, ema?, m?, v?];
        let metrics = device.alloc(METRICS, METRICS_LEN * 4)?;
        let mut bound: Vec<(&str, &Buffer)> = STORES.into_iter().zip(&buffers).collect();
        bound.push((METRICS, &metrics));
        bound.extend(objective.bound());
        let batch = Program::compile(&plan, device, &bound, Sharing::Shared)?;
        if recipe.system != System::Vae {
            batch.write(NOISE_LEVELS, &recipe.schedule().noising_table())?;
        }
        batch.write("share", &[1.0 / recipe.accumulation as f32])?;
        let optimiser = if recipe.accumulation > 1 {
            let tape = Tape::new();
            record_optimiser(&tape, recipe, elements, ACCUMULATED);
            let mut bound = bound.clone();
            for store in [ACCUMULATED, "state"] {
                bound.push((store, batch.store(store)));
            }
            Some(Program::compile(&Plan::new(&tape, &[], device), device, &bound, Sharing::Shared)?)
        } else {
            None
        };
        let trainer = Trainer {
            device: device.clone(),
            objective,
            batch,
            optimiser,
            step: resume.map_or(0, |(step, _)| step),
            pending: VecDeque::new(),
            buffers,
        };
        match resume {
            Some((_, values)) => {
                for (buffer, set) in trainer.buffers.iter().zip(&values.sets) {
                    trainer.device.write(buffer, 0, bytemuck::cast_slice(set))?;
                }
            }
            None => {
                let initial = initial_of(&trainer.objective.recipe, &trainer.params().borrow());
                for buffer in &trainer.buffers[..2] {
                    trainer.device.write(buffer, 0, bytemuck::cast_slice(&initial))?;
                }
            }
        }
        Ok(trainer)
    }

    /// Whether the data set lies on the device.
    pub fn is_resident(&self) -> bool {
        self.objective.resident.is_some()
    }

    /// Steps done, or submitted.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Makes the next step draw the numbers of the one after `step` steps; the weights stay as they are.
    pub fn set_step(&mut self, step: u64) {
        self.step = step;
    }

    /// The launches of a batch; without accumulation, of the whole step.
    pub fn program(&self) -> &Program {
        &self.batch
    }

    pub fn params(&self) -> &Rc<RefCell<Params>> {
        &self.objective.params
    }

    /// The trained diffusion model's moving average, for sampling. `codec`: what decodes its latents.
    pub fn source<'a>(&'a self, codec: Option<&'a Codec>) -> crate::sample::Source<'a> {
        crate::sample::Source {
            device: &self.device,
            model: &self.objective.model,
            params: &self.objective.params,
            weights: &self.buffers[1],
            recipe: &self.objective.recipe,
            codec,
        }
    }

    /// The VAE being trained, with the moving average of its weights.
    pub fn codec(&self) -> Codec {
        let (recipe, params) = (&self.objective.recipe, Rc::clone(&self.objective.params));
        Codec::of(&self.device, recipe, params, self.buffers[1].clone())
    }

    /// The flat values of a checkpoint.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn values(&self) -> Result<Values> {
        let elements = self.params().borrow().elements();
        let mut sets = [const { Vec::new() }; 4];
        for (set, buffer) in sets.iter_mut().zip(&self.buffers) {
            set.resize(elements, 0.0_f32);
            self.device.read(buffer, 0, bytemuck::cast_slice_mut(set))?;
        }
        Ok(Values { sets })
    }

    fn is_variational(&self) -> bool {
        self.objective.recipe.system == System::Vae && self.objective.recipe.vae.variational
    }

    fn has_labels(&self) -> bool {
        self.objective.recipe.system != System::Vae && self.objective.recipe.unet.num_class_embeds > 0
    }

    /// The host's part of the step after `done` of them: a few words.
    fn state(&self, done: u64) -> (State, f64) {
        let recipe = &self.objective.recipe;
        let lr = recipe.lr_at(done);
        let number = (done + 1) as f64;
        let state = State {
            seed: recipe.seed,
            step: done as u32,
            lr: lr as f32,
            correction1: (1.0 / (1.0 - recipe.beta1.powf(number))) as f32,
            correction2: (1.0 / (1.0 - recipe.beta2.powf(number))) as f32,
            ema_decay: recipe.ema().decay_at(done + 1) as f32,
            ..State::default()
        };
        (state, lr)
    }

    /// Writes all that batch `micro` of the step after `done` of them reads.
    fn give(&self, done: u64, micro: usize, input: &Input) -> Result<()> {
        match (input, self.is_resident()) {
            (Input::Images(batch), false) => self.batch.write(IMAGES, &batch.images)?,
            (Input::Samples(picks), true) => self.batch.write(SAMPLES, &picks.samples)?,
            _ => panic!("training on a resident data set takes samples of it, other training takes images"),
        }
        if self.has_labels() {
            self.batch.write("labels", input.labels())?;
        }
        if self.is_variational() {
            self.batch.write(KL_WEIGHT, &[self.objective.kl_weight(done)])?;
        }
        let (mut state, _) = self.state(done);
        state.first_sample = (micro * self.objective.recipe.batch_size) as u32;
        self.batch.write("state", &state.words())
    }

    /// One step of the optimiser on `accumulation` batches, to its end.
    ///
    /// # Errors
    /// When a loss or gradient is not finite (the weights stay as they were), or the driver or `next`
    /// reports an error.
    ///
    /// # Panics
    /// When `next` gives images and the data set is resident, or picks of one that is not.
    pub fn advance<B: Into<Input>>(&mut self, next: impl FnMut() -> Result<B>) -> Result<Outcome> {
        self.advance_by(next, |batch| batch.run())
    }

    /// As [`Trainer::advance`], with `run` to run the launches of a batch.
    ///
    /// # Errors
    /// As [`Trainer::advance`]; and those of `run`.
    ///
    /// # Panics
    /// As [`Trainer::advance`].
    pub fn advance_by<B: Into<Input>>(
        &mut self,
        next: impl FnMut() -> Result<B>,
        run: impl FnMut(&mut Program) -> Result<()>,
    ) -> Result<Outcome> {
        self.submit_by(next, run)?;
        let mut last = None;
        while let Some(outcome) = self.collect(true)? {
            last = Some(outcome);
        }
        Ok(last.unwrap_or_else(|| unreachable!("a step was submitted")))
    }

    /// As [`Trainer::advance`], but does not wait for what a GPU makes of it: [`Trainer::collect`] tells.
    ///
    /// # Errors
    /// As [`Trainer::advance`]; of numbers that are not finite, only on the CPU device.
    ///
    /// # Panics
    /// As [`Trainer::advance`].
    pub fn submit<B: Into<Input>>(&mut self, next: impl FnMut() -> Result<B>) -> Result<()> {
        self.submit_by(next, |batch| batch.run())
    }

    fn submit_by<B: Into<Input>>(
        &mut self,
        mut next: impl FnMut() -> Result<B>,
        mut run: impl FnMut(&mut Program) -> Result<()>,
    ) -> Result<()> {
        let done = self.step;
        let (_, lr) = self.state(done);
        let (mut numbers, mut inputs) = (Vec::new(), Vec::new());
        let read = |trainer: &Trainer| {
            let (store, bytes) = (trainer.batch.store(METRICS), METRICS_LEN * 4);
            trainer.device.read_later(store, 0, bytes)
        };
        for micro in 0..self.objective.recipe.accumulation as usize {
            let input = next()?.into();
            self.give(done, micro, &input)?;
            run(&mut self.batch)?;
            let metrics = read(self)?;
            if let PendingRead::Ready(bytes) = &metrics {
                let loss: f32 = bytemuck::pod_read_unaligned(&bytes[LOSS * 4..LOSS * 4 + 4]);
                if !loss.is_finite() {
                    return Err(self.diverged(done, loss, None));
                }
            } else {
                inputs.push(input);
            }
            numbers.push(metrics);
        }
        if let Some(optimiser) = &mut self.optimiser {
            optimiser.run()?;
            numbers.push(read(self)?);
        }
        self.pending.push_back(Pending { done, lr, numbers, inputs });
        self.step += 1;
        Ok(())
    }

    /// What the oldest step gave that was submitted and not collected yet: once a GPU is two steps further, so
    /// that it never waits for the host; with `all`, or on the CPU device, at once.
    ///
    /// # Errors
    /// When its loss or gradient is not finite (it left the weights as they were; those after it perhaps
    /// not), or the driver reports an error.
    pub fn collect(&mut self, all: bool) -> Result<Option<Outcome>> {
        let late = if all || matches!(self.device, Device::Cpu(_)) { 0 } else { STEPS_IN_FLIGHT };
        if self.pending.len() <= late {
            return Ok(None);
        }
        let Some(Pending { done, lr, numbers, inputs }) = self.pending.pop_front() else { return Ok(None) };
        let mut sums = [0.0_f64; METRICS_LEN];
        let mut metrics = [0.0_f32; METRICS_LEN];
        let accumulation = self.objective.recipe.accumulation as usize;
        let mut time = None;
        for (micro, late) in numbers.into_iter().enumerate() {
            let took = self.device.resolve(late, bytemuck::cast_slice_mut(&mut metrics))?;
            // What comes last is of the optimiser alone, where that is apart.
            if micro < accumulation {
                time = took;
                sums.iter_mut().zip(&metrics).for_each(|(sum, m)| *sum += f64::from(*m));
                if !metrics[LOSS].is_finite() {
                    self.again(done, micro, &inputs)?;
                    return Err(self.diverged(done, metrics[LOSS], None));
                }
            }
        }
        let mean = |place: usize| (sums[place] / accumulation as f64) as f32;
        let loss = mean(LOSS);
        let is_vae = self.objective.recipe.system == System::Vae;
        let reconstruction = is_vae.then(|| mean(RECONSTRUCTION));
        let kl = self.is_variational().then(|| mean(KL));
        if !loss.is_finite() || !metrics[NORM].is_finite() {
            self.again(done, accumulation - 1, &inputs)?;
            return Err(self.diverged(done, loss, Some(metrics[NORM])));
        }
        let device_ms = time.map(|time| time.as_secs_f64() * 1e3);
        let step = done + 1;
        Ok(Some(Outcome { step, loss, reconstruction, kl, grad_norm: metrics[NORM], lr, device_ms }))
    }

    /// Writes once more what a batch read, where later steps have written over it.
    fn again(&self, done: u64, micro: usize, inputs: &[Input]) -> Result<()> {
        inputs.get(micro).map_or(Ok(()), |input| self.give(done, micro, input))
    }

    /// Runs the same batch again, without the optimiser and with every tensor kept, to name the first one
    /// that went bad. (The optimiser changed nothing if the norm of the gradient was not finite, so the
    /// weights are those that the batch met.)
    fn diverged(&self, done: u64, loss: f32, norm: Option<f32>) -> Error {
        let find = || -> Result<Option<String>> {
            // As with accumulation: the optimiser is left out.
            let plan = Plan::new(&record_batch(&self.objective, 2), &[], &self.device);
            let kept = |name: &&str| *name != ACCUMULATED && *name != nn::GRADIENTS;
            let bound: Vec<(&str, &Buffer)> = plan
                .stores()
                .map(|(name, _)| name)
                .filter(kept)
                .map(|name| (name, self.batch.store(name)))
                .collect();
            let mut program = Program::compile(&plan, &self.device, &bound, Sharing::Separate)?;
            program.run()?;
            program.first_bad()
        };
        let culprit = match find() {
            Ok(Some(name)) => format!("the first bad tensor is the result of {name}"),
            Ok(None) => "no single tensor is to blame".to_owned(),
            Err(_) => "there is too little memory to find the tensor".to_owned(),
        };
        let what = match norm {
            Some(norm) if loss.is_finite() => format!("the gradient's norm became {norm}"),
            _ => format!("the loss became {loss}"),
        };
        Error::new(format!("step {}: {what}; {culprit}", done + 1))
            .hint("resume from the last checkpoint, or train again, with a lower lr or with clip_norm")
    }
}
