//! A training run in its folder: begun, or taken up again.

use std::collections::HashSet;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::base::Base;
use super::captions::tokenizer_of;
use super::class_pictures::draw_missing;
use super::encoded::Encoded;
use super::feed::Data;
use super::follower::{Follower, Opened, together};
use super::ranks::Ranks;
use super::recipe_trainer::RecipeTrainer;
use super::times::Times;
use super::writer::Writer;
use crate::codec::Codec;
use crate::data::Dataset;
use crate::device::Device;
use crate::diffusers::{TextEncoder, Unsaid, write_text_encoder};
use crate::diffusion::Betas;
use crate::error::{Error, Result, need};
use crate::recipe::{Recipe, System};
use crate::run::{Batches, Board, DataRecord, Evaluation, HeldOutLoss, Metrics, Record, Run, going_on};
use crate::tokenizer::Tokenizer;

/// Picture of the forward process, which is the first that a run draws.
pub(super) const FORWARD: &str = "forward.png";
/// Picture of the backward process, which is the last that a run draws.
pub(super) const BACKWARD: &str = "backward.png";

pub(super) fn grid_name(step: u64) -> String {
    format!("samples/step-{step:08}.png")
}

/// Events of a session, for the command line to show.
pub trait Watch {
    /// After each step.
    fn step(&mut self, metrics: &Metrics);
    /// While something else than training is done; `None` when it is over.
    fn doing(&mut self, what: Option<&str>);
    /// A VAE was measured on held-out images.
    fn evaluated(&mut self, evaluation: &Evaluation);
    /// A diffusion model was measured on held-out images.
    fn held_out_loss(&mut self, loss: &HeldOutLoss);
    /// A line for the user.
    fn message(&mut self, line: &str);
    /// True when the user wants to stop.
    fn interrupted(&self) -> bool;
}

/// A process in a training.
pub enum Member {
    /// The one that writes the run: the only one, or the first of several ranks.
    Leader(Box<Session>),
    /// Another rank.
    Follower(Box<Follower>),
}

/// A training run in its folder.
pub struct Session {
    pub(crate) run: Run,
    /// With all that was filled in.
    pub(crate) recipe: Recipe,
    pub(super) data: Data,
    /// The VAE of latent diffusion, or the one that is trained.
    pub(super) codec: Option<Codec>,
    pub(super) trainer: RecipeTrainer,
    pub(super) writer: Writer,
    pub(super) times: Times,
    /// Warnings of the data that were passed on.
    pub(super) warned: HashSet<String>,
    /// Images of the steps.
    pub(super) batches: Vec<Batches>,
    /// Lines for the user, told when training begins.
    pub(super) notes: Vec<String>,
    /// Whether the pictures of the last step are still to be drawn.
    pub(super) owes_pictures: bool,
    /// Where TensorBoard's events go, if they are wanted.
    pub(super) board: Option<Board>,
    /// Held so that no other program trains into the folder.
    _lock: std::fs::File,
}

