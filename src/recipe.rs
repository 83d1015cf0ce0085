//! Recipes: everything that decides a training run, as one flat table; the built-in ones, TOML files, and
//! `--set`.

mod built_in;
mod model;
mod scheduler;
mod set;
mod validate;

use std::path::Path;

pub use built_in::built_in;
pub use model::{initial_of, model_of, params_of, params_of_model};
use serde::{Deserialize, Serialize};
pub use set::nearest;

use crate::data::{Options, Resize, Split};
use crate::diffusion::{Betas, Keys, Prediction, Variance};
use crate::error::{Error, Result};
use crate::models::unet::UNetConfig;
use crate::models::vae::{Reconstruction, VaeConfig};
use crate::optim::LrSchedule;

/// The kind of model that is trained.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum System {
    /// A diffusion model of pixels.
    Ddpm,
    /// A variational autoencoder, or an autoencoder.
    Vae,
    /// A diffusion model of a trained VAE's latents.
    Ldm,
}

/// Where latent diffusion takes its latents from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Latents {
    /// Each step encodes its images.
    Drawn,
    /// Each image is encoded once: before training on a GPU, by the first step that meets it on the CPU
    /// device. Means and variances are kept, and each step draws from them, so that for images that do not
    /// change both train on the same distribution.
    Cached,
}

/// Where random numbers come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Rng {
    /// Philox, a function of seed, sample and step.
    #[default]
    Denoir,
    /// PyTorch's CPU generator, drawn from in the order of the reference library.
    Torch,
}

/// The optimiser.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Optimizer {
    Adam,
    /// Adam with decoupled weight decay.
    Adamw,
}

/// A training run, complete: the same recipe on the same device gives the same bytes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Recipe {
    pub name: String,
    /// One line for `denoir recipes`.
    pub about: String,
    pub system: System,
    /// A SPEC: digits, faces, mnist:DIR, cifar10:DIR or images:DIR.
    pub data: String,
    pub image_size: usize,
    /// Side of the centred square taken from each picture of images:DIR; 0: the largest.
    pub crop: usize,
    /// How pictures of another size are brought to image_size: bicubic, or bilinear as torchvision's Resize
    /// and CenterCrop do it.
    pub resize: Resize,
    /// Mirror half of the pictures.
    pub flip: bool,
    pub seed: u64,
    /// Of the initial weights: denoir, or torch, whose seeds then give the weights of a U-Net of the
    /// diffusers library.
    pub rng: Rng,
    /// Steps of the optimiser.
    pub steps: u64,
    /// Passes through the data; 0: as many as steps make. Where it is not 0, and the data ends, steps are
    /// filled in when training begins: the batches of a pass, the last one rounded up, times this.
    pub epochs: u64,
    pub batch_size: usize,
    /// Batches whose gradients are averaged for one step of the optimiser.
    pub accumulation: u64,
    /// Compute the model's blocks again in the backward pass instead of keeping what they computed: less
    /// memory, more time, the same numbers.
    pub checkpoint_blocks: bool,

    pub optimizer: Optimizer,
    pub lr: f64,
    pub lr_schedule: LrSchedule,
    pub lr_warmup: u64,
    pub beta1: f64,
    pub beta2: f64,
    pub adam_eps: f64,
    pub weight_decay: f64,
    /// Largest norm of the gradient; 0: unbounded.
    pub clip_norm: f64,
    pub ema_decay: f64,
    /// `1 - (1 + step / ema_inv_gamma)^-ema_power` while that is below ema_decay; else `(1 + step) / (10 +
    /// step)`.
    pub ema_warmup: bool,
    pub ema_inv_gamma: f64,
    pub ema_power: f64,

    pub timesteps: usize,
    pub beta_start: f64,
    pub beta_end: f64,
    /// linear, scaled_linear, squaredcos_cap_v2 (which needs no start and end), sigmoid, laplace or exp; or a
    /// list of betas, one for each timestep.
    pub beta_schedule: Betas,
    /// Shift and scale the schedule so that its end is nothing but noise.
    pub rescale_betas_zero_snr: bool,
    /// Meaning of the model's output: epsilon, sample or v_prediction.
    pub prediction_type: Prediction,
    pub variance: Variance,
    /// Bound of the predicted x_0 while sampling; 0: unbounded.
    pub clip_sample: f64,
    /// Steps of the reverse process for the pictures.
    pub sample_steps: usize,
    pub sample_count: usize,
    /// Steps between pictures; 0: at the end only.
    pub sample_every: u64,
    pub checkpoint_every: u64,
    /// Older checkpoints are deleted.
    pub keep_checkpoints: usize,

    /// Error of a VAE's reconstructions: mse, l1 or bce, summed over the pixels of an image.
    pub reconstruction: Reconstruction,
    /// Of the Kullback-Leibler divergence, summed over the numbers of a latent.
    pub kl_weight: f64,
    /// Steps in which `kl_weight` rises from 0.
    pub kl_warmup: u64,
    /// Standard deviation of noise that is added to what the encoder sees: a denoising autoencoder.
    pub corrupt_noise: f64,
    /// Share of the pixels' values that the encoder sees as 0 (mid-grey).
    pub corrupt_mask: f64,
    /// Steps between evaluations on held-out images; 0: one for each pass through the data, but at least
    /// 100 (1000 where the data is endless).
    pub evaluate_every: u64,
    /// Held-out images of an evaluation.
    pub evaluate_count: usize,

    pub latents: Latents,
    /// Images of endless data that are encoded when latents are cached; data that ends is encoded whole.
    pub latent_count: usize,
    /// Side of the VAE's latents.
    pub latent_size: usize,
    /// Factor that gives latents unit variance; 0: measured on the first 64 images in the order of
    /// training before a diffusion model is trained on them. A VAE's own is what it is exported with.
    pub scaling_factor: f64,
    /// Fingerprint of the VAE's weights, filled in when training begins.
    pub vae_fingerprint: String,

    pub unet: UNetConfig,
    pub vae: VaeConfig,
    /// The sampler of the run's pictures where it is not ddpm: keys of a `scheduler_config.json`, but for
    /// those that are above.
    #[serde(skip_serializing_if = "Keys::is_empty")]
    pub scheduler: Keys,
}

