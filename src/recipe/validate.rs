//! Checks of a recipe's values, made before anything else is done with them.

use super::{Backbone, Codebook, Latents, LossKind, Optimizer, Recipe, Rng, System};
use crate::data::ConditionKind;
use crate::diffusion::{LossWeight, TimestepSampling};
use crate::error::{Error, Result, need};
use crate::models::unet::Class;
use crate::models::vae::{Reconstruction, VaeKind};

/// Most numbers of a codebook that is trained: a kernel binds it whole.
const MOST_CODES: usize = 1 << 25;

impl Recipe {
    /// Says what is wrong with the values, before anything else is done with them.
    ///
    /// # Errors
    /// Names the key and what it may be.
    pub fn validate(&self) -> Result<()> {
        for (key, value, low, high) in self.whole_numbers() {
            let range = format!("it must be from {low} to {high}");
            need((low..=high).contains(&value), format!("{key} is {value}"), range)?;
        }
        for (key, value, low, high, closed) in self.real_numbers() {
            // Kernels compute in f32: what is above zero must be so there too.
            let small = f64::from(value as f32);
            let (fits, range) = if closed {
                ((low..=high).contains(&value), format!("from {low} to {high}"))
            } else {
                (value > low && small > low && value < high, format!("between {low} and {high}"))
            };
            need(fits, format!("{key} is {value}"), format!("it must be {range}"))?;
        }
        let below = self.beta1 < 1.0 && self.beta2 < 1.0;
        need(below, "beta1 and beta2 must be below 1", "0.9 and 0.999 are usual")?;
        let decays = self.optimizer == Optimizer::Adamw || self.weight_decay == 0.0;
        need(decays, "weight_decay goes with optimizer = adamw", "set optimizer=adamw too")?;
        self.validate_shards()?;
        let is_cut = ["images:", "parquet:"].iter().any(|kind| self.data.starts_with(kind));
        let (drawn, alone) = (self.latents == Latents::Drawn, !self.condition.is_some());
        need(
            !self.random_crop || is_cut && alone && (self.system != System::Ldm || drawn),
            "random_crop goes with images:DIR or parquet:DIR, no condition, and latents drawn anew",
            "leave it out, or set latents=drawn",
        )?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        let names = !self.name.is_empty() && !self.name.starts_with('.') && self.name.chars().all(plain);
        let letters = "it names a folder: use letters, digits, '-', '_' and '.'";
        need(names, format!("name is {:?}", self.name), letters)?;
        match self.system {
            System::Ddpm | System::Ldm => self.validate_diffusion(),
            System::Vae => self.validate_vae(),
            System::Classifier => {
                self.classifier.validate(&self.unet)?;
                self.validate_diffusion()
            }
        }
    }

    fn validate_shards(&self) -> Result<()> {
        let (shards, batch) = (self.shards, self.batch_size);
        let hint = "set shards to a divisor of batch_size";
        need(
            batch.is_multiple_of(shards),
            format!("{shards} shards do not divide a batch of {batch}"),
            hint,
        )?;
        let of_whole = match self.timestep_sampling {
            _ if self.has_codebook() => "a codebook learns",
            TimestepSampling::LossSecondMoment => "timestep_sampling = loss_second_moment draws",
            _ => return Ok(()),
        };
        need(shards == 1, format!("{of_whole} from whole batches, not from shards"), "leave shards at 1")
    }

