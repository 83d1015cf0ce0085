//! The arguments of `AutoencoderKL` and `VQModel`.

use serde::{Deserialize, Serialize};

use super::{Size, unsupported};
use crate::models::unet::ActFn;
use crate::models::vae::VaeConfig;

/// The arguments that `AutoencoderKL` and `VQModel` share.
#[derive(Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Common {
    in_channels: usize,
    out_channels: usize,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    block_out_channels: Vec<usize>,
    layers_per_block: usize,
    act_fn: ActFn,
    norm_num_groups: usize,
    pub(super) sample_size: Option<Size>,
    pub(super) scaling_factor: f64,
    mid_block_add_attention: bool,
}

impl Default for Common {
    fn default() -> Self {
        Common {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![ENCODER_BLOCK.to_owned()],
            up_block_types: vec![DECODER_BLOCK.to_owned()],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: ActFn::Silu,
            norm_num_groups: 32,
            sample_size: Some(Size::Square(32)),
            scaling_factor: 0.18215,
            mid_block_add_attention: true,
        }
    }
}

const ENCODER_BLOCK: &str = "DownEncoderBlock2D";
const DECODER_BLOCK: &str = "UpDecoderBlock2D";

impl Common {
    pub(super) fn of(config: &VaeConfig, side: usize, scaling_factor: f64) -> Self {
        let levels = config.widths.len();
        Common {
            in_channels: config.in_channels,
            out_channels: config.in_channels,
            down_block_types: vec![ENCODER_BLOCK.to_owned(); levels],
            up_block_types: vec![DECODER_BLOCK.to_owned(); levels],
            block_out_channels: config.widths.clone(),
            layers_per_block: config.layers_per_block,
            act_fn: config.act_fn,
            norm_num_groups: config.norm_num_groups,
            sample_size: Some(Size::Square(side)),
            scaling_factor,
            mid_block_add_attention: config.mid_block_add_attention,
        }
    }

    /// # Errors
    /// Names the key that has no counterpart here.
    pub(super) fn ours(self) -> Result<VaeConfig, String> {
        let levels = self.block_out_channels.len();
        for (key, types, block) in [
            ("down_block_types", &self.down_block_types, ENCODER_BLOCK),
            ("up_block_types", &self.up_block_types, DECODER_BLOCK),
        ] {
            if let Some(other) = types.iter().find(|t| *t != block) {
                return Err(unsupported(key, other, block));
            }
            if types.len() != levels {
                return Err(format!("{key} names {} blocks for {levels} levels", types.len()));
            }
        }
        if self.in_channels != self.out_channels {
            return Err(format!(
                "in_channels is {} and out_channels {}",
                self.in_channels, self.out_channels
            ));
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            return Err(format!("scaling_factor is {}", self.scaling_factor));
        }
        Ok(VaeConfig {
            in_channels: self.in_channels,
            widths: self.block_out_channels,
            norm_num_groups: self.norm_num_groups,
            layers_per_block: self.layers_per_block,
            act_fn: self.act_fn,
            mid_block_add_attention: self.mid_block_add_attention,
            ..VaeConfig::default()
        })
    }
}

/// What `AutoencoderKL` has besides.
#[derive(Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Kl {
    pub(super) latent_channels: usize,
    pub(super) shift_factor: Option<f64>,
    pub(super) latents_mean: Option<Vec<f64>>,
    pub(super) latents_std: Option<Vec<f64>>,
    /// Of half precision, which there is none of here.
    pub(super) force_upcast: bool,
    pub(super) use_quant_conv: bool,
    pub(super) use_post_quant_conv: bool,
}

impl Default for Kl {
    fn default() -> Self {
        Kl {
            latent_channels: 4,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
        }
    }
}

/// What `VQModel` has besides.
#[derive(Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Vq {
    pub(super) latent_channels: usize,
    pub(super) num_vq_embeddings: usize,
    pub(super) vq_embed_dim: Option<usize>,
    pub(super) norm_type: String,
    pub(super) lookup_from_codebook: bool,
    pub(super) force_upcast: bool,
}

impl Default for Vq {
    fn default() -> Self {
        Vq {
            latent_channels: 3,
            num_vq_embeddings: 256,
            vq_embed_dim: None,
            norm_type: "group".to_owned(),
            lookup_from_codebook: false,
            force_upcast: false,
        }
    }
}
