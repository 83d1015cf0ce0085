//! A training run in its folder: begun, or taken up again.

use std::collections::HashSet;
use std::path::Path;

use super::encoded::Encoded;
use super::feed::Data;
use super::recipe_trainer::RecipeTrainer;
use super::times::Times;
use super::writer::Writer;
use crate::codec::Codec;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::recipe::{Recipe, SampleEvery, System, params_of};
use crate::run::{Evaluation, Metrics, Run};

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
    /// A line for the user.
    fn message(&mut self, line: &str);
    /// True when the user wants to stop.
    fn interrupted(&self) -> bool;
}

/// How a session ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// All steps are done.
    Done,
    /// After this many steps, on the user's wish; all is saved.
    Interrupted(u64),
}

/// An error if a run whose recipe is `theirs` cannot go on with another.
fn check_resumable(recipe: &Recipe, theirs: &Recipe) -> Result<()> {
    let kept = |r: &Recipe| (r.image_size, r.reconstruction);
    let refused = if (&recipe.unet, &recipe.vae) != (&theirs.unet, &theirs.vae) {
        ("run keeps its model", "leave the unet and vae keys as they are, or train anew".to_owned())
    } else if recipe.system == System::Vae && kept(recipe) != kept(theirs) {
        ("VAE keeps its image_size and reconstruction", "leave them as they are, or train anew".to_owned())
    } else if recipe.scaling_factor != theirs.scaling_factor {
        ("run keeps its scaling_factor", format!("it is {}", theirs.scaling_factor))
    } else {
        return Ok(());
    };
    Err(Error::usage(format!("a resumed {}", refused.0)).hint(refused.1))
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
    /// Held so that no other program trains into the folder.
    _lock: std::fs::File,
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
        let codec = match (recipe.system == System::Ldm, vae) {
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
        trainer: RecipeTrainer,
        lock: std::fs::File,
    ) -> Result<Session> {
        let codec = codec.or_else(|| (recipe.system == System::Vae).then(|| trainer.codec()));
        let (writer, times, warned) = (Writer::start()?, Times::default(), HashSet::new());
        Ok(Session { run, recipe, data, codec, trainer, writer, times, warned, _lock: lock })
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
        let mut from = None;
        if !run.checkpoints().is_empty() {
            let loaded = run.newest()?;
            check_resumable(&recipe, &loaded.recipe)?;
            from = Some((loaded.header.step, loaded.values(&params_of(&recipe).borrow())?));
        }
        let done = from.as_ref().map_or(0, |(done, _)| *done);
        let made = |name: &str| run.folder().join(name).exists();
        let drawn = made(&grid_name(done)) && (recipe.system == System::Vae || made(BACKWARD));
        let complete = drawn || recipe.sample_every == SampleEvery::Never;
        if done > recipe.steps || done == recipe.steps && complete {
            let (folder, steps) = (run.folder().display(), recipe.steps);
            return Err(Error::usage(format!("{folder} has {done} of {steps} steps done"))
                .hint(format!("train on with --steps {}", (done * 2).min(u64::from(u32::MAX)))));
        }
        recipe.trains_on_its_schedule();
        let mut data = Data::open(&mut recipe, codec.as_ref(), Some(&run.latents_path()), progress)?;
        let from = from.as_ref().map(|(done, values)| (*done, values));
        let trainer = data.trainer(&recipe, device, codec.as_ref(), from)?;
        run.write_recipe(&recipe)?;
        run.truncate_metrics(done)?;
        Session::of(run, recipe, data, codec, trainer, lock)
    }

    /// The trainer of the steps.
    pub fn trainer(&self) -> &RecipeTrainer {
        &self.trainer
    }

    /// Where the time went.
    pub fn times(&self) -> &Times {
        &self.times
    }
}
