//! A [`Trainer`] of a recipe: its model, its loss, its data.

use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use super::batch::{Batch, BatchWriter};
use super::captions::Captioned;
use super::micro_batch;
use super::objective::Objective;
use super::options::TrainOptions;
use super::outcome::Outcome;
use super::resident::{Examples, Resident};
use super::trainer::Trainer;
use crate::checkpoint::Values;
use crate::codec::Codec;
use crate::data::Whole;
use crate::device::Device;
use crate::diffusers::{TextEncoder, text_params};
use crate::diffusion::Model;
use crate::error::Result;
use crate::nn::Scope;
use crate::program::Program;
use crate::recipe::{Recipe, System, initial_of, params_of_model};
use crate::sample::Source;
use crate::text_model::TextModel;

/// The trainer that `denoir train` runs.
pub struct RecipeTrainer {
    trainer: Trainer,
    objective: Rc<Objective>,
    recipe: Recipe,
    /// Number of batches of the objective that a batch of the recipe is split into.
    micros: usize,
}

impl Deref for RecipeTrainer {
    type Target = Trainer;

    fn deref(&self) -> &Trainer {
        &self.trainer
    }
}

impl DerefMut for RecipeTrainer {
    fn deref_mut(&mut self) -> &mut Trainer {
        &mut self.trainer
    }
}

impl RecipeTrainer {
    /// Compiles the step of a recipe and fills in the initial values, or those of a checkpoint after a number
    /// of steps. `codec`: the VAE of latent diffusion.
    ///
    /// # Errors
    /// When the model is none that is trained here, memory is too small, or the driver cannot build a kernel.
    pub fn new(
        recipe: &Recipe,
        device: &Device,
        codec: Option<&Codec>,
        resume: Option<(u64, &Values)>,
    ) -> Result<Self> {
        RecipeTrainer::with_data(recipe, device, codec, resume, None)
    }

    /// As [`RecipeTrainer::new`]; with `data`, the device gets a copy of it, and steps take
    /// [`Picks`](crate::data::Picks) of it.
    ///
    /// # Errors
    /// As [`RecipeTrainer::new`].
    pub fn with_data(
        recipe: &Recipe,
        device: &Device,
        codec: Option<&Codec>,
        resume: Option<(u64, &Values)>,
        data: Option<&Whole>,
    ) -> Result<Self> {
        RecipeTrainer::with_texts(recipe, device, codec, resume, data, (None, None))
    }

    /// As [`RecipeTrainer::with_data`], of a model that sees `captions`, through a text encoder that is not
    /// trained, or through its own.
    pub(super) fn with_texts(
        recipe: &Recipe,
        device: &Device,
        codec: Option<&Codec>,
        resume: Option<(u64, &Values)>,
        data: Option<&Whole>,
        (captions, encoder): (Option<Rc<Captioned>>, Option<TextEncoder>),
    ) -> Result<Self> {
        let mut objective = Objective::new(recipe, codec);
        objective.resident = data.map(|data| Resident::new(data, device)).transpose()?;
        objective.captions = captions;
        if let Some(TextEncoder { config, weights }) = encoder {
            let buffer = device.alloc("text encoder", weights.len() * 4)?;
            device.write(&buffer, 0, bytemuck::cast_slice(&weights))?;
            objective.text = Some((text_params(&config), buffer));
        }
        RecipeTrainer::of(objective, device, resume)
    }

    /// The text encoder as it is by now, of a model that sees texts.
    fn text_model(&self) -> Option<TextModel> {
        let tokenizer = self.objective.captions.as_ref()?.tokenizer.clone();
        let own = || (Rc::clone(&self.objective.params), self.trainer.ema().clone());
        let (params, weights) = self.objective.text.clone().unwrap_or_else(own);
        Some(TextModel::new(self.device(), &self.recipe.text, tokenizer, params, weights))
    }

    /// As [`RecipeTrainer::source`], drawing from the captions of the first images where the model sees texts.
    ///
    /// # Errors
    /// When memory is too small, or the driver reports an error.
    pub(super) fn captioned_source<'a>(&'a self, codec: Option<&'a Codec>) -> Result<Source<'a>> {
        let source = self.source(codec);
        let (Some(text), Some(captions)) = (self.text_model(), &self.objective.captions) else {
            return Ok(source);
        };
        let prompts = captions.first(self.recipe.sample_count);
        Ok(source.told(text.texts(&prompts, &[String::new()], 1, 0)?.texts))
    }

