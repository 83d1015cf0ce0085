//! The loop around the step: data, metrics, checkpoints, pictures, interruption.

use std::collections::HashSet;
use std::path::Path;
use std::time::{Duration, Instant};

use super::feed::{Data, Feed};
use super::latents::Encoded;
use super::pictures::{BACKWARD, grid_name};
use super::step::Trainer;
use super::times::Times;
use super::writer::Writer;
use crate::checkpoint;
use crate::codec::Codec;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::recipe::{Recipe, System};
use crate::run::{Evaluation, Log, Metrics, Run};

/// Fewest steps between evaluations: a few dozen pictures are seen in one.
const SHORTEST_EPOCH: u64 = 100;
/// Steps between evaluations where data has no end.
const ENDLESS_EPOCH: u64 = 1000;

/// What the command line shows while a session goes on.
pub trait Watch {
    /// After each step.
    fn step(&mut self, metrics: &Metrics);
    /// While something else than training is done; `None` when it is over.
    fn doing(&mut self, what: Option<&str>);
    /// A VAE was measured on held-out images.
    fn evaluated(&mut self, evaluation: &Evaluation);
    /// Something that the user should know.
    fn say(&mut self, line: &str);
    /// True when the user wants to stop.
    fn interrupted(&self) -> bool;
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Done,
    /// After this many steps, on the user's wish; all is saved.
    Interrupted(u64),
}

/// A training run in its folder.
pub struct Session {
    pub(super) run: Run,
    pub(super) recipe: Recipe,
    pub(super) data: Data,
    /// The VAE of latent diffusion, or the one that is trained.
    pub(super) codec: Option<Codec>,
    pub(super) trainer: Trainer,
    pub(super) writer: Writer,
    pub(super) times: Times,
    /// Warnings that were passed on.
    told: HashSet<String>,
    /// Held so that no other program trains into the folder.
    _lock: std::fs::File,
}

/// What the lines of a session's log need besides the steps' outcomes.
struct Progress {
    log: Log,
    began: Instant,
    /// Steps done before.
    first: u64,
    /// Images of a step.
    per_step: u64,
}

