//! The loop around the step: data, metrics, checkpoints, pictures, interruption.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Instant;

use super::pictures::{GAP, backward_strip, forward_strip};
use super::step::Trainer;
use crate::checkpoint;
use crate::data::picture::{enlarge, grid};
use crate::data::{Dataset, Loader, Options as DataOptions, Split};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::recipe::Recipe;
use crate::run::{Metrics, Run};
use crate::sample::Options;

/// Metrics are written to the disk at least this often.
const FLUSH_SECONDS: f64 = 5.0;
/// Rows of the strips.
const STRIPS: usize = 4;

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
    dataset: Arc<dyn Dataset>,
    trainer: Trainer,
    /// Warnings that were passed on.
    told: HashSet<String>,
    /// Held so that no other program trains into the folder.
    _lock: std::fs::File,
}

/// Opens the data of a recipe and checks that the model fits it.
fn open_data(recipe: &Recipe) -> Result<Arc<dyn Dataset>> {
    let options = DataOptions {
        image_size: recipe.image_size,
        channels: Some(recipe.unet.in_channels),
        crop: (recipe.crop > 0).then_some(recipe.crop),
        seed: recipe.seed,
        split: Split::Train,
    };
    let dataset = crate::data::open(&recipe.data, &options)?;
    let (classes, table) = (dataset.classes().len(), recipe.unet.num_class_embeds);
    if table > 0 && classes != table {
        return Err(Error::usage(format!(
            "unet.num_class_embeds is {table} and the data has {classes} classes"
        ))
        .hint(format!("set unet.num_class_embeds={classes}")));
    }
    Ok(dataset)
}

impl Session {
    /// A new run. Data and memory are checked before the folder is made.
    ///
    /// # Errors
    /// When the recipe, the data, the device or the folder is not usable.
    pub fn start(recipe: Recipe, device: &Device, out: Option<&std::path::Path>) -> Result<Session> {
        let dataset = open_data(&recipe)?;
        let trainer = Trainer::new(&recipe, device, None)?;
        let run = Run::create(out, &recipe)?;
        let lock = run.lock()?;
        Ok(Session { run, recipe, dataset, trainer, told: HashSet::new(), _lock: lock })
    }

    /// Goes on from the newest checkpoint of a run, or from the beginning if it has none yet. `recipe`: the
    /// run's own, perhaps with other values; the model must be the same.
    ///
    /// # Errors
    /// As [`Session::start`], and when the checkpoint is damaged or of another model, or all steps are
    /// done.
    pub fn resume(run: Run, device: &Device, recipe: Recipe) -> Result<Session> {
        let lock = run.lock()?;
        let (mut done, mut values) = (0, None);
        if !run.checkpoints().is_empty() {
            let loaded = run.newest()?;
            if recipe.unet != loaded.recipe.unet {
                return Err(Error::usage("a resumed run keeps its model")
                    .hint("leave the unet keys as they are, or train anew"));
            }
            done = loaded.header.step;
            values = Some(loaded.values(&crate::models::params_of(&recipe).borrow())?);
        }
        let complete = run.folder().join(BACKWARD).exists() && run.folder().join(grid_name(done)).exists();
        if done > recipe.steps || done == recipe.steps && complete {
            return Err(Error::usage(format!(
                "{} has {done} of {} steps done",
                run.folder().display(),
                recipe.steps
            ))
            .hint(format!("train on with --steps {}", (done * 2).min(u64::from(u32::MAX)))));
        }
        let dataset = open_data(&recipe)?;
        let trainer = Trainer::new(&recipe, device, values.as_ref().map(|v| (done, v)))?;
        run.write_recipe(&recipe)?;
        run.truncate_metrics(done)?;
        Ok(Session { run, recipe, dataset, trainer, told: HashSet::new(), _lock: lock })
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
        let mut loader =
            Loader::new(Arc::clone(&self.dataset), batch, recipe.seed, recipe.flip, first * per_step)?;
        if first == 0 {
            self.forward_strip(watch)?;
        }
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
        let made = self.grid(watch).and_then(|()| if last { self.backward_strip(watch) } else { Ok(()) });
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

    /// A grid of samples from the moving average, always from the same noise.
    fn grid(&self, watch: &mut dyn Watch) -> Result<()> {
        let (source, count) = (self.trainer.source(), self.recipe.sample_count);
        let images = source.draw(Options::of(&self.recipe), count, None, || go_on(watch))?;
        let columns = (count as f64).sqrt().ceil() as usize;
        let picture = enlarge(grid(&images, count, source.image, columns, GAP), source.image[0]);
        let path = self.run.picture(&grid_name(self.trainer.step()), &picture)?;
        watch.say(&format!("samples: {}", path.display()));
        Ok(())
    }

    fn forward_strip(&self, watch: &mut dyn Watch) -> Result<()> {
        let image = self.trainer.source().image;
        let pixels: usize = image.iter().product();
        let mut images = vec![0.0; STRIPS * pixels];
        let count = self.dataset.len().unwrap_or(u64::MAX);
        for (i, out) in images.chunks_exact_mut(pixels).enumerate() {
            self.dataset.read(i as u64 % count, out)?;
        }
        let path = self.run.picture("forward.png", &forward_strip(&self.recipe, &images, image))?;
        watch.say(&format!("forward process: {}", path.display()));
        Ok(())
    }

    fn backward_strip(&self, watch: &mut dyn Watch) -> Result<()> {
        let options = Options::of(&self.recipe);
        let picture = backward_strip(&self.trainer.source(), options, STRIPS, || go_on(watch))?;
        let path = self.run.picture(BACKWARD, &picture)?;
        watch.say(&format!("backward process: {}", path.display()));
        Ok(())
    }
}
