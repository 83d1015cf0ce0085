//! Trained models as they are opened for sampling.

use std::cell::RefCell;
use std::path::Path;
use std::rc::Rc;

use super::{Denoiser, Given, Source};
use crate::checkpoint::Loaded;
use crate::codec::Codec;
use crate::device::{Buffer, Device};
use crate::diffusers::inversion::Embedding;
use crate::diffusers::lora::of_run;
use crate::diffusers::{self, Extras, Folder, Text, TextEncoder, Unsaid, fuse_all, text_params};
use crate::diffusion::Model;
use crate::error::{Error, Result, quoted};
use crate::names::path_of;
use crate::nn::{self, Flat, Params};
use crate::recipe::{Recipe, System, model_of, params_of, trained_params_of};
use crate::run::Run;
use crate::text_model::TextModel;
use crate::tokenizer::Tokenizer;

/// A trained diffusion model on a device, with all that sampling needs.
pub struct Trained {
    device: Device,
    recipe: Recipe,
    model: Box<Model>,
    params: Rc<RefCell<Params>>,
    weights: Buffer,
    codec: Option<Codec>,
    text: Option<TextModel>,
    remarks: Vec<String>,
}

/// An error for a recipe without a diffusion process.
fn check_diffuses(path: &Path, recipe: &Recipe) -> Result<()> {
    if recipe.system.diffuses() {
        return Ok(());
    }
    let (shown, given) = (path.display(), quoted(path));
    if recipe.system == System::Classifier {
        return Err(Error::new(format!(
            "{shown} is a classifier: it has no diffusion process to sample with"
        ))
        .hint(format!("give it to `denoir evaluate RUN --classifier {given}`")));
    }
    Err(Error::new(format!("{shown} is a VAE: it has no diffusion process to sample with")).hint(format!(
        "draw from its prior with `denoir figure grid {given}`, or train latent diffusion on it with `denoir \
         train faces-ldm --vae {given}`"
    )))
}

impl Trained {
    /// Opens a run, or one of its checkpoints, with the moving average of its weights; or a folder of the
    /// diffusers library.
    ///
    /// # Errors
    /// When it is damaged, is no diffusion model, lacks its VAE, or does not fit into memory.
    pub fn open(path: &Path, device: &Device) -> Result<Trained> {
        Trained::open_with(path, &Unsaid::default(), &Extras::default(), device)
    }

    /// [`Trained::open`], and one file of Stable Diffusion too, which leaves things `unsaid`; with `extras`
    /// laid over the model.
    ///
    /// # Errors
    /// As [`Trained::open`], and when a file of the extras is for another model.
    pub fn open_with(path: &Path, unsaid: &Unsaid, extras: &Extras, device: &Device) -> Result<Trained> {
        if let Some(folder) = diffusers::open_any(path, unsaid)? {
            return Trained::of_folder(path, folder, extras, device);
        }
        let (loaded, run) = Run::checkpoint_of(path)?;
        let recipe = loaded.recipe.clone();
        check_diffuses(path, &recipe)?;
        recipe.validate().map_err(Error::in_a_file)?;
        if recipe.is_laid_over() {
            let base = path_of(&recipe.base);
            // What the run keeps of it stands in for what is not said.
            let own = run.filter(|_| *unsaid == Unsaid::default());
            let kept = own.map(|run| Unsaid::kept(&base, run.tokenizer_path(), recipe.prediction_type));
            return Trained::of_laid_over(path, &loaded, kept.as_ref().unwrap_or(unsaid), extras, device);
        }
        let outside = |needed: &str| {
            Error::new(format!("{} is outside its run folder", path.display()))
                .hint(format!("give the run: its {needed} is needed too"))
        };
        let codec = match (recipe.system, &run) {
            (System::Ldm, Some(run)) => Some(Codec::of_ldm(run, &recipe, device)?),
            (System::Ldm, None) => return Err(outside("VAE")),
            _ => None,
        };
        let mut values = Flat::from(loaded.set("ema", &params_of(&recipe).borrow())?);
        let run = match (recipe.text_width() > 0, run) {
            (true, None) => return Err(outside("tokenizer")),
            (true, Some(run)) => Some(run),
            (false, _) => None,
        };
        let tokenizer = run.as_ref().map(|run| Tokenizer::open(&run.tokenizer_path())).transpose()?;
        // One that nothing changes is taken from among the parameters.
        let beside = !recipe.train_text_encoder || !extras.is_empty();
        let mut text = match (&run, tokenizer.clone().filter(|_| beside)) {
            (Some(run), Some(tokenizer)) => {
                let encoder = match recipe.train_text_encoder {
                    true => TextEncoder::among(&recipe, &values.f32()),
                    false => diffusers::open_text_encoder(&run.text_encoder_path())?,
                };
                Some(Text { encoder, tokenizer })
            }
            _ => None,
        };
        let remarks = extras.apply(&recipe, &mut values, text.as_mut())?;
        let text = text.map(|text| TextModel::of_folder(text, device)).transpose()?;
        let mut trained = Trained::with(recipe, values, (codec, text), remarks, device)?;
        if let Some(tokenizer) = tokenizer.filter(|_| !beside) {
            let (params, weights) = (Rc::clone(&trained.params), trained.weights.clone());
            let config = &trained.recipe.text;
            trained.text = Some(TextModel::new(device, config, tokenizer, params, weights));
        }
        Ok(trained)
    }

