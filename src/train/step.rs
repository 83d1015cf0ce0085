//! The training step: noise the images, predict the noise, and follow the gradient. Recorded once,
//! replayed.

use std::cell::RefCell;
use std::rc::Rc;

use crate::checkpoint::Values;
use crate::data::Batch;
use crate::device::{Buffer, Device};
use crate::diffusion::Model;
use crate::error::{Error, Result};
use crate::models::{model_of, params_of};
use crate::nn::{self, Params, Scope};
use crate::ops::adam::{AdamOptions, AdamTensors, adam};
use crate::ops::grad_norm::grad_norm;
use crate::ops::loss::mse;
use crate::ops::noising::noising;
use crate::program::{Plan, Program, Sharing};
use crate::recipe::Recipe;
use crate::state::State;
use crate::tape::Tape;

/// Names of the flat stores, in the order of a checkpoint's sets.
const STORES: [&str; 4] = [nn::STORE, "ema", "adam_m", "adam_v"];
/// Where gradients of several batches are added up.
const ACCUMULATED: &str = "accumulated";
/// Loss at element 0, norm of the gradient at element `NORM`.
const METRICS: &str = "metrics";
const NORM: usize = 64;

/// Records noising, forward, loss and backward for one batch; and the optimiser, unless gradients are
/// accumulated first.
fn record_batch(recipe: &Recipe, model: &Model, params: &Rc<RefCell<Params>>) -> Tape {
    let tape = Tape::new();
    let (n, side, c) = (recipe.batch_size, recipe.image_size, recipe.unet.in_channels);
    let state = tape.stored_u32("state", [State::WORDS]);
    let images = tape.stored("images", 0, [n, side, side, c]);
    let table = tape.stored("noising", 0, [recipe.timesteps, 2]);
    let labels = (recipe.unet.num_class_embeds > 0).then(|| tape.stored_u32("labels", [n]));
    let (x_t, eps, t) = tape.labelled("noising", || noising(&images, &table, &state));
    let predicted = model(&Scope::training(&tape, params, &state), &x_t, &t, labels.as_ref());
    let loss = tape.labelled("loss", || mse(&predicted, &eps, None));
    // Gradients of the mean over all accumulated batches.
    let share = tape.stored("share", 0, [1]);
    let gradients = tape.backward(&loss, &share);
    nn::place_gradients(&tape, &gradients);
    tape.labelled("loss", || tape.place(&loss, METRICS, 0));
    let elements = params.borrow().elements();
    if recipe.accumulation > 1 {
        let sum = tape.stored(ACCUMULATED, 0, [elements]);
        tape.labelled("optimiser", || tape.accumulate_into(&sum, &tape.stored(nn::GRADIENTS, 0, [elements])));
    } else {
        record_optimiser(&tape, recipe, elements, nn::GRADIENTS);
    }
    tape
}

