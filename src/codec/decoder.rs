//! The decoder of a VAE, recorded.

use super::Codec;
use crate::models::{codebook, vae};
use crate::nn::Scope;
use crate::tape::{Tape, Tensor};

impl Codec {
    /// Records the decoder of rounded latents `in [N, h, w, c]`, of `samples` of that size.
    pub(super) fn record_decoder(&self, tape: &Tape, samples: usize, [h, w]: [usize; 2]) -> Tensor {
        let z = tape.stored("in", 0, [samples, h, w, self.latent()[2]]);
        self.images(&Scope::new(tape, &self.params), &z)
    }

    /// Records what [`Codec::decode_sized`] does with latents `z [N, h, w, c]`, inside the recording of
    /// another model: with the parameters in a store of their own.
    pub(crate) fn recorded_decoder(&self, z: &Tensor, store: &str) -> Tensor {
        let scope = Scope::frozen(z.tape(), &self.params, store);
        let z = match self.recipe.vae.kind {
            vae::VaeKind::Vq => codebook::quantise(&self.recipe.vae, &scope, z).latents,
            _ => z.clone(),
        };
        self.images(&scope, &z)
    }

    /// Images `[N, H, W, C]` of rounded latents `z [N, h, w, c]`.
    fn images(&self, scope: &Scope, z: &Tensor) -> Tensor {
        let [_, h, w, _] = z.shape().of_rank("decoder");
        let raw = vae::decode(&self.recipe.vae, scope, z, self.image_of([h, w]));
        vae::image_of(&self.recipe.vae, &raw, self.recipe.reconstruction)
    }
}
