//! The U-Net of DDPM, with the semantics, options and parameter names of the diffusers library's
//! `UNet2DModel`, and of its `UNet2DConditionModel` where it sees a text.

pub use super::options::{
    ActFn, Class, ClassEmbedding, DownBlock, Levels, Resampling, TimeEmbedding, TimeScaleShift, UpBlock,
};
use super::transformer::Transformer;
pub use super::unet_config::UNetConfig;
use super::unet_time::timestep;
use crate::diffusion::Told;
use crate::nn::{Conv, Scope, attention_block, conv, group_norm, group_norm_of, linear, point, side_by_side};
use crate::ops::activation::{Activation, activation};
use crate::ops::arithmetic::{add, affine, div, mul};
use crate::ops::concat::split;
use crate::ops::conv2d::Padding;
use crate::ops::fourier_features::fourier_features;
use crate::ops::resample::{average_pool, upsample_nearest};
use crate::tape::Tensor;

/// The inputs of every block.
struct Context<'a> {
    config: &'a UNetConfig,
    act: Activation,
    /// `act(temb)`, `[N, T]`.
    temb: Tensor,
    /// `[N, S, D]`.
    text: Option<Tensor>,
}

/// Records the net: `x [N, H, W, in_channels]` at timesteps `t [N]` (and, `told`, labels as [`Class`] says,
/// and a text `[N, S, UNetConfig::text_width]`) to `[N, H, W, out_channels]`. A batch may be any of timesteps
/// that `UNetConfig::check_times` has.
///
/// # Panics
/// When the configuration is not valid for the image, or labels or a text are missing, surplus or of another
/// shape.
#[track_caller]
pub fn unet(config: &UNetConfig, s: &Scope, x: &Tensor, t: &Tensor, told: Told) -> Tensor {
    let (context, mut hidden, mut skips) = way_down(config, s, x, t, told);
    for (level, &c) in config.block_out_channels.iter().rev().enumerate() {
        let s = s.sub(format!("up_blocks.{level}"));
        hidden = context.up(&s, hidden, level, c, &mut skips);
    }
    let act = if config.sees_text() { context.act } else { Activation::Silu };
    let (groups, eps) = (config.norm_num_groups, config.norm_eps);
    let out = group_norm(&s.sub("conv_norm_out"), &hidden, groups, eps, act);
    let form = Conv::same(config.out_channels).zero_if(config.zero_init);
    let out = conv(&s.sub("conv_out"), &out, form, None, None);
    match config.time_embedding_type {
        TimeEmbedding::Fourier => s.label(|| div(&out, &t.reshape([x.dims()[0], 1]))),
        _ => out,
    }
}

/// The half of the net that a classifier has too: the blocks on the way down and the middle one, normalised
/// and activated, `[N, h, w, C]`. Arguments as for [`unet`].
#[track_caller]
pub(super) fn half(config: &UNetConfig, s: &Scope, x: &Tensor, t: &Tensor) -> Tensor {
    let (_, hidden, _) = way_down(config, s, x, t, Told::default());
    let (groups, eps) = (config.norm_num_groups, config.norm_eps);
    group_norm(&s.sub("conv_norm_out"), &hidden, groups, eps, Activation::Silu)
}

/// Blocks down to the middle one, and what the way up takes from each.
#[track_caller]
fn way_down<'a>(
    config: &'a UNetConfig,
    s: &Scope,
    x: &Tensor,
    t: &Tensor,
    Told { labels, text }: Told,
) -> (Context<'a>, Tensor, Vec<Tensor>) {
    let [_, h, w, channels] = x.shape().of_rank("unet");
    assert_eq!(channels, config.in_channels, "unet: image {} for in_channels", x.shape());
    let class = config.class();
    assert_eq!(labels.is_some(), class != Class::None, "unet: labels for {class:?}");
    let width = text.map_or(0, |text| text.shape().last());
    assert_eq!(width, config.text_width(), "unet: width of the text for cross_attention_dim");
    config.validate([h, w]).unwrap_or_else(|e| panic!("unet: {e}"));
    let act = config.act_fn.activation();
    let temb = timestep(config, s, t, labels);
    let text = text.map(|text| match (config.encoder_hid_dim, &config.cross_attention_dim) {
        (1.., Levels::All(width)) => linear(&s.sub("encoder_hid_proj"), text, *width),
        _ => text.clone(),
    });
    let temb = s.sub("time_embedding").label(|| activation(&temb, act));
    let context = Context { config, act, temb, text };

    let x = if config.center_input_sample { s.label(|| affine(x, 2.0, -1.0)) } else { x.clone() };
    let x = match &config.fourier_features[..] {
        [] => x,
        powers => s.label(|| fourier_features(&x, powers)),
    };
    let mut hidden = conv(&s.sub("conv_in"), &x, Conv::same(config.block_out_channels[0]), None, None);
    let mut skips = vec![hidden.clone()];
    for (level, &c) in config.block_out_channels.iter().enumerate() {
        let s = s.sub(format!("down_blocks.{level}"));
        hidden = context.down(&s, hidden, level, c, &mut skips);
    }
    if config.mid_block {
        hidden = context.middle(&s.sub("mid_block"), hidden);
    }
    (context, hidden, skips)
}