/// Records clipping, Adam and EMA on the gradients in `store`.
fn record_optimiser(tape: &Tape, recipe: &Recipe, elements: usize, store: &str) {
    tape.labelled("optimiser", || {
        let state = tape.stored_u32("state", [State::WORDS]);
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
    pub parameter_bytes: u64,
    pub gradient_bytes: u64,
    /// Adam's two moments and the EMA copy.
    pub optimiser_bytes: u64,
    pub activation_bytes_shared: u64,
    pub activation_bytes_separate: u64,
    pub largest_binding: u64,
}

impl DryRun {
    /// Plans the step of a recipe. Allocates nothing on the device.
    pub fn new(recipe: &Recipe, device: &Device) -> DryRun {
        let (model, params) = (model_of(recipe), params_of(recipe));
        let plan = Plan::new(&record_batch(recipe, &model, &params), &[], device);
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
            parameter_bytes: flat,
            gradient_bytes: flat * if recipe.accumulation > 1 { 2 } else { 1 },
            optimiser_bytes: 3 * flat,
            activation_bytes_shared: plan.shared_bytes(),
            activation_bytes_separate: plan.separate_bytes(),
            largest_binding: plan.largest_binding(),
        }
    }
}

/// A model being trained: its weights and moments on the device, and the compiled step.
pub struct Trainer {
    device: Device,
    recipe: Recipe,
    model: Box<Model>,
    params: Rc<RefCell<Params>>,
    /// In the order of `STORES`.
    buffers: [Buffer; 4],
    batch: Program,
    optimiser: Option<Program>,
    /// Steps done.
    step: u64,
}

impl Trainer {
    /// Compiles the step of a recipe and fills in the initial values, or those of a checkpoint after `step`
    /// steps.
    ///
    /// # Errors
    /// When memory is too small, or the driver cannot build a kernel.
    pub fn new(recipe: &Recipe, device: &Device, resume: Option<(u64, &Values)>) -> Result<Trainer> {
        let (model, params) = (model_of(recipe), params_of(recipe));
        let tape = record_batch(recipe, &model, &params);
        let plan = Plan::new(&tape, &[], device);
        let elements = params.borrow().elements();
        // Weights, moments, EMA, one or two sets of gradients; and the images, tables and activations of a
        // batch.
        let others = plan.stores().filter(|(name, _)| !STORES.contains(name)).map(|(_, bytes)| bytes as u64);
        device.check_memory(4 * elements as u64 * 4 + others.sum::<u64>() + plan.shared_bytes())?;
        let alloc = |name: &str| device.alloc(name, elements * 4);
        let [p, ema, m, v] = STORES.map(alloc);
        let buffers = [p?, ema?, m?, v?];
        let metrics = device.alloc(METRICS, (NORM + 1) * 4)?;
        let mut bound: Vec<(&str, &Buffer)> = STORES.into_iter().zip(&buffers).collect();
        bound.push((METRICS, &metrics));
        let batch = Program::compile(&plan, device, &bound, Sharing::Shared)?;
        batch.write("noising", &recipe.schedule().noising_table())?;
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
            recipe: recipe.clone(),
            model,
            params,
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
                let initial = trainer.params.borrow().initial(recipe.seed);
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

    pub fn params(&self) -> &Rc<RefCell<Params>> {
        &self.params
    }

    /// The trained model's moving average, for sampling.
    pub fn source(&self) -> crate::sample::Source<'_> {
        let (side, c) = (self.recipe.image_size, self.recipe.unet.in_channels);
        crate::sample::Source {
            device: &self.device,
            model: &self.model,
            params: &self.params,
            weights: &self.buffers[1],
            recipe: &self.recipe,
            image: [side, side, c],
        }
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

    /// The host's part of a step: a few words.
    fn state(&self) -> (State, f64) {
        let recipe = &self.recipe;
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
    pub fn advance(&mut self, mut next: impl FnMut() -> Result<Batch>) -> Result<Outcome> {
        let (mut state, lr) = self.state();
        let mut loss = 0.0;
        let mut metrics = [0.0_f32; NORM + 1];
        for micro in 0..self.recipe.accumulation {
            let images = next()?;
            state.first_sample = (micro as usize * self.recipe.batch_size) as u32;
            self.batch.write("images", &images.images)?;
            if self.recipe.unet.num_class_embeds > 0 {
                self.batch.write("labels", &images.labels)?;
            }
            self.batch.write("state", &state.words())?;
            self.batch.run()?;
            if self.optimiser.is_some() {
                self.device.read(self.batch.store(METRICS), 0, bytemuck::bytes_of_mut(&mut metrics[0]))?;
                loss += f64::from(metrics[0]);
                if !metrics[0].is_finite() {
                    return Err(self.diverged(metrics[0], None));
                }
            }
        }
        if let Some(optimiser) = &mut self.optimiser {
            optimiser.run()?;
        }
        self.device.read(self.batch.store(METRICS), 0, bytemuck::cast_slice_mut(&mut metrics))?;
        let loss = if self.optimiser.is_some() {
            (loss / self.recipe.accumulation as f64) as f32
        } else {
            metrics[0]
        };
        if !loss.is_finite() || !metrics[NORM].is_finite() {
            return Err(self.diverged(loss, Some(metrics[NORM])));
        }
        self.step += 1;
        let device_ms = match &self.device {
            Device::Gpu(gpu) => gpu.device_time()?.map(|t| t.as_secs_f64() * 1e3),
            Device::Cpu(_) => None,
        };
        Ok(Outcome { loss, grad_norm: metrics[NORM], lr, device_ms })
    }

    /// Runs the same batch again, without the optimiser and with every tensor kept, to name the first one
    /// that went bad. (The optimiser changed nothing if the norm of the gradient was not finite, so the
    /// weights are those that the batch met.)
    fn diverged(&self, loss: f32, norm: Option<f32>) -> Error {
        let find = || -> Result<Option<String>> {
            let no_optimiser = Recipe { accumulation: 2, ..self.recipe.clone() };
            let plan = Plan::new(&record_batch(&no_optimiser, &self.model, &self.params), &[], &self.device);
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
