//! The U-Net of DDPM, with the semantics, options and parameter names of the diffusers library's
//! `UNet2DModel`.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::nn::{Conv, Init, Layout, Scope, attention_block, conv, group_norm, linear};
use crate::ops::activation::{Activation, activation};
use crate::ops::arithmetic::{add, affine, mul};
use crate::ops::concat::{concat, split};
use crate::ops::conv2d::Padding;
use crate::ops::embedding::embedding;
use crate::ops::resample::{average_pool, upsample_nearest};
use crate::ops::timestep_embedding::timestep_embedding;
use crate::tape::Tensor;

/// Options, by the names and with the defaults of the reference library's `config.json`; and one of our
/// own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UNetConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    /// The input is in [0, 1] and is brought to [-1, 1] first.
    pub center_input_sample: bool,
    /// Width of the timestep embedding; 0: four times the first level's.
    pub time_embedding_dim: usize,
    pub freq_shift: f64,
    /// Cosines first.
    pub flip_sin_to_cos: bool,
    pub down_block_types: Vec<String>,
    /// Whether there is a block between the way down and the way up.
    pub mid_block: bool,
    pub up_block_types: Vec<String>,
    pub block_out_channels: Vec<usize>,
    pub layers_per_block: usize,
    /// The middle block's outputs are divided by it.
    pub mid_block_scale_factor: f32,
    /// 0: one row below and one column to the right, as the google/ddpm models have it.
    pub downsample_padding: usize,
    /// How levels with attention halve their images: `conv` or `resnet`.
    pub downsample_type: String,
    /// And how they double them.
    pub upsample_type: String,
    pub dropout: f32,
    /// `silu`, `relu` or `gelu`.
    pub act_fn: String,
    /// Channels of a head; 0: one head as wide as its level.
    pub attention_head_dim: usize,
    pub norm_num_groups: usize,
    /// Of the middle attention's norm; 0: `norm_num_groups`, or no norm with `scale_shift`.
    pub attn_norm_num_groups: usize,
    pub norm_eps: f32,
    /// `default` (added) or `scale_shift` (adaptive group norm).
    pub resnet_time_scale_shift: String,
    /// Attention in the middle block.
    pub add_attention: bool,
    /// Size of the class embedding table; 0: none.
    pub num_class_embeds: usize,
    /// Our own: the last layer of each residual and attention block, and of the net, starts from zero, as
    /// in Ho et al. and ADM.
    pub zero_init: bool,
}

impl Default for UNetConfig {
    fn default() -> Self {
        let names = |types: [&str; 4]| types.map(str::to_owned).to_vec();
        UNetConfig {
            in_channels: 3,
            out_channels: 3,
            center_input_sample: false,
            time_embedding_dim: 0,
            freq_shift: 0.0,
            flip_sin_to_cos: true,
            down_block_types: names([DOWN, ATTN_DOWN, ATTN_DOWN, ATTN_DOWN]),
            mid_block: true,
            up_block_types: names([ATTN_UP, ATTN_UP, ATTN_UP, UP]),
            block_out_channels: vec![224, 448, 672, 896],
            layers_per_block: 2,
            mid_block_scale_factor: 1.0,
            downsample_padding: 1,
            downsample_type: CONV.to_owned(),
            upsample_type: CONV.to_owned(),
            dropout: 0.0,
            act_fn: "silu".to_owned(),
            attention_head_dim: 8,
            norm_num_groups: 32,
            attn_norm_num_groups: 0,
            norm_eps: 1e-5,
            resnet_time_scale_shift: "default".to_owned(),
            add_attention: true,
            num_class_embeds: 0,
            zero_init: false,
        }
    }
}

fn times(n: usize) -> String {
    if n == 1 { "once".to_owned() } else { format!("{n} times") }
}

/// Most channels that the attention kernels give a head.
pub(super) const WIDEST_HEAD: usize = 512;

const DOWN: &str = "DownBlock2D";
const ATTN_DOWN: &str = "AttnDownBlock2D";
const UP: &str = "UpBlock2D";
const ATTN_UP: &str = "AttnUpBlock2D";
const RESNET_DOWN: &str = "ResnetDownsampleBlock2D";
const RESNET_UP: &str = "ResnetUpsampleBlock2D";
const CONV: &str = "conv";
const RESNET: &str = "resnet";

