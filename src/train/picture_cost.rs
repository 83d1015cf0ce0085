//! What the pictures of a run cost beside its training, counted before they are drawn.

use crate::device::Device;
use crate::error::Result;
use crate::recipe::{Recipe, SampleEvery};
use crate::sample::{self, Options};

/// Work of the pictures that a diffusion model in training draws.
#[derive(Clone, Debug, PartialEq)]
pub struct PictureCost {
    /// How many grids of samples.
    pub grids: u64,
    /// Evaluations of the model for all of them and the backward process, of one sample each.
    pub evaluations: u64,
    /// Steps of training that take as many operations.
    pub steps: f64,
    /// Steps of training that are left.
    pub of_steps: u64,
}

impl PictureCost {
    /// Of a run after `done` steps. `strip`: samples of the picture at its end; `operations`: of a step of
    /// training. `None` where pictures are one pass through the model (a VAE's), or there are none.
    pub(super) fn new(
        recipe: &Recipe,
        device: &Device,
        done: u64,
        strip: usize,
        operations: u64,
    ) -> Result<Option<PictureCost>> {
        if !recipe.system.diffuses() || recipe.sample_every == SampleEvery::Never {
            return Ok(None);
        }
        let options = Options::of(recipe)?;
        let reverse_steps = options.plan()?.steps.len() as u64;
        let grids = recipe.sample_every.times(done, recipe.steps).max(1);
        let evaluations = reverse_steps * (grids * recipe.sample_count as u64 + strip as u64);
        let batch = sample::batch_of(recipe, recipe.sample_count);
        let one = sample::operations(recipe, &options, batch, device)? as f64 / batch as f64;
        let steps = evaluations as f64 * one / operations.max(1) as f64;
        Ok(Some(PictureCost { grids, evaluations, steps, of_steps: recipe.steps.saturating_sub(done) }))
    }
}
