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
    /// Its name in recipes.
    pub fn name(self) -> &'static str {
        match self {
            System::Ddpm => "ddpm",
            System::Vae => "vae",
            System::Ldm => "ldm",
            System::Classifier => "classifier",
        }
    }

    /// Whether it is a diffusion model, which samples are drawn from.
    pub fn diffuses(self) -> bool {
        matches!(self, System::Ddpm | System::Ldm)
    }
}
