//! Variational autoencoders: a convolutional one of residual blocks, one of plain layers, and those of the
//! reference library; without the Gaussian, autoencoders.
//!
//! Kingma & Welling 2014 (arXiv:1312.6114). The encoder gives the mean and the log-variance of a Gaussian
//! over latents, the decoder an image from a latent. Parameters are called as in a PyTorch model of two
//! `nn.Sequential`, `encoder` and `decoder` (`tools/reference/vae_golden.py`).

use super::autoencoder;
pub use super::vae_config::{Reconstruction, VaeConfig, VaeKind};
use crate::nn::{Conv, Scope, conv, conv_transpose, group_norm, linear};
use crate::ops::activation::{Activation, activation};
use crate::ops::arithmetic::{add, affine};
use crate::ops::concat::split;
use crate::ops::conv2d::Padding;
use crate::ops::loss::{bce_with_logits, l1, mse};
use crate::tape::Tensor;

/// The encoder's `moments [.., C]` or `[.., 2 C]` as mean and log-variance; an autoencoder's has
/// no log-variance.
pub(crate) fn mean_and_log_var(config: &VaeConfig, moments: &Tensor) -> (Tensor, Option<Tensor>) {
    if !config.variational {
        return (moments.clone(), None);
    }
    match &split(moments, &[config.latent, config.latent])[..] {
        [mean, log_var] => (mean.clone(), Some(log_var.clone())),
        _ => unreachable!("split in two gives two"),
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
pub(crate) fn encode_moments(config: &VaeConfig, scope: &Scope, x: &Tensor) -> Tensor {
    let [n, h, w, c] = x.shape().of_rank("vae");
    assert!(
        c == config.in_channels && (h == w || config.kind != VaeKind::Mlp),
        "vae: image {} for in_channels {}",
        x.shape(),
        config.in_channels
    );
    for side in [h, w] {
        config.validate(side).unwrap_or_else(|e| panic!("vae: {e}"));
    }
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

/// The decoder's output as an image in [-1, 1]: `tanh`; where it gives logits, `2 sigmoid(x) - 1`, which
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
    s.block(|| {
        let norm =
            |name, h: &Tensor, act| group_norm(&s.sub(name), h, config.norm_num_groups, config.norm_eps, act);
        let h = conv(&s.sub("conv1"), x, Conv::same(out), None, None);
        let h = conv(&s.sub("conv2"), &norm("gn1", &h, Activation::Relu), Conv::same(out), None, None);
        let h = norm("gn2", &h, Activation::Identity);
        let skip = match x.shape().last() {
            c if c == out => x.clone(),
            _ => conv(&s.sub("skip"), x, Conv::point(out), None, None),
        };
        s.label(|| activation(&add(&h, &skip), Activation::Relu))
    })
}