/// Keys of a table that only some systems have.
const DIFFUSION: [&str; 11] = [
    "timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "rescale_betas_zero_snr",
    "prediction_type",
    "variance",
    "clip_sample",
    "sample_steps",
    "unet",
    "scheduler",
];
const VAE: [&str; 8] = [
    "reconstruction",
    "kl_weight",
    "kl_warmup",
    "corrupt_noise",
    "corrupt_mask",
    "evaluate_every",
    "evaluate_count",
    "vae",
];
const LDM: [&str; 4] = ["latents", "latent_count", "latent_size", "vae_fingerprint"];
/// Key of the factor of a VAE's latents, in every system that has latents.
const SCALE: &str = "scaling_factor";

impl System {
    /// As recipes write it.
    fn name(self) -> &'static str {
        match self {
            System::Ddpm => "ddpm",
            System::Vae => "vae",
            System::Ldm => "ldm",
        }
    }

    /// A built-in recipe of this system.
    fn example(self) -> &'static str {
        match self {
            System::Ddpm => "digits",
            System::Vae => "digits-vae",
            System::Ldm => "digits-ldm",
        }
    }

    /// Whether a recipe of this system has the key.
    fn has(self, key: &str) -> bool {
        match self {
            System::Ddpm => !VAE.contains(&key) && !LDM.contains(&key) && key != SCALE,
            System::Vae => !DIFFUSION.contains(&key) && !LDM.contains(&key),
            System::Ldm => !VAE.contains(&key),
        }
    }
}

impl Default for Recipe {
    fn default() -> Self {
        Recipe {
            name: "custom".to_owned(),
            about: String::new(),
            system: System::Ddpm,
            data: "digits".to_owned(),
            image_size: 32,
            crop: 0,
            resize: Resize::Bicubic,
            flip: false,
            seed: 0,
            rng: Rng::Denoir,
            steps: 10_000,
            epochs: 0,
            batch_size: 64,
            accumulation: 1,
            checkpoint_blocks: false,
            optimizer: Optimizer::Adam,
            lr: 1e-4,
            lr_schedule: LrSchedule::Constant,
            lr_warmup: 0,
            beta1: 0.9,
            beta2: 0.999,
            adam_eps: 1e-8,
            weight_decay: 0.0,
            clip_norm: 1.0,
            ema_decay: 0.9999,
            ema_warmup: true,
            ema_inv_gamma: 1.0,
            ema_power: 0.75,
            timesteps: 1000,
            beta_start: 1e-4,
            beta_end: 0.02,
            beta_schedule: Betas::Linear,
            rescale_betas_zero_snr: false,
            prediction_type: Prediction::Epsilon,
            variance: Variance::FixedSmall,
            clip_sample: 1.0,
            sample_steps: 1000,
            sample_count: 64,
            sample_every: 5000,
            checkpoint_every: 1000,
            keep_checkpoints: 2,
            reconstruction: Reconstruction::Mse,
            kl_weight: 1.0,
            kl_warmup: 0,
            corrupt_noise: 0.0,
            corrupt_mask: 0.0,
            evaluate_every: 0,
            evaluate_count: 256,
            latents: Latents::Cached,
            latent_count: 10_000,
            latent_size: 8,
            scaling_factor: 0.0,
            vae_fingerprint: String::new(),
            unet: UNetConfig::with_levels(3, &[64, 128, 128], &[false, true, true]),
            vae: VaeConfig::default(),
            scheduler: Keys::default(),
        }
    }
}

