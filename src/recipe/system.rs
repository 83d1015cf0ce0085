//! The kinds of models, and the keys that recipes of each have.

use serde::{Deserialize, Serialize};

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
    /// A classifier of images.
    Classifier,
}

impl System {
    /// Whether it is a diffusion model, which samples are drawn from.
    pub fn diffuses(self) -> bool {
        matches!(self, System::Ddpm | System::Ldm)
    }

    /// Whether a recipe of this system has the key.
    pub(super) fn has(self, key: &str) -> bool {
        match key {
            "timesteps"
            | "beta_start"
            | "beta_end"
            | "beta_schedule"
            | "rescale_betas_zero_snr"
            | "class_names"
            | "unet" => self != System::Vae,
            "prediction_type" | "variance" | "clip_sample" | "class_defaults" | "sample_steps"
            | "label_dropout" | "guidance" | "guidance_rescale" | "scheduler" => self.diffuses(),
            "reconstruction" | "kl_weight" | "kl_warmup" | "corrupt_noise" | "corrupt_mask"
            | "evaluate_every" | "evaluate_count" | "vae" => self == System::Vae,
            "latents" | "latent_count" | "latent_size" | "vae_fingerprint" => self == System::Ldm,
            "scaling_factor" => matches!(self, System::Vae | System::Ldm),
            "classifier" => self == System::Classifier,
            _ => true,
        }
    }
}
