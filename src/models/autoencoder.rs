//! The reference library's autoencoders, `AutoencoderKL` and `VQModel`, with its parameter names.
//!
//! Esser, Rombach & Ommer 2021 (arXiv:2012.09841); Rombach et al. 2022 (arXiv:2112.10752). All but the last
//! level halve the image, by a convolution that is padded at the bottom and the right; every norm has eps
//! 1e-6, whatever a configuration says.

use super::codebook::codebook;
use super::vae_config::{VaeConfig, VaeKind};
use crate::nn::{Conv, Scope, attention_block, conv, group_norm};
use crate::ops::activation::{Activation, activation};
use crate::ops::arithmetic::{add, affine, sub};
use crate::ops::concat::{concat, split};
use crate::ops::conv2d::Padding;
use crate::tape::Tensor;

const EPS: f32 = 1e-6;
/// Bounds of the log-variance.
const LOG_VAR: [f32; 2] = [-30.0, 20.0];

/// The encoder: `x [N, H, W, C]` to `[N, h, w, 2 latent]`, means and bounded log-variances side by side, or
/// `[N, h, w, latent]`, which a codebook has not rounded yet.
#[track_caller]
pub fn encode(config: &VaeConfig, scope: &Scope, x: &Tensor) -> Tensor {
    let net = Net { config, act: config.act_fn.activation() };
    let s = scope.sub("encoder");
    let mut hidden = conv(&s.sub("conv_in"), x, Conv::same(config.widths[0]), None, None);
    for (level, &width) in config.widths.iter().enumerate() {
        let s = s.sub(format!("down_blocks.{level}"));
        for layer in 0..config.layers_per_block {
            hidden = net.resnet(&s.sub(format!("resnets.{layer}")), &hidden, width);
        }
        if level + 1 < config.widths.len() {
            let down = Conv { stride: 2, padding: Padding::BOTTOM_RIGHT, ..Conv::same(width) };
            hidden = conv(&s.sub("downsamplers.0.conv"), &hidden, down, None, None);
        }
    }
    hidden = net.middle(&s.sub("mid_block"), &hidden);
    let out = config.moments() * config.latent;
    let inner = if config.kind == VaeKind::Vq { config.inner() } else { out };
    hidden = net.ends(&s, &hidden, inner);
    if config.use_quant_conv {
        hidden = conv(&scope.sub("quant_conv"), &hidden, Conv::point(out), None, None);
    }
    if config.kind == VaeKind::Vq {
        return hidden;
    }
    s.label(|| match &split(&hidden, &[config.latent, config.latent])[..] {
        [mean, log_var] => concat(&[mean, &bounded(log_var)]),
        _ => unreachable!("split in two gives two"),
    })
}

/// Held within [`LOG_VAR`]; what is within is not touched, not even by rounding, and what is without has no
/// gradient.
fn bounded(x: &Tensor) -> Tensor {
    let [low, high] = LOG_VAR;
    let below = activation(&affine(x, -1.0, low), Activation::Relu);
    let above = activation(&affine(x, 1.0, -high), Activation::Relu);
    sub(&add(x, &below), &above)
}

/// The decoder: `z [N, h, w, latent]` to `[N, H, W, channels]`. Those of a VQModel are vectors of its
/// codebook already (see [`quantise`](super::codebook::quantise)).
#[track_caller]
pub fn decode(config: &VaeConfig, scope: &Scope, z: &Tensor, channels: usize) -> Tensor {
    let net = Net { config, act: config.act_fn.activation() };
    if config.kind == VaeKind::Vq {
        // Named here, so that it is among the parameters.
        codebook(config, scope);
    }
    let mut hidden = z.clone();
    if config.use_post_quant_conv {
        hidden = conv(&scope.sub("post_quant_conv"), &hidden, Conv::point(config.inner()), None, None);
    }
    let s = scope.sub("decoder");
    let Some(&deepest) = config.widths.last() else { panic!("vae: no widths") };
    hidden = conv(&s.sub("conv_in"), &hidden, Conv::same(deepest), None, None);
    hidden = net.middle(&s.sub("mid_block"), &hidden);
    for (level, &width) in config.widths.iter().rev().enumerate() {
        let s = s.sub(format!("up_blocks.{level}"));
        for layer in 0..=config.layers_per_block {
            hidden = net.resnet(&s.sub(format!("resnets.{layer}")), &hidden, width);
        }
        if level + 1 < config.widths.len() {
            hidden = conv(&s.sub("upsamplers.0.conv"), &hidden, Conv::upsampled(width), None, None);
        }
    }
    net.ends(&s, &hidden, channels)
}

struct Net<'a> {
    config: &'a VaeConfig,
    act: Activation,
}

impl Net<'_> {
    fn resnet(&self, s: &Scope, x: &Tensor, out: usize) -> Tensor {
        s.block(|| {
            let groups = self.config.norm_num_groups;
            let hidden = group_norm(&s.sub("norm1"), x, groups, EPS, self.act);
            let hidden = conv(&s.sub("conv1"), &hidden, Conv::same(out), None, None);
            let hidden = group_norm(&s.sub("norm2"), &hidden, groups, EPS, self.act);
            let shortcut = if x.shape().last() == out {
                x.clone()
            } else {
                conv(&s.sub("conv_shortcut"), x, Conv::point(out), None, None)
            };
            conv(&s.sub("conv2"), &hidden, Conv::same(out), None, Some(&shortcut))
        })
    }

    fn middle(&self, s: &Scope, x: &Tensor) -> Tensor {
        let c = x.shape().last();
        let mut hidden = self.resnet(&s.sub("resnets.0"), x, c);
        if self.config.mid_block_add_attention {
            let s = s.sub("attentions.0");
            let groups = Some(self.config.norm_num_groups);
            hidden = s.block(|| attention_block(&s, &hidden, groups, EPS, [1, c], false));
        }
        self.resnet(&s.sub("resnets.1"), &hidden, c)
    }

    /// The last norm and convolution of either half.
    fn ends(&self, s: &Scope, x: &Tensor, out: usize) -> Tensor {
        let groups = self.config.norm_num_groups;
        let hidden = group_norm(&s.sub("conv_norm_out"), x, groups, EPS, Activation::Silu);
        conv(&s.sub("conv_out"), &hidden, Conv::same(out), None, None)
    }
}
