//! The options of a `DiTTransformer2DModel`.

use serde::{Deserialize, Serialize};

use super::limits::{Limit, Range, need_limits};
use super::options::{Class, WIDEST_HEAD, config};
use crate::error::{Result, need};
use crate::ops::activation::Activation;

/// The activation of the feed-forward layers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FeedForward {
    /// `x Phi(x)` through its tanh approximation.
    GeluApproximate,
    /// `x Phi(x)`.
    Gelu,
}

impl FeedForward {
    pub(super) fn activation(self) -> Activation {
        match self {
            FeedForward::GeluApproximate => Activation::GeluTanh,
            FeedForward::Gelu => Activation::Gelu,
        }
    }
}

config! {
    /// Options, by the names and with the defaults of the reference library's `config.json` (a DiT-XL/2); and
    /// one of our own.
    pub struct DitConfig {
        /// Heads of each block.
        pub num_attention_heads: usize = 16,
        /// Channels of a head. The transformer is as wide as all heads together.
        pub attention_head_dim: usize = 72,
        /// Channels of the input.
        pub in_channels: usize = 4,
        /// Channels of the output: those of the input, or twice as many, where a variance is learned too; 0:
        /// those of the input.
        pub out_channels: usize = 0,
        /// Blocks.
        pub num_layers: usize = 28,
        /// Probability with which attention and feed-forward layers drop a value.
        pub dropout: f32 = 0.0,
        /// Side of a patch in pixels; a patch is a token.
        pub patch_size: usize = 2,
        /// Activation of the feed-forward layers: gelu-approximate or gelu.
        pub activation_fn: FeedForward = FeedForward::GeluApproximate,
        /// Classes; the table of embeddings has a row more, for none. 0: every image is of none.
        pub num_embeds_ada_norm: usize = 1000,
        /// Added to the variance in the layer norms before the feed-forward layers (in the others: 1e-6).
        pub norm_eps: f32 = 1e-5,
        /// Our own: modulation and the last layer start from zero, as in Peebles & Xie.
        pub zero_init: bool = true,
    }
}

impl DitConfig {
    /// Channels of a token.
    pub fn width(&self) -> usize {
        self.num_attention_heads.saturating_mul(self.attention_head_dim)
    }

    /// Channels of the output.
    pub fn out(&self) -> usize {
        if self.out_channels == 0 { self.in_channels } else { self.out_channels }
    }

    /// The form in which the net takes classes: their numbers, of which `num_embeds_ada_norm` means none.
    pub fn class(&self) -> Class {
        match self.num_embeds_ada_norm {
            0 => Class::None,
            classes => Class::Number(classes),
        }
    }

    /// Numbers of the widest activation of an image of `[h, w]` pixels.
    pub(crate) fn widest(&self, [h, w]: [usize; 2]) -> u128 {
        let (patch, width, out) = (self.patch_size.max(1), self.width() as u128, self.out() as u128);
        let tokens = (h / patch) as u128 * (w / patch) as u128;
        tokens.saturating_mul(4 * width).max((h as u128 * w as u128).saturating_mul(out))
    }

    /// What its numbers may be.
    pub(crate) fn limits(&self) -> [Limit; 8] {
        [
            Limit::whole("num_attention_heads", self.num_attention_heads, [1, 1024]),
            Limit::whole("attention_head_dim", self.attention_head_dim, [1, WIDEST_HEAD]),
            Limit::whole("in_channels", self.in_channels, [1, 4096]),
            Limit::whole("num_layers", self.num_layers, [1, 1024]),
            Limit::whole("patch_size", self.patch_size, [1, 1024]),
            Limit::whole("num_embeds_ada_norm", self.num_embeds_ada_norm, [0, 1 << 20]),
            Limit::real("dropout", self.dropout, Range::Share),
            Limit::real("norm_eps", self.norm_eps, Range::Positive),
        ]
    }

    /// Checks the options, for images of `[h, w]` pixels.
    ///
    /// # Errors
    /// Names the key, its value and the allowed values.
    pub fn validate(&self, [h, w]: [usize; 2]) -> Result<()> {
        need_limits("dit", &self.limits())?;
        let (patch, width, channels) = (self.patch_size, self.width(), self.in_channels);
        need(
            h > 0 && w > 0 && h.is_multiple_of(patch) && w.is_multiple_of(patch),
            format!("images of {h}x{w} pixels are not made of patches of {patch}x{patch}"),
            "choose a dit.patch_size that divides their sides",
        )?;
        need(
            width.is_multiple_of(4) && width <= 16_384,
            format!("dit.num_attention_heads times dit.attention_head_dim is {width}"),
            "it must be a multiple of 4 up to 16384, for the sines and cosines of rows and columns",
        )?;
        need(
            [0, channels, 2 * channels].contains(&self.out_channels),
            format!("dit.out_channels is {} and dit.in_channels {channels}", self.out_channels),
            "it must be as many, or twice as many with a learned variance",
        )
    }
}