impl Context<'_> {
    fn down(&self, s: &Scope, mut hidden: Tensor, level: usize, c: usize, skips: &mut Vec<Tensor>) -> Tensor {
        let config = self.config;
        let attends = config.down_block_types[level] == DownBlock::Attention;
        let reads = config.down_block_types[level] == DownBlock::CrossAttention;
        for layer in 0..config.layers_per_block.at(level) {
            hidden =
                s.block(|| self.resnet(&s.sub(format!("resnets.{layer}")), &[&hidden], c, 1.0, Size::Same));
            let s = s.sub(format!("attentions.{layer}"));
            if attends {
                hidden = s.block(|| self.attend(&s, &hidden, Some(config.norm_num_groups)));
            } else if reads {
                hidden = self.read(&s, &hidden, level, false);
            }
            skips.push(hidden.clone());
        }
        if level + 1 < config.block_out_channels.len() {
            let s = s.sub("downsamplers.0");
            let resnet = config.down_block_types[level] == DownBlock::Resnet
                || attends && config.downsample_type == Resampling::Resnet;
            hidden = if resnet {
                s.block(|| self.resnet(&s, &[&hidden], c, 1.0, Size::Halved))
            } else {
                let padding =
                    if config.downsample_padding == 0 { Padding::BOTTOM_RIGHT } else { Padding::same(1) };
                let form = Conv { stride: 2, padding, ..Conv::same(c) };
                conv(&s.sub("conv"), &hidden, form, None, None)
            };
            skips.push(hidden.clone());
        }
        hidden
    }

    fn middle(&self, s: &Scope, hidden: Tensor) -> Tensor {
        let config = self.config;
        let (c, scale) = (hidden.shape().last(), config.mid_block_scale_factor);
        let reads = config.sees_text();
        let mut hidden = s.block(|| self.resnet(&s.sub("resnets.0"), &[&hidden], c, scale, Size::Same));
        if reads && !config.add_attention {
            // As in the library, where a middle block that sees no text has one residual block.
            return hidden;
        }
        if reads {
            let level = config.block_out_channels.len() - 1;
            hidden = self.read(&s.sub("attentions.0"), &hidden, level, true);
        } else if config.add_attention {
            let groups = match (config.attn_norm_num_groups, config.resnet_time_scale_shift) {
                (0, TimeScaleShift::ScaleShift) => None,
                (0, TimeScaleShift::Default) => Some(config.norm_num_groups),
                (groups, _) => Some(groups),
            };
            hidden = s.block(|| self.attend(&s.sub("attentions.0"), &hidden, groups));
            hidden = divided(s, hidden, scale);
        }
        s.block(|| self.resnet(&s.sub("resnets.1"), &[&hidden], c, scale, Size::Same))
    }

    fn up(&self, s: &Scope, mut hidden: Tensor, level: usize, c: usize, skips: &mut Vec<Tensor>) -> Tensor {
        let config = self.config;
        let attends = config.up_block_types[level] == UpBlock::Attention;
        let reads = config.up_block_types[level] == UpBlock::CrossAttention;
        // Counted from the image inwards.
        let depth = config.block_out_channels.len() - 1 - level;
        for layer in 0..=config.layers_per_block.at(depth) {
            let skip = skips.pop().unwrap_or_else(|| unreachable!("as many skips as layers on the way up"));
            let s_layer = s.sub(format!("resnets.{layer}"));
            hidden = s.block(|| self.resnet(&s_layer, &[&hidden, &skip], c, 1.0, Size::Same));
            let s = s.sub(format!("attentions.{layer}"));
            if attends {
                hidden = s.block(|| self.attend(&s, &hidden, Some(config.norm_num_groups)));
            } else if reads {
                hidden = self.read(&s, &hidden, depth, false);
            }
        }
        if depth > 0 {
            let s = s.sub("upsamplers.0");
            let resnet = config.up_block_types[level] == UpBlock::Resnet
                || attends && config.upsample_type == Resampling::Resnet;
            hidden = if resnet {
                s.block(|| self.resnet(&s, &[&hidden], c, 1.0, Size::Doubled))
            } else {
                let size = skips.last().map_or([0, 0], |skip| [skip.dims()[1], skip.dims()[2]]);
                enlarged(&s.sub("conv"), &hidden, size, c)
            };
        }
        hidden
    }

    /// Two convolutions around the timestep embedding, and a shortcut, of the `parts` side by side. The sum
    /// is divided by `scale`. Where the size changes, it does so before the first convolution and in the
    /// shortcut.
    fn resnet(&self, s: &Scope, parts: &[&Tensor], c: usize, scale: f32, size: Size) -> Tensor {
        let config = self.config;
        let (groups, eps) = (config.norm_num_groups, config.norm_eps);
        let hidden = group_norm_of(&s.sub("norm1"), parts, groups, eps, self.act);
        let resized = |x: &Tensor| match size {
            Size::Same => x.clone(),
            Size::Halved => s.label(|| average_pool(x, 2)),
            Size::Doubled => s.label(|| upsample_nearest(x, 2)),
        };
        let parts = parts.iter().map(|x| resized(x)).collect::<Vec<_>>();
        let (hidden, first) = match size {
            Size::Doubled => (hidden, Conv::upsampled(c)),
            Size::Same | Size::Halved => (resized(&hidden), Conv::same(c)),
        };
        let project = |width| linear(&s.sub("time_emb_proj"), &self.temb, width);
        let hidden = if config.resnet_time_scale_shift == TimeScaleShift::ScaleShift {
            let hidden = conv(&s.sub("conv1"), &hidden, first, None, None);
            let [factor, shift] = &s.label(|| split(&project(2 * c), &[c, c]))[..] else {
                unreachable!("split in two gives two")
            };
            let normed = group_norm(&s.sub("norm2"), &hidden, groups, eps, Activation::Identity);
            s.label(|| activation(&add(&mul(&normed, &affine(factor, 1.0, 1.0)), shift), self.act))
        } else {
            let hidden = conv(&s.sub("conv1"), &hidden, first, Some(&project(c)), None);
            group_norm(&s.sub("norm2"), &hidden, groups, eps, self.act)
        };
        let hidden = s.label(|| s.dropout(&hidden, config.dropout));
        let parts: Vec<&Tensor> = parts.iter().collect();
        let shortcut = if parts.iter().map(|x| x.shape().last()).sum::<usize>() == c {
            side_by_side(s, &parts)
        } else {
            point(&s.sub("conv_shortcut"), &parts, c, true)
        };
        let last = Conv::same(c).zero_if(config.zero_init);
        let sum = conv(&s.sub("conv2"), &hidden, last, None, Some(&shortcut));
        divided(s, sum, scale)
    }

    /// Lets pixels see the text.
    fn read(&self, s: &Scope, x: &Tensor, level: usize, middle: bool) -> Tensor {
        let Some(text) = &self.text else { unreachable!("a text of the width that was checked") };
        Transformer::of(self.config, level, middle).record(s, x, text)
    }

    fn attend(&self, s: &Scope, x: &Tensor, groups: Option<usize>) -> Tensor {
        let heads = self.config.heads(x.shape().last());
        attention_block(s, x, groups, self.config.norm_eps, heads, self.config.zero_init)
    }
}

