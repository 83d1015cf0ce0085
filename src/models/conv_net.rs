//! A plain convolutional network: layers of one width, that never change the size of the image.

use super::limits::{Limit, need_limits};
use super::options::{Class, config};
use super::unet_config::cancels;
use crate::error::{Result, need};
use crate::nn::{Conv, Init, Layout, Scope, conv, group_norm, linear};
use crate::ops::activation::{Activation, activation};
use crate::ops::arithmetic::add;
use crate::ops::conv2d::Padding;
use crate::ops::embedding::embedding;
use crate::ops::timestep_embedding::timestep_embedding;
use crate::tape::Tensor;

config! {
    /// Options of the network.
    pub struct ConvNetConfig {
        /// Channels of the image, and of the output.
        pub in_channels: usize = 1,
        /// Channels of every layer.
        pub width: usize = 64,
        /// Layers between the first and the last.
        pub num_layers: usize = 6,
        /// Side of the kernels, odd; a pixel of the output sees `(num_layers + 2) * (kernel_size - 1) + 1` of
        /// the image.
        pub kernel_size: usize = 3,
        /// Groups of the group norms.
        pub norm_num_groups: usize = 8,
        /// Size of the class embedding table; 0: none.
        pub num_class_embeds: usize = 0,
    }
}

impl ConvNetConfig {
    /// The form in which the net takes classes.
    pub fn class(&self) -> Class {
        match self.num_class_embeds {
            0 => Class::None,
            rows => Class::Number(rows),
        }
    }

    /// A warning: what looks like a defect elsewhere.
    pub(crate) fn remark(&self) -> Option<String> {
        (self.width == self.norm_num_groups).then(|| cancels("layer", self.width))
    }

    /// What its numbers may be.
    pub(crate) fn limits(&self) -> [Limit; 6] {
        [
            Limit::whole("in_channels", self.in_channels, [1, 4096]),
            Limit::whole("width", self.width, [2, 16_384]),
            Limit::whole("num_layers", self.num_layers, [0, 1024]),
            Limit::whole("kernel_size", self.kernel_size, [1, 31]),
            Limit::whole("norm_num_groups", self.norm_num_groups, [1, 16_384]),
            Limit::whole("num_class_embeds", self.num_class_embeds, [0, 1 << 20]),
        ]
    }

    /// Checks the options.
    ///
    /// # Errors
    /// Names the key, its value and the allowed values.
    pub fn validate(&self) -> Result<()> {
        need_limits("conv", &self.limits())?;
        let (width, groups, kernel) = (self.width, self.norm_num_groups, self.kernel_size);
        let message = format!("conv.norm_num_groups = {groups} does not divide conv.width = {width}");
        need(width.is_multiple_of(groups), message, "choose a divisor")?;
        need(
            kernel % 2 == 1,
            format!("conv.kernel_size is {kernel}"),
            "it must be odd, so that the size stays",
        )
    }
}

/// Records the net: `x [N, H, W, in_channels]` at timesteps `t [N]` (and of classes `labels`, `u32 [N]`,
/// where it has some) to a tensor of `x`'s shape. Each layer is a convolution, to which the embedded timestep
/// is added, a group norm and SiLU (as DDPM's residual blocks are, without the shortcut).
///
/// # Panics
/// When the configuration is not valid for the image, or labels are missing or surplus.
#[track_caller]
pub fn conv_net(
    config: &ConvNetConfig,
    s: &Scope,
    x: &Tensor,
    t: &Tensor,
    labels: Option<&Tensor>,
) -> Tensor {
    let [.., channels] = x.shape().of_rank::<4>("conv_net");
    assert_eq!(channels, config.in_channels, "conv_net: image {} for in_channels", x.shape());
    assert_eq!(labels.is_some(), config.class() != Class::None, "conv_net: labels for {:?}", config.class());
    config.validate().unwrap_or_else(|e| panic!("conv_net: {e}"));
    let (width, kernel) = (config.width, config.kernel_size);
    let time = s.sub("time_embedding");
    let temb = time.label(|| timestep_embedding(t, width, true, 0.0, 10_000.0));
    let temb = linear(&time.sub("linear_1"), &temb, 4 * width);
    let temb = time.label(|| activation(&temb, Activation::Silu));
    let mut temb = linear(&time.sub("linear_2"), &temb, 4 * width);
    if let Some(labels) = labels {
        let s = s.sub("class_embedding");
        let shape = [config.num_class_embeds, 4 * width];
        let table = s.param("weight", shape, Layout::Plain, Init::Normal(1.0));
        temb = s.label(|| add(&temb, &embedding(&table, labels)));
    }
    let temb = time.label(|| activation(&temb, Activation::Silu));

    let form = |out| Conv { kernel, padding: Padding::same(kernel / 2), ..Conv::same(out) };
    let mut hidden = conv(&s.sub("conv_in"), x, form(width), None, None);
    for layer in 0..config.num_layers {
        let s = s.sub(format!("layers.{layer}"));
        hidden = s.block(|| {
            let shift = linear(&s.sub("time_emb_proj"), &temb, width);
            let hidden = conv(&s.sub("conv"), &hidden, form(width), Some(&shift), None);
            group_norm(&s.sub("norm"), &hidden, config.norm_num_groups, 1e-5, Activation::Silu)
        });
    }
    conv(&s.sub("conv_out"), &hidden, form(channels), None, None)
}