impl Session {
    /// A new run. Data and memory are checked before the folder is made. `vae`: where the VAE of latent
    /// diffusion is; `base`: a model of texts that is trained on, and what it leaves unsaid; `ranks`: the
    /// processes that share the training; `progress` is told how many images of how many are encoded.
    ///
    /// # Errors
    /// When the recipe, the data, the VAE, the device or the folder is not usable.
    pub fn start(
        recipe: Recipe,
        device: &Device,
        out: Option<&Path>,
        vae: Option<&Path>,
        base: Option<(&Path, &Unsaid)>,
        ranks: Option<&Rc<Ranks>>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Member> {
        let out = out.filter(|_| ranks.is_none_or(|ranks| ranks.leads()));
        let begun = Run::check_free(out).and_then(|()| begin(recipe, device, vae, base, ranks, progress));
        let (opened, texts) = begun.map_or_else(|error| (Err(error), None), |(o, t)| (Ok(o), t));
        let opened = together(ranks, opened)?;
        if let Some(ranks) = ranks.filter(|ranks| !ranks.leads()) {
            return Ok(Member::Follower(Box::new(Follower::new(opened, Rc::clone(ranks)))));
        }
        let run = Run::create(out, &opened.recipe)?;
        let lock = run.lock()?;
        let is_laid_over = opened.recipe.is_laid_over();
        if let Some(codec) = &opened.codec {
            if !is_laid_over {
                codec.save(&run.vae_path())?;
            }
            if let Some(Encoded::All(latents)) = &opened.data.encoded {
                latents.save(&run.latents_path())?;
            }
        }
        if let Some((tokenizer, encoder)) = &texts {
            tokenizer.save(&run.tokenizer_path(), opened.recipe.text.max_position_embeddings)?;
            if let Some(encoder) = encoder {
                let ends = [tokenizer.bos(), tokenizer.eos(), tokenizer.pad()];
                write_text_encoder(&run.text_encoder_path(), encoder, ends)?;
            }
        }
        // Last: it makes the folder a run, which is complete from then on.
        run.write_recipe(&opened.recipe)?;
        let mut session = Session::of(run, opened, lock)?;
        session.record();
        Ok(Member::Leader(Box::new(session)))
    }

    pub(super) fn of(run: Run, opened: Opened, lock: std::fs::File) -> Result<Session> {
        let Opened { recipe, data, codec, trainer, batches } = opened;
        let codec = codec.or_else(|| (recipe.system == System::Vae).then(|| trainer.codec()));
        let notes = data.note.clone().into_iter().collect();
        Ok(Session {
            run,
            recipe,
            data,
            codec,
            trainer,
            writer: Writer::start()?,
            times: Times::default(),
            warned: HashSet::new(),
            batches,
            notes,
            owes_pictures: false,
            board: None,
            _lock: lock,
        })
    }

    /// Has what the run is trained on recorded beside the first steps: before their checkpoint, because the
    /// writer keeps the order. To read a large folder takes a while.
    pub(super) fn record(&mut self) {
        let (run, batches) = (self.run.clone(), self.batches.clone());
        let (data, sees_texts) = (Arc::clone(&self.data.dataset), self.recipe.text_width() > 0);
        self.writer.give(move || {
            let data = DataRecord::of(&*data, sees_texts)?;
            run.write_record(&Record { data, batches }).map(|()| None)
        });
    }

    /// The trainer of the steps.
    pub fn trainer(&self) -> &RecipeTrainer {
        &self.trainer
    }

    /// The VAE of latent diffusion, or the one that is trained.
    pub(crate) fn codec(&self) -> Option<&Codec> {
        self.codec.as_ref()
    }

    /// Where the time went.
    pub fn times(&self) -> &Times {
        &self.times
    }
}

/// What a run that sees texts keeps of them: its tokenizer, and a text encoder that is not trained.
type Texts = Option<(Tokenizer, Option<TextEncoder>)>;

/// Opens all that a new run needs.
fn begin(
    mut recipe: Recipe,
    device: &Device,
    vae: Option<&Path>,
    base: Option<(&Path, &Unsaid)>,
    ranks: Option<&Rc<Ranks>>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<(Opened, Texts)> {
    let from = base;
    let base = base.map(|(path, unsaid)| Base::open(path, unsaid, &mut recipe, device)).transpose()?;
    if let Some((path, unsaid)) = from.filter(|_| recipe.keeps_prior()) {
        let mut draw = || draw_missing(&recipe, path, unsaid, device, progress);
        match ranks {
            Some(ranks) => ranks.first(draw)?,
            None => draw()?,
        }
    }
    recipe.check_trainable()?;
    if recipe.learns_schedule() && matches!(recipe.beta_schedule, Betas::Given(_)) {
        return Err(Error::usage("beta_schedule is a list, and learned_schedule finds its own")
            .hint("leave one of them out"));
    }
    let (mut from, mut weights) = (None, None);
    let own = match base {
        Some(base) => {
            let (codec, text, first) = base.beside(&recipe);
            (from, weights) = (Some(text), Some(first));
            Some(codec)
        }
        None => None,
    };
    let what = if recipe.learns_word() { "a word is learned for" } else { "adapters are of" };
    need(
        !recipe.is_laid_over() || from.is_some(),
        format!("{what} a model, and none is given"),
        "give one by --base: a folder of a StableDiffusionPipeline, or one file of Stable Diffusion",
    )?;
    let codec = match (recipe.system == System::Ldm, vae) {
        _ if own.is_some() => own,
        (true, Some(path)) => Some(Codec::open(path, device)?),
        (true, None) => {
            return Err(Error::usage(format!("{} trains on the latents of a VAE", recipe.name))
                .hint("train one, such as `denoir train faces-vae`, and give its run with --vae"));
        }
        (false, Some(_)) => {
            return Err(Error::usage(format!("{} does not train on latents", recipe.name))
                .hint("leave --vae out, or choose an ldm recipe"));
        }
        (false, None) => None,
    };
    if let Some(codec) = &codec {
        codec.check_fits(&recipe)?;
        codec.fingerprint().clone_into(&mut recipe.vae_fingerprint);
    }
    let batches = going_on(&[], 0, recipe.images_of_a_step());
    let new = |_: &dyn Dataset| -> Result<Vec<String>> { Ok(Vec::new()) };
    let mut data = Data::open(&mut recipe, codec.as_ref(), None, &new, &batches, progress)?;
    data.ranks = ranks.map(Rc::clone);
    let mut texts = None;
    if recipe.text_width() > 0 {
        need(
            recipe.train_text_encoder || from.is_some(),
            "train_text_encoder is false, and there is no text encoder",
            "give a model by --base, or set train_text_encoder = true to train one from nothing",
        )?;
        let (tokenizer, encoder) = match from {
            Some(text) => (text.tokenizer, (!recipe.trains_text()).then_some(text.encoder)),
            None => (tokenizer_of(&recipe)?, None),
        };
        // A run of adapters, or of a word, finds the rest where its model is.
        texts = Some((tokenizer.clone(), encoder.clone().filter(|_| !recipe.is_laid_over())));
        data.caption(&mut recipe, tokenizer, encoder, weights)?;
    }
    let trainer = data.trainer(&recipe, device, codec.as_ref(), None, 0)?;
    Ok((Opened { recipe, data, codec, trainer, batches }, texts))
}
