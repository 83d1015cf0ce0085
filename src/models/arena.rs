//! The U-Net of the public "Inference Arena", a benchmark of inference engines: a simplified network of
//! Stable Diffusion, without biases in its convolutions, timestep or attention.
//!
//! As Meganeura 0.2 publishes it (`sd_unet` small): 5,294,080 parameters at the sizes of
//! [`ArenaConfig::default`]. It is here to compare engines, not to train images.

use crate::nn::{Init, Layout, Scope, group_norm, group_norm_of, point, side_by_side};
use crate::ops::activation::Activation;
use crate::ops::conv2d::{Epilogue, Padding, conv2d};
use crate::ops::resample::upsample_nearest;
use crate::tape::Tensor;

/// Sizes of the net.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ArenaConfig {
    /// Of the image and of the result.
    pub channels: usize,
    /// Of each level, from the image inwards; each level but the last halves the image.
    pub widths: Vec<usize>,
    pub groups: usize,
}

impl Default for ArenaConfig {
    fn default() -> Self {
        ArenaConfig { channels: 4, widths: vec![64, 128, 256], groups: 16 }
    }
}

/// Records the net: `x [N, H, W, channels]` to a tensor of the same shape. H and W must be multiples of 2 to
/// the number of levels less one.
///
/// # Panics
/// When the image does not fit the sizes.
#[track_caller]
pub fn arena(config: &ArenaConfig, s: &Scope, x: &Tensor) -> Tensor {
    let [_, h, w, c] = x.shape().of_rank("arena");
    let levels = config.widths.len();
    let factor = 1 << levels.saturating_sub(1);
    assert!(
        levels > 0 && c == config.channels && h % factor == 0 && w % factor == 0,
        "arena: image {} for {config:?}",
        x.shape()
    );
    let groups = config.groups;
    let mut hidden = conv(&s.sub("conv_in"), x, config.widths[0], 1, None);
    let mut skips = Vec::new();
    for (level, &width) in config.widths.iter().enumerate() {
        hidden = residual(&s.sub(format!("enc.{level}")), &[&hidden], width, groups);
        skips.push(hidden.clone());
        if level + 1 < levels {
            hidden = conv(&s.sub(format!("down.{level}")), &hidden, width, 2, None);
        }
    }
    hidden = residual(&s.sub("mid"), &[&hidden], config.widths[levels - 1], groups);
    for (level, (&width, skip)) in config.widths.iter().rev().zip(skips.iter().rev()).enumerate() {
        let s = s.sub(format!("dec.{level}"));
        if level > 0 {
            hidden = s.label(|| upsample_nearest(&hidden, 2));
        }
        hidden = residual(&s, &[&hidden, skip], width, groups);
    }
    let out = group_norm(&s.sub("norm_out"), &hidden, groups, EPS, Activation::Silu);
    conv(&s.sub("conv_out"), &out, config.channels, 1, None)
}

const EPS: f32 = 1e-5;

/// Norm, SiLU and convolution, twice, and the input (through a 1x1 convolution where the width changes),
/// which is made of `parts` side by side.
fn residual(s: &Scope, parts: &[&Tensor], out: usize, groups: usize) -> Tensor {
    let h = group_norm_of(&s.sub("norm1"), parts, groups, EPS, Activation::Silu);
    let h = conv(&s.sub("conv1"), &h, out, 1, None);
    let h = group_norm(&s.sub("norm2"), &h, groups, EPS, Activation::Silu);
    let skip = if parts.iter().map(|x| x.shape().last()).sum::<usize>() == out {
        side_by_side(s, parts)
    } else {
        point(&s.sub("res_conv"), parts, out, false)
    };
    conv(&s.sub("conv2"), &h, out, 1, Some(&skip))
}

/// A 3x3 convolution without bias, of the same height and width, or half of them with stride 2.
fn conv(s: &Scope, x: &Tensor, out: usize, stride: usize, residual: Option<&Tensor>) -> Tensor {
    let cin = x.shape().last();
    let w = s.param("weight", [3, 3, cin, out], Layout::Conv, Init::FanIn(9 * cin));
    let epilogue = Epilogue { residual, ..Epilogue::default() };
    s.label(|| conv2d(x, &w, stride, Padding::same(1), epilogue))
}
