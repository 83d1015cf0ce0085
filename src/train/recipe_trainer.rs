//! A [`Trainer`] of a recipe: its model, its loss, its data.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::rc::Rc;

use super::base::Beside;
use super::batch::{Batch, BatchWriter};
use super::micro_batch;
use super::objective::Objective;
use super::options::TrainOptions;
use super::outcome::Outcome;
use super::ranks::Ranks;
use super::resident::{Examples, Resident};
use super::trainer::Trainer;
use crate::checkpoint::Values;
use crate::codec::Codec;
use crate::data::Whole;
use crate::device::{Buffer, Device};
use crate::diffusers::inversion::Embedding;
use crate::diffusers::lora::of_run;
use crate::diffusers::{TextEncoder, fuse_all, put_rows, text_params};
use crate::diffusion::Model;
use crate::error::Result;
use crate::nn::{Flat, Params, Scope};
use crate::program::Program;
use crate::recipe::{Recipe, System, initial_of, params_of, params_of_model};
use crate::sample::{Denoiser, Source};
use crate::text_model::TextModel;

/// The trainer that `denoir train` runs.
pub struct RecipeTrainer {
    trainer: Trainer,
    objective: Rc<Objective>,
    recipe: Recipe,
    /// Number of batches of the objective that a batch of the data is split into.
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
        RecipeTrainer::beside(recipe, device, codec, resume, data, Beside::default())
    }

    /// As [`RecipeTrainer::with_data`], with what a model of texts has beside.
    pub(super) fn beside(
        recipe: &Recipe,
        device: &Device,
        codec: Option<&Codec>,
        resume: Option<(u64, &Values)>,
        data: Option<&Whole>,
        beside: Beside,
    ) -> Result<Self> {
        let mut objective = Objective::new(recipe, codec);
        objective.resident = data.map(|data| Resident::new(data, device)).transpose()?;
        objective.captions = beside.captions;
        let lies = |name: &str, weights: Flat, params: Rc<RefCell<Params>>| -> Result<_> {
            let buffer = weights.upload(device, name, &mut params.borrow_mut())?;
            Ok((params, buffer))
        };
        if let Some(TextEncoder { config, weights }) = beside.text {
            objective.text = Some(lies("text encoder", weights, text_params(&config))?);
        }
        let mut weights = beside.weights;
        // Without any, where times are measured alone, there are zeros.
        if let Some(weights) = weights.take_if(|_| recipe.is_laid_over()) {
            objective.base = Some(lies("base", weights, params_of(&recipe.of_denoiser()))?);
        }
        let mut initial = weights.map(Flat::into_f32);
        if let Some(word) = beside.word {
            let mut values = initial_of(recipe, &objective.params.borrow());
            values[..word.len()].copy_from_slice(&word);
            initial = Some(values);
        }
        RecipeTrainer::of(objective, device, resume, initial)
    }

    /// Frozen parameters with what the moving average of what is trained over them makes of them.
    fn fused(
        &self,
        (params, weights): &(Rc<RefCell<Params>>, Buffer),
    ) -> Result<(Rc<RefCell<Params>>, Buffer)> {
        let (device, mut params) = (self.device(), params.borrow().clone());
        let read = |buffer: &Buffer, params: &Params| -> Result<Vec<f32>> {
            Ok(Flat::download(device, buffer, params, 0..params.elements())?.into_f32())
        };
        let mut flat = read(weights, &params)?;
        let trained = self.params().borrow();
        let values = read(self.ema(), &trained)?;
        fuse_all(&params, &mut flat, &of_run(&trained, &values, self.recipe.lora_scale()));
        if let (true, Some(captions)) = (self.recipe.learns_word(), &self.objective.captions) {
            let word = Embedding::of_run(&self.recipe, &values);
            let first = captions.tokenizer.size() - self.recipe.num_vectors;
            put_rows(&params, &mut flat, first * word.width, &word.values);
        }
        let buffer = Flat::from(flat).upload(device, "fused", &mut params)?;
        Ok((Rc::new(RefCell::new(params)), buffer))
    }

    /// The text encoder as it is by now, of a model that sees texts.
    fn text_model(&self) -> Result<Option<TextModel>> {
        let Some(captions) = &self.objective.captions else { return Ok(None) };
        let (params, weights) = match &self.objective.text {
            Some(text) if self.recipe.train_text_encoder || self.recipe.learns_word() => self.fused(text)?,
            Some(text) => text.clone(),
            None => (Rc::clone(&self.objective.params), self.trainer.ema().clone()),
        };
        let tokenizer = captions.tokenizer.clone();
        Ok(Some(TextModel::new(self.device(), &self.recipe.text, tokenizer, params, weights)))
    }

    /// As [`RecipeTrainer::source`], drawing from `prompts`, or the captions of the first images, where the
    /// model sees texts.
    ///
    /// # Errors
    /// When memory is too small, or the driver reports an error.
    pub(super) fn captioned_source<'a>(
        &'a self,
        codec: Option<&'a Codec>,
        prompts: Option<Vec<String>>,
    ) -> Result<Source<'a>> {
        let (Some(text), Some(captions)) = (self.text_model()?, &self.objective.captions) else {
            return Ok(self.source(codec));
        };
        let source = match &self.objective.base {
            Some(base) => {
                let (device, shape) = (self.device().clone(), self.recipe.diffused());
                let adapts = self.recipe.lora_rank > 0;
                let (params, weights) = if adapts { self.fused(base)? } else { base.clone() };
                let denoiser = Denoiser::new(device, &self.objective.model, params, weights, shape);
                Source::new(denoiser, &self.recipe, codec)
            }
            None => self.source(codec),
        };
        let prompts = prompts.unwrap_or_else(|| captions.first(self.recipe.sample_count));
        Ok(source.told(text.texts(&prompts, &[String::new()], 1, 0)?.texts))
    }

    /// As [`RecipeTrainer::new`], for a diffusion model of images that is not the recipe's U-Net.
    pub(crate) fn with_model(recipe: &Recipe, device: &Device, model: Box<Model>) -> Result<Self> {
        assert_eq!(recipe.system, System::Ddpm, "a model of one's own predicts noise of images");
        let mut objective = Objective::new(recipe, None);
        objective.params = params_of_model(recipe, &*model);
        objective.model = model;
        RecipeTrainer::of(objective, device, None, None)
    }

    /// `first`: initial values, where they are not drawn.
    fn of(
        mut objective: Objective,
        device: &Device,
        resume: Option<(u64, &Values)>,
        first: Option<Vec<f32>>,
    ) -> Result<Self> {
        let recipe = objective.recipe.clone();
        recipe.check_trainable()?;
        let micros = micro_batch::split(&mut objective, device);
        let options = TrainOptions::of(&objective.recipe);
        let (params, objective) = (Rc::clone(&objective.params), Rc::new(objective));
        let recorded = Rc::clone(&objective);
        let record = Box::new(move |scope: &Scope, batch: &Batch| recorded.record(scope, batch));
        let initial = |params: &Params| first.unwrap_or_else(|| initial_of(&recipe, params));
        let trainer = Trainer::compile(device, options, params, record, resume, initial)?;
        Ok(RecipeTrainer { trainer, objective, recipe, micros })
    }

    /// As [`Trainer::join`]; from then on [`RecipeTrainer::step`] takes all examples of this rank at once.
    ///
    /// # Panics
    /// As [`Trainer::join`].
    #[track_caller]
    pub fn join(&mut self, ranks: Rc<Ranks>) {
        self.micros = self.trainer.batches() / ranks.size();
        self.trainer.join(ranks);
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