/// `x [N, h, w, C]` enlarged to `[H, W]`, twice the size or a row or column less, then convolved to `c`
/// channels.
fn enlarged(s: &Scope, x: &Tensor, [h, w]: [usize; 2], c: usize) -> Tensor {
    let [n, small_h, small_w, channels] = x.shape().of_rank("upsampler");
    let large = [2 * small_h, 2 * small_w];
    if [h, w] == large {
        return conv(s, x, Conv::upsampled(c), None, None);
    }
    let cropped = s.label(|| {
        // The library picks pixel `floor(i small / large)`, which is `floor(i / 2)` for these sizes.
        let first = |x: Tensor, keep: usize| {
            let all = x.shape().last();
            if keep == all { x } else { split(&x, &[keep, all - keep]).swap_remove(0) }
        };
        let rows = first(upsample_nearest(x, 2).reshape([n, large[0] * large[1] * channels]), {
            h * large[1] * channels
        });
        first(rows.reshape([n * h, large[1] * channels]), w * channels).reshape([n, h, w, channels])
    });
    conv(s, &cropped, Conv::same(c), None, None)
}

/// The change of image size in a residual block.
#[derive(Clone, Copy)]
enum Size {
    Same,
    Halved,
    Doubled,
}

fn divided(s: &Scope, x: Tensor, scale: f32) -> Tensor {
    if scale == 1.0 { x } else { s.label(|| affine(&x, 1.0 / scale, 0.0)) }
}