/// The activation that a configuration means by `act_fn`.
pub(super) fn activation_called(name: &str) -> Option<Activation> {
    match name {
        "silu" | "swish" => Some(Activation::Silu),
        "relu" => Some(Activation::Relu),
        "gelu" => Some(Activation::Gelu),
        _ => None,
    }
}

impl UNetConfig {
    /// A net with these widths, attention at the levels where `attention` says so, and defaults otherwise.
    pub fn with_levels(channels: usize, widths: &[usize], attention: &[bool]) -> Self {
        let pick = |on: &bool, yes: &str, no: &str| if *on { yes.to_owned() } else { no.to_owned() };
        UNetConfig {
            in_channels: channels,
            out_channels: channels,
            block_out_channels: widths.to_vec(),
            down_block_types: attention.iter().map(|a| pick(a, ATTN_DOWN, DOWN)).collect(),
            up_block_types: attention.iter().rev().map(|a| pick(a, ATTN_UP, UP)).collect(),
            ..UNetConfig::default()
        }
    }

    fn activation(&self) -> Option<Activation> {
        activation_called(&self.act_fn)
    }

    fn scale_shift(&self) -> bool {
        self.resnet_time_scale_shift == "scale_shift"
    }

    /// Heads of a level `c` wide, and channels of each.
    fn heads(&self, c: usize) -> [usize; 2] {
        match self.attention_head_dim {
            0 => [1, c],
            width => [c / width, width],
        }
    }

    fn temb_width(&self) -> usize {
        match self.time_embedding_dim {
            0 => 4 * self.block_out_channels[0],
            width => width,
        }
    }

