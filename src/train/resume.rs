//! A run taken up again: from its newest checkpoint, on the data that it was trained on so far.

use std::path::Path;
use std::rc::Rc;
use std::sync::OnceLock;

use super::base::Base;
use super::feed::Data;
use super::follower::{Follower, Opened, together};
use super::options::TrainOptions;
use super::ranks::Ranks;
use super::session::{BACKWARD, Member, Session, grid_name};
use crate::codec::Codec;
use crate::data::{ConditionConfig, Dataset};
use crate::device::Device;
use crate::diffusers::open_text_encoder;
use crate::diffusion::TimestepSampling;
use crate::error::{Error, Result};
use crate::optim::LrSchedule;
use crate::recipe::{Difference, Latents, Recipe, SampleEvery, System, trained_params_of};
use crate::run::{DataRecord, Record, Run, going_on, seen};
use crate::tokenizer::Tokenizer;

/// What the user says about a run that goes on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Resume {
    /// Go on though the data is not what the run was trained on so far.
    pub data_changed: bool,
    /// Keep the learning rate of the last step.
    pub hold_lr: bool,
}

impl Session {
    /// Goes on from the newest checkpoint of a run, or from the beginning if it has none yet. `recipe`: the
    /// run's own, perhaps with other values; the model must be the same. `ranks`: as in [`Session::start`].
    ///
    /// # Errors
    /// As [`Session::start`], and when the checkpoint is damaged or of another model, all steps are done, or
    /// the data is not what the run has recorded.
    pub fn resume(
        run: Run,
        device: &Device,
        recipe: Recipe,
        wanted: Resume,
        ranks: Option<&Rc<Ranks>>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Member> {
        let leads = ranks.is_none_or(|ranks| ranks.leads());
        let locked = || run.lock().and_then(|lock| run.make_folders().map(|()| lock));
        let begun = leads.then(locked).transpose().and_then(|lock| {
            let taken = take_up(&run, device, recipe, wanted, ranks, progress)?;
            Ok((lock, taken))
        });
        let (opened, rest) = match begun {
            Ok((lock, Taken { opened, notes, owes_pictures })) => {
                (Ok(opened), Some((lock, notes, owes_pictures)))
            }
            Err(error) => (Err(error), None),
        };
        let opened = together(ranks, opened)?;
        let (Some((Some(lock), notes, owes_pictures)), true) = (rest, leads) else {
            let ranks = ranks.unwrap_or_else(|| unreachable!("only a rank of several does not lead"));
            return Ok(Member::Follower(Box::new(Follower::new(opened, Rc::clone(ranks)))));
        };
        run.write_recipe(&opened.recipe)?;
        run.truncate_metrics(opened.trainer.done())?;
        let pruned = run.prune(opened.recipe.keep_checkpoints).err();
        let mut session = Session::of(run, opened, lock)?;
        session.record();
        session.notes.extend(notes);
        session.notes.extend(pruned.map(|error| format!("warning: {error}")));
        session.owes_pictures = owes_pictures;
        Ok(Member::Leader(Box::new(session)))
    }
}

/// A run taken up again, of which nothing is written yet.
struct Taken {
    opened: Opened,
    notes: Vec<String>,
    owes_pictures: bool,
}

/// Opens all that a run needs to go on.
fn take_up(
    run: &Run,
    device: &Device,
    mut recipe: Recipe,
    wanted: Resume,
    ranks: Option<&Rc<Ranks>>,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Taken> {
    recipe.check_trainable()?;
    let codec = match recipe.system {
        System::Ldm if recipe.is_laid_over() => None,
        System::Ldm => Some(Codec::of_ldm(run, &recipe, device)?),
        _ => None,
    };
    let (mut from, mut theirs, mut recorded, mut notes) = (None, None, None, Vec::new());
    if run.checkpoints()?.is_empty() {
        notes.push("note: the run has no checkpoint yet, so it begins at step 1".to_owned());
    } else {
        let loaded = run.newest()?;
        check_resumable(&recipe, &loaded.recipe)?;
        from = Some((loaded.header.step, loaded.values(&trained_params_of(&recipe).borrow())?));
        recorded = run.record()?;
        theirs = Some(loaded.recipe);
    }
    let done = from.as_ref().map_or(0, |(done, _)| *done);
    // Without a checkpoint it begins with the same model again; adapters and words always need theirs.
    let again = recipe.is_laid_over() || from.is_none() && !recipe.base.is_empty();
    let base = again.then(|| Base::again(run, &recipe, device)).transpose()?;
    let (base_codec, mut base) = match base {
        Some(base) => {
            let (codec, text, weights) = base.beside(&recipe);
            (Some(codec), Some((text, weights)))
        }
        None => (None, None),
    };
    let codec = codec.or(base_codec);
    if wanted.hold_lr {
        hold_lr(&mut recipe, theirs.as_ref(), done)?;
    }
    let owes_pictures = done > 0 && lacks_pictures(run, &recipe, theirs.as_ref(), done);
    let complete = !owes_pictures && !lacks_latents(run, &recipe, recorded.as_ref(), done);
    if done > recipe.steps || done == recipe.steps && complete {
        let (folder, steps) = (run.folder().display(), recipe.steps);
        return Err(Error::usage(format!("{folder} has {done} of {steps} steps done"))
            .hint(format!("train on with --steps {}", (done * 2).min(u64::from(u32::MAX)))));
    }
    let settings = theirs.as_ref().map(|theirs| other_settings(&recipe, theirs)).unwrap_or_default();
    let is_meant = |differences: &[String]| is_meant(differences, run.folder(), wanted);
    notes.extend(is_meant(&settings)?);
    notes.extend(theirs.as_ref().and_then(|theirs| other_keys(&recipe, theirs)));
    let changed = OnceLock::new();
    let sees_texts = recipe.text_width() > 0;
    let known = |data: &dyn Dataset| -> Result<Vec<String>> {
        let Some(record) = &recorded else { return Ok(Vec::new()) };
        let note = is_meant(&record.data.differences(&DataRecord::of(data, sees_texts)?))?;
        changed.get_or_init(|| note);
        Ok(record.data.classes.clone())
    };
    // A run that has recorded nothing had the batches of its checkpoint all along, as far as is known.
    let so_far = match (&recorded, &theirs) {
        (Some(record), _) => record.batches.clone(),
        (None, Some(theirs)) => going_on(&[], 0, theirs.images_of_a_step()),
        (None, None) => Vec::new(),
    };
    let batches = going_on(&so_far, done, recipe.images_of_a_step());
    let latents = run.latents_path();
    recipe.trains_on_its_schedule();
    // The others encode for themselves: only the first rank writes into the run.
    let latents = ranks.is_none_or(|ranks| ranks.leads()).then_some(&*latents);
    let mut data = Data::open(&mut recipe, codec.as_ref(), latents, &known, &batches, progress)?;
    data.ranks = ranks.map(Rc::clone);
    if recipe.text_width() > 0 {
        let kept = || open_text_encoder(&run.text_encoder_path());
        let (encoder, weights) = match base.take() {
            Some((text, weights)) => ((!recipe.trains_text()).then_some(text.encoder), Some(weights)),
            None => ((!recipe.train_text_encoder).then(kept).transpose()?, None),
        };
        data.caption(&mut recipe, Tokenizer::open(&run.tokenizer_path())?, encoder, weights)?;
    }
    notes.extend(changed.into_inner().flatten());
    if done > 0 && recorded.is_none() {
        let note = "note: the run does not say what data it was trained on so far; from now on it does";
        notes.push(note.to_owned());
    }
    notes.extend(theirs.as_ref().and_then(|theirs| other_lr(&recipe, theirs, done)));
    let from = from.as_ref().map(|(done, values)| (*done, values));
    let trainer = data.trainer(&recipe, device, codec.as_ref(), from, seen(&batches, done))?;
    Ok(Taken { opened: Opened { recipe, data, codec, trainer, batches }, notes, owes_pictures })
}

/// An error if a run whose recipe is `theirs` cannot go on with another.
fn check_resumable(recipe: &Recipe, theirs: &Recipe) -> Result<()> {
    let kept = |r: &Recipe| (r.image_size, r.reconstruction);
    let model = |r: &Recipe| (r.model, r.unet.clone(), r.dit.clone(), r.conv.clone(), r.vae.clone());
    let schedule =
        |r: &Recipe| r.learns_schedule().then_some((r.learned_schedule, r.gamma_ends(), r.timesteps));
    let draws = |r: &Recipe| r.timestep_sampling == TimestepSampling::LossSecondMoment;
    // What input and output of the model mean.
    let meaning = |r: &Recipe| {
        let variance = r.variance.is_learned().then_some(r.variance);
        let classifier = (r.system == System::Classifier).then(|| r.classifier.clone());
        let ConditionConfig { kind, channels, factor, noise, .. } = r.condition;
        let condition = (kind, channels, factor, noise, r.self_conditioning);
        let laid_over = r.is_laid_over().then(|| {
            let word = (r.placeholder_token.clone(), r.num_vectors);
            (r.lora_rank, r.lora_scale(), r.train_text_encoder, word)
        });
        let text = (r.text_width() > 0).then(|| (r.text.clone(), r.trains_text(), laid_over));
        let condition = (condition, text);
        (r.system.diffuses().then_some((r.prediction_type, variance)), classifier, condition)
    };
    let has_null = |r: &Recipe| r.null_class().is_some();
    let refused = if has_null(recipe) != has_null(theirs) {
        let hint = if has_null(theirs) { "leave label_dropout above 0" } else { "leave label_dropout at 0" };
        ("run keeps whether it has a label of no class", format!("{hint}, or train anew"))
    } else if meaning(recipe) != meaning(theirs) {
        let hint = "leave prediction_type, a learned variance, condition, self_conditioning, text, lora, \
                    word and classifier keys, or train anew";
        ("run keeps the meaning of what its model says", hint.to_owned())
    } else if model(recipe) != model(theirs) {
        let hint = "leave model and the unet, dit, conv and vae keys as they are, or train anew";
        ("run keeps its model", hint.to_owned())
    } else if schedule(recipe) != schedule(theirs) {
        let hint = "leave learned_schedule, gamma_min, gamma_max and timesteps as they are, or train anew";
        ("run keeps the noise schedule that it learns", hint.to_owned())
    } else if draws(recipe) && draws(theirs) && recipe.timesteps != theirs.timesteps {
        (
            "run keeps the timesteps whose losses it draws by",
            format!("leave timesteps at {}", theirs.timesteps),
        )
    } else if recipe.system == System::Vae && kept(recipe) != kept(theirs) {
        ("VAE keeps its image_size and reconstruction", "leave them as they are, or train anew".to_owned())
    } else if recipe.scaling_factor != theirs.scaling_factor {
        ("run keeps its scaling_factor", format!("it is {}", theirs.scaling_factor))
    } else {
        return Ok(());
    };
    Err(Error::usage(format!("a resumed {}", refused.0)).hint(refused.1))
}

/// Settings that decide what the model sees of a picture, where they are not those of the checkpoint.
fn other_settings(recipe: &Recipe, theirs: &Recipe) -> Vec<String> {
    let settings = |r: &Recipe| {
        let resize = format!("{:?}", r.resize).to_lowercase();
        [("image_size", r.image_size.to_string()), ("crop", r.crop.to_string()), ("resize", resize)]
    };
    let both = settings(recipe).into_iter().zip(settings(theirs)).filter(|(now, was)| now != was);
    both.map(|((key, now), (_, was))| format!("{key} {now} instead of {was}")).collect()
}

/// A line that tells which keys of the training are others than at the checkpoint.
fn other_keys(recipe: &Recipe, theirs: &Recipe) -> Option<String> {
    // How long, how it is watched, and what is told elsewhere.
    const APART: [&str; 14] = [
        "steps",
        "epochs",
        "lr",
        "lr_schedule",
        "lr_warmup",
        "data",
        "image_size",
        "crop",
        "resize",
        "checkpoint_every",
        "keep_checkpoints",
        "tensorboard",
        "scaling_factor",
        "beta_schedule",
    ];
    let is_apart =
        |key: &str| APART.contains(&key) || key.starts_with("sample_") || key.starts_with("evaluate_");
    let both = recipe.differences(theirs).into_iter().filter(|difference| !is_apart(&difference.key));
    let said = both.map(|Difference { key, values }| {
        let [now, was] = values.map(|value| value.unwrap_or_else(|| "not there".to_owned()));
        format!("{key} {now} instead of {was}")
    });
    let said: Vec<String> = said.collect();
    (!said.is_empty()).then(|| format!("note: the run goes on with {}", said.join(", ")))
}

/// An error that tells how the data differs; a line that does so where that is meant.
fn is_meant(differences: &[String], folder: &Path, wanted: Resume) -> Result<Option<String>> {
    let told =
        format!("{} was trained on other data: it has now {}", folder.display(), differences.join(", "));
    match (differences.is_empty(), wanted.data_changed) {
        (true, _) => Ok(None),
        (false, true) => Ok(Some(format!("note: {told}"))),
        (false, false) => {
            Err(Error::new(told).hint("bring the data back as it was, or go on with --data-changed"))
        }
    }
}

/// Makes the learning rate of the last step that of all further ones.
fn hold_lr(recipe: &mut Recipe, theirs: Option<&Recipe>, done: u64) -> Result<()> {
    let Some(theirs) = theirs.filter(|_| done > 0) else {
        return Err(
            Error::usage("--hold-lr: no step is done whose learning rate could be held").hint("leave it out")
        );
    };
    let lr = |r: &Recipe| (r.lr, r.lr_schedule, r.lr_warmup);
    if lr(recipe) != lr(theirs) {
        return Err(Error::usage("--hold-lr holds the learning rate, and a key changes it")
            .hint("give --hold-lr or the lr keys"));
    }
    recipe.lr = TrainOptions::of(theirs).lr_at(done - 1);
    (recipe.lr_schedule, recipe.lr_warmup) = (LrSchedule::Constant, 0);
    recipe.validate()
}

/// A line that tells old and new learning rate, where the next step has not the one that it was to have.
fn other_lr(recipe: &Recipe, theirs: &Recipe, done: u64) -> Option<String> {
    let (was, now) = (TrainOptions::of(theirs), TrainOptions::of(recipe));
    let (planned, next) = (was.lr_at(done), now.lr_at(done));
    if done == 0 || done >= recipe.steps || planned == next {
        return None;
    }
    let last = was.lr_at(done - 1);
    if last == next {
        return Some(format!("note: the learning rate stays at {next:.1e}, that of step {done}"));
    }
    let why = match recipe.lr_schedule {
        LrSchedule::Constant => String::new(),
        LrSchedule::Cosine => format!(", as {} steps have it", recipe.steps),
    };
    let goes =
        format!("note: the learning rate goes from {last:.1e} in step {done} to {next:.1e} in the next");
    Some(format!("{goes}{why}; --hold-lr keeps it"))
}

/// Whether a program was stopped between a checkpoint and the pictures of its step.
fn lacks_pictures(run: &Run, recipe: &Recipe, theirs: Option<&Recipe>, done: u64) -> bool {
    let made = |name: &str| run.folder().join(name).exists();
    if recipe.sample_every == SampleEvery::Never || recipe.system == System::Classifier {
        return false;
    }
    let of_step = |r: &Recipe| r.sample_every.is_due(done, r.steps);
    let has_grid = done == recipe.steps || theirs.is_some_and(of_step);
    let has_strip = done == recipe.steps && recipe.system.diffuses();
    has_grid && !made(&grid_name(done)) || has_strip && !made(BACKWARD)
}

/// Whether all images were met, and the file of their latents is missing nevertheless.
fn lacks_latents(run: &Run, recipe: &Recipe, record: Option<&Record>, done: u64) -> bool {
    let cached = recipe.system == System::Ldm && recipe.latents == Latents::Cached;
    record.is_some_and(|Record { data, batches }| {
        let images = data.pictures.unwrap_or(recipe.latent_count as u64);
        let samples = if recipe.flip { 2 * images } else { images };
        cached && !run.latents_path().exists() && samples <= seen(batches, done)
    })
}
