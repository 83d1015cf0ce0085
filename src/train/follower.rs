//! A rank that computes its share of a training whose run another rank writes.

use std::rc::Rc;

use twox_hash::XxHash3_128;

use super::feed::Data;
use super::outcome::Ended;
use super::ranks::Ranks;
use super::recipe_trainer::RecipeTrainer;
use crate::codec::Codec;
use crate::device::Device;
use crate::error::Result;
use crate::recipe::Recipe;
use crate::run::{Batches, DataRecord, seen};

/// A training with all that its steps need, of which nothing is written yet.
pub(super) struct Opened {
    /// With all that was filled in.
    pub recipe: Recipe,
    pub data: Data,
    /// The VAE of latent diffusion.
    pub codec: Option<Codec>,
    pub trainer: RecipeTrainer,
    /// Images of the steps.
    pub batches: Vec<Batches>,
}

impl Opened {
    /// What ranks must have in common, where that can be told at once.
    fn told(&self) -> Result<Vec<u8>> {
        let params = self.trainer.params().borrow();
        let data = DataRecord::of(&*self.data.dataset, self.recipe.text_width() > 0)?;
        let is_cpu = matches!(self.trainer.device(), Device::Cpu(_));
        let all = (env!("CARGO_PKG_VERSION"), is_cpu, data, self.trainer.done(), params.count());
        Ok(format!("{all:?} {}", self.recipe.to_toml()).into_bytes())
    }
}

/// Has all ranks agree on what they opened.
///
/// # Errors
/// `opened`, or that of another rank; and when they are not alike.
pub(super) fn together(ranks: Option<&Rc<Ranks>>, opened: Result<Opened>) -> Result<Opened> {
    let Some(ranks) = ranks.filter(|ranks| !ranks.have_failed()) else { return opened };
    let (opened, _) = ranks.agree(opened, |_| Vec::new())?;
    ranks.check_alike("settings, data or device", opened.told())?;
    Ok(opened)
}

/// Has all ranks agree on the weights, which are the same if nothing is wrong with a device.
///
/// # Errors
/// When they are not the same, or the driver reports an error.
pub(super) fn check_weights(ranks: &Ranks, trainer: &RecipeTrainer) -> Result<()> {
    let sums = trainer.values().map(|values| {
        let of = |set: &Vec<f32>| XxHash3_128::oneshot(bytemuck::cast_slice(set)).to_le_bytes();
        values.sets.iter().flat_map(of).collect::<Vec<u8>>()
    });
    ranks.check_alike("weights", sums)
}

/// Whether a checkpoint follows a step, after which all ranks compare their weights: asked alike by the one
/// that writes and those that do not.
pub(super) fn saves(recipe: &Recipe, step: u64, stops: bool) -> bool {
    stops || step == recipe.steps || step.is_multiple_of(recipe.checkpoint_every)
}

/// A rank that computes alone.
pub struct Follower {
    opened: Opened,
    ranks: Rc<Ranks>,
}

impl Follower {
    pub(super) fn new(opened: Opened, ranks: Rc<Ranks>) -> Follower {
        Follower { opened, ranks }
    }

    /// Computes this rank's share of all steps. `interrupted`: whether the user wants to stop.
    ///
    /// # Errors
    /// Those of all ranks.
    pub fn train(&mut self, interrupted: impl Fn() -> bool) -> Result<Ended> {
        let trained = self.train_steps(interrupted);
        if self.ranks.have_failed() {
            return trained;
        }
        let data = &self.opened.data.dataset;
        let warned = || data.warnings().into_iter().map(|warning| format!("warning: {warning}"));
        let skipped = Some(data.skipped()).filter(|&skipped| skipped > 0);
        let skipped = skipped.map(|n| format!("unreadable pictures of rank {}: {n}", self.ranks.rank()));
        let told = |_: &Ended| warned().chain(skipped.clone()).collect::<Vec<_>>().join("\n").into_bytes();
        self.ranks.agree(trained, told).map(|(ended, _)| ended)
    }

    fn train_steps(&mut self, interrupted: impl Fn() -> bool) -> Result<Ended> {
        let Opened { recipe, data, codec, trainer, batches } = &mut self.opened;
        while trainer.done() < recipe.steps {
            if interrupted() {
                self.ranks.stop();
            }
            trainer.step(|| data.next(codec.as_ref()))?;
            let step = trainer.done();
            if data.keep_grown() {
                data.load(recipe, seen(batches, step), trainer.is_resident())?;
            }
            if saves(recipe, step, self.ranks.is_stopping()) {
                check_weights(&self.ranks, trainer)?;
            }
            if self.ranks.is_stopping() {
                return Ok(Ended::Interrupted(step));
            }
        }
        Ok(Ended::Done)
    }
}
