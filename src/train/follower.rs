//! A rank that computes its share of a training whose run another rank writes.

use std::rc::Rc;

use twox_hash::XxHash3_128;

use super::feed::Data;
use super::outcome::Ended;
use super::ranks::Ranks;
use super::recipe_trainer::RecipeTrainer;
use crate::codec::Codec;
use crate::error::Result;
use crate::recipe::Recipe;
use crate::run::{Batches, seen};

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
    fn told(&self) -> Vec<u8> {
        let (data, params) = (&self.data.dataset, self.trainer.params().borrow());
        let (images, done) = (data.len(), self.trainer.done());
        let all = (env!("CARGO_PKG_VERSION"), images, data.classes(), done, params.count(), params.trained());
        format!("{all:?} {}", self.recipe.to_toml()).into_bytes()
    }
}

/// Has all ranks agree on what they opened.
///
/// # Errors
/// `opened`, or that of another rank; and when they are not alike.
pub(super) fn together(ranks: Option<&Rc<Ranks>>, opened: Result<Opened>) -> Result<Opened> {
    let Some(ranks) = ranks else { return opened };
    let (opened, _) = ranks.agree(opened, |_| Vec::new())?;
    ranks.check_alike("settings or data", Ok(opened.told()))?;
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
        self.ranks.agree(trained, |_| Vec::new()).map(|(ended, _)| ended)
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
            let last = step == recipe.steps;
            if last || self.ranks.is_stopping() || step.is_multiple_of(recipe.checkpoint_every) {
                while trainer.collect()?.is_some() {}
                check_weights(&self.ranks, trainer)?;
            }
            if self.ranks.is_stopping() {
                return Ok(Ended::Interrupted(step));
            }
        }
        Ok(Ended::Done)
    }
}
