//! The keys that a recipe of a system and a model has.

use super::{Latents, Recipe, System};
use crate::data::ConditionKind;
use crate::models::vae::VaeKind;

impl Recipe {
    /// Whether a recipe of this system and model has the key.
    pub(super) fn has(&self, key: &str) -> bool {
        let system = self.system;
        match key {
            "unet" if system == System::Classifier => true,
            "unet" | "dit" | "conv" if self.model.table() != key => false,
            "timesteps"
            | "beta_start"
            | "beta_end"
            | "beta_schedule"
            | "rescale_betas_zero_snr"
            | "class_names" => system != System::Vae,
            "unet" | "dit" | "conv" | "model" | "prediction_type" | "variance" | "clip_sample"
            | "class_defaults" | "sample_steps" | "label_dropout" | "guidance" | "guidance_rescale"
            | "scheduler" | "loss" | "huber_delta" | "bound_weight" | "loss_weight" | "p2_k" | "p2_gamma"
            | "min_snr_gamma" | "edm_sigma_data" | "timestep_sampling" | "timestep_mean" | "timestep_std"
            | "offset_noise" | "input_perturbation" | "learned_schedule" | "gamma_min" | "gamma_max" => {
                system.diffuses()
            }
            "text" | "train_text_encoder" | "caption_dropout" | "tokenizer" | "lora_rank" | "lora_alpha"
            | "base" | "base_fingerprint" | "placeholder_token" | "initializer_token" | "num_vectors"
            | "learnable_property" | "instance_prompt" | "class_prompt" | "class_folder" | "class_images"
            | "prior_loss_weight" => system.diffuses() && self.text_width() > 0,
            "codebook" | "codebook_weight" | "commitment" | "codebook_decay" | "codebook_restart" => {
                self.has_codebook()
            }
            "kl_weight" | "kl_warmup" if self.has_codebook() => false,
            "reconstruction" | "kl_weight" | "kl_warmup" | "corrupt_noise" | "corrupt_mask" | "vae" => {
                system == System::Vae
            }
            "evaluate_every" | "evaluate_count" => system != System::Classifier,
            "latents" | "latent_count" | "latent_size" | "vae_fingerprint" => system == System::Ldm,
            "condition" => system == System::Ddpm || self.condition.kind == ConditionKind::MaskedLatents,
            "self_conditioning" => system == System::Ddpm,
            "scaling_factor" => matches!(system, System::Vae | System::Ldm),
            "classifier" => system == System::Classifier,
            _ => true,
        }
    }

    /// Whether a diffusion model is measured on held-out images while it is trained.
    pub(crate) fn has_held_out_loss(&self) -> bool {
        self.system.diffuses() && self.evaluate_count > 0
    }

    /// Whether it keeps latents that are encoded once.
    pub(crate) fn caches_latents(&self) -> bool {
        self.system == System::Ldm && self.latents == Latents::Cached
    }

    /// Whether it trains a codebook.
    pub(crate) fn has_codebook(&self) -> bool {
        self.system == System::Vae && self.vae.kind == VaeKind::Vq
    }

    /// Vectors of latents that a step of a VAE looks for in its codebook.
    pub(super) fn latents_of_a_step(&self) -> f64 {
        let [h, w, _] = self.vae.latent_shape(self.image_size);
        self.images_of_a_step() as f64 * (h * w) as f64
    }

    /// Says that it has no such key.
    pub(super) fn lacks(&self, key: &str) -> String {
        let system = self.system.name();
        let of = match key {
            "unet" | "dit" | "conv" if self.system.diffuses() => {
                format!("model = {}", self.model.table())
            }
            "text" | "train_text_encoder" | "caption_dropout" | "tokenizer" | "lora_rank" | "lora_alpha"
            | "placeholder_token"
                if self.system.diffuses() =>
            {
                "a model that sees no text: it has unet.cross_attention_dim".to_owned()
            }
            _ if self.system == System::Vae && (key.starts_with("codebook") || key == "commitment") => {
                "a VAE without a codebook: vae.kind must be vq".to_owned()
            }
            _ => format!("system = {system}"),
        };
        format!("{key} has no meaning for {of}")
    }
}
