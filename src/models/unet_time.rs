//! What a U-Net is told of a timestep and of a class.

use super::options::{Class, ClassEmbedding, TimeEmbedding};
use super::unet_config::UNetConfig;
use crate::nn::{Init, Layout, Scope, linear};
use crate::ops::activation::{Activation, activation};
use crate::ops::arithmetic::add;
use crate::ops::embedding::embedding;
use crate::ops::fourier_embedding::fourier_embedding;
use crate::ops::timestep_embedding::timestep_embedding;
use crate::tape::Tensor;

/// `[N]` timesteps (and labels) to `[N, T]`.
pub(super) fn timestep(config: &UNetConfig, s: &Scope, t: &Tensor, labels: Option<&Tensor>) -> Tensor {
    let width = config.temb_width();
    let first = config.block_out_channels[0];
    let projection = s.sub("time_proj");
    // Its parameters, where it has some; asked for once, though classes may be embedded by them too.
    let table = match config.time_embedding_type {
        // Song et al. 2021 draw the frequencies with deviation 16, and do not train them.
        TimeEmbedding::Fourier => {
            Some(projection.param("weight", [first], Layout::Plain, Init::Normal(16.0)))
        }
        TimeEmbedding::Learned => {
            let rows = config.num_train_timesteps;
            Some(projection.param("weight", [rows, first], Layout::Plain, Init::Normal(1.0)))
        }
        TimeEmbedding::Positional => None,
    };
    let project = |s: &Scope, t: &Tensor| {
        s.label(|| match &table {
            Some(frequencies) if config.time_embedding_type == TimeEmbedding::Fourier => {
                fourier_embedding(t, frequencies)
            }
            Some(rows) => embedding(rows, t),
            None => timestep_embedding(t, first, config.flip_sin_to_cos, config.freq_shift, 10_000.0),
        })
    };
    let layers = |s: &Scope, x: &Tensor, act: Activation| {
        let hidden = linear(&s.sub("linear_1"), x, width);
        let hidden = s.label(|| activation(&hidden, act));
        linear(&s.sub("linear_2"), &hidden, width)
    };
    let act = if config.sees_text() { config.act_fn.activation() } else { Activation::Silu };
    let embed = |s: Scope, t: &Tensor| layers(&s, &project(&s, t), act);
    let temb = embed(s.sub("time_embedding"), t);
    let Some(labels) = labels else { return temb };
    let s = s.sub("class_embedding");
    let class = match config.class() {
        Class::Number(rows) => {
            let table = s.param("weight", [rows, width], Layout::Plain, Init::Normal(1.0));
            s.label(|| embedding(&table, labels))
        }
        Class::Value => embed(s.clone(), labels),
        _ if config.class_embed_type == ClassEmbedding::Projection => layers(&s, labels, Activation::Silu),
        _ if config.class_embed_type == ClassEmbedding::SimpleProjection => linear(&s, labels, width),
        Class::Embedding(_) | Class::None => labels.clone(),
    };
    s.label(|| add(&temb, &class))
}