/// The recipe that a name or the path of a TOML file means.
///
/// # Errors
/// When there is neither, or the file is not a recipe.
pub fn find(name: &str) -> Result<Recipe> {
    let known = built_in();
    if let Some(recipe) = known.iter().find(|r| r.name == name) {
        return Ok(recipe.clone());
    }
    let path = Path::new(name);
    if path.extension().is_some_and(|e| e == "toml") || path.is_file() {
        let text = std::fs::read_to_string(path).map_err(|e| {
            Error::usage(format!("cannot read the recipe {name}")).hint("check the path").caused_by(e)
        })?;
        return parse(&text, name);
    }
    let names: Vec<&str> = known.iter().map(|r| r.name.as_str()).collect();
    Err(Error::usage(format!("no recipe called {name:?}"))
        .hint(format!("choose {}, or give a TOML file", names.join(", "))))
}

/// A recipe from TOML; missing keys take the defaults.
///
/// # Errors
/// Names the key, or the line, that is wrong.
pub fn parse(text: &str, origin: &str) -> Result<Recipe> {
    let bad = |e: &dyn std::fmt::Display| {
        Error::usage(format!("{origin} is not a recipe"))
            .hint("compare with one that `denoir recipes NAME` prints")
            .caused_by(e)
    };
    let recipe: Recipe = toml::from_str(text).map_err(|e: toml::de::Error| {
        let line = e.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        bad(&line.map_or_else(|| e.message().to_owned(), |line| format!("line {line}: {}", e.message())))
    })?;
    let table: toml::Table = text.parse().unwrap_or_default();
    match table.keys().find(|key| !recipe.system.has(key)) {
        Some(key) => Err(bad(&format!("{key} has no meaning for system = {}", recipe.system.name()))),
        None => Ok(recipe),
    }
}

impl Recipe {
    /// The recipe as TOML, with the keys that its system has.
    pub fn to_toml(&self) -> String {
        let mut table =
            toml::Table::try_from(self).unwrap_or_else(|e| unreachable!("a recipe is a plain table: {e}"));
        table.retain(|key, _| self.system.has(key));
        toml::to_string(&table).unwrap_or_else(|e| unreachable!("a recipe is a plain table: {e}"))
    }

    /// Channels of the images.
    ///
    /// # Panics
    /// For latent diffusion, whose images are those of its VAE.
    #[track_caller]
    pub fn image_channels(&self) -> usize {
        match self.system {
            System::Ddpm => self.unet.in_channels,
            System::Vae => self.vae.in_channels,
            System::Ldm => panic!("image_channels: ask the VAE of a latent diffusion run"),
        }
    }

    /// Shape `[H, W, C]` of what a diffusion model adds noise to: images or latents.
    pub fn diffused(&self) -> [usize; 3] {
        let side = if self.system == System::Ldm { self.latent_size } else { self.image_size };
        [side, side, self.unet.in_channels]
    }

    /// How pictures become its images. `channels`: of the images, which for latent diffusion are those of
    /// its VAE.
    pub fn pictures(&self, channels: usize) -> Options {
        let Recipe { image_size, crop, resize, seed, .. } = *self;
        let crop = (crop > 0).then_some(crop);
        Options { image_size, channels: Some(channels), crop, resize, seed, split: Split::Train }
    }

    /// Steps of the optimiser in one pass through so many images: the last batch counts, however small.
    pub fn steps_of_a_pass(&self, images: u64) -> u64 {
        images.div_ceil(self.batch_size as u64).div_ceil(self.accumulation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_recipe_is_valid_and_survives_toml() {
        for recipe in built_in() {
            recipe.validate().unwrap();
            assert_eq!(parse(&recipe.to_toml(), "test").unwrap(), recipe);
        }
    }
}
