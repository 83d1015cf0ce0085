//! The training step: the loss of a batch, its gradient, and the optimiser. Recorded once, replayed.

use std::cell::RefCell;
use std::rc::Rc;

use super::objective::{IMAGES, KL_WEIGHT, NOISE_LEVELS, Objective};
use crate::checkpoint::Values;
use crate::codec::Codec;
use crate::data::Batch;
use crate::device::{Buffer, Device};
use crate::diffusion::Model;
use crate::error::{Error, Result};
use crate::models::initial_of;
use crate::nn::{self, Params};
use crate::ops::adam::{AdamOptions, AdamTensors, adam};
use crate::ops::grad_norm::grad_norm;
use crate::program::{Plan, Program, Sharing};
use crate::recipe::{Recipe, System};
use crate::state::State;
use crate::tape::Tape;

/// Names of the flat stores, in the order of a checkpoint's sets.
const STORES: [&str; 4] = [nn::STORE, "ema", "adam_m", "adam_v"];
/// Where gradients of several batches are added up.
const ACCUMULATED: &str = "accumulated";
/// Where these numbers of a step lie: at elements that a binding can begin at.
const METRICS: &str = "metrics";
const LOSS: usize = 0;
const NORM: usize = 64;
const RECONSTRUCTION: usize = 128;
const KL: usize = 192;
const METRICS_LEN: usize = KL + 1;

