//! The diffusion transformer (Peebles & Xie 2023, arXiv:2212.09748), with the semantics, options and
//! parameter names of the diffusers library's `DiTTransformer2DModel`.

pub use super::dit_config::{DitConfig, FeedForward};
use super::options::Class;
use crate::nn::{Conv, Init, Layout, Scope, conv, linear, linear_zero_if, self_attention};
use crate::ops::activation::{Activation, activation};
use crate::ops::arithmetic::{add, mul};
use crate::ops::concat::{concat, split};
use crate::ops::conv2d::Padding;
use crate::ops::embedding::embedding;
use crate::ops::layer_norm::{Affine, layer_norm};
use crate::ops::positions::positions;
use crate::ops::swap::swap;
use crate::ops::timestep_embedding::timestep_embedding;
use crate::tape::Tensor;

/// Width of the sinusoidal embedding of a timestep.
const TIMESTEP: usize = 256;
/// Added to the variance in the layer norms that have no option for it.
const EPS: f32 = 1e-6;

/// Records the net: `x [N, H, W, in_channels]` at timesteps `t [N]` (and of classes `labels`, `u32 [N]`,
/// where it has some) to `[N, H, W, out]`. A label of `num_embeds_ada_norm` means no class.
///
/// As in the library, every block has embeddings of timesteps and classes of its own, and the last layer is
/// modulated by those of the first block.
///
/// # Panics
/// When the configuration is not valid for the image, or labels are missing or surplus.
#[track_caller]
pub fn dit(config: &DitConfig, s: &Scope, x: &Tensor, t: &Tensor, labels: Option<&Tensor>) -> Tensor {
    let [n, h, w, channels] = x.shape().of_rank("dit");
    assert_eq!(channels, config.in_channels, "dit: image {} for in_channels", x.shape());
    assert_eq!(labels.is_some(), config.class() != Class::None, "dit: labels for {:?}", config.class());
    config.validate([h, w]).unwrap_or_else(|e| panic!("dit: {e}"));
    let (d, patch) = (config.width(), config.patch_size);
    let [rows, columns] = [h / patch, w / patch];
    let tokens = rows * columns;

    let patches = s.sub("pos_embed");
    let form = Conv { kernel: patch, stride: patch, padding: Padding::same(0), ..Conv::point(d) };
    let hidden = conv(&patches.sub("proj"), x, form, None, None);
    let mut hidden = patches.label(|| {
        let places = grid_embedding(x, [rows, columns], d).reshape([tokens * d]);
        add(&hidden.reshape([n, tokens * d]), &places).reshape([n, tokens, d])
    });
    let sinusoids = s.label(|| timestep_embedding(t, TIMESTEP, true, 1.0, 10_000.0));
    let mut first = None;
    for layer in 0..config.num_layers {
        let s = s.sub(format!("transformer_blocks.{layer}"));
        hidden = s.block(|| {
            let condition = condition(config, &s.sub("norm1.emb"), &sinusoids, labels);
            first.get_or_insert_with(|| condition.clone());
            block(config, &s, &hidden, &condition)
        });
    }
    let Some(condition) = first else { unreachable!("a valid net has a block") };
    let [shift, scale] = modulation(config, &s.sub("proj_out_1"), &condition);
    let hidden = s.label(|| layer_norm(&hidden, Affine::Samples { scale: &scale, shift: &shift }, EPS));
    let out = config.out();
    let hidden = linear_zero_if(config.zero_init, &s.sub("proj_out_2"), &hidden, patch * patch * out);
    // The rows of the patches of a line of them, one after another, are rows of the image.
    s.label(|| swap(&hidden.reshape([n * rows, columns, patch, patch * out]))).reshape([n, h, w, out])
}

/// `[rows * columns, d]`: sines and cosines of a patch's column, then of its row.
fn grid_embedding(x: &Tensor, grid: [usize; 2], d: usize) -> Tensor {
    let [row, column] = positions(x.tape(), grid);
    let [row, column] = [row, column].map(|at| timestep_embedding(&at, d / 2, false, 0.0, 10_000.0));
    concat(&[&column, &row])
}

/// `[N, d]`: what a block is told of timesteps and classes.
fn condition(config: &DitConfig, s: &Scope, sinusoids: &Tensor, labels: Option<&Tensor>) -> Tensor {
    let d = config.width();
    let of_time = s.sub("timestep_embedder");
    let hidden = linear(&of_time.sub("linear_1"), sinusoids, d);
    let hidden = of_time.label(|| activation(&hidden, Activation::Silu));
    let time = linear(&of_time.sub("linear_2"), &hidden, d);
    let of_class = s.sub("class_embedder");
    let shape = [config.num_embeds_ada_norm + 1, d];
    let table = of_class.param("embedding_table.weight", shape, Layout::Plain, Init::Normal(1.0));
    of_class.label(|| match labels {
        Some(labels) => add(&time, &embedding(&table, labels)),
        None => add(&time, &table.reshape([d])),
    })
}

/// `K` tensors `[N, d]` that scale, shift or gate each sample's channels.
fn modulation<const K: usize>(config: &DitConfig, s: &Scope, condition: &Tensor) -> [Tensor; K] {
    let d = config.width();
    let condition = s.label(|| activation(condition, Activation::Silu));
    let all = linear_zero_if(config.zero_init, s, &condition, K * d);
    let parts = s.label(|| split(&all, &[d; K]));
    parts.try_into().unwrap_or_else(|_| unreachable!("split gives as many parts as widths"))
}

/// Attention, then a feed-forward layer, each behind a modulated norm and a gate.
fn block(config: &DitConfig, s: &Scope, x: &Tensor, condition: &Tensor) -> Tensor {
    let d = config.width();
    let norm = s.sub("norm1");
    let [shift_msa, scale_msa, gate_msa, shift_mlp, scale_mlp, gate_mlp] =
        modulation(config, &norm.sub("linear"), condition);
    let normed = norm.label(|| layer_norm(x, Affine::Samples { scale: &scale_msa, shift: &shift_msa }, EPS));
    let attention = s.sub("attn1");
    let heads = [config.num_attention_heads, config.attention_head_dim];
    let mixed = self_attention(&attention, &normed, heads, false);
    let x = attention.label(|| add(x, &mul(&attention.dropout(&mixed, config.dropout), &gate_msa)));

    let affine = Affine::Samples { scale: &scale_mlp, shift: &shift_mlp };
    let normed = s.sub("norm3").label(|| layer_norm(&x, affine, config.norm_eps));
    let forward = s.sub("ff");
    let hidden = linear(&forward.sub("net.0.proj"), &normed, 4 * d);
    let hidden = forward.label(|| {
        let hidden = activation(&hidden, config.activation_fn.activation());
        forward.dropout(&hidden, config.dropout)
    });
    let out = linear(&forward.sub("net.2"), &hidden, d);
    forward.label(|| add(&x, &mul(&out, &gate_mlp)))
}
