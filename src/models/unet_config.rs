//! The options of a `UNet2DModel`.

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::ops::activation::Activation;
use crate::tape::{Tape, Tensor};

/// Options, by the names and with the defaults of the reference library's `config.json`; and one of our
/// own.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct UNetConfig {
    pub in_channels: usize,
    pub out_channels: usize,
    /// The input is in [0, 1] and is brought to [-1, 1] first.
    pub center_input_sample: bool,
    /// What a timestep `t` is to the net: `positional` (sines and cosines of it), `fourier` (of its logarithm at
    /// fixed random frequencies, for which `t` is above 0; the output is divided by it), or `learned` (a row of
    /// a table).
    pub time_embedding_type: String,
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
    /// What a class is to the net: empty, a row of a table (or nothing, if `num_class_embeds` is 0);
    /// `timestep`, a number that is embedded as a timestep is; `identity`, the embedding itself.
    pub class_embed_type: String,
    /// Size of the class embedding table; 0: none.
    pub num_class_embeds: usize,
    /// Rows of the table of `learned` timesteps.
    pub num_train_timesteps: usize,
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
            time_embedding_type: POSITIONAL.to_owned(),
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
            class_embed_type: String::new(),
            num_class_embeds: 0,
            num_train_timesteps: 0,
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
pub(super) const ATTN_DOWN: &str = "AttnDownBlock2D";
const UP: &str = "UpBlock2D";
pub(super) const ATTN_UP: &str = "AttnUpBlock2D";
pub(super) const RESNET_DOWN: &str = "ResnetDownsampleBlock2D";
pub(super) const RESNET_UP: &str = "ResnetUpsampleBlock2D";
const CONV: &str = "conv";
pub(super) const RESNET: &str = "resnet";
const POSITIONAL: &str = "positional";
pub(super) const FOURIER: &str = "fourier";
pub(super) const LEARNED: &str = "learned";

/// What a net is told of the class of each of N images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// Nothing.
    None,
    /// Its number, `u32 [N]`, below this many.
    Number(usize),
    /// Any number, `f32 [N]`.
    Value,
    /// Its embedding, `f32 [N, this many]`.
    Embedding(usize),
}

impl Class {
    /// The tensor that the net takes for `n` images, from the store `labels`.
    pub fn tensor(self, tape: &Tape, n: usize) -> Option<Tensor> {
        match self {
            Class::None => None,
            Class::Number(_) => Some(tape.stored_u32("labels", [n])),
            Class::Value => Some(tape.stored("labels", 0, [n])),
            Class::Embedding(width) => Some(tape.stored("labels", 0, [n, width])),
        }
    }
}

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

    pub(super) fn activation(&self) -> Option<Activation> {
        activation_called(&self.act_fn)
    }

    pub(super) fn scale_shift(&self) -> bool {
        self.resnet_time_scale_shift == "scale_shift"
    }

    /// Heads of a level `c` wide, and channels of each.
    pub(super) fn heads(&self, c: usize) -> [usize; 2] {
        match self.attention_head_dim {
            0 => [1, c],
            width => [c / width, width],
        }
    }

    pub(super) fn temb_width(&self) -> usize {
        match self.time_embedding_dim {
            0 => 4 * self.block_out_channels[0],
            width => width,
        }
    }

    /// What it is told of an image's class.
    pub fn class(&self) -> Class {
        match (self.class_embed_type.as_str(), self.num_class_embeds) {
            ("timestep", _) => Class::Value,
            ("identity", _) => Class::Embedding(self.temb_width()),
            (_, 0) => Class::None,
            (_, rows) => Class::Number(rows),
        }
    }

    /// Says whether the net can be asked at these timesteps.
    ///
    /// # Errors
    /// When its embedding of time has no such timestep.
    pub fn check_times(&self, times: &[f64]) -> Result<()> {
        match self.time_embedding_type.as_str() {
            FOURIER if times.iter().any(|&t| t < f64::from(f32::MIN_POSITIVE)) => Err(Error::usage(
                "time_embedding_type is fourier, the logarithm of the timestep, and the sampler goes down to timestep 0",
            )
            .hint("take fewer steps with --spacing trailing, which ends above 0")),
            LEARNED => {
                let rows = self.num_train_timesteps;
                let whole = |t: &f64| t.fract() == 0.0 && (0.0..rows as f64).contains(t);
                match times.iter().find(|t| !whole(t)) {
                    Some(t) => Err(Error::usage(format!(
                        "time_embedding_type is learned, with a row for each timestep from 0 to {}, and the sampler asks \
                         for {t}",
                        rows - 1
                    ))
                    .hint("choose a sampler of whole timesteps: ddpm or ddim")),
                    None => Ok(()),
                }
            }
            _ => Ok(()),
        }
    }

    /// Says whether denoir can train it, with timesteps from 0 to `timesteps - 1`.
    ///
    /// # Errors
    /// When it can only be sampled from.
    pub fn check_trainable(&self, timesteps: usize) -> Result<()> {
        let no = |key: &str, value: &str, why: &str| {
            Err(Error::usage(format!("unet.{key} is {value}: {why}"))
                .hint("such a model can only be sampled from"))
        };
        match (self.time_embedding_type.as_str(), self.class()) {
            (FOURIER, _) => {
                no("time_embedding_type", FOURIER, "training has a timestep 0, which has no logarithm")
            }
            (LEARNED, _) if self.num_train_timesteps < timesteps => Err(Error::usage(format!(
                "unet.num_train_timesteps is {}, and training has {timesteps} timesteps",
                self.num_train_timesteps
            ))
            .hint("lower timesteps")),
            (_, Class::Value | Class::Embedding(_)) => {
                no("class_embed_type", &self.class_embed_type, "denoir trains classes with a table")
            }
            _ => Ok(()),
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
            ("num_train_timesteps", self.num_train_timesteps, 0, 1 << 20),
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
        let kinds = [POSITIONAL, FOURIER, LEARNED];
        if !kinds.contains(&self.time_embedding_type.as_str()) {
            return bad(
                format!("unet.time_embedding_type is {:?}", self.time_embedding_type),
                &format!("choose {}", kinds.join(" or ")),
            );
        }
        if self.time_embedding_type == LEARNED && self.num_train_timesteps == 0 {
            return bad(
                "unet.time_embedding_type is learned, and unet.num_train_timesteps is 0".to_owned(),
                "say how many rows the table has",
            );
        }
        if !["", "timestep", "identity"].contains(&self.class_embed_type.as_str()) {
            return bad(
                format!("unet.class_embed_type is {:?}", self.class_embed_type),
                "leave it empty, or choose timestep or identity",
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
