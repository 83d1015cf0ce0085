//! A compiled step of a workload, ready to run again and again.

use std::time::Instant;

use serde::Serialize;

use super::measure::numbers;
use super::workload::Workload;
use crate::data::Batch;
use crate::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::models::vae;
use crate::nn::{self, Scope};
use crate::program::{Plan, Program, Sharing, Span};
use crate::recipe::System;
use crate::sample::{Denoiser, Given, Options, Sampler, Source, Texts};
use crate::tape::{Tape, Tensor};
use crate::train::RecipeTrainer;

/// The part of a workload that is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A training step: noise, forward, loss, backward, clipping, Adam, EMA.
    Step,
    /// A reverse step: one forward and one update. Of a VAE, its decoder.
    Sample,
}

/// A compiled step of a workload.
pub struct Subject {
    pub(crate) kind: Kind,
    inner: Inner,
}

enum Inner {
    Training(Box<RecipeTrainer>, Batch),
    Sampling(Box<Sampler>, usize),
    Decoding(Box<Program>, Tensor),
}

/// Steps that may be skipped before the first that is taken.
const MOST_SKIPPED: usize = 30;

impl Subject {
    /// Compiles it, with the initial weights of the recipe's seed.
    ///
    /// # Errors
    /// When memory is too small, or the driver cannot build a kernel.
    pub fn new(workload: &Workload, kind: Kind, device: &Device) -> Result<Subject> {
        if kind == Kind::Step {
            let inner = Inner::Training(Box::new(workload.trainer(device)?), workload.data());
            return Ok(Subject { kind, inner });
        }
        if workload.recipe.system == System::Classifier {
            return Err(
                Error::usage("no samples are drawn of a classifier").hint("profile its training step")
            );
        }
        let (recipe, params) = (&workload.recipe, &workload.params());
        let initial = params.borrow().initial(recipe.seed);
        let weights = &device.alloc(nn::STORE, initial.len() * 4)?;
        device.write(weights, 0, bytemuck::cast_slice(&initial))?;
        drop(initial);
        let inner = if workload.is_vae() {
            decoder(workload, device, weights)?
        } else {
            // Of all timesteps, where the sampler can visit them all: others may divide by 0.
            let whole = Options { steps: recipe.timesteps, ..Options::of(recipe)? };
            let options =
                if whole.scheduler.plan(whole.steps).is_ok() { whole } else { Options::of(recipe)? };
            let (device, model, params) = (device.clone(), &*workload.model(), params.clone());
            let (weights, shape) = (weights.clone(), recipe.diffused());
            let denoiser = Denoiser::new(device, model, params, weights, shape);
            let mut source = Source::new(denoiser, recipe, None);
            if recipe.condition.is_some() {
                source = source.conditioned_on(Given::nothing(recipe));
            }
            if recipe.text_width() > 0 {
                source = source.told(Texts::nothing(recipe));
            }
            let mut sampler = source.sampler(&options, workload.batch())?;
            sampler.start(0)?;
            sampler.set_labels(&workload.data().labels)?;
            Inner::Sampling(Box::new(sampler), 0)
        };
        Ok(Subject { kind, inner })
    }

    /// The launches of a step.
    pub fn program(&self) -> &Program {
        match &self.inner {
            Inner::Training(trainer, _) => trainer.program(),
            Inner::Sampling(sampler, _) => sampler.program(),
            Inner::Decoding(program, _) => program,
        }
    }

    /// One step, to its end.
    ///
    /// # Errors
    /// When the driver reports an error, or a training step's loss is not finite.
    pub fn advance(&mut self) -> Result<()> {
        self.run(|program| program.run())?;
        self.program().device().wait()
    }

    /// As [`Subject::advance`], with the times of the launches; gives when they began.
    pub(super) fn advance_timed(&mut self, spans: &mut Vec<Span>) -> Result<Instant> {
        let mut began = Instant::now();
        self.run(|program| {
            began = Instant::now();
            program.run_timed(spans)
        })?;
        Ok(began)
    }

    fn run(&mut self, mut run: impl FnMut(&mut Program) -> Result<()>) -> Result<()> {
        match &mut self.inner {
            Inner::Training(trainer, batch) => trainer.step_by(|| Ok(batch.clone()), run).map(drop),
            Inner::Sampling(sampler, row) => {
                let rows = sampler.timesteps().len();
                sampler.set_row(*row, 0)?;
                *row = (*row + 1) % rows;
                run(sampler.program_mut())
            }
            Inner::Decoding(program, _) => run(program),
        }
    }

    /// Losses of `steps` training steps that all draw what the very first one drew, while the weights go on;
    /// the result of the first reverse step, or of the decoder.
    pub(super) fn results(&mut self, steps: usize) -> Result<Vec<f32>> {
        match &mut self.inner {
            Inner::Training(trainer, batch) => {
                let mut losses = Vec::new();
                // In 16 bits the first steps may be skipped, until the scale of the loss fits.
                for _ in 0..steps + MOST_SKIPPED {
                    trainer.set_step(0);
                    let outcome = trainer.step_by(|| Ok(batch.clone()), Program::run)?;
                    losses.extend(outcome.grad_norm.is_finite().then_some(outcome.loss));
                    if losses.len() == steps {
                        break;
                    }
                }
                Ok(losses)
            }
            Inner::Sampling(sampler, row) => {
                sampler.start(0)?;
                sampler.set_row(0, 0)?;
                *row = 1;
                sampler.program_mut().run()?;
                sampler.current()
            }
            Inner::Decoding(program, image) => {
                program.run()?;
                program.read(image)
            }
        }
    }
}

fn decoder(workload: &Workload, device: &Device, weights: &Buffer) -> Result<Inner> {
    let (recipe, params) = (&workload.recipe, workload.params());
    let [h, w, c] = recipe.vae.latent_shape(recipe.image_size);
    let tape = Tape::new();
    let z = tape.stored("z", 0, [workload.batch(), h, w, c]);
    let raw = vae::decode(&recipe.vae, &Scope::new(&tape, &params), &z, workload.image());
    let image = vae::image_of(&recipe.vae, &raw, recipe.reconstruction);
    let plan = Plan::new(&tape, &[&image], device);
    let program = Program::compile(&plan, device, &[(nn::STORE, weights)], Sharing::Shared)?;
    program.write("z", &numbers(1, z.elements()))?;
    Ok(Inner::Decoding(Box::new(program), image))
}
