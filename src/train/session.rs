//! The loop around the step: data, metrics, checkpoints, pictures, interruption.

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
    warned: usize,
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
        Ok(Session { run, recipe, dataset, trainer, warned: 0 })
    }

    /// Goes on from the newest checkpoint of a run, with the recipe that `change` makes of the run's own.
    ///
    /// # Errors
    /// As [`Session::start`], and when the checkpoint is damaged.
    pub fn resume(
        run: Run,
        device: &Device,
        change: impl FnOnce(&mut Recipe) -> Result<()>,
    ) -> Result<Session> {
        let loaded = run.newest()?;
        let mut recipe = loaded.recipe.clone();
        change(&mut recipe)?;
        recipe.validate()?;
        if recipe.unet != loaded.recipe.unet {
            return Err(
                Error::usage("a resumed run keeps its model").hint("leave out --set unet..., or train anew")
            );
        }
        let params = crate::models::params_of(&recipe);
        let values = loaded.values(&params.borrow())?;
        let dataset = open_data(&recipe)?;
        let trainer = Trainer::new(&recipe, device, Some((loaded.header.step, &values)))?;
        run.write_recipe(&recipe)?;
        run.truncate_metrics(loaded.header.step)?;
        Ok(Session { run, recipe, dataset, trainer, warned: 0 })
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
                    self.run.log(&pending)?;
                    return Err(error);
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
                images_per_s: rate,
                seconds: began.elapsed().as_secs_f64(),
            };
            watch.step(&metrics);
            pending.push(metrics);
            self.pass_on_warnings(watch);
            let stop = watch.interrupted();
            let last = step == recipe.steps;
            let saves = last || stop || step.is_multiple_of(recipe.checkpoint_every);
            if saves || flushed.elapsed().as_secs_f64() > FLUSH_SECONDS {
                self.run.log(&pending)?;
                pending.clear();
                flushed = Instant::now();
            }
            if saves {
                self.save(watch)?;
            }
            if last || recipe.sample_every > 0 && step.is_multiple_of(recipe.sample_every) && !stop {
                self.grid(watch)?;
            }
            if stop && !last {
                return Ok(Ended::Interrupted(step));
            }
        }
        self.backward_strip(watch)?;
        Ok(Ended::Done)
    }

    /// Broken pictures and the like, each told once.
    fn pass_on_warnings(&mut self, watch: &mut dyn Watch) {
        if self.dataset.skipped() as usize > self.warned {
            let warnings = self.dataset.warnings();
            for warning in warnings.iter().skip(self.warned) {
                watch.say(&format!("warning: {warning}"));
            }
            self.warned = self.dataset.skipped() as usize;
        }
    }

    fn save(&self, watch: &mut dyn Watch) -> Result<()> {
        watch.doing(Some("saving"));
        let step = self.trainer.step();
        let values = self.trainer.values()?;
        let path = self.run.checkpoint_path(step);
        checkpoint::save(&path, &self.trainer.params().borrow(), step, &self.recipe, &values)?;
        self.run.prune(self.recipe.keep_checkpoints);
        watch.doing(None);
        Ok(())
    }

    /// A grid of samples from the moving average, always from the same noise.
    fn grid(&self, watch: &mut dyn Watch) -> Result<()> {
        watch.doing(Some("sampling"));
        let (source, count) = (self.trainer.source(), self.recipe.sample_count);
        let images = source.draw(Options::of(&self.recipe), count, None, || Ok(()))?;
        let columns = (count as f64).sqrt().ceil() as usize;
        let picture = enlarge(grid(&images, count, source.image, columns, GAP), source.image[0]);
        let name = format!("samples/step-{:08}.png", self.trainer.step());
        let path = self.run.picture(&name, &picture)?;
        watch.say(&format!("samples: {}", path.display()));
        watch.doing(None);
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
        watch.doing(Some("sampling"));
        let picture = backward_strip(&self.trainer.source(), Options::of(&self.recipe), STRIPS)?;
        let path = self.run.picture("backward.png", &picture)?;
        watch.say(&format!("backward process: {}", path.display()));
        watch.doing(None);
        Ok(())
    }
}