    /// The model that a run has trained adapters of, or a word for, with these.
    fn of_laid_over(
        path: &Path,
        loaded: &Loaded,
        unsaid: &Unsaid,
        extras: &Extras,
        device: &Device,
    ) -> Result<Trained> {
        let recipe = &loaded.recipe;
        let base = path_of(&recipe.base);
        let is_there = diffusers::open_any(&base, unsaid);
        let folder = is_there
            .and_then(|folder| folder.ok_or_else(|| Error::new(format!("{} is no model", base.display()))));
        let mut folder = folder.map_err(|e| {
            let message =
                format!("{} is laid over {}, which cannot be opened", path.display(), base.display());
            Error::new(message).hint("put that model back").caused_by(e.report())
        })?;
        let own = folder.text.as_ref().map(|text| text.fingerprint_with(&folder.model.weights));
        if own.as_ref() != Some(&recipe.base_fingerprint) {
            let message = format!("{} is not the model that {} is laid over", base.display(), path.display());
            return Err(Error::new(message).hint("put that one back"));
        }
        let params = trained_params_of(recipe);
        let values = loaded.set("ema", &params.borrow())?;
        let adapters = of_run(&params.borrow(), &values, recipe.lora_scale());
        let unet = params_of(&folder.model.recipe);
        fuse_all(&unet.borrow(), folder.model.weights.widen(), &adapters);
        if let Some(text) = &mut folder.text {
            let params = text_params(&text.encoder.config);
            fuse_all(&params.borrow(), text.encoder.weights.widen(), &adapters);
            if recipe.learns_word() {
                let word = Embedding::of_run(recipe, &values);
                text.add_word(&word).map_err(|e| e.within(path.display()))?;
                folder.remarks.push(format!("{} is {} in prompts", path.display(), word.token));
            }
        }
        let theirs = &mut folder.model.recipe;
        theirs.name.clone_from(&recipe.name);
        theirs.prediction_type = recipe.prediction_type;
        // Of the size that they were trained with.
        (theirs.image_size, theirs.latent_size) = (recipe.image_size, recipe.latent_size);
        if let Some(vae) = &mut folder.vae {
            vae.recipe.image_size = recipe.image_size;
        }
        Trained::of_folder(path, folder, extras, device)
    }

    /// A pipeline, or a bare model, of the diffusers library.
    fn of_folder(path: &Path, mut folder: Folder, extras: &Extras, device: &Device) -> Result<Trained> {
        check_diffuses(path, &folder.model.recipe)?;
        let (recipe, weights) = (&folder.model.recipe, &mut folder.model.weights);
        folder.remarks.extend(extras.apply(recipe, weights, folder.text.as_mut())?);
        let codec = folder.vae.map(|vae| Codec::of_component(vae, device)).transpose()?;
        let text = folder.text.map(|text| TextModel::of_folder(text, device)).transpose()?;
        Trained::with(folder.model.recipe, folder.model.weights, (codec, text), folder.remarks, device)
    }

    fn with(
        recipe: Recipe,
        values: Flat,
        (codec, text): (Option<Codec>, Option<TextModel>),
        remarks: Vec<String>,
        device: &Device,
    ) -> Result<Trained> {
        let params = params_of(&recipe);
        let weights = values.upload(device, "parameters", &mut params.borrow_mut())?;
        let model = model_of(&recipe);
        Ok(Trained { device: device.clone(), model, recipe, params, weights, codec, text, remarks })
    }

    /// Remarks for the user about what it was read from, and what was laid over it.
    pub fn remarks(&self) -> &[String] {
        &self.remarks
    }

    /// The text encoder, of a model that sees texts.
    pub fn text(&self) -> Option<&TextModel> {
        self.text.as_ref()
    }

    /// Frees the text encoder: for whoever has embedded all prompts.
    pub(crate) fn free_text(&mut self) {
        self.text = None;
    }

    /// The recipe of the model.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// [`Trained::source`], with the conditions of so many held-out images where the model takes conditions.
    ///
    /// # Errors
    /// When these cannot be read.
    pub fn source_of(&self, count: usize, data: Option<&str>) -> Result<Source<'_>> {
        let source = self.source();
        if !self.recipe.condition.is_some() {
            return Ok(source);
        }
        Ok(source.conditioned_on(Given::held_out(&self.recipe, data, count)?))
    }

    /// [`Trained::source`], with the weights, which [`Source::free_weights`] can free then: for whoever draws
    /// once.
    ///
    /// # Errors
    /// When memory is too small.
    pub(crate) fn take_source(&mut self) -> Result<Source<'_>> {
        let nothing = self.device.alloc(nn::STORE, 0)?;
        let taken = std::mem::replace(&mut self.weights, nothing);
        let mut source = self.source();
        source.denoiser.weights = taken;
        Ok(source)
    }

    /// The model to draw from.
    pub fn source(&self) -> Source<'_> {
        let (device, params, weights) = (self.device.clone(), Rc::clone(&self.params), self.weights.clone());
        let shape = self.recipe.diffused();
        let denoiser = Denoiser::new(device, &self.model, params, weights, shape);
        Source::new(denoiser, &self.recipe, self.codec.as_ref())
    }
}
