//! How a step of training makes new weights of gradients.

use crate::device::Precision;
use crate::ops::adam::AdamOptions;
use crate::ops::codebook::CodebookOptions;
use crate::optim::{Ema, EmaWarmup, LrSchedule};
use crate::recipe::{Codebook, Recipe};
use crate::state::State;

/// Adam, its learning rate, clipping, accumulation and the moving average of the weights. The default is
/// the default recipe's.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainOptions {
    /// Of the initial weights and of every random number.
    pub seed: u64,
    /// Samples of a batch.
    pub batch_size: usize,
    /// Batches whose gradients are averaged for one step of Adam.
    pub accumulation: u64,
    /// Parts of a step, which divide its batches. Their gradients are added in one order, whether one process
    /// computes all or several share them ([`Trainer::join`](super::Trainer::join)): the same bytes. 1: as
    /// the device adds them.
    pub shards: usize,
    /// Steps of the whole training, which the shape of the learning rate needs.
    pub steps: u64,
    /// The highest learning rate.
    pub lr: f64,
    /// How the learning rate falls from there.
    pub lr_schedule: LrSchedule,
    /// Steps in which the learning rate rises from 0.
    pub lr_warmup: u64,
    /// Decay of Adam's moving average of the gradients.
    pub beta1: f64,
    /// Decay of that of their squares.
    pub beta2: f64,
    /// Added to the root of the second average.
    pub adam_eps: f64,
    /// Decoupled (AdamW): a step takes `lr * weight_decay` of each weight.
    pub weight_decay: f64,
    /// Largest norm of the gradient.
    pub clip_norm: Option<f64>,
    /// The moving average of the weights, which samples are drawn from.
    pub ema: Ema,
    /// Compute what [`Scope::block`](crate::nn::Scope::block) records once more in the backward pass: less
    /// memory, more time, the same numbers.
    pub checkpoint_blocks: bool,
    /// Multiply the loss by a power of two that keeps the gradients within the range of 16-bit floats, and
    /// skip steps where one leaves it ([`crate::ops::loss_scale`]). Always on where the device keeps tensors
    /// in 16 bits.
    pub loss_scaling: bool,
    /// What a step does to a codebook beside its gradient; `None`: the model has none.
    pub codebook: Option<CodebookOptions>,
}

impl Default for TrainOptions {
    fn default() -> Self {
        TrainOptions::of(&Recipe::default())
    }
}

impl TrainOptions {
    /// The options that a recipe gives.
    pub fn of(recipe: &Recipe) -> Self {
        let warmup = EmaWarmup { inv_gamma: recipe.ema_inv_gamma, power: recipe.ema_power };
        let codebook = CodebookOptions {
            decay: recipe.codebook_decay,
            restart: recipe.codebook_restart,
            averages: recipe.codebook == Codebook::Ema,
        };
        TrainOptions {
            seed: recipe.seed,
            batch_size: recipe.batch_size,
            accumulation: recipe.accumulation,
            shards: recipe.shards,
            steps: recipe.steps,
            lr: recipe.lr,
            lr_schedule: recipe.lr_schedule,
            lr_warmup: recipe.lr_warmup,
            beta1: recipe.beta1,
            beta2: recipe.beta2,
            adam_eps: recipe.adam_eps,
            weight_decay: recipe.weight_decay,
            clip_norm: (recipe.clip_norm > 0.0).then_some(recipe.clip_norm),
            ema: Ema { decay: recipe.ema_decay, warmup: recipe.ema_warmup.then_some(warmup) },
            checkpoint_blocks: recipe.checkpoint_blocks,
            loss_scaling: recipe.precision == Precision::F16,
            codebook: recipe.has_codebook().then_some(codebook),
        }
    }

    /// The learning rate of step `step`, counted from 0.
    pub fn lr_at(&self, step: u64) -> f64 {
        self.lr * self.lr_schedule.factor(step, self.lr_warmup, self.steps)
    }

    /// The part of Adam that all steps share. Gradients that were added up are cleared after a step.
    pub fn adam(&self) -> AdamOptions {
        AdamOptions {
            beta1: self.beta1,
            beta2: self.beta2,
            eps: self.adam_eps,
            weight_decay: self.weight_decay,
            clip: self.clip_norm,
            zero_grads: self.accumulation > 1,
        }
    }

    /// The words of step `step`, counted from 0, for its batch `micro` of `accumulation`: random numbers,
    /// Adam's corrections, the decay of the moving average.
    pub fn state_at(&self, step: u64, micro: usize) -> State {
        let number = (step + 1) as f64;
        State {
            seed: self.seed,
            step: step as u32,
            first_sample: (micro * self.batch_size) as u32,
            lr: self.lr_at(step) as f32,
            correction1: (1.0 / (1.0 - self.beta1.powf(number))) as f32,
            correction2: (1.0 / (1.0 - self.beta2.powf(number))) as f32,
            ema_decay: self.ema.decay_at(step + 1) as f32,
            ..State::default()
        }
    }
}
