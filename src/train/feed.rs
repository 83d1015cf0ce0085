//! Data of a session, opened and read ahead.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::base::{Beside, add_word};
use super::captions::Captioned;
use super::encoded::{Encoded, prepare};
use super::evaluate::Evaluator;
use super::held_out::HeldOut;
use super::ranks::Ranks;
use super::recipe_trainer::RecipeTrainer;
use super::resident::{Examples, kept};
use crate::checkpoint::Values;
use crate::codec::Codec;
use crate::data::{
    self, Captions, Dataset, DreamBooth, Loader, Positions, numbered, open_for_evaluation, open_whole_folder,
};
use crate::device::Device;
use crate::diffusers::{Text, TextEncoder};
use crate::error::{Error, Result};
use crate::nn::Flat;
use crate::recipe::{Recipe, System};
use crate::run::{Batches, seen};
use crate::sample::Given;
use crate::tokenizer::Tokenizer;

/// Looks at the data as it lies there; gives the names of classes that have numbers already.
pub(super) type Known<'a> = dyn Fn(&dyn Dataset) -> Result<Vec<String>> + Sync + 'a;

/// Opens the training data of a recipe, images of so many `channels`, and checks that the model fits it.
fn open_data(recipe: &Recipe, channels: usize, known: &Known) -> Result<Arc<dyn Dataset>> {
    let mut dataset = data::open(&recipe.data, &recipe.pictures(channels))?;
    if let Some(captions) = recipe.captions() {
        let class = || open_whole_folder(&recipe.class_folder, &recipe.pictures(channels));
        let class = recipe.keeps_prior().then(class).transpose()?;
        let captions = [captions, vec![recipe.class_prompt.clone()]];
        dataset = Arc::new(DreamBooth::new(dataset, class, captions));
    }
    recipe.check_partner(&*dataset)?;
    let classes = known(&*dataset)?;
    let dataset = numbered(dataset, &classes);
    let (classes, (table, key)) = (dataset.classes().len(), recipe.trained_classes());
    if recipe.system == System::Classifier {
        let wanted = recipe.classifier.classes;
        if classes < 2 || wanted > 0 && wanted != classes {
            let has = format!("the data has {classes} classes");
            return Err(match wanted {
                0 => Error::usage(has).hint("a classifier tells two or more apart: choose other data"),
                _ => Error::usage(format!("{has}, the classifier {wanted}"))
                    .hint("choose the data that it was begun with, or train anew"),
            });
        }
    }
    let null = table.saturating_sub(recipe.class_count());
    if table > 0 && classes != recipe.class_count() {
        let and_none = if null > 0 { ", and label_dropout takes one more row for no class" } else { "" };
        return Err(Error::usage(format!("{key} is {table} and the data has {classes} classes{and_none}"))
            .hint(if classes > 0 {
                format!("give --set {key}={}", classes + null)
            } else {
                format!("choose data with classes, or give --set {key}=0 --set label_dropout=0")
            }));
    }
    Ok(dataset)
}

/// Data of a run.
pub(super) struct Data {
    /// Images.
    pub dataset: Arc<dyn Dataset>,
    /// Cached latents, which steps of latent diffusion read instead of images.
    pub encoded: Option<Encoded>,
    /// Images that a VAE is measured on.
    pub evaluator: Option<Evaluator>,
    /// Images that a diffusion model is measured on.
    pub held_out: Option<HeldOut>,
    /// Why there are none, if there should be some.
    pub note: Option<String>,
    /// What the trainer has beside.
    pub beside: Beside,
    /// Held-out images and their conditions, which pictures are drawn from.
    pub given: Option<Given>,
    /// The processes that share the training, if there are several: this one reads its own part alone.
    pub ranks: Option<Rc<Ranks>>,
    /// Gives the batches of the steps, in order; reads the first ones while everything else is made.
    feed: Option<Box<dyn FnMut() -> Result<Examples>>>,
}

