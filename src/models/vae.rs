//! Variational autoencoders: a convolutional one of residual blocks, one of plain layers, and those of the
//! reference library; without the Gaussian, autoencoders.
//!
//! Kingma & Welling 2014 (arXiv:1312.6114). The encoder gives the mean and the log-variance of a Gaussian
//! over latents, the decoder an image from a latent. Parameters are called as in a PyTorch model of two
//! `nn.Sequential`, `encoder` and `decoder` (`tools/reference/vae_golden.py`).

use serde::{Deserialize, Serialize};

use super::autoencoder;
use crate::error::{Error, Result};
use crate::nn::{Conv, Scope, conv, conv_transpose, group_norm, linear};
use crate::ops::activation::{Activation, activation};
use crate::ops::arithmetic::{add, affine};
use crate::ops::concat::split;
use crate::ops::conv2d::Padding;
use crate::ops::loss::{bce_with_logits, l1, mse};
use crate::tape::Tensor;

/// What the encoder and the decoder are made of.
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
    /// Its `VQModel`, which rounds latents to a codebook; it is not trained here.
    Vq,
}

/// Options of a VAE.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct VaeConfig {
    pub kind: VaeKind,
    pub in_channels: usize,
    /// `conv`: channels of each level, from the image inwards; each level halves the image. `kl` and `vq`:
    /// likewise, but the last level does not. `mlp`: widths of the hidden layers.
    pub widths: Vec<usize>,
    /// Channels of the latent image; `mlp`: size of the latent vector.
    pub latent: usize,
    pub norm_num_groups: usize,
    /// Of `conv`.
    pub norm_eps: f32,
    /// False: an autoencoder, whose latent is a point instead of a Gaussian.
    pub variational: bool,
    /// Of `kl` and `vq`, as are all that follow: residual blocks of a level; the decoder has one more.
    pub layers_per_block: usize,
    /// `silu`, `relu` or `gelu`.
    pub act_fn: String,
    pub mid_block_add_attention: bool,
    pub use_quant_conv: bool,
    pub use_post_quant_conv: bool,
    /// `vq`: vectors of the codebook.
    pub num_vq_embeddings: usize,
    /// `vq`: channels between encoder and `quant_conv`; 0: as many as the latent has.
    pub inner_channels: usize,
}

