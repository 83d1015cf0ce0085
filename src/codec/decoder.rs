//! The decoder of a VAE, recorded.

use super::Codec;
use crate::models::{codebook, vae};
use crate::nn::Scope;
use crate::tape::Tensor;

impl Codec {
    /// Records the decoder of rounded latents `z [N, h, w, c]` to images of `[H, W, C]`.
    pub(super) fn record_decoder(&self, scope: &Scope, z: &Tensor, image: [usize; 3]) -> Tensor {
        let raw = vae::decode(&self.recipe.vae, scope, z, image);
        vae::image_of(&self.recipe.vae, &raw, self.recipe.reconstruction)
    }

    /// Records what [`Codec::decode_sized`] does with latents `z [N, h, w, c]`, inside the recording of
    /// another model: with the parameters in a store of their own.
    pub(crate) fn recorded_decoder(&self, z: &Tensor, store: &str) -> Tensor {
        let [_, h, w, _] = z.shape().of_rank("decoder");
        let scope = Scope::frozen(z.tape(), &self.params, store);
        let z = match self.recipe.vae.kind {
            vae::VaeKind::Vq => codebook::quantise(&self.recipe.vae, &scope, z).latents,
            _ => z.clone(),
        };
        self.record_decoder(&scope, &z, self.image_of([h, w]))
    }
}
