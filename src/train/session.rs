//! The loop around the step: data, metrics, checkpoints, pictures, interruption.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::evaluate::Evaluator;
use super::latents::{CachedLatents, prepare};
use super::step::Trainer;
use crate::checkpoint;
use crate::codec::Codec;
use crate::data::{Dataset, Loader, Split, open_for};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::figures;
use crate::recipe::{Recipe, System};
use crate::run::{Evaluation, Metrics, Run};
use crate::sample::Options;

/// Metrics are written to the disk at least this often.
const FLUSH_SECONDS: f64 = 5.0;
/// Rows of the strips.
const STRIPS: usize = 4;
/// Fewest steps between evaluations: a few dozen pictures are seen in one.
const SHORTEST_EPOCH: u64 = 100;
/// Steps between evaluations where data has no end.
const ENDLESS_EPOCH: u64 = 1000;

const BACKWARD: &str = "backward.png";

fn grid_name(step: u64) -> String {
    format!("samples/step-{step:08}.png")
}

/// Ends a sampling process when the user wants to stop.
fn go_on(watch: &dyn Watch) -> Result<()> {
    if watch.interrupted() { Err(Error::new("interrupted")) } else { Ok(()) }
}

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
    run: Run,
    recipe: Recipe,
    /// Images.
    dataset: Arc<dyn Dataset>,
    /// What steps read instead of images, in latent diffusion with cached latents.
    cached: Option<Arc<CachedLatents>>,
    /// The VAE of latent diffusion, or the one that is trained.
    codec: Option<Codec>,
    /// Held-out images, of a VAE.
    evaluator: Option<Evaluator>,
    trainer: Trainer,
    /// Warnings that were passed on.
    told: HashSet<String>,
    /// Held so that no other program trains into the folder.
    _lock: std::fs::File,
}

/// Opens the data of a recipe and checks that the model fits it. `codec`: the VAE of latent diffusion,
/// whose images these are.
///
/// # Errors
/// When the data cannot be used, or its classes are not the model's.
pub fn open_data(recipe: &Recipe, codec: Option<&Codec>, split: Split) -> Result<Arc<dyn Dataset>> {
    let channels = codec.map_or(recipe, Codec::recipe).image_channels();
    let Recipe { image_size, crop, seed, .. } = *recipe;
    let dataset = open_for(&recipe.data, image_size, channels, crop, seed, split)?;
    let (classes, table) = (dataset.classes().len(), recipe.unet.num_class_embeds);
    if recipe.system != System::Vae && table > 0 && classes != table {
        return Err(Error::usage(format!(
            "unet.num_class_embeds is {table} and the data has {classes} classes"
        ))
        .hint(format!("set unet.num_class_embeds={classes}")));
    }
    Ok(dataset)
}

