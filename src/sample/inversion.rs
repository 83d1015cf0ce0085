//! DDIM inversion: from images to the noise that leads to them, and files of such noise.
//!
//! Song et al. 2021 (arXiv:2010.02502), section 4.3: without noise of its own DDIM is the solution of an
//! ordinary differential equation, in small steps, which can be integrated in either direction.

use std::path::Path;

use serde::{Deserialize, Serialize};

use super::{Options, Source};
use crate::checkpoint::write_tensors;
use crate::diffusion::{Clip, Spacing};
use crate::error::{Error, Result};
use crate::latent_file::{check_holds, read_tensor, transposed};
use crate::recipe::Recipe;

/// Metadata entry of a file of noise.
const KEY: &str = "denoir_noise";

/// The settings that noise was found with, and that lead back from it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InversionConfig {
    /// Sampling steps.
    pub steps: usize,
    /// Choice of the timesteps.
    pub spacing: Spacing,
    /// The class of all images, for models with classes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub class: Option<u32>,
}

impl InversionConfig {
    /// Options of a sampler, `ddim` or `ddim-inverse`, without clipping of x0, which no inverse step could
    /// undo.
    ///
    /// # Errors
    /// When the recipe's process cannot be walked so.
    pub fn options(&self, recipe: &Recipe, sampler: &str) -> Result<Options> {
        let mut scheduler = recipe.sampler(sampler)?;
        scheduler.clip = Clip::None;
        scheduler.spacing = self.spacing;
        scheduler.plan(self.steps)?;
        Ok(Options::new(scheduler, self.steps, recipe.seed))
    }
}

impl Source<'_> {
    /// The noise `[N, h, w, c]` that DDIM leads back from to images `[N, H, W, C]`, or to the means of their
    /// latents. Each step asks the model at the sample that it begins with in place of the one that it leads
    /// to, so that the error falls with the number of steps.
    ///
    /// # Errors
    /// As [`Source::draw`].
    pub fn invert(
        &self,
        config: &InversionConfig,
        images: &[f32],
        mut progress: impl FnMut() -> Result<()>,
    ) -> Result<Vec<f32>> {
        let options = config.options(self.recipe, "ddim-inverse")?;
        let samples = self.samples_of(images)?;
        let count = samples.len() / self.recipe.diffused().iter().product::<usize>();
        let noise = self.sample(&options, count, Some(&samples), config.class, |_, _| progress())?;
        if noise.iter().any(|v| !v.is_finite()) {
            return Err(
                Error::new("the inversion leads to numbers that are not finite").hint("take more steps")
            );
        }
        Ok(noise)
    }
}

/// An error if [`write()`] would replace a file that holds no noise.
pub fn check_replaceable(path: &Path) -> Result<()> {
    check_holds(path, KEY, "noise")
}

/// Writes noise `[N, h, w, c]` in PyTorch's layout, and the settings that it was found with.
pub fn write(path: &Path, noise: &[f32], [h, w, c]: [usize; 3], config: &InversionConfig) -> Result<()> {
    let text = serde_json::to_string(config).unwrap_or_else(|e| unreachable!("plain values: {e}"));
    let shape = vec![noise.len() / (h * w * c), c, h, w];
    write_tensors(path, &[("noise", shape, &transposed(noise, [h, w, c], false)[..])], KEY, text)
}

/// Reads noise `[N, h, w, c]`, and how it was found.
pub fn read(path: &Path, [h, w, c]: [usize; 3]) -> Result<(Vec<f32>, InversionConfig)> {
    let (values, text) = read_tensor(path, "noise", &[c, h, w], KEY, "denoir invert")?;
    let config = serde_json::from_str(&text.unwrap_or_default()).map_err(|e| {
        Error::new(format!("{} does not say how its noise was found", path.display()))
            .hint("give a file that `denoir invert` wrote")
            .caused_by(e)
    })?;
    Ok((transposed(&values, [h, w, c], true), config))
}
