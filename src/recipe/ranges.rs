//! The values that numbers of a recipe may have.

use super::{Recipe, System};
use crate::models::clip::MOST_ROWS;
use crate::models::limits::Limit;

/// What TOML can hold.
pub(super) const MOST: u64 = i64::MAX as u64;

impl Recipe {
    /// Whole numbers: key, value, and the lowest and the highest that it may be.
    pub(super) fn whole_numbers(&self) -> [(&'static str, u64, u64, u64); 23] {
        let most_steps = if self.system == System::Classifier { MOST } else { self.timesteps as u64 };
        let fewest = if self.system.diffuses() { 0 } else { 2 };
        [
            ("image_size", self.image_size as u64, 1, 4096),
            ("steps", self.steps, 1, u64::from(u32::MAX)),
            ("epochs", self.epochs, 0, 1 << 20),
            ("batch_size", self.batch_size as u64, 1, 65_536),
            ("accumulation", self.accumulation, 1, 65_536),
            ("shards", self.shards as u64, 1, 65_536),
            ("timesteps", self.timesteps as u64, 1, 100_000),
            ("sample_steps", self.sample_steps as u64, 1, most_steps),
            ("sample_count", self.sample_count as u64, 1, 10_000),
            ("checkpoint_every", self.checkpoint_every, 1, MOST),
            ("keep_checkpoints", self.keep_checkpoints as u64, 1, MOST),
            ("seed", self.seed, 0, MOST),
            ("sample_every", self.sample_every.steps(), 0, MOST),
            ("lr_warmup", self.lr_warmup, 0, MOST),
            ("crop", self.crop as u64, 0, 1 << 20),
            ("kl_warmup", self.kl_warmup, 0, MOST),
            ("evaluate_every", self.evaluate_every, 0, MOST),
            ("evaluate_count", self.evaluate_count as u64, fewest, 1 << 20),
            ("latent_count", self.latent_count as u64, 1, 1 << 30),
            ("latent_size", self.latent_size as u64, 1, 4096),
            ("lora_rank", self.lora_rank as u64, 0, 4096),
            ("class_images", self.class_images as u64, 1, 1 << 20),
            ("num_vectors", self.num_vectors as u64, 1, MOST_ROWS as u64),
        ]
    }

    /// Real numbers: key, value, lowest and highest, and whether it may be these themselves.
    pub(super) fn real_numbers(&self) -> [(&'static str, f64, f64, f64, bool); 38] {
        [
            ("lr", self.lr, 0.0, 1e3, false),
            ("beta1", self.beta1, 0.0, 1.0, true),
            ("beta2", self.beta2, 0.0, 1.0, true),
            ("adam_eps", self.adam_eps, 0.0, 1.0, false),
            ("weight_decay", self.weight_decay, 0.0, 1e3, true),
            ("clip_norm", self.clip_norm, 0.0, 1e9, true),
            ("ema_decay", self.ema_decay, 0.0, 1.0, true),
            ("ema_inv_gamma", self.ema_inv_gamma, 0.0, 1e12, false),
            ("ema_power", self.ema_power, 0.0, 1e3, false),
            ("beta_start", self.beta_start, 0.0, 1.0, false),
            ("beta_end", self.beta_end, 0.0, 1.0, false),
            ("clip_sample", self.clip_sample, 0.0, 1e9, true),
            ("huber_delta", self.huber_delta, 0.0, 1e6, false),
            ("bound_weight", self.bound_weight, 0.0, 1e6, false),
            ("p2_k", self.p2_k, 0.0, 1e6, true),
            ("p2_gamma", self.p2_gamma, 0.0, 100.0, true),
            ("min_snr_gamma", self.min_snr_gamma, 0.0, 1e9, false),
            ("edm_sigma_data", self.edm_sigma_data, 0.0, 1e6, false),
            ("offset_noise", self.offset_noise, 0.0, 10.0, true),
            ("input_perturbation", self.input_perturbation, 0.0, 10.0, true),
            ("gamma_min", self.gamma_min, -30.0, 20.0, true),
            ("gamma_max", self.gamma_max, -30.0, 20.0, true),
            ("timestep_mean", self.timestep_mean, -100.0, 100.0, true),
            ("timestep_std", self.timestep_std, 0.0, 100.0, false),
            ("kl_weight", self.kl_weight, 0.0, 1e9, true),
            ("codebook_weight", self.codebook_weight, 0.0, 1e9, true),
            ("commitment", self.commitment, 0.0, 1e9, true),
            ("codebook_decay", self.codebook_decay, 0.0, 1.0, true),
            ("codebook_restart", self.codebook_restart, 0.0, 1e9, true),
            ("corrupt_noise", self.corrupt_noise, 0.0, 1e3, true),
            ("corrupt_mask", self.corrupt_mask, 0.0, 1.0, true),
            ("scaling_factor", self.scaling_factor, 0.0, 1e9, true),
            ("label_dropout", self.label_dropout, 0.0, 1.0, true),
            ("caption_dropout", self.caption_dropout, 0.0, 1.0, true),
            ("guidance", self.guidance, 0.0, 1e3, true),
            ("lora_alpha", self.lora_alpha, 0.0, 1e6, true),
            ("prior_loss_weight", self.prior_loss_weight, 0.0, 1e6, true),
            ("guidance_rescale", self.guidance_rescale, 0.0, 1.0, true),
        ]
    }

    /// What the numbers of a table may be.
    fn limits_of(&self, table: &str) -> Vec<Limit> {
        match table {
            "condition" => self.condition.limits().into(),
            "unet" => self.unet.limits(),
            "dit" => self.dit.limits().into(),
            "conv" => self.conv.limits().into(),
            "text" => self.text.limits().into(),
            "vae" => self.vae.limits().into_iter().chain(self.vae.reference_limits()).collect(),
            "classifier" => self.classifier.limits().into(),
            _ => Vec::new(),
        }
    }

    /// What the value of a key may be, in words; `None` where there is no range.
    pub(super) fn range_of(&self, key: &str) -> Option<String> {
        if let Some((table, key)) = key.split_once('.') {
            let limit = self.limits_of(table).into_iter().find(|limit| limit.key == key);
            return limit.map(|limit| limit.range.to_string());
        }
        let whole = self.whole_numbers().into_iter().find(|(known, ..)| *known == key);
        let real = self.real_numbers().into_iter().find(|(known, ..)| *known == key);
        match (whole, real) {
            (Some((_, _, low, MOST)), _) => Some(format!("{low} or more")),
            (Some((_, _, low, high)), _) => Some(format!("from {low} to {high}")),
            (_, Some((_, _, low, high, true))) => Some(format!("from {low:?} to {high:?}")),
            (_, Some((_, _, low, high, false))) => Some(format!("between {low:?} and {high:?}")),
            _ => None,
        }
    }
}
