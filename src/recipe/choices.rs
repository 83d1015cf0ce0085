//! Words that a recipe chooses from.

use serde::{Deserialize, Serialize};

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
    /// Adam.
    Adam,
    /// Adam with decoupled weight decay.
    Adamw,
}

/// The error of a prediction, of each element.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LossKind {
    /// Squared.
    #[default]
    Mse,
    /// Absolute.
    L1,
    /// Half the square up to a distance, from there on a line.
    Huber,
    /// The variational bound in bits per dimension, of mean and learned variance.
    Bound,
}

/// What a new word stands for, which decides the captions that it is learned from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Property {
    /// A thing that the pictures show.
    #[default]
    Object,
    /// The way in which they are made.
    Style,
}

/// What moves the codes of a codebook.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Codebook {
    /// The gradient of their distance to the latents.
    #[default]
    Gradient,
    /// They are running means of the latents.
    Ema,
}