    fn validate_diffusion(&self) -> Result<()> {
        self.validate_condition()?;
        self.validate_text()?;
        let ([_, _, channels], [_, out]) = (self.diffused(), self.model_channels());
        let learned = self.variance.is_learned();
        let (table, wanted) = (self.model.table(), if learned { 2 * channels } else { channels });
        // Pipelines of the library give such a DiT's variance to no sampler.
        let unused = self.model == Backbone::Dit && out == 2 * channels;
        let message = format!("{table}.out_channels is {out}, and {table}.in_channels {channels}");
        let hint = if learned {
            format!("half of the output is the learned variance: {table}.out_channels must be {wanted}")
        } else {
            "they must be alike, but for variance = learned_range (or learned), which takes twice as many"
                .into()
        };
        need(out == wanted || unused, message, hint)?;
        self.validate_loss()?;
        self.validate_learned_schedule()?;
        self.validate_process()?;
        // Every text has its opposite: the prediction with an empty one, or another.
        let drops = self.condition.dropout > 0.0 || self.text_width() > 0;
        need(
            drops || !self.condition.is_some() || self.guidance == 1.0 || self.label_dropout > 0.0,
            format!("guidance is {}, and the model was not trained without conditions", self.guidance),
            "train with condition.dropout, such as 0.1",
        )?;
        let without = self.label_dropout == 0.0 && (self.guidance == 1.0 || drops);
        let rows = matches!(self.class(), Class::Number(rows) if rows > 1);
        let (_, key) = self.trained_classes();
        let more = if self.model == Backbone::Dit { "" } else { ", and one more" };
        let hint = format!("set {key} to the number of classes{more}");
        need(without || rows, "label_dropout and guidance go with a model that has classes", hint)?;
        let trained = self.guidance == 1.0 || self.null_class().is_some() || drops;
        need(trained, format!("guidance is {}", self.guidance), "train with label_dropout, such as 0.1")?;
        need(
            self.condition.dropout == 0.0 || self.label_dropout == 0.0,
            "label_dropout and condition.dropout: guidance is by the class, or by the condition",
            "leave one of them at 0",
        )?;
        let [side, _, _] = self.diffused();
        if self.model != Backbone::Unet {
            let widest = match self.model {
                Backbone::Dit => self.dit.validate([side, side]).map(|()| self.dit.widest([side, side])),
                _ => self.conv.validate().map(|()| (side * side * self.conv.width) as u128),
            };
            return self.check_elements(widest?);
        }
        self.unet.validate([side, side])?;
        // The widest activation of a level is a skip joined to what comes from below.
        let widths = &self.unet.block_out_channels;
        for (level, &c) in widths.iter().enumerate() {
            let side = (side >> level) as u128;
            let channels = (c + widths.get(level + 1).copied().unwrap_or(c)) as u128;
            self.check_elements(side * side * channels)?;
        }
        Ok(())
    }

    /// Checks that the model takes images, and what else it is to see.
    fn validate_condition(&self) -> Result<()> {
        let ([channels, out], table) = (self.model_channels(), self.model.table());
        // What the output says of the input that is wanted.
        let wanted = out / if self.variance.is_learned() { 2 } else { 1 };
        let image = self.diffused()[2];
        self.condition
            .validate(self.image_size, if self.seen_channels(image) == channels { image } else { 3 })?;
        let has_holes = self.condition.kind == ConditionKind::Mask;
        let sees_more = self.condition.is_some() || self.self_conditioning;
        let of_latents = self.condition.kind == ConditionKind::MaskedLatents && !self.self_conditioning;
        need(
            !sees_more || (self.system == System::Ddpm) != of_latents,
            "condition and self_conditioning go with system = ddpm, a diffusion model of pixels",
            "set condition.kind = none and self_conditioning = false",
        )?;
        need(
            !has_holes || !self.variance.is_learned() && !self.learns_schedule(),
            "condition.kind is mask: no error counts outside of holes, but that of a learned bound does",
            "leave variance = fixed_small and learned_schedule = none",
        )?;
        need(
            !has_holes || self.condition.dropout == 0.0,
            "condition.dropout is for guidance, and of known pixels a model that fills holes learns nothing",
            "leave it at 0",
        )?;
        let takes = !sees_more || self.model == Backbone::Unet;
        need(takes, "condition and self_conditioning go with model = unet", "set model=unet")?;
        need(
            !self.self_conditioning || !self.learns_schedule(),
            "self_conditioning goes with a schedule that is not learned",
            "leave one of them out",
        )?;
        let seen = self.seen_channels(wanted);
        let message = format!(
            "{table}.in_channels is {channels}, and the model sees {seen}: those of images of {wanted} \
             channels{}{}",
            if self.self_conditioning { ", of its own estimate" } else { "" },
            if self.condition.is_some() { ", of conditions" } else { "" }
        );
        need(!sees_more || seen == channels, message, format!("set {table}.in_channels = {seen}"))
    }

    fn validate_loss(&self) -> Result<()> {
        let (bound, learned) = (self.loss == LossKind::Bound, self.variance.is_learned());
        let drawn = self.timestep_sampling;
        let even = ![TimestepSampling::LogNormal, TimestepSampling::LogitNormal].contains(&drawn);
        let simple = self.loss_weight == LossWeight::Simple;
        need(
            !bound || learned,
            "loss is bound, and the variance is not learned",
            "set variance = learned_range, or train the mean alone by loss = mse, loss_weight = variational",
        )?;
        need(!bound || simple, "loss is bound, which has its own weights", "set loss_weight = simple")?;
        need(
            !learned || even,
            "a learned variance is trained by the bound, the sum over all timesteps alike",
            "set timestep_sampling = uniform, stratified or loss_second_moment",
        )?;
        let more_noise = self.offset_noise > 0.0 || self.input_perturbation > 0.0;
        need(
            !learned || !more_noise,
            "offset_noise and input_perturbation change the process that a learned variance is of",
            "leave them at 0, or choose variance = fixed_small",
        )?;
        need(
            !learned || self.loss_weight != LossWeight::Variational,
            "loss_weight is variational, the weights of a fixed variance, and the variance is learned",
            "loss = bound trains both by the bound",
        )
    }