impl Default for VaeConfig {
    fn default() -> Self {
        VaeConfig {
            kind: VaeKind::Conv,
            in_channels: 3,
            widths: vec![64, 128, 256],
            latent: 4,
            norm_num_groups: 32,
            norm_eps: 1e-5,
            variational: true,
            layers_per_block: 1,
            act_fn: "silu".to_owned(),
            mid_block_add_attention: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
            num_vq_embeddings: 256,
            inner_channels: 0,
        }
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
    pub fn latent_shape(&self, side: usize) -> [usize; 3] {
        match self.kind {
            VaeKind::Conv => {
                let small = side >> self.widths.len();
                [small, small, self.latent]
            }
            VaeKind::Mlp => [1, 1, self.latent],
            VaeKind::Kl | VaeKind::Vq => {
                let small = side >> (self.widths.len() - 1);
                [small, small, self.latent]
            }
        }
    }

    /// Whether it is one of the reference library's.
    pub fn is_reference(&self) -> bool {
        matches!(self.kind, VaeKind::Kl | VaeKind::Vq)
    }

    /// The activation of `kl` and `vq`.
    pub(super) fn activation(&self) -> Activation {
        super::unet_config::activation_called(&self.act_fn).unwrap_or(Activation::Silu)
    }

    /// Channels between the convolutions around the latent.
    pub(super) fn inner(&self) -> usize {
        if self.inner_channels == 0 { self.latent } else { self.inner_channels }
    }

    /// Says what is wrong with the options, for square images of `side` pixels.
    ///
    /// # Errors
    /// Names the key and what it may be.
    pub fn validate(&self, side: usize) -> Result<()> {
        let bad = |message: String, hint: String| Err(Error::usage(message).hint(hint));
        let most = if self.kind == VaeKind::Mlp { 1 << 20 } else { 16_384 };
        if self.widths.is_empty() || self.widths.iter().any(|&w| w == 0 || w > most) {
            let message = format!("vae.widths is {:?}", self.widths);
            return bad(message, format!("it needs at least one number, each from 1 to {most}"));
        }
        let ranges = [
            ("in_channels", self.in_channels, 3),
            ("latent", self.latent, 4096),
            ("norm_num_groups", self.norm_num_groups, 65_536),
        ];
        for (key, value, high) in ranges {
            if value < 1 || value > high {
                return bad(format!("vae.{key} is {value}"), format!("it must be from 1 to {high}"));
            }
        }
        if !(self.norm_eps > 0.0 && self.norm_eps.is_finite()) {
            return bad(format!("vae.norm_eps is {}", self.norm_eps), "it must be above 0".to_owned());
        }
        if self.kind == VaeKind::Mlp {
            return Ok(());
        }
        if let Some(c) = self.widths.iter().find(|&&c| c % self.norm_num_groups != 0) {
            return bad(
                format!(
                    "vae.norm_num_groups = {} does not divide the {c} channels of a level",
                    self.norm_num_groups
                ),
                "choose a divisor of every number in vae.widths".to_owned(),
            );
        }
        let halvings = self.widths.len() - usize::from(self.is_reference());
        let factor = 1_usize.checked_shl(halvings as u32).unwrap_or(usize::MAX);
        if side == 0 || !side.is_multiple_of(factor) {
            return bad(
                format!("images of {side}x{side} pixels cannot be halved {halvings} times, for the levels"),
                format!("choose a multiple of {factor}, or fewer numbers in vae.widths"),
            );
        }
        if self.is_reference() { self.validate_reference() } else { Ok(()) }
    }

    fn validate_reference(&self) -> Result<()> {
        let bad = |message: String, hint: &str| Err(Error::usage(message).hint(hint));
        let ranges = [
            ("layers_per_block", self.layers_per_block, 1, 64),
            ("num_vq_embeddings", self.num_vq_embeddings, 1, 1 << 20),
            ("inner_channels", self.inner_channels, 0, 4096),
        ];
        for (key, value, low, high) in ranges {
            if value < low || value > high {
                return bad(format!("vae.{key} is {value}"), &format!("it must be from {low} to {high}"));
            }
        }
        if super::unet_config::activation_called(&self.act_fn).is_none() {
            return bad(
                format!("vae.act_fn: no activation called {:?}", self.act_fn),
                "choose silu, relu or gelu",
            );
        }
        let deepest = self.widths.last().copied().unwrap_or(0);
        if self.mid_block_add_attention && deepest > super::unet_config::WIDEST_HEAD {
            return bad(
                format!("the attention head would be {deepest} channels wide"),
                &format!("the last of vae.widths can be at most {}", super::unet_config::WIDEST_HEAD),
            );
        }
        if self.variational != (self.kind == VaeKind::Kl) {
            return bad(
                format!("vae.variational is {}", self.variational),
                "kl has a Gaussian, and vq has none",
            );
        }
        let convolved = self.use_quant_conv && self.use_post_quant_conv;
        if self.kind == VaeKind::Vq && !convolved || self.kind == VaeKind::Kl && self.inner_channels != 0 {
            return bad(
                "vae.use_quant_conv and vae.inner_channels".to_owned(),
                "vq has both convolutions around its codebook; inner_channels is of vq alone",
            );
        }
        Ok(())
    }

    /// Numbers that the encoder gives for each number of a latent: mean and log-variance, or the latent
    /// itself.
    pub fn moments(&self) -> usize {
        if self.variational { 2 } else { 1 }
    }
}

/// What the encoder gives, `moments [.., C]` or `[.., 2 C]`, as mean and log-variance; an autoencoder's has
/// no log-variance.
pub fn mean_and_log_var(config: &VaeConfig, moments: &Tensor) -> (Tensor, Option<Tensor>) {
    if !config.variational {
        return (moments.clone(), None);
    }
    let mut parts = split(moments, &[config.latent, config.latent]).into_iter();
    match (parts.next(), parts.next()) {
        (Some(mean), log_var @ Some(_)) => (mean, log_var),
        _ => unreachable!("split gives as many parts as widths"),
    }
}

/// Records the encoder: `x [N, H, W, in_channels]` to mean and log-variance, each `[N, h, w, latent]`
/// (`conv`) or `[N, latent]` (`mlp`).
#[track_caller]
pub fn encode(config: &VaeConfig, scope: &Scope, x: &Tensor) -> (Tensor, Option<Tensor>) {
    let moments = encode_moments(config, scope, x);
    scope.sub("encoder").label(|| mean_and_log_var(config, &moments))
}

/// As [`encode`], with mean and log-variance side by side in the last dimension.
#[track_caller]
pub fn encode_moments(config: &VaeConfig, scope: &Scope, x: &Tensor) -> Tensor {
    let [n, h, w, c] = x.shape().of_rank("vae");
    assert!(
        c == config.in_channels && h == w,
        "vae: image {} for in_channels {}",
        x.shape(),
        config.in_channels
    );
    config.validate(h).unwrap_or_else(|e| panic!("vae: {e}"));
    let mut layers = Layers { scope: scope.sub("encoder"), next: 0 };
    let out = config.moments() * config.latent;
    match config.kind {
        VaeKind::Conv => {
            let mut hidden = x.clone();
            for &width in &config.widths {
                hidden = residual(config, &layers.next(), &hidden, width);
                let down = Conv { stride: 2, ..Conv::same(width) };
                hidden = conv(&layers.next(), &hidden, down, None, None);
            }
            conv(&layers.next(), &hidden, Conv::same(out), None, None)
        }
        VaeKind::Mlp => layers.mlp(&x.reshape([n, h * w * c]), config.widths.iter().copied(), out),
        VaeKind::Kl | VaeKind::Vq => autoencoder::encode(config, scope, x),
    }
}

/// Records the decoder: `z` of the latents' shape to `[N, H, W, C]` for images of `[H, W, C]`, before
/// [`image_of`].
#[track_caller]
pub fn decode(config: &VaeConfig, scope: &Scope, z: &Tensor, [h, w, c]: [usize; 3]) -> Tensor {
    let mut layers = Layers { scope: scope.sub("decoder"), next: 0 };
    match config.kind {
        VaeKind::Conv => {
            let Some(&deepest) = config.widths.last() else { panic!("vae: no widths") };
            let mut hidden = conv(&layers.next(), z, Conv::same(deepest), None, None);
            // Each level ends as wide as the next one begins; the last keeps its width.
            for level in (0..config.widths.len()).rev() {
                let (here, out) = (config.widths[level], config.widths[level.saturating_sub(1)]);
                hidden = conv_transpose(&layers.next(), &hidden, here, 4, 2, Padding::same(1));
                hidden = residual(config, &layers.next(), &hidden, out);
            }
            conv(&layers.next(), &hidden, Conv::same(c), None, None)
        }
        VaeKind::Mlp => {
            let n = z.dims()[0];
            let y =
                layers.mlp(&z.reshape([n, config.latent]), config.widths.iter().rev().copied(), h * w * c);
            y.reshape([n, h, w, c])
        }
        VaeKind::Kl | VaeKind::Vq => autoencoder::decode(config, scope, z, c),
    }
}

/// What the decoder gives as an image in [-1, 1]: `tanh`; where it gives logits, `2 sigmoid(x) - 1`, which
/// is `tanh(x / 2)`. Those of the reference library give the image itself.
pub fn image_of(config: &VaeConfig, raw: &Tensor, reconstruction: Reconstruction) -> Tensor {
    match reconstruction {
        Reconstruction::Mse | Reconstruction::L1 if config.is_reference() => raw.clone(),
        Reconstruction::Mse | Reconstruction::L1 => activation(raw, Activation::Tanh),
        Reconstruction::Bce => activation(&affine(raw, 0.5, 0.0), Activation::Tanh),
    }
}

/// The reconstruction's part of the loss, `[1]`: summed over the pixels of an image, averaged over the
/// batch. `raw` as [`decode`] gives it, `images` in [-1, 1].
#[track_caller]
pub fn loss(config: &VaeConfig, raw: &Tensor, images: &Tensor, reconstruction: Reconstruction) -> Tensor {
    let pixels = (images.elements() / images.dims()[0]) as f32;
    let mean = match reconstruction {
        Reconstruction::Mse => mse(&image_of(config, raw, reconstruction), images, None),
        Reconstruction::L1 => l1(&image_of(config, raw, reconstruction), images, None),
        Reconstruction::Bce => bce_with_logits(raw, &affine(images, 0.5, 0.5), None),
    };
    affine(&mean, pixels, 0.0)
}

/// The parts of an `nn.Sequential`, numbered as they come.
struct Layers {
    scope: Scope,
    next: usize,
}

impl Layers {
    fn next(&mut self) -> Scope {
        self.next += 1;
        self.scope.sub(self.next - 1)
    }

