//! The keys that a recipe of a system and a model has.

use super::{Recipe, System};

impl Recipe {
    /// Whether a recipe of this system and model has the key.
    pub(super) fn has(&self, key: &str) -> bool {
        match key {
            "unet" | "dit" | "conv" if self.model.table() != key => false,
            "timesteps"
            | "beta_start"
            | "beta_end"
            | "beta_schedule"
            | "rescale_betas_zero_snr"
            | "prediction_type"
            | "variance"
            | "clip_sample"
            | "class_defaults"
            | "sample_steps"
            | "class_names"
            | "model"
            | "unet"
            | "dit"
            | "conv"
            | "scheduler" => self.system != System::Vae,
            "reconstruction" | "kl_weight" | "kl_warmup" | "corrupt_noise" | "corrupt_mask"
            | "evaluate_every" | "evaluate_count" | "vae" => self.system == System::Vae,
            "latents" | "latent_count" | "latent_size" | "vae_fingerprint" => self.system == System::Ldm,
            "scaling_factor" => self.system != System::Ddpm,
            _ => true,
        }
    }

    /// Says that it has no such key.
    pub(super) fn lacks(&self, key: &str) -> String {
        let system = format!("{:?}", self.system).to_lowercase();
        let of = match key {
            "unet" | "dit" | "conv" if self.system != System::Vae => {
                format!("model = {}", self.model.table())
            }
            _ => format!("system = {system}"),
        };
        format!("{key} has no meaning for {of}")
    }
}