    fn validate_vae(&self) -> Result<()> {
        need(self.rng == Rng::Denoir, "rng = torch goes with a diffusion model", "leave it out for a VAE")?;
        let vae = &self.vae;
        vae.validate(self.image_size)?;
        let hint = "it must be below 1: something must be seen";
        need(self.corrupt_mask < 1.0, "corrupt_mask is 1", hint)?;
        let likelihood = !vae.is_reference() || self.reconstruction != Reconstruction::Bce;
        need(likelihood, "reconstruction is bce", "kl and vq give images: choose mse or l1")?;
        let pixels = (self.image_size * self.image_size) as u128;
        if vae.kind != VaeKind::Mlp {
            return vae.widths.iter().enumerate().try_for_each(|(level, &c)| {
                // On the way up a level's pixels still have the channels of the one below.
                let widest = c.max(vae.widths.get(level + 1).copied().unwrap_or(c)) as u128;
                self.check_elements((pixels >> (2 * level)) * widest)
            });
        }
        let values = pixels * vae.in_channels as u128;
        let widest = vae.widths.iter().copied().max().unwrap_or(1) as u128;
        self.check_elements(widest.max(values))?;
        let weights = values * vae.widths.first().copied().unwrap_or(1) as u128;
        let message = format!("the first layer would have {weights} weights");
        need(weights <= i32::MAX as u128, message, "lower image_size or the numbers in vae.widths")
    }

    /// Says what keeps a codebook from being trained.
    pub(super) fn check_codebook(&self) -> Result<()> {
        let (codes, restart) = (self.vae.num_vq_embeddings, self.codebook_restart);
        let averages = self.codebook == Codebook::Ema;
        let vectors = self.latents_of_a_step();
        let message = format!(
            "codebook_restart is {restart} for {codes} codes, and a step has {vectors} latents: no code lives"
        );
        let hint = "lower codebook_restart (0: no restarts) or vae.num_vq_embeddings, or raise batch_size";
        need(restart * codes as f64 <= vectors, message, hint)?;
        let elements = codes * self.vae.latent;
        let message = format!("the codebook has {elements} numbers");
        need(elements <= MOST_CODES, message, format!("it can have at most {MOST_CODES} to be trained"))?;
        let message = "codebook is ema, and weight_decay would shrink its codes";
        need(!averages || self.weight_decay == 0.0, message, "set weight_decay = 0, or codebook = gradient")?;
        let message = "codebook_decay is 1: the counts of codes would never change";
        need(self.codebook_decay < 1.0, message, "0.99 is usual")
    }

    /// Kernels count elements in 32 bits.
    fn check_elements(&self, of_a_sample: u128) -> Result<()> {
        let elements = self.batch_size as u128 * of_a_sample;
        if elements > i32::MAX as u128 {
            return Err(Error::new(format!(
                "one tensor would have {elements} elements, too many for memory and kernels"
            ))
            .hint("lower the batch size, the image size or the model's widths"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use crate::recipe::find;

    #[test]
    fn values_out_of_range_are_named() {
        for (assignment, wanted) in [
            ("batch_size=0", "batch_size is 0; it must be from 1"),
            ("lr=-1", "lr is -1; it must be between"),
            ("lr=nan", "lr is NaN"),
            ("unet.norm_num_groups=5", "norm_num_groups = 5 does not divide the 32 channels"),
            ("image_size=15", "images of 15x15 pixels cannot be halved once; choose a multiple of 2"),
            ("unet.dropout=1", "unet.dropout is 1"),
            ("sample_steps=5000", "sample_steps is 5000"),
            ("unet.out_channels=2", "unet.out_channels is 2, and unet.in_channels 1; they must be alike"),
            ("variance=learned", "unet.out_channels must be 2"),
            ("loss=bound", "the variance is not learned"),
            ("random_crop=true", "random_crop goes with images:DIR"),
            ("p2_k=-1", "p2_k is -1"),
            ("unet.attention_head_dim=128", "wider than a level of 64 channels"),
        ] {
            let mut recipe = find("digits").unwrap();
            recipe.set(assignment).unwrap();
            let error = recipe.validate().unwrap_err();
            assert!(error.to_string().contains(wanted), "{assignment}: {error}");
        }
    }
}
