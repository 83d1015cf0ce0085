//! The arguments of `UNet2DModel`.

use serde::{Deserialize, Serialize};

use super::{Size, unsupported};
use crate::models::unet::{
    ActFn, ClassEmbedding, DownBlock, Resampling, TimeEmbedding, TimeScaleShift, UNetConfig, UpBlock,
};

/// As `config.json` has them.
#[derive(Serialize, Deserialize)]
#[serde(default)]
pub(super) struct UNet2DModel {
    pub(super) sample_size: Option<Size>,
    in_channels: usize,
    out_channels: usize,
    center_input_sample: bool,
    time_embedding_type: TimeEmbedding,
    time_embedding_dim: Option<usize>,
    freq_shift: f64,
    flip_sin_to_cos: bool,
    down_block_types: Vec<DownBlock>,
    mid_block_type: Option<String>,
    up_block_types: Vec<UpBlock>,
    block_out_channels: Vec<usize>,
    layers_per_block: usize,
    mid_block_scale_factor: f64,
    downsample_padding: usize,
    downsample_type: Resampling,
    upsample_type: Resampling,
    dropout: f64,
    act_fn: ActFn,
    /// Null is one head, and a missing key is 8.
    attention_head_dim: Option<usize>,
    norm_num_groups: usize,
    attn_norm_num_groups: Option<usize>,
    norm_eps: f64,
    resnet_time_scale_shift: TimeScaleShift,
    add_attention: bool,
    /// Null is a table.
    class_embed_type: Option<ClassEmbedding>,
    num_class_embeds: Option<usize>,
    num_train_timesteps: Option<usize>,
}

/// The shortest decimal that is this number in f32: 1e-5 and not 9.99999975e-6.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

const MIDDLE: &str = "UNetMidBlock2D";

impl UNet2DModel {
    pub(super) fn of(config: &UNetConfig, side: Option<usize>) -> Self {
        let given = |n: usize| (n > 0).then_some(n);
        let c = config.clone();
        UNet2DModel {
            sample_size: side.map(Size::Square),
            in_channels: c.in_channels,
            out_channels: c.out_channels,
            center_input_sample: c.center_input_sample,
            time_embedding_type: c.time_embedding_type,
            time_embedding_dim: given(c.time_embedding_dim),
            freq_shift: c.freq_shift,
            flip_sin_to_cos: c.flip_sin_to_cos,
            down_block_types: c.down_block_types,
            mid_block_type: c.mid_block.then(|| MIDDLE.to_owned()),
            up_block_types: c.up_block_types,
            block_out_channels: c.block_out_channels,
            layers_per_block: c.layers_per_block,
            mid_block_scale_factor: decimal(c.mid_block_scale_factor),
            downsample_padding: c.downsample_padding,
            downsample_type: c.downsample_type,
            upsample_type: c.upsample_type,
            dropout: decimal(c.dropout),
            act_fn: c.act_fn,
            attention_head_dim: given(c.attention_head_dim),
            norm_num_groups: c.norm_num_groups,
            attn_norm_num_groups: given(c.attn_norm_num_groups),
            norm_eps: decimal(c.norm_eps),
            resnet_time_scale_shift: c.resnet_time_scale_shift,
            add_attention: c.add_attention,
            class_embed_type: Some(c.class_embed_type).filter(|kind| *kind != ClassEmbedding::Table),
            num_class_embeds: given(c.num_class_embeds),
            num_train_timesteps: given(c.num_train_timesteps),
        }
    }

    /// # Errors
    /// Names the key that has no counterpart here.
    pub(super) fn ours(self) -> Result<UNetConfig, String> {
        if let Some(kind) = self.mid_block_type.as_ref().filter(|kind| *kind != MIDDLE) {
            return Err(unsupported("mid_block_type", kind, "UNetMidBlock2D or null"));
        }
        // What is null there is 0 here, so 0 there would change its meaning.
        let numbers = [
            ("time_embedding_dim", self.time_embedding_dim),
            ("attention_head_dim", self.attention_head_dim),
            ("attn_norm_num_groups", self.attn_norm_num_groups),
            ("num_class_embeds", self.num_class_embeds),
            ("num_train_timesteps", self.num_train_timesteps),
        ];
        if let Some((key, _)) = numbers.iter().find(|(_, n)| *n == Some(0)) {
            return Err(format!("{key} is 0"));
        }
        Ok(UNetConfig {
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            center_input_sample: self.center_input_sample,
            time_embedding_type: self.time_embedding_type,
            time_embedding_dim: self.time_embedding_dim.unwrap_or(0),
            freq_shift: self.freq_shift,
            flip_sin_to_cos: self.flip_sin_to_cos,
            down_block_types: self.down_block_types,
            mid_block: self.mid_block_type.is_some(),
            up_block_types: self.up_block_types,
            block_out_channels: self.block_out_channels,
            layers_per_block: self.layers_per_block,
            mid_block_scale_factor: self.mid_block_scale_factor as f32,
            downsample_padding: self.downsample_padding,
            downsample_type: self.downsample_type,
            upsample_type: self.upsample_type,
            dropout: self.dropout as f32,
            act_fn: self.act_fn,
            attention_head_dim: self.attention_head_dim.unwrap_or(0),
            norm_num_groups: self.norm_num_groups,
            attn_norm_num_groups: self.attn_norm_num_groups.unwrap_or(0),
            norm_eps: self.norm_eps as f32,
            resnet_time_scale_shift: self.resnet_time_scale_shift,
            add_attention: self.add_attention,
            // The reference looks at the size of the table only where classes have no other form.
            num_class_embeds: self.num_class_embeds.filter(|_| self.class_embed_type.is_none()).unwrap_or(0),
            class_embed_type: self.class_embed_type.unwrap_or(ClassEmbedding::Table),
            num_train_timesteps: self.num_train_timesteps.unwrap_or(0),
            zero_init: false,
        })
    }
}

impl Default for UNet2DModel {
    fn default() -> Self {
        // Ours has the same defaults, by the same names.
        UNet2DModel::of(&UNetConfig::default(), None)
    }
}