    /// As [`RecipeTrainer::new`], for a diffusion model of images that is not the recipe's U-Net.
    pub(crate) fn with_model(recipe: &Recipe, device: &Device, model: Box<Model>) -> Result<Self> {
        assert_eq!(recipe.system, System::Ddpm, "a model of one's own predicts noise of images");
        let mut objective = Objective::new(recipe, None);
        objective.params = params_of_model(recipe, &*model);
        objective.model = model;
        RecipeTrainer::of(objective, device, None)
    }

    fn of(mut objective: Objective, device: &Device, resume: Option<(u64, &Values)>) -> Result<Self> {
        let recipe = objective.recipe.clone();
        recipe.check_trainable()?;
        let micros = micro_batch::split(&mut objective, device);
        let options = TrainOptions::of(&objective.recipe);
        let (params, objective) = (Rc::clone(&objective.params), Rc::new(objective));
        let recorded = Rc::clone(&objective);
        let record = Box::new(move |scope: &Scope, batch: &Batch| recorded.record(scope, batch));
        let trainer =
            Trainer::compile(device, options, params, record, resume, |params| initial_of(&recipe, params))?;
        Ok(RecipeTrainer { trainer, objective, recipe, micros })
    }

    /// Whether the data set lies on the device.
    pub fn is_resident(&self) -> bool {
        self.objective.resident.is_some()
    }

    /// The trained diffusion model's moving average, for sampling. `codec` decodes its latents.
    pub fn source<'a>(&'a self, codec: Option<&'a Codec>) -> Source<'a> {
        let denoiser = self.trainer.denoiser(&self.objective.model, self.recipe.diffused());
        Source::new(denoiser, &self.recipe, codec)
    }

    /// Writes a noise schedule that is learned into the recipe, as the moving average has it by now; samples
    /// are drawn by it from then on.
    pub(super) fn note_schedule(&mut self, recipe: &mut Recipe) -> Result<()> {
        if recipe.learns_schedule() {
            let mut ema = vec![0.0_f32; self.params().borrow().elements()];
            self.device().read(self.ema(), 0, bytemuck::cast_slice_mut(&mut ema))?;
            recipe.set_learned_schedule(&self.params().borrow(), &ema);
            self.recipe.beta_schedule.clone_from(&recipe.beta_schedule);
        }
        Ok(())
    }

    /// The VAE being trained, with the moving average of its weights.
    pub fn codec(&self) -> Codec {
        Codec::of(self.device(), &self.recipe, Rc::clone(&self.objective.params), self.ema().clone())
    }

    /// [`Trainer::step`] on examples.
    ///
    /// # Errors
    /// As [`Trainer::step`]; and those of `next`.
    ///
    /// # Panics
    /// When `next` gives images and the data set is resident, or picks of one that is not.
    #[track_caller]
    pub fn step<B: Into<Examples>>(&mut self, next: impl FnMut() -> Result<B>) -> Result<Option<Outcome>> {
        let write = self.writer(next);
        self.trainer.step(write)
    }

    /// One step to its end; `run` runs the launches of a batch.
    pub(crate) fn step_by<B: Into<Examples>>(
        &mut self,
        next: impl FnMut() -> Result<B>,
        run: impl FnMut(&mut Program) -> Result<()>,
    ) -> Result<Outcome> {
        let write = self.writer(next);
        self.trainer.submit(write, run)?;
        let outcome = self.trainer.collect()?;
        Ok(outcome.unwrap_or_else(|| unreachable!("a step was submitted")))
    }

    /// Writes the next examples as the objective reads them.
    fn writer<B: Into<Examples>, N: FnMut() -> Result<B>>(
        &self,
        mut next: N,
    ) -> impl FnMut(&mut BatchWriter) -> Result<()> + use<B, N> {
        let (objective, micros) = (Rc::clone(&self.objective), self.micros);
        let (mut micro, mut current) = (0, None);
        move |batch| {
            let examples = match current.take() {
                Some(examples) if micro > 0 => examples,
                _ => next()?.into(),
            };
            objective.write(batch, &examples, [micro, micros])?;
            (micro, current) = ((micro + 1) % micros, Some(examples));
            Ok(())
        }
    }
}