impl Session {
    /// A new run. Data and memory are checked before the folder is made. `vae`: where the VAE of latent
    /// diffusion is; `progress` is told how many images of how many are encoded.
    ///
    /// # Errors
    /// When the recipe, the data, the VAE, the device or the folder is not usable.
    pub fn start(
        mut recipe: Recipe,
        device: &Device,
        out: Option<&Path>,
        vae: Option<&Path>,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Session> {
        recipe.check_trainable()?;
        let codec = match (recipe.system, vae) {
            (System::Ldm, Some(path)) => Some(Codec::open(path, device)?),
            (System::Ldm, None) => {
                return Err(Error::usage(format!("{} trains on the latents of a VAE", recipe.name))
                    .hint("train one, such as `denoir train faces-vae`, and give its run with --vae"));
            }
            (_, Some(_)) => {
                return Err(Error::usage(format!("{} does not train on latents", recipe.name))
                    .hint("leave --vae out, or choose an ldm recipe"));
            }
            (_, None) => None,
        };
        if let Some(codec) = &codec {
            codec.check_fits(&recipe)?;
            codec.fingerprint().clone_into(&mut recipe.vae_fingerprint);
        }
        Run::check_free(out)?;
        let mut data = Data::open(&mut recipe, codec.as_ref(), None, progress)?;
        let trainer = data.trainer(&recipe, device, codec.as_ref(), None)?;
        let run = Run::create(out, &recipe)?;
        let lock = run.lock()?;
        if let Some(codec) = &codec {
            codec.save(&run.vae_path())?;
            if let Some(Encoded::All(latents)) = &data.encoded {
                latents.save(&run.latents_path())?;
            }
        }
        // Last: it makes the folder a run, which is complete from then on.
        run.write_recipe(&recipe)?;
        Session::of(run, recipe, data, codec, trainer, lock)
    }

    fn of(
        run: Run,
        recipe: Recipe,
        data: Data,
        codec: Option<Codec>,
        trainer: Trainer,
        lock: std::fs::File,
    ) -> Result<Session> {
        let codec = codec.or_else(|| (recipe.system == System::Vae).then(|| trainer.codec()));
        let (writer, times, told) = (Writer::start()?, Times::default(), HashSet::new());
        Ok(Session { run, recipe, data, codec, trainer, writer, times, told, _lock: lock })
    }

    /// Goes on from the newest checkpoint of a run, or from the beginning if it has none yet. `recipe`: the
    /// run's own, perhaps with other values; the model must be the same.
    ///
    /// # Errors
    /// As [`Session::start`], and when the checkpoint is damaged or of another model, or all steps are
    /// done.
    pub fn resume(
        run: Run,
        device: &Device,
        mut recipe: Recipe,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Session> {
        recipe.check_trainable()?;
        let lock = run.lock()?;
        run.make_folders()?;
        let codec = match recipe.system {
            System::Ldm => Some(Codec::of_ldm(&run, &recipe, device)?),
            _ => None,
        };
        let (mut done, mut values) = (0, None);
        if !run.checkpoints().is_empty() {
            let loaded = run.newest()?;
            let theirs = &loaded.recipe;
            if (&recipe.unet, &recipe.vae) != (&theirs.unet, &theirs.vae) {
                return Err(Error::usage("a resumed run keeps its model")
                    .hint("leave the unet and vae keys as they are, or train anew"));
            }
            let kept = |r: &Recipe| (r.image_size, r.reconstruction);
            if recipe.system == System::Vae && kept(&recipe) != kept(theirs) {
                return Err(Error::usage("a resumed VAE keeps its image_size and reconstruction")
                    .hint("leave them as they are, or train anew"));
            }
            if recipe.scaling_factor != theirs.scaling_factor {
                return Err(Error::usage("a resumed run keeps its scaling_factor")
                    .hint(format!("it is {}", theirs.scaling_factor)));
            }
            done = loaded.header.step;
            values = Some(loaded.values(&crate::recipe::params_of(&recipe).borrow())?);
        }
        let made = |name: &str| run.folder().join(name).exists();
        let complete = made(&grid_name(done)) && (recipe.system == System::Vae || made(BACKWARD));
        if done > recipe.steps || done == recipe.steps && complete {
            return Err(Error::usage(format!(
                "{} has {done} of {} steps done",
                run.folder().display(),
                recipe.steps
            ))
            .hint(format!("train on with --steps {}", (done * 2).min(u64::from(u32::MAX)))));
        }
        let mut data = Data::open(&mut recipe, codec.as_ref(), Some(&run.latents_path()), progress)?;
        let from = values.as_ref().map(|v| (done, v));
        let trainer = data.trainer(&recipe, device, codec.as_ref(), from)?;
        run.write_recipe(&recipe)?;
        run.truncate_metrics(done)?;
        Session::of(run, recipe, data, codec, trainer, lock)
    }

    pub fn run_folder(&self) -> &Run {
        &self.run
    }

    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    pub fn trainer(&self) -> &Trainer {
        &self.trainer
    }

    /// Where the time went.
    pub fn times(&self) -> &Times {
        &self.times
    }

    /// Trains to the recipe's last step.
    ///
    /// # Errors
    /// When a loss is not finite, or data, disk or driver report an error. The last checkpoint is kept.
    pub fn train(&mut self, watch: &mut dyn Watch) -> Result<Ended> {
        let recipe = self.recipe.clone();
        let first = self.trainer.step();
        let mut feed = match self.data.ahead.take() {
            Some(feed) => feed,
            None => self.data.load(&recipe, first, self.trainer.is_resident())?,
        };
        let epoch = self.steps_between_evaluations();
        let per_step = recipe.accumulation * recipe.batch_size as u64;
        let mut progress = Progress { log: self.run.log()?, began: Instant::now(), first, per_step };
        while self.trainer.step() < recipe.steps {
            let submitted = self.submit(&mut feed);
            let step = self.trainer.step();
            let stop = watch.interrupted();
            let last = step == recipe.steps;
            let saves = last || stop || step.is_multiple_of(recipe.checkpoint_every);
            let samples = last || recipe.sample_every > 0 && step.is_multiple_of(recipe.sample_every);
            let evaluates = last || step.is_multiple_of(epoch);
            // Whatever is done with the weights of a step waits for what the step gave.
            let all = submitted.is_err() || saves || samples || evaluates;
            self.collect(all, &mut progress, watch).map_err(|error| self.with_way_back(error))?;
            submitted.map_err(|error| self.with_way_back(error))?;
            self.pass_on_warnings(watch);
            if let Some(latents) = self.data.grown() {
                feed = self.data.load(&recipe, step, self.trainer.is_resident())?;
                let path = self.run.latents_path();
                self.writer.give(move || latents.save(&path).map(|()| None));
            }
            if step == 1 && recipe.system != System::Vae {
                self.forward_strip()?;
            }
            if evaluates && let Err(error) = self.evaluate(watch) {
                self.save(watch)?;
                self.written(watch)?;
                return Err(self.with_way_back(error));
            }
            if saves {
                self.save(watch)?;
            }
            if samples && !stop {
                self.pictures(watch, last)?;
            }
            if watch.interrupted() {
                self.collect(true, &mut progress, watch).map_err(|error| self.with_way_back(error))?;
                if !saves {
                    self.save(watch)?;
                }
                self.written(watch)?;
                return Ok(Ended::Interrupted(step));
            }
        }
        let skipped = self.data.dataset.skipped();
        if skipped > 0 {
            watch.say(&format!("unreadable pictures: {skipped} (others stood in for them)"));
        }
        if first >= recipe.steps {
            // All that a stopped program left undone.
            self.pictures(watch, true)?;
            if watch.interrupted() {
                self.written(watch)?;
                return Ok(Ended::Interrupted(first));
            }
        }
        self.written(watch)?;
        Ok(Ended::Done)
    }

    /// Hands the next step to the device.
    fn submit(&mut self, feed: &mut Feed) -> Result<()> {
        let (mut waited, mut ready) = (Duration::ZERO, None);
        let before = Instant::now();
        let submitted = self.trainer.submit(|| {
            let input = Times::during(&mut waited, || self.data.next(feed, self.codec.as_ref()));
            ready.get_or_insert_with(Instant::now);
            input
        });
        self.times.data += waited;
        self.times.steps += before.elapsed().saturating_sub(waited);
        let first = &mut self.times.first_step;
        *first = first.or(ready.map(|ready| [ready, Instant::now()]));
        submitted
    }

    /// Tells what those steps gave that a GPU need not be waited for, or all.
    fn collect(&mut self, all: bool, progress: &mut Progress, watch: &mut dyn Watch) -> Result<()> {
        let Times { steps, data, log, first_step, .. } = &mut self.times;
        while let Some(outcome) = Times::during(steps, || self.trainer.collect(all))? {
            let done = outcome.step - progress.first;
            if let Some([_, ended]) = first_step.as_mut().filter(|_| done == 1) {
                *ended = Instant::now();
            }
            let metrics = Metrics {
                step: outcome.step,
                loss: outcome.loss,
                reconstruction: outcome.reconstruction,
                kl: outcome.kl,
                grad_norm: outcome.grad_norm,
                lr: outcome.lr,
                device_ms: outcome.device_ms,
                images_per_s: (done * progress.per_step) as f64 / (*steps + *data).as_secs_f64(),
                seconds: progress.began.elapsed().as_secs_f64(),
            };
            watch.step(&metrics);
            Times::during(log, || progress.log.line(&metrics))?;
            self.writer.look(|line| watch.say(line))?;
        }
        Ok(())
    }

    /// Waits until all is on the disk.
    fn written(&mut self, watch: &mut dyn Watch) -> Result<()> {
        watch.doing(Some("writing"));
        let written = self.writer.finish(|line| watch.say(line));
        watch.doing(None);
        written.map_err(|error| self.with_way_back(error))
    }

    /// Says how to go on after an error.
    fn with_way_back(&mut self, error: Error) -> Error {
        // A checkpoint may be on its way. The first error is the one to tell.
        while self.writer.finish(|_| ()).is_err() {}
        match self.run.checkpoints().last() {
            Some((step, _)) => error.caused_by(format!("the checkpoint of step {step} is kept")),
            None => error.caused_by("there is no checkpoint yet"),
        }
    }

    /// Broken pictures and the like, each told once.
    fn pass_on_warnings(&mut self, watch: &mut dyn Watch) {
        for warning in self.data.dataset.warnings() {
            if !self.told.contains(&warning) {
                watch.say(&format!("warning: {warning}"));
                self.told.insert(warning);
            }
        }
    }

    /// Has a copy of the state written while training goes on. There is one such copy at a time.
    fn save(&mut self, watch: &mut dyn Watch) -> Result<()> {
        let before = Instant::now();
        self.written(watch)?;
        watch.doing(Some("saving"));
        let (step, values) = (self.trainer.step(), self.trainer.values()?);
        let (run, recipe, params) =
            (self.run.clone(), self.recipe.clone(), self.trainer.params().borrow().clone());
        self.writer.give(move || {
            if values.sets.iter().flatten().any(|v| !v.is_finite()) {
                let error =
                    Error::new(format!("step {step}: a weight is not finite any more; nothing was saved"));
                return Err(error.hint("train again from the last checkpoint with a lower lr"));
            }
            checkpoint::save(&run.checkpoint_path(step), &params, step, &recipe, &values)?;
            run.prune(recipe.keep_checkpoints);
            Ok(None)
        });
        watch.doing(None);
        self.times.checkpoints += before.elapsed();
        Ok(())
    }

    fn steps_between_evaluations(&self) -> u64 {
        let images = self.recipe.batch_size as u64 * self.recipe.accumulation;
        match (self.recipe.evaluate_every, self.data.dataset.len()) {
            (0, Some(len)) => len.div_ceil(images).max(SHORTEST_EPOCH),
            (0, None) => ENDLESS_EPOCH,
            (every, _) => every,
        }
    }
}