    /// Says what is wrong with the options, for images of `[h, w]` pixels.
    ///
    /// # Errors
    /// Names the key and what it may be.
    pub fn validate(&self, [h, w]: [usize; 2]) -> Result<()> {
        let bad = |message: String, hint: &str| Err(Error::usage(message).hint(hint));
        let levels = self.block_out_channels.len();
        if levels == 0 || self.block_out_channels.contains(&0) {
            return bad(
                format!("unet.block_out_channels is {:?}", self.block_out_channels),
                "it needs one width above 0 for each level",
            );
        }
        for (key, types, known) in [
            ("down_block_types", &self.down_block_types, [DOWN, ATTN_DOWN, RESNET_DOWN]),
            ("up_block_types", &self.up_block_types, [UP, ATTN_UP, RESNET_UP]),
        ] {
            if types.len() != levels {
                return bad(
                    format!("unet.{key} names {} blocks for {levels} levels", types.len()),
                    "give one for each number in unet.block_out_channels",
                );
            }
            if let Some(unknown) = types.iter().find(|t| !known.contains(&t.as_str())) {
                return bad(
                    format!("unet.{key}: no block called {unknown:?}"),
                    &format!("choose {}", known.join(" or ")),
                );
            }
        }
        let ranges = [
            ("in_channels", self.in_channels, 1, 4096),
            ("out_channels", self.out_channels, 1, 4096),
            ("layers_per_block", self.layers_per_block, 1, 64),
            ("downsample_padding", self.downsample_padding, 0, 1),
            ("norm_num_groups", self.norm_num_groups, 1, 65_536),
            ("attn_norm_num_groups", self.attn_norm_num_groups, 0, 65_536),
            ("time_embedding_dim", self.time_embedding_dim, 0, 65_536),
            ("num_class_embeds", self.num_class_embeds, 0, 1 << 20),
            ("attention_head_dim", self.attention_head_dim, 0, WIDEST_HEAD),
        ];
        for (key, value, low, high) in ranges {
            if value < low || value > high {
                return bad(format!("unet.{key} is {value}"), &format!("it must be from {low} to {high}"));
            }
        }
        if self.block_out_channels.iter().any(|&c| c > 16_384) || self.block_out_channels[0] < 2 {
            return bad(
                format!("unet.block_out_channels is {:?}", self.block_out_channels),
                "widths must be from 1 to 16384, the first at least 2 (for the timestep's sines and cosines)",
            );
        }
        if !(self.freq_shift.is_finite() && self.freq_shift < (self.block_out_channels[0] / 2) as f64) {
            return bad(
                format!("unet.freq_shift is {}", self.freq_shift),
                "it must be below half of the first number in unet.block_out_channels",
            );
        }
        for &c in &self.block_out_channels {
            if c % self.norm_num_groups != 0 {
                return bad(
                    format!(
                        "unet.norm_num_groups = {} does not divide the {c} channels of a level",
                        self.norm_num_groups
                    ),
                    "choose a divisor of every number in unet.block_out_channels",
                );
            }
        }
        for (level, &c) in self.block_out_channels.iter().enumerate() {
            let attends = self.down_block_types[level] == ATTN_DOWN
                || self.up_block_types[levels - 1 - level] == ATTN_UP
                || level + 1 == levels && self.add_attention && self.mid_block;
            if attends && self.attention_head_dim == 0 && c > WIDEST_HEAD {
                return bad(
                    format!("one attention head would be {c} channels wide"),
                    &format!("set unet.attention_head_dim to at most {WIDEST_HEAD}"),
                );
            }
            if attends && self.attention_head_dim > c {
                return bad(
                    format!(
                        "unet.attention_head_dim = {} is wider than a level of {c} channels",
                        self.attention_head_dim
                    ),
                    "choose at most the smallest width of a level with attention, or 0 for one head",
                );
            }
        }
        let deepest = self.block_out_channels[levels - 1];
        if self.attn_norm_num_groups != 0 && !deepest.is_multiple_of(self.attn_norm_num_groups) {
            return bad(
                format!(
                    "unet.attn_norm_num_groups = {} does not divide {deepest} channels",
                    self.attn_norm_num_groups
                ),
                "choose a divisor of the last number in unet.block_out_channels",
            );
        }
        if self.activation().is_none() {
            return bad(
                format!("unet.act_fn: no activation called {:?}", self.act_fn),
                "choose silu, relu or gelu",
            );
        }
        if !["default", "scale_shift"].contains(&self.resnet_time_scale_shift.as_str()) {
            return bad(
                format!("unet.resnet_time_scale_shift is {:?}", self.resnet_time_scale_shift),
                "choose default or scale_shift",
            );
        }
        for (key, value) in
            [("downsample_type", &self.downsample_type), ("upsample_type", &self.upsample_type)]
        {
            if ![CONV, RESNET].contains(&value.as_str()) {
                return bad(format!("unet.{key} is {value:?}"), "choose conv or resnet");
            }
        }
        if !(0.0..1.0).contains(&self.dropout) {
            return bad(format!("unet.dropout is {}", self.dropout), "it must be at least 0 and below 1");
        }
        for (key, value) in
            [("norm_eps", self.norm_eps), ("mid_block_scale_factor", self.mid_block_scale_factor)]
        {
            if !(value > 0.0 && value.is_finite()) {
                return bad(format!("unet.{key} is {value}"), "it must be above 0");
            }
        }
        let divisor = 1_usize.checked_shl(levels as u32 - 1).unwrap_or(usize::MAX);
        if h == 0 || w == 0 || h % divisor != 0 || w % divisor != 0 {
            return bad(
                format!("images of {h}x{w} pixels cannot be halved {}", times(levels - 1)),
                &format!("choose a multiple of {divisor}, or fewer levels in unet.block_out_channels"),
            );
        }
        Ok(())
    }

    /// A warning for people whose first thought would be a defect elsewhere.
    pub fn remark(&self) -> Option<String> {
        let cancelled = !self.scale_shift() && self.block_out_channels.contains(&self.norm_num_groups);
        cancelled.then(|| {
            format!(
                "a level of {0} channels has {0} norm groups: the norm removes any constant of a channel, so the timestep \
                 embedding has no effect in that level",
                self.norm_num_groups
            )
        })
    }
}

/// What every part of the net needs.
struct Context<'a> {
    config: &'a UNetConfig,
    act: Activation,
    /// `act(temb)`, `[N, T]`.
    temb: Tensor,
}

