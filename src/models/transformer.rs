//! The transformer behind a residual block that lets its pixels see a text (Rombach et al. 2022,
//! arXiv:2112.10752, section 3.3), with the parameter names of the diffusers library's
//! `Transformer2DModel`.

use super::unet_config::UNetConfig;
use crate::nn::{Init, Layout, Scope, attention_between, group_norm, layer_norm, linear};
use crate::ops::activation::{Activation, activation};
use crate::ops::arithmetic::{add, mul};
use crate::ops::concat::split;
use crate::ops::matmul;
use crate::tape::Tensor;

/// Added to the variance in the group norm, whatever the net's own `norm_eps`.
const GROUP_EPS: f32 = 1e-6;
/// Added to the variance in the layer norms.
const LAYER_EPS: f32 = 1e-5;

/// Options of the transformers of a level.
#[derive(Clone, Copy, Debug)]
pub(super) struct Transformer {
    groups: usize,
    heads: usize,
    depth: usize,
    /// Both attentions see the text.
    only_cross: bool,
    /// Its first and last layer stand in files as linear ones.
    linear: bool,
}

impl Transformer {
    /// Of a level, or of the middle block.
    pub(super) fn of(config: &UNetConfig, level: usize, middle: bool) -> Self {
        Transformer {
            groups: config.norm_num_groups,
            heads: config.transformer_heads.at(level),
            depth: config.transformer_layers_per_block.at(level),
            only_cross: !middle && config.only_cross_attention.at(level),
            linear: config.use_linear_projection,
        }
    }

    /// Records it, of the pixels of `x [N, H, W, C]` and a `text [N, S, D]`.
    pub(super) fn record(&self, s: &Scope, x: &Tensor, text: &Tensor) -> Tensor {
        let [n, h, w, c] = x.shape().of_rank("transformer");
        let normed = group_norm(&s.sub("norm"), x, self.groups, GROUP_EPS, Activation::Identity);
        let mut tokens = self.project(&s.sub("proj_in"), &normed.reshape([n, h * w, c]));
        for layer in 0..self.depth {
            let s = s.sub(format!("transformer_blocks.{layer}"));
            tokens = s.block(|| self.block(&s, &tokens, text));
        }
        let out = self.project(&s.sub("proj_out"), &tokens);
        s.label(|| add(&out.reshape([n, h, w, c]), x))
    }

    /// `x [N, T, C]` through a linear layer, which may stand in files as a convolution.
    fn project(&self, s: &Scope, x: &Tensor) -> Tensor {
        let c = x.shape().last();
        if self.linear {
            return linear(s, x, c);
        }
        let w = s.param("weight", [1, 1, c, c], Layout::Conv, Init::FanIn(c));
        let bias = s.param("bias", [c], Layout::Plain, Init::FanIn(c));
        s.label(|| matmul::linear(x, &w.reshape([c, c]), Some(&bias)))
    }

    /// Attention to the pixels, attention to the text, and a feed-forward layer with a gate (GEGLU, Shazeer
    /// 2020, arXiv:2002.05202), each behind a layer norm and added to what it reads.
    fn block(&self, s: &Scope, x: &Tensor, text: &Tensor) -> Tensor {
        let norm = |name: &str, x: &Tensor| layer_norm(&s.sub(name), x, LAYER_EPS);
        let c = x.shape().last();
        let attend = |name: &str, x: &Tensor, to: &Tensor| {
            let s = s.sub(name);
            attention_between(&s, x, to, [self.heads, c / self.heads])
        };
        let normed = norm("norm1", x);
        let mixed = attend("attn1", &normed, if self.only_cross { text } else { &normed });
        let x = s.label(|| add(&mixed, x));
        let mixed = attend("attn2", &norm("norm2", &x), text);
        let x = s.label(|| add(&mixed, &x));
        let forward = s.sub("ff");
        let both = linear(&forward.sub("net.0.proj"), &norm("norm3", &x), 8 * c);
        let hidden = forward.label(|| {
            let [value, gate] = &split(&both, &[4 * c, 4 * c])[..] else { unreachable!("two parts") };
            mul(value, &activation(gate, Activation::Gelu))
        });
        let out = linear(&forward.sub("net.2"), &hidden, c);
        s.label(|| add(&out, &x))
    }
}
