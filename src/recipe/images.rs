//! What a recipe's images are, and what its model sees of them.

use super::{Recipe, System};
use crate::data::{ConditionKind, Dataset, Options, Split};
use crate::error::{Error, Result};

impl Recipe {
    /// Channels of the images.
    ///
    /// # Panics
    /// For latent diffusion, whose images are those of its VAE.
    #[track_caller]
    pub(crate) fn image_channels(&self) -> usize {
        match self.system {
            System::Classifier => self.unet.in_channels,
            System::Ddpm => self.diffused()[2],
            System::Vae => self.vae.in_channels,
            System::Ldm => panic!("image_channels: ask the VAE of a latent diffusion run"),
        }
    }

    /// Shape `[H, W, C]` of what a diffusion model adds noise to: images or latents.
    pub fn diffused(&self) -> [usize; 3] {
        let side = if self.system == System::Ldm { self.latent_size } else { self.image_size };
        let channels = self.model_channels()[0];
        // Channels that fit no condition are refused where the recipe is checked.
        [side, side, self.channels_of_image(channels).unwrap_or(channels)]
    }

    /// Channels of an image where a model that sees it, and what else it sees, has `all` of them; `None`: no
    /// image has.
    fn channels_of_image(&self, all: usize) -> Option<usize> {
        (1..=all).find(|&image| self.seen_channels(image) == all)
    }

    /// Channels that a model sees of an image of so many: its own, those of its own estimate, of a condition.
    pub(crate) fn seen_channels(&self, image: usize) -> usize {
        let copies = if self.self_conditioning { 2 } else { 1 };
        copies * image + self.condition.channels_of(image)
    }

    /// How pictures become its images. `channels`: of the images, which for latent diffusion are those of
    /// its VAE.
    pub(crate) fn pictures(&self, channels: usize) -> Options {
        let Recipe { image_size, crop, resize, seed, .. } = *self;
        let crop = (crop > 0).then_some(crop);
        Options { image_size, channels: Some(channels), crop, resize, seed, split: Split::Train }
    }

    /// Checks that pictures stand beside those of the data if the condition is made of them, and none do if
    /// it is not.
    ///
    /// # Errors
    /// Says what to choose instead.
    pub(crate) fn check_partner(&self, data: &dyn Dataset) -> Result<()> {
        let ours = match self.condition.kind {
            ConditionKind::Pair => Some("pair"),
            ConditionKind::Map => Some("map"),
            _ => None,
        };
        let theirs = data.partner().map(|partner| if partner.is_map { "map" } else { "pair" });
        match (ours, theirs) {
            _ if ours == theirs => Ok(()),
            (None, Some(theirs)) => {
                Err(Error::usage(format!("the data are {theirs}s, and condition.kind is not {theirs}"))
                    .hint(format!("set condition.kind={theirs}, or give images:B alone")))
            }
            (ours, _) => {
                let ours = ours.unwrap_or_default();
                Err(Error::usage(format!("condition.kind is {ours}, and the data has no {ours}s"))
                    .hint(format!("give {ours}s:A,B: the folder of the conditions, then that of the images")))
            }
        }
    }
}