/// Records the net: `x [N, H, W, in_channels]` at timesteps `t [N]` (and class labels `[N]`, `u32`) to `[N,
/// H, W, out_channels]`.
///
/// # Panics
/// When the configuration is not valid for the image, or labels are missing or surplus.
#[track_caller]
pub fn unet(config: &UNetConfig, s: &Scope, x: &Tensor, t: &Tensor, labels: Option<&Tensor>) -> Tensor {
    let [_, h, w, channels] = x.shape().of_rank("unet");
    assert_eq!(channels, config.in_channels, "unet: image {} for in_channels", x.shape());
    assert_eq!(labels.is_some(), config.num_class_embeds > 0, "unet: labels go with num_class_embeds");
    config.validate([h, w]).unwrap_or_else(|e| panic!("unet: {e}"));
    let act = config.activation().unwrap_or(Activation::Silu);
    let temb = timestep(config, s, t, labels);
    let context = Context { config, act, temb: s.sub("time_embedding").label(|| activation(&temb, act)) };

    let x = if config.center_input_sample { s.label(|| affine(x, 2.0, -1.0)) } else { x.clone() };
    let mut hidden = conv(&s.sub("conv_in"), &x, Conv::same(config.block_out_channels[0]), None, None);
    let mut skips = vec![hidden.clone()];
    for (level, &c) in config.block_out_channels.iter().enumerate() {
        let s = s.sub(format!("down_blocks.{level}"));
        hidden = context.down(&s, hidden, level, c, &mut skips);
    }
    if config.mid_block {
        hidden = context.middle(&s.sub("mid_block"), hidden);
    }
    for (level, &c) in config.block_out_channels.iter().rev().enumerate() {
        let s = s.sub(format!("up_blocks.{level}"));
        hidden = context.up(&s, hidden, level, c, &mut skips);
    }
    let out = group_norm(
        &s.sub("conv_norm_out"),
        &hidden,
        config.norm_num_groups,
        config.norm_eps,
        Activation::Silu,
    );
    conv(&s.sub("conv_out"), &out, Conv::same(config.out_channels).zero_if(config.zero_init), None, None)
}

/// `[N]` timesteps (and labels) to `[N, T]`.
fn timestep(config: &UNetConfig, s: &Scope, t: &Tensor, labels: Option<&Tensor>) -> Tensor {
    let width = config.temb_width();
    let first = config.block_out_channels[0];
    let time = s.sub("time_embedding");
    let waves =
        time.label(|| timestep_embedding(t, first, config.flip_sin_to_cos, config.freq_shift, 10_000.0));
    let hidden = linear(&time.sub("linear_1"), &waves, width);
    let hidden = time.label(|| activation(&hidden, Activation::Silu));
    let temb = linear(&time.sub("linear_2"), &hidden, width);
    match labels {
        Some(labels) => {
            let s = s.sub("class_embedding");
            let table = s.param("weight", [config.num_class_embeds, width], Layout::Plain, Init::Normal);
            s.label(|| add(&temb, &embedding(&table, labels)))
        }
        None => temb,
    }
}