/// Records loss and backward for one batch; and the optimiser, unless gradients are accumulated first.
fn record_batch(objective: &Objective, accumulation: u64) -> Tape {
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
fn record_optimiser(tape: &Tape, recipe: &Recipe, elements: usize, store: &str) {
    tape.labelled("optimiser", || {
        let state = Objective::state(tape);
        let gradients = tape.stored(store, 0, [elements]);
        let [params, ema, m, v] = STORES.map(|s| tape.stored(s, 0, [elements]));
        let norm = grad_norm(&gradients);
        let options = AdamOptions {
            beta1: recipe.beta1,
            beta2: recipe.beta2,
            eps: recipe.adam_eps,
            weight_decay: recipe.weight_decay,
            clip: (recipe.clip_norm > 0.0).then_some(recipe.clip_norm),
            zero_grads: recipe.accumulation > 1,
        };
        let tensors = AdamTensors { params: &params, grads: &gradients, m: &m, v: &v, ema: &ema };
        adam(options, tensors, &norm, &state);
        tape.place(&norm, METRICS, NORM);
    });
}

/// What one step reports.
#[derive(Clone, Copy, Debug)]
pub struct Outcome {
    pub loss: f32,
    /// Of a VAE: the reconstruction's part of the loss, and the divergence before its weight.
    pub reconstruction: Option<f32>,
    pub kl: Option<f32>,
    pub grad_norm: f32,
    pub lr: f64,
    /// Milliseconds on the GPU's own clock, of the last batch; `None` where the device has none.
    pub device_ms: Option<f64>,
}

/// The plan of a step, for `--dry-run`.
#[derive(Clone, Debug)]
pub struct DryRun {
    pub parameters: usize,
    pub launches: usize,
    /// Of these, those of the backward pass that make once more what was not kept.
    pub repeated: usize,
    pub parameter_bytes: u64,
    pub gradient_bytes: u64,
    /// Adam's two moments and the EMA copy.
    pub optimiser_bytes: u64,
    pub activation_bytes_shared: u64,
    pub activation_bytes_separate: u64,
    /// With sharing, if nothing were made once more.
    pub activation_bytes_kept: u64,
    pub largest_binding: u64,
}

impl DryRun {
    /// Plans the step of a recipe. Allocates nothing on the device. `codec`: the VAE of latent diffusion.
    pub fn new(recipe: &Recipe, device: &Device, codec: Option<&Codec>) -> DryRun {
        let objective = Objective::new(recipe, codec);
        let params = Rc::clone(&objective.params);
        let tape = record_batch(&objective, recipe.accumulation);
        let plan = Plan::new(&tape, &[], device);
        let kept = Plan::keeping_all(&tape, &[], device);
        let flat = params.borrow().elements() as u64 * 4;
        let optimiser_launches = if recipe.accumulation > 1 {
            let tape = Tape::new();
            record_optimiser(&tape, recipe, params.borrow().elements(), ACCUMULATED);
            Plan::new(&tape, &[], device).launches()
        } else {
            0
        };
        DryRun {
            parameters: params.borrow().count(),
            launches: plan.launches() * recipe.accumulation as usize + optimiser_launches,
            repeated: plan.repeated() * recipe.accumulation as usize,
            parameter_bytes: flat,
            gradient_bytes: flat * if recipe.accumulation > 1 { 2 } else { 1 },
            optimiser_bytes: 3 * flat,
            activation_bytes_shared: plan.shared_bytes(),
            activation_bytes_separate: plan.separate_bytes(),
            activation_bytes_kept: kept.shared_bytes(),
            largest_binding: plan.largest_binding(),
        }
    }
}

/// A model being trained: its weights and moments on the device, and the compiled step.
pub struct Trainer {
    device: Device,
    objective: Objective,
    /// In the order of `STORES`.
    buffers: [Buffer; 4],
    batch: Program,
    optimiser: Option<Program>,
    /// Steps done.
    step: u64,
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

    /// Steps done.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Makes the next step draw the numbers of the one after `step` steps; the weights stay as they are.
    pub fn draw_as_after(&mut self, step: u64) {
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

    /// The host's part of a step: a few words.
    fn state(&self) -> (State, f64) {
        let recipe = &self.objective.recipe;
        let factor = recipe.lr_schedule.factor(self.step, recipe.lr_warmup, recipe.steps);
        let lr = recipe.lr * factor;
        let done = (self.step + 1) as f64;
        let state = State {
            seed: recipe.seed,
            step: self.step as u32,
            lr: lr as f32,
            correction1: (1.0 / (1.0 - recipe.beta1.powf(done))) as f32,
            correction2: (1.0 / (1.0 - recipe.beta2.powf(done))) as f32,
            ema_decay: recipe.ema().decay_at(self.step + 1) as f32,
            ..State::default()
        };
        (state, lr)
    }

    /// One step of the optimiser on `accumulation` batches.
    ///
    /// # Errors
    /// When a loss or gradient is not finite (the weights stay as they were), or the driver or `next`
    /// reports an error.
    pub fn advance(&mut self, next: impl FnMut() -> Result<Batch>) -> Result<Outcome> {
        self.advance_by(next, |batch| batch.run())
    }

    /// As [`Trainer::advance`], with `run` to run the launches of a batch.
    ///
    /// # Errors
    /// As [`Trainer::advance`]; and those of `run`.
    pub fn advance_by(
        &mut self,
        mut next: impl FnMut() -> Result<Batch>,
        mut run: impl FnMut(&mut Program) -> Result<()>,
    ) -> Result<Outcome> {
        let (mut state, lr) = self.state();
        let (accumulation, batch_size) =
            (self.objective.recipe.accumulation, self.objective.recipe.batch_size);
        let mut sums = [0.0_f64; METRICS_LEN];
        let mut metrics = [0.0_f32; METRICS_LEN];
        if self.is_variational() {
            self.batch.write(KL_WEIGHT, &[self.objective.kl_weight(self.step)])?;
        }
        for micro in 0..accumulation {
            let images = next()?;
            state.first_sample = (micro as usize * batch_size) as u32;
            self.batch.write(IMAGES, &images.images)?;
            if self.has_labels() {
                self.batch.write("labels", &images.labels)?;
            }
            self.batch.write("state", &state.words())?;
            run(&mut self.batch)?;
            self.device.read(self.batch.store(METRICS), 0, bytemuck::cast_slice_mut(&mut metrics))?;
            sums.iter_mut().zip(&metrics).for_each(|(sum, m)| *sum += f64::from(*m));
            if !metrics[LOSS].is_finite() {
                return Err(self.diverged(metrics[LOSS], None));
            }
        }
        if let Some(optimiser) = &mut self.optimiser {
            optimiser.run()?;
            self.device.read(self.batch.store(METRICS), 0, bytemuck::cast_slice_mut(&mut metrics))?;
        }
        let mean = |place: usize| (sums[place] / accumulation as f64) as f32;
        let loss = mean(LOSS);
        let is_vae = self.objective.recipe.system == System::Vae;
        let reconstruction = is_vae.then(|| mean(RECONSTRUCTION));
        let kl = self.is_variational().then(|| mean(KL));
        if !loss.is_finite() || !metrics[NORM].is_finite() {
            return Err(self.diverged(loss, Some(metrics[NORM])));
        }
        self.step += 1;
        let device_ms = match &self.device {
            Device::Gpu(gpu) => gpu.device_time()?.map(|t| t.as_secs_f64() * 1e3),
            Device::Cpu(_) => None,
        };
        Ok(Outcome { loss, reconstruction, kl, grad_norm: metrics[NORM], lr, device_ms })
    }

    /// Runs the same batch again, without the optimiser and with every tensor kept, to name the first one
    /// that went bad. (The optimiser changed nothing if the norm of the gradient was not finite, so the
    /// weights are those that the batch met.)
    fn diverged(&self, loss: f32, norm: Option<f32>) -> Error {
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
        Error::new(format!("step {}: {what}; {culprit}", self.step + 1))
            .hint("resume from the last checkpoint, or train again, with a lower lr or with clip_norm")
    }
}