    /// Linear layers with ReLU between them. An activation takes a number too, as in PyTorch.
    fn mlp(&mut self, x: &Tensor, widths: impl Iterator<Item = usize>, out: usize) -> Tensor {
        let mut hidden = x.clone();
        for width in widths {
            hidden = linear(&self.next(), &hidden, width);
            hidden = self.next().label(|| activation(&hidden, Activation::Relu));
        }
        linear(&self.next(), &hidden, out)
    }
}

/// Two convolutions, each followed by group norm; ReLU after the first, and after the sum with the input
/// (through a 1x1 convolution where the width changes).
fn residual(config: &VaeConfig, s: &Scope, x: &Tensor, out: usize) -> Tensor {
    s.block(|| two_convolutions(config, s, x, out))
}

fn two_convolutions(config: &VaeConfig, s: &Scope, x: &Tensor, out: usize) -> Tensor {
    let (groups, eps) = (config.norm_num_groups, config.norm_eps);
    let h = conv(&s.sub("conv1"), x, Conv::same(out), None, None);
    let h = group_norm(&s.sub("gn1"), &h, groups, eps, Activation::Relu);
    let h = conv(&s.sub("conv2"), &h, Conv::same(out), None, None);
    let h = group_norm(&s.sub("gn2"), &h, groups, eps, Activation::Identity);
    let skip = if x.shape().last() == out {
        x.clone()
    } else {
        conv(&s.sub("skip"), x, Conv::point(out), None, None)
    };
    s.label(|| activation(&add(&h, &skip), Activation::Relu))
}