impl Context<'_> {
    fn down(&self, s: &Scope, mut hidden: Tensor, level: usize, c: usize, skips: &mut Vec<Tensor>) -> Tensor {
        let config = self.config;
        let attends = config.down_block_types[level] == ATTN_DOWN;
        for layer in 0..config.layers_per_block {
            hidden = s.block(|| self.resnet(&s.sub(format!("resnets.{layer}")), &hidden, c, 1.0, Size::Same));
            if attends {
                let s = s.sub(format!("attentions.{layer}"));
                hidden = s.block(|| self.attend(&s, &hidden, Some(config.norm_num_groups)));
            }
            skips.push(hidden.clone());
        }
        if level + 1 < config.block_out_channels.len() {
            let s = s.sub("downsamplers.0");
            let kind = config.down_block_types[level].as_str();
            hidden = if kind == RESNET_DOWN || kind == ATTN_DOWN && config.downsample_type == RESNET {
                s.block(|| self.resnet(&s, &hidden, c, 1.0, Size::Halved))
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
        let mut hidden = s.block(|| self.resnet(&s.sub("resnets.0"), &hidden, c, scale, Size::Same));
        if config.add_attention {
            let groups = match config.attn_norm_num_groups {
                0 => (!config.scale_shift()).then_some(config.norm_num_groups),
                groups => Some(groups),
            };
            hidden = s.block(|| self.attend(&s.sub("attentions.0"), &hidden, groups));
            hidden = divided(s, hidden, scale);
        }
        s.block(|| self.resnet(&s.sub("resnets.1"), &hidden, c, scale, Size::Same))
    }

    fn up(&self, s: &Scope, mut hidden: Tensor, level: usize, c: usize, skips: &mut Vec<Tensor>) -> Tensor {
        let config = self.config;
        let attends = config.up_block_types[level] == ATTN_UP;
        for layer in 0..=config.layers_per_block {
            let s_layer = s.sub(format!("resnets.{layer}"));
            let skip = skips.pop().unwrap_or_else(|| unreachable!("as many skips as layers on the way up"));
            hidden = s.block(|| {
                let both = s_layer.label(|| concat(&[&hidden, &skip]));
                self.resnet(&s_layer, &both, c, 1.0, Size::Same)
            });
            if attends {
                let s = s.sub(format!("attentions.{layer}"));
                hidden = s.block(|| self.attend(&s, &hidden, Some(config.norm_num_groups)));
            }
        }
        if level + 1 < config.block_out_channels.len() {
            let s = s.sub("upsamplers.0");
            let kind = config.up_block_types[level].as_str();
            hidden = if kind == RESNET_UP || kind == ATTN_UP && config.upsample_type == RESNET {
                s.block(|| self.resnet(&s, &hidden, c, 1.0, Size::Doubled))
            } else {
                let s = s.sub("conv");
                conv(&s, &s.label(|| upsample_nearest(&hidden, 2)), Conv::same(c), None, None)
            };
        }
        hidden
    }

    /// Two convolutions around the timestep embedding, and a shortcut. The sum is divided by `scale`. Where
    /// the size changes, it does so before the first convolution and in the shortcut.
    fn resnet(&self, s: &Scope, x: &Tensor, c: usize, scale: f32, size: Size) -> Tensor {
        let config = self.config;
        let (groups, eps) = (config.norm_num_groups, config.norm_eps);
        let hidden = group_norm(&s.sub("norm1"), x, groups, eps, self.act);
        let resized = |x: &Tensor| match size {
            Size::Same => x.clone(),
            Size::Halved => s.label(|| average_pool(x, 2)),
            Size::Doubled => s.label(|| upsample_nearest(x, 2)),
        };
        let (x, hidden) = (&resized(x), resized(&hidden));
        let form = Conv::same(c);
        let project = |width| linear(&s.sub("time_emb_proj"), &self.temb, width);
        let hidden = if config.scale_shift() {
            let hidden = conv(&s.sub("conv1"), &hidden, form, None, None);
            let [factor, shift] = &s.label(|| split(&project(2 * c), &[c, c]))[..] else {
                unreachable!("split in two gives two")
            };
            let normed = group_norm(&s.sub("norm2"), &hidden, groups, eps, Activation::Identity);
            s.label(|| activation(&add(&mul(&normed, &affine(factor, 1.0, 1.0)), shift), self.act))
        } else {
            let hidden = conv(&s.sub("conv1"), &hidden, form, Some(&project(c)), None);
            group_norm(&s.sub("norm2"), &hidden, groups, eps, self.act)
        };
        let hidden = s.label(|| s.dropout(&hidden, config.dropout));
        let shortcut = if x.shape().last() == c {
            x.clone()
        } else {
            conv(&s.sub("conv_shortcut"), x, Conv::point(c), None, None)
        };
        let sum = conv(&s.sub("conv2"), &hidden, form.zero_if(config.zero_init), None, Some(&shortcut));
        divided(s, sum, scale)
    }

    fn attend(&self, s: &Scope, x: &Tensor, groups: Option<usize>) -> Tensor {
        let heads = self.config.heads(x.shape().last());
        attention_block(s, x, groups, self.config.norm_eps, heads, self.config.zero_init)
    }
}

/// What a residual block makes of its image's size.
#[derive(Clone, Copy)]
enum Size {
    Same,
    Halved,
    Doubled,
}

fn divided(s: &Scope, x: Tensor, scale: f32) -> Tensor {
    if scale == 1.0 { x } else { s.label(|| affine(&x, 1.0 / scale, 0.0)) }
}