/// Images to measure a VAE on: held-out ones, or those of training where a folder is too small to hold any
/// out, which is said.
fn open_evaluator(recipe: &Recipe, dataset: &Arc<dyn Dataset>) -> Result<Option<Evaluator>> {
    if recipe.system != System::Vae {
        return Ok(None);
    }
    match open_data(recipe, None, Split::HeldOut) {
        Ok(held_out) => Evaluator::new(&held_out, recipe.evaluate_count, true).map(Some),
        Err(_) if recipe.data.starts_with("images:") => {
            Evaluator::new(dataset, recipe.evaluate_count, false).map(Some)
        }
        Err(error) => Err(error),
    }
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
        let dataset = open_data(&recipe, codec.as_ref(), Split::Train)?;
        let evaluator = open_evaluator(&recipe, &dataset)?;
        Run::check_free(out)?;
        let cached = match &codec {
            Some(codec) => prepare(codec, &*dataset, &mut recipe, None, progress)?,
            None => None,
        };
        let trainer = Trainer::new(&recipe, device, codec.as_ref(), None)?;
        let run = Run::create(out, &recipe)?;
        let lock = run.lock()?;
        if let Some(codec) = &codec {
            codec.save(&run.vae_path())?;
            if let Some(cached) = &cached {
                cached.save(&run.latents_path(), codec, &*dataset, &recipe)?;
            }
        }
        // Last: it makes the folder a run, which is complete from then on.
        run.write_recipe(&recipe)?;
        let codec = codec.or_else(|| (recipe.system == System::Vae).then(|| trainer.codec()));
        let told = HashSet::new();
        Ok(Session { run, recipe, dataset, cached, codec, evaluator, trainer, told, _lock: lock })
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
            values = Some(loaded.values(&crate::models::params_of(&recipe).borrow())?);
        }
        let last_picture = match recipe.system {
            System::Vae => grid_name(done),
            _ => BACKWARD.to_owned(),
        };
        let made = |name: &str| run.folder().join(name).exists();
        let complete = made(&last_picture) && made(&grid_name(done));
        if done > recipe.steps || done == recipe.steps && complete {
            return Err(Error::usage(format!(
                "{} has {done} of {} steps done",
                run.folder().display(),
                recipe.steps
            ))
            .hint(format!("train on with --steps {}", (done * 2).min(u64::from(u32::MAX)))));
        }
        let dataset = open_data(&recipe, codec.as_ref(), Split::Train)?;
        let evaluator = open_evaluator(&recipe, &dataset)?;
        let cached = match &codec {
            Some(codec) => prepare(codec, &*dataset, &mut recipe, Some(&run.latents_path()), progress)?,
            None => None,
        };
        let from = values.as_ref().map(|v| (done, v));
        let trainer = Trainer::new(&recipe, device, codec.as_ref(), from)?;
        run.write_recipe(&recipe)?;
        run.truncate_metrics(done)?;
        let codec = codec.or_else(|| (recipe.system == System::Vae).then(|| trainer.codec()));
        let told = HashSet::new();
        Ok(Session { run, recipe, dataset, cached, codec, evaluator, trainer, told, _lock: lock })
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

    /// Trains to the recipe's last step.
    ///
    /// # Errors
    /// When a loss is not finite, or data, disk or driver report an error. The last checkpoint is kept.
    pub fn train(&mut self, watch: &mut dyn Watch) -> Result<Ended> {
        let began = Instant::now();
        let mut training = 0.0;
        let (recipe, batch) = (self.recipe.clone(), self.recipe.batch_size);
        let per_step = recipe.accumulation * batch as u64;
        let first = self.trainer.step();
        let seen = first * per_step;
        let mut loader = match &self.cached {
            // Mirrored images are among them.
            Some(cached) => {
                Loader::new(Arc::clone(cached) as Arc<dyn Dataset>, batch, recipe.seed, false, seen)?
            }
            None => Loader::new(Arc::clone(&self.dataset), batch, recipe.seed, recipe.flip, seen)?,
        };
        if first == 0 && recipe.system != System::Vae {
            self.forward_strip(watch)?;
        }
        let epoch = self.steps_between_evaluations();
        let mut pending: Vec<Metrics> = Vec::new();
        let mut flushed = began;
        while self.trainer.step() < recipe.steps {
            let before = Instant::now();
            let outcome = match self.trainer.advance(|| loader.next()) {
                Ok(outcome) => outcome,
                Err(error) => {
                    // The first error is the one to tell.
                    let _ = self.run.log(&pending);
                    return Err(self.with_way_back(error));
                }
            };
            training += before.elapsed().as_secs_f64();
            let step = self.trainer.step();
            let rate = ((step - first) * per_step) as f64 / training;
            let metrics = Metrics {
                step,
                loss: outcome.loss,
                reconstruction: outcome.reconstruction,
                kl: outcome.kl,
                grad_norm: outcome.grad_norm,
                lr: outcome.lr,
                device_ms: outcome.device_ms,
                images_per_s: rate,
                seconds: began.elapsed().as_secs_f64(),
            };
            watch.step(&metrics);
            pending.push(metrics);
            self.pass_on_warnings(watch);
            let stop = watch.interrupted();
            let last = step == recipe.steps;
            let saves = last || stop || step.is_multiple_of(recipe.checkpoint_every);
            let samples = last || recipe.sample_every > 0 && step.is_multiple_of(recipe.sample_every);
            if saves || samples || flushed.elapsed().as_secs_f64() > FLUSH_SECONDS {
                self.run.log(&pending)?;
                pending.clear();
                flushed = Instant::now();
            }
            if (last || step.is_multiple_of(epoch))
                && let Err(error) = self.evaluate(watch)
            {
                self.save(watch)?;
                return Err(self.with_way_back(error));
            }
            if saves {
                self.save(watch)?;
            }
            if samples && !stop {
                self.pictures(watch, last)?;
            }
            if watch.interrupted() {
                if !saves {
                    self.save(watch)?;
                }
                return Ok(Ended::Interrupted(step));
            }
        }
        let skipped = self.dataset.skipped();
        if skipped > 0 {
            watch.say(&format!("unreadable pictures: {skipped} (others stood in for them)"));
        }
        if first >= recipe.steps {
            // All that a stopped program left undone.
            self.pictures(watch, true)?;
            if watch.interrupted() {
                return Ok(Ended::Interrupted(first));
            }
        }
        Ok(Ended::Done)
    }

    /// The grid of samples, and at the end the backward strip. Pictures are not worth a run: what goes
    /// wrong here is told, and the training goes on (a broken device will say so in the next step).
    fn pictures(&self, watch: &mut dyn Watch, last: bool) -> Result<()> {
        watch.doing(Some("sampling"));
        let made = match (&self.evaluator, &self.codec) {
            (Some(evaluator), Some(codec)) => self.reconstructions(evaluator, codec, watch),
            _ => self.grid(watch).and_then(|()| if last { self.backward_strip(watch) } else { Ok(()) }),
        };
        watch.doing(None);
        match made {
            Err(error) if !watch.interrupted() => {
                if last {
                    return Err(error);
                }
                watch.say(&format!("warning: no samples at this step: {error}"));
                Ok(())
            }
            _ => Ok(()),
        }
    }

    /// Says how to go on after an error in a step.
    fn with_way_back(&self, error: Error) -> Error {
        match self.run.checkpoints().last() {
            Some((step, _)) => error.caused_by(format!("the checkpoint of step {step} is kept")),
            None => error.caused_by("there is no checkpoint yet"),
        }
    }

    /// Broken pictures and the like, each told once.
    fn pass_on_warnings(&mut self, watch: &mut dyn Watch) {
        for warning in self.dataset.warnings() {
            if !self.told.contains(&warning) {
                watch.say(&format!("warning: {warning}"));
                self.told.insert(warning);
            }
        }
    }

    fn save(&self, watch: &mut dyn Watch) -> Result<()> {
        watch.doing(Some("saving"));
        let step = self.trainer.step();
        let values = self.trainer.values()?;
        if values.sets.iter().flatten().any(|v| !v.is_finite()) {
            let error =
                Error::new(format!("step {step}: a weight is not finite any more; nothing was saved"));
            return Err(
                self.with_way_back(error.hint("train again from the last checkpoint with a lower lr"))
            );
        }
        let path = self.run.checkpoint_path(step);
        checkpoint::save(&path, &self.trainer.params().borrow(), step, &self.recipe, &values)?;
        self.run.prune(self.recipe.keep_checkpoints);
        watch.doing(None);
        Ok(())
    }

    fn steps_between_evaluations(&self) -> u64 {
        let images = self.recipe.batch_size as u64 * self.recipe.accumulation;
        match (self.recipe.evaluate_every, self.dataset.len()) {
            (0, Some(len)) => len.div_ceil(images).max(SHORTEST_EPOCH),
            (0, None) => ENDLESS_EPOCH,
            (every, _) => every,
        }
    }

    /// Measures the VAE on held-out images, and remembers the result.
    fn evaluate(&self, watch: &mut dyn Watch) -> Result<()> {
        let (Some(evaluator), Some(codec)) = (&self.evaluator, &self.codec) else { return Ok(()) };
        watch.doing(Some("evaluating"));
        let evaluation = evaluator.evaluate(codec, self.trainer.step())?;
        self.run.log_evaluation(&evaluation)?;
        watch.doing(None);
        watch.evaluated(&evaluation);
        Ok(())
    }

    /// Held-out images above their reconstructions, of a VAE.
    fn reconstructions(&self, evaluator: &Evaluator, codec: &Codec, watch: &mut dyn Watch) -> Result<()> {
        let picture = figures::pairs(codec, evaluator.images(self.recipe.sample_count))?.draw(None);
        let path = self.run.picture(&grid_name(self.trainer.step()), &picture)?;
        watch.say(&format!("reconstructions: {}", path.display()));
        Ok(())
    }

    fn source(&self) -> crate::sample::Source<'_> {
        self.trainer.source(self.codec.as_ref())
    }

    /// A grid of samples from the moving average, always from the same noise.
    fn grid(&self, watch: &mut dyn Watch) -> Result<()> {
        let (source, count) = (self.source(), self.recipe.sample_count);
        let images = source.draw(Options::of(&self.recipe), count, None, || go_on(watch))?;
        let picture = figures::grid(images, source.image()).draw(None);
        let path = self.run.picture(&grid_name(self.trainer.step()), &picture)?;
        watch.say(&format!("samples: {}", path.display()));
        Ok(())
    }

    fn forward_strip(&self, watch: &mut dyn Watch) -> Result<()> {
        let source = self.source();
        let pixels: usize = source.image().iter().product();
        let mut images = vec![0.0; STRIPS * pixels];
        let count = self.dataset.len().unwrap_or(u64::MAX);
        for (i, out) in images.chunks_exact_mut(pixels).enumerate() {
            self.dataset.read(i as u64 % count, out)?;
        }
        let picture = figures::forward(&source, &images, self.recipe.seed)?.draw(None);
        let path = self.run.picture("forward.png", &picture)?;
        watch.say(&format!("forward process: {}", path.display()));
        Ok(())
    }

    fn backward_strip(&self, watch: &mut dyn Watch) -> Result<()> {
        let options = Options::of(&self.recipe);
        let picture = figures::backward(&self.source(), options, STRIPS, &mut || go_on(watch))?.draw(None);
        let path = self.run.picture(BACKWARD, &picture)?;
        watch.say(&format!("backward process: {}", path.display()));
        Ok(())
    }
}