impl Data {
    /// Opens all of it, and fills in the names of the classes; in latent diffusion, with `codec`, fills in
    /// the scale and keeps encoded latents in `file`, or takes them from there. `batches`: of the steps so
    /// far, and of those to come.
    pub(super) fn open(
        recipe: &mut Recipe,
        codec: Option<&Codec>,
        file: Option<&Path>,
        known: &Known,
        batches: &[Batches],
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Data> {
        // Those that the VAE of latent diffusion takes.
        let channels = codec.map_or(&*recipe, Codec::recipe).image_channels();
        let judged = || {
            let judges = recipe.system == System::Vae || recipe.has_held_out_loss();
            judges.then(|| open_for_evaluation(&recipe.data, &recipe.pictures(channels))).transpose()
        };
        // At the same time: large folders take a while to list.
        let (dataset, judged) = rayon::join(|| open_data(recipe, channels, known), judged);
        let dataset = dataset?;
        let (judged, note) = match judged {
            // A diffusion model can do without.
            Err(error) if recipe.system.diffuses() => {
                (None, Some(format!("warning: there is no held-out loss: {}", error.report())))
            }
            judged => (judged?, None),
        };
        if let (1.., Some(images)) = (recipe.epochs, dataset.len()) {
            recipe.steps = match batches {
                [.., last] if last.after > 0 => {
                    let left = recipe.epochs.saturating_mul(images).saturating_sub(seen(batches, last.after));
                    last.after.saturating_add(left.div_ceil(last.images))
                }
                _ => recipe.steps_of_a_pass(images).saturating_mul(recipe.epochs),
            };
            recipe.validate()?;
        }
        let told = recipe.system == System::Classifier || recipe.trained_classes().0 > 0;
        if recipe.system == System::Classifier {
            recipe.classifier.classes = dataset.classes().len();
        }
        recipe.class_names = if told { dataset.classes().to_vec() } else { Vec::new() };
        let count = recipe.evaluate_count;
        let (evaluator, held_out) = match judged {
            Some((images, unseen)) if recipe.system == System::Vae => {
                (Some(Evaluator::new(images, count, unseen)?), None)
            }
            Some((images, unseen)) => {
                let (images, of_model) = (numbered(images, &recipe.class_names), recipe.class_count());
                if of_model > 0 && images.classes().len() != of_model {
                    return Err(Error::usage("the held-out images have other classes than the training has")
                        .hint("give data with the same, or --set evaluate_count=0"));
                }
                let captions = match recipe.captions() {
                    _ if recipe.text_width() == 0 => None,
                    Some(captions) => Some(Captions::made(move |_| captions.clone())),
                    None => images.captions()?,
                };
                (None, Some(HeldOut::new(images, count, unseen).captioned(captions)))
            }
            None => (None, None),
        };
        let encoded = match codec {
            Some(codec) => prepare(codec, &dataset, recipe, file, progress)?,
            None => None,
        };
        let given = recipe.condition.is_some().then(|| Given::held_out(recipe, None, recipe.sample_count));
        Ok(Data {
            dataset,
            encoded,
            evaluator,
            held_out,
            note,
            beside: Beside::default(),
            given: given.transpose()?,
            ranks: None,
            feed: None,
        })
    }

    /// Adds the captions, the text encoder that a model sees them through where it is not trained, and the
    /// weights that training begins with. A word that the recipe learns gets tokens.
    pub(super) fn caption(
        &mut self,
        recipe: &mut Recipe,
        mut tokenizer: Tokenizer,
        mut encoder: Option<TextEncoder>,
        weights: Option<Flat>,
    ) -> Result<()> {
        let mut word = None;
        if let Some(own) = encoder.take_if(|_| recipe.learns_word()) {
            let mut text = Text { encoder: own, tokenizer };
            word = Some(add_word(recipe, &mut text)?);
            recipe.text.clone_from(&text.encoder.config);
            (tokenizer, encoder) = (text.tokenizer, Some(text.encoder));
        }
        let captions = Some(Rc::new(Captioned::new(recipe, tokenizer, Arc::clone(&self.dataset))?));
        self.beside = Beside { captions, text: encoder, weights, word };
        Ok(())
    }

    /// The data set that steps read: images, or all that is cached of them.
    pub(super) fn source(&self) -> Arc<dyn Dataset> {
        self.encoded.as_ref().map_or_else(|| Arc::clone(&self.dataset), Encoded::source)
    }

    /// Takes the latents that are encoded as the data of further steps, once all are; whether that is now.
    pub(super) fn keep_grown(&mut self) -> bool {
        Encoded::grown(&mut self.encoded).is_some()
    }

    /// Examples of the next step. `codec` encodes images that no step met before.
    pub(super) fn next(&mut self, codec: Option<&Codec>) -> Result<Examples> {
        let Some(feed) = &mut self.feed else { unreachable!("a trainer has data") };
        match (feed()?, &mut self.encoded, codec) {
            (Examples::Images(batch), Some(Encoded::Some(growing)), Some(codec)) => {
                growing.encode(codec, batch).map(Examples::from)
            }
            (examples, ..) => Ok(examples),
        }
    }

    /// Starts to read the batches after so many images were `seen`, or, of a data set that is `resident`, to
    /// pick its samples.
    pub(super) fn load(&mut self, recipe: &Recipe, seen: u64, resident: bool) -> Result<()> {
        let (seed, images) = (recipe.seed, recipe.images_of_a_step());
        let (batch, from) = match &self.ranks {
            None => (recipe.batch_size, Positions::from(seen)),
            // All that is this rank's of a step, at once.
            Some(ranks) => {
                let share = images / ranks.size() as u64;
                (
                    share as usize,
                    Positions { first: seen + share * ranks.rank() as u64, stride: Some(images) },
                )
            }
        };
        // Mirrored images are among the cached.
        let (source, flip) = (self.source(), recipe.flip && self.encoded.is_none());
        self.feed = Some(match source.whole().filter(|_| resident) {
            Some(whole) => {
                let mut loader = Loader::picking(whole.labels, source.together(), batch, seed, flip, from)?;
                Box::new(move || loader.next().map(Examples::from))
            }
            None => {
                let mut loader = match &recipe.condition {
                    condition if condition.is_some() => {
                        Loader::conditioned(source, condition.clone(), batch, seed, flip, from)?
                    }
                    _ if recipe.random_crop => Loader::cropping(source, batch, seed, flip, from)?,
                    _ => Loader::new(source, batch, seed, flip, from)?,
                };
                Box::new(move || loader.next().map(Examples::from))
            }
        });
        Ok(())
    }

    /// The trainer of a recipe on this data, and its first batches after so many images were `seen`.
    /// `resume`: from a checkpoint.
    pub(super) fn trainer(
        &mut self,
        recipe: &Recipe,
        device: &Device,
        codec: Option<&Codec>,
        resume: Option<(u64, &Values)>,
        seen: u64,
    ) -> Result<RecipeTrainer> {
        let source = self.source();
        // Conditions are made on the host.
        let whole = kept(&*source, device).filter(|_| !recipe.condition.is_some());
        self.load(recipe, seen, whole.is_some())?;
        let beside = Beside { captions: self.beside.captions.clone(), ..std::mem::take(&mut self.beside) };
        self.beside.captions.clone_from(&beside.captions);
        let mut trainer = RecipeTrainer::beside(recipe, device, codec, resume, whole.as_ref(), beside)?;
        if let Some(ranks) = &self.ranks {
            trainer.join(Rc::clone(ranks));
        }
        Ok(trainer)
    }
}
