//! The options of a VAE.

use serde::{Deserialize, Serialize};

use super::limits::{Limit, Range, need_limits};
use super::options::{ActFn, WIDEST_HEAD, config, need_halvings};
use crate::error::{Result, need};

/// The architecture of encoder and decoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VaeKind {
    /// A residual block and a convolution of stride 2 for each level; the decoder mirrors it with
    /// transposed convolutions.
    Conv,
    /// Linear layers with ReLU between them.
    Mlp,
    /// The reference library's `AutoencoderKL`.
    Kl,
    /// Its `VQModel`, which rounds latents to a codebook.
    Vq,
}

config! {
    /// Options of a VAE.
    pub struct VaeConfig {
        /// Kind of network.
        pub kind: VaeKind = VaeKind::Conv,
        /// Channels of the images.
        pub in_channels: usize = 3,
        /// `conv`: channels of each level, from the image inwards; each level halves the image. `kl` and
        /// `vq`: likewise, but the last level does not. `mlp`: widths of the hidden layers.
        pub widths: Vec<usize> = vec![64, 128, 256],
        /// Channels of the latent image; `mlp`: size of the latent vector.
        pub latent: usize = 4,
        /// Groups of the group norms.
        pub norm_num_groups: usize = 32,
        /// Of `conv`.
        pub norm_eps: f32 = 1e-5,
        /// False: an autoencoder, whose latent is a point instead of a Gaussian.
        pub variational: bool = true,
        /// Of `kl` and `vq`, as are all that follow: residual blocks of a level; the decoder has one more.
        pub layers_per_block: usize = 1,
        /// Activation of the residual blocks.
        pub act_fn: ActFn = ActFn::Silu,
        /// Attention between the two residual blocks of the middle.
        pub mid_block_add_attention: bool = true,
        /// A 1x1 convolution at the encoder's end.
        pub use_quant_conv: bool = true,
        /// A 1x1 convolution at the decoder's beginning.
        pub use_post_quant_conv: bool = true,
        /// `vq`: vectors of the codebook.
        pub num_vq_embeddings: usize = 256,
        /// `vq`: channels between encoder and `quant_conv`; 0: as many as the latent has.
        pub inner_channels: usize = 0,
    }
}

/// How a reconstruction is compared with its original.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Reconstruction {
    /// Squared error: the likelihood is Gaussian.
    Mse,
    /// Absolute error: the likelihood is Laplace's.
    L1,
    /// Binary cross-entropy of the pixels as probabilities: the likelihood is Bernoulli's.
    Bce,
}

impl VaeConfig {
    /// Shape of a latent of an image of `side` pixels, `[H, W, C]`; that of a vector is `[1, 1, C]`.
    pub(crate) fn latent_shape(&self, side: usize) -> [usize; 3] {
        let small = if self.kind == VaeKind::Mlp { 1 } else { side >> self.halvings() };
        [small, small, self.latent]
    }

    /// Times that an image is halved, where its latent is an image.
    fn halvings(&self) -> usize {
        self.widths.len() - usize::from(self.is_reference())
    }

    /// Whether it is one of the reference library's.
    pub(crate) fn is_reference(&self) -> bool {
        matches!(self.kind, VaeKind::Kl | VaeKind::Vq)
    }

    /// Channels between the convolutions around the latent.
    pub(crate) fn inner(&self) -> usize {
        if self.inner_channels == 0 { self.latent } else { self.inner_channels }
    }

    /// What its numbers may be.
    pub(crate) fn limits(&self) -> [Limit; 4] {
        [
            Limit::whole("in_channels", self.in_channels, [1, 3]),
            Limit::whole("latent", self.latent, [1, 4096]),
            Limit::whole("norm_num_groups", self.norm_num_groups, [1, 65_536]),
            Limit::real("norm_eps", self.norm_eps, Range::Positive),
        ]
    }

    /// What the numbers of `kl` and `vq` may be.
    pub(crate) fn reference_limits(&self) -> [Limit; 3] {
        [
            Limit::whole("layers_per_block", self.layers_per_block, [1, 64]),
            Limit::whole("num_vq_embeddings", self.num_vq_embeddings, [1, 1 << 20]),
            Limit::whole("inner_channels", self.inner_channels, [0, 4096]),
        ]
    }

    /// Checks the options, for square images of `side` pixels.
    ///
    /// # Errors
    /// Names the key, its value and the allowed values.
    pub fn validate(&self, side: usize) -> Result<()> {
        let most = if self.kind == VaeKind::Mlp { 1 << 20 } else { 16_384 };
        let message = format!("vae.widths is {:?}", self.widths);
        let fit = !self.widths.is_empty() && self.widths.iter().all(|w| (1..=most).contains(w));
        need(fit, message, format!("it needs at least one number, each from 1 to {most}"))?;
        let groups = self.norm_num_groups;
        need_limits("vae", &self.limits())?;
        if self.kind == VaeKind::Mlp {
            return Ok(());
        }
        for c in &self.widths {
            let message =
                format!("vae.norm_num_groups = {groups} does not divide the {c} channels of a level");
            need(c.is_multiple_of(groups), message, "choose a divisor of every number in vae.widths")?;
        }
        need_halvings([side, side], self.halvings(), "numbers in vae.widths")?;
        if self.is_reference() { self.validate_reference() } else { Ok(()) }
    }

    fn validate_reference(&self) -> Result<()> {
        need_limits("vae", &self.reference_limits())?;
        let deepest = self.widths[self.widths.len() - 1];
        let message = format!("the attention head would be {deepest} channels wide");
        let hint = format!("the last of vae.widths can be at most {WIDEST_HEAD}");
        need(!self.mid_block_add_attention || deepest <= WIDEST_HEAD, message, hint)?;
        let message = format!("vae.variational is {}", self.variational);
        need(self.variational == (self.kind == VaeKind::Kl), message, "kl has a Gaussian, and vq has none")?;
        let known = match self.kind {
            VaeKind::Vq => self.use_quant_conv && self.use_post_quant_conv,
            _ => self.inner_channels == 0,
        };
        need(
            known,
            "vae.use_quant_conv and vae.inner_channels",
            "vq has both convolutions around its codebook; inner_channels is of vq alone",
        )
    }

    /// Numbers that the encoder gives for each number of a latent: mean and log-variance, or the latent
    /// itself.
    pub(crate) fn moments(&self) -> usize {
        if self.variational { 2 } else { 1 }
    }
}
