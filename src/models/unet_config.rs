//! The options of a `UNet2DModel`.

use super::limits::{Limit, Range, need_limits};
use super::options::{
    ActFn, Class, ClassEmbedding, DownBlock, Levels, Resampling, TimeEmbedding, TimeScaleShift, UpBlock,
    WIDEST_HEAD, config, need_halvings,
};
use crate::error::{Result, need};

config! {
    /// Options, by the names and with the defaults of the reference library's `config.json`; and two of our
    /// own.
    pub struct UNetConfig {
        /// Channels of the input.
        pub in_channels: usize = 3,
        /// Channels of the output.
        pub out_channels: usize = 3,
        /// The input is in [0, 1] and is brought to [-1, 1] first.
        pub center_input_sample: bool = false,
        /// Embedding of the timestep.
        pub time_embedding_type: TimeEmbedding = TimeEmbedding::Positional,
        /// Width of the timestep embedding; 0: four times the first level's.
        pub time_embedding_dim: usize = 0,
        /// Of the positional embedding: frequencies `10000^(-i / (half its width - freq_shift))`.
        pub freq_shift: f64 = 0.0,
        /// Cosines first.
        pub flip_sin_to_cos: bool = true,
        /// Block of each level on the way down.
        pub down_block_types: Vec<DownBlock> = down_blocks(&[false, true, true, true]),
        /// Whether there is a block between the way down and the way up.
        pub mid_block: bool = true,
        /// Block of each level on the way up, from the deepest on.
        pub up_block_types: Vec<UpBlock> = up_blocks(&[true, true, true, false]),
        /// Channels of each level, from the image inwards.
        pub block_out_channels: Vec<usize> = vec![224, 448, 672, 896],
        /// Residual blocks of a level; one more on the way up.
        pub layers_per_block: Levels<usize> = Levels::All(2),
        /// The middle block's outputs are divided by it.
        pub mid_block_scale_factor: f32 = 1.0,
        /// 0: one row below and one column to the right, as the google/ddpm models have it.
        pub downsample_padding: usize = 1,
        /// How levels with attention halve their images.
        pub downsample_type: Resampling = Resampling::Conv,
        /// How levels with attention double their images.
        pub upsample_type: Resampling = Resampling::Conv,
        /// Probability with which a residual block drops a value.
        pub dropout: f32 = 0.0,
        /// Activation of the blocks.
        pub act_fn: ActFn = ActFn::Silu,
        /// Channels of a head; 0: one head as wide as its level.
        pub attention_head_dim: usize = 8,
        /// Groups of the group norms.
        pub norm_num_groups: usize = 32,
        /// Of the middle attention's norm; 0: `norm_num_groups`, or no norm with `scale_shift`.
        pub attn_norm_num_groups: usize = 0,
        /// Added to the variance in the group norms.
        pub norm_eps: f32 = 1e-5,
        /// How the timestep enters a residual block.
        pub resnet_time_scale_shift: TimeScaleShift = TimeScaleShift::Default,
        /// Attention in the middle block.
        pub add_attention: bool = true,
        /// Embedding of the classes.
        pub class_embed_type: ClassEmbedding = ClassEmbedding::Table,
        /// Size of the class embedding table; 0: none.
        pub num_class_embeds: usize = 0,
        /// Rows of the table of `learned` timesteps.
        pub num_train_timesteps: usize = 0,
        /// Numbers of the vector that classes are projected from.
        pub projection_class_embeddings_input_dim: usize = 0,
        /// Width of the text that the transformers of each level see; 0: the net sees no text.
        pub cross_attention_dim: Levels<usize> = Levels::All(0),
        /// Width of the text where it is projected to `cross_attention_dim` first; 0: it is not.
        pub encoder_hid_dim: usize = 0,
        /// Heads of the transformers of each level: what a `UNet2DConditionModel` calls `attention_head_dim`.
        pub transformer_heads: Levels<usize> = Levels::All(8),
        /// Blocks of each of these transformers.
        pub transformer_layers_per_block: Levels<usize> = Levels::All(1),
        /// Both attentions of a block see the text; not in the middle.
        pub only_cross_attention: Levels<bool> = Levels::All(false),
        /// The first and last layer of a transformer stand in files as linear layers, not as convolutions.
        pub use_linear_projection: bool = false,
        /// Our own: the last layer of each residual and attention block, and of the net, starts from zero, as
        /// in Ho et al. and ADM.
        pub zero_init: bool = false,
        /// Our own: the net sees sin and cos of 2 pi 2^n times its input too, for each of these n, in rising
        /// order (6 and 7 tell neighbouring levels of a pixel apart).
        pub fourier_features: Vec<u32> = Vec::new(),
    }
}

impl UNetConfig {
    /// A net with these widths, attention at the levels where `attention` says so, and defaults otherwise.
    pub(crate) fn with_levels(channels: usize, widths: &[usize], attention: &[bool]) -> Self {
        let upwards: Vec<bool> = attention.iter().rev().copied().collect();
        UNetConfig {
            in_channels: channels,
            out_channels: channels,
            block_out_channels: widths.to_vec(),
            down_block_types: down_blocks(attention),
            up_block_types: up_blocks(&upwards),
            ..UNetConfig::default()
        }
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

    /// The form in which the net takes classes.
    pub fn class(&self) -> Class {
        match (self.class_embed_type, self.num_class_embeds) {
            (ClassEmbedding::Timestep, _) => Class::Value,
            (ClassEmbedding::Identity, _) => Class::Embedding(self.temb_width()),
            (ClassEmbedding::Projection | ClassEmbedding::SimpleProjection, _) => {
                Class::Embedding(self.projection_class_embeddings_input_dim)
            }
            (ClassEmbedding::Table, 0) => Class::None,
            (ClassEmbedding::Table, rows) => Class::Number(rows),
        }
    }

    /// Checks that the net can be evaluated at these timesteps.
    pub(crate) fn check_times(&self, times: &[f64]) -> Result<()> {
        match self.time_embedding_type {
            TimeEmbedding::Fourier => need(
                times.iter().all(|&t| t >= f64::from(f32::MIN_POSITIVE)),
                "time_embedding_type is fourier, the logarithm of the timestep, and the sampler goes down to \
                 timestep 0",
                "take fewer steps with --spacing trailing, which ends above 0",
            ),
            TimeEmbedding::Learned => {
                let rows = self.num_train_timesteps;
                times.iter().try_for_each(|t| {
                    let table = format!("a row for each timestep from 0 to {}", rows - 1);
                    let message =
                        format!("time_embedding_type is learned, with {table}, and the sampler needs {t}");
                    let has = t.fract() == 0.0 && (0.0..rows as f64).contains(t);
                    need(has, message, "choose a sampler of whole timesteps: ddpm or ddim")
                })
            }
            TimeEmbedding::Positional => Ok(()),
        }
    }

    /// Checks that denoir can train the net, with timesteps from 0 to `timesteps - 1`.
    pub(crate) fn check_trainable(&self, timesteps: usize) -> Result<()> {
        const HINT: &str = "such a model can only be sampled from";
        need(
            self.time_embedding_type != TimeEmbedding::Fourier,
            "unet.time_embedding_type is fourier: training has a timestep 0, which has no logarithm",
            HINT,
        )?;
        let rows = self.num_train_timesteps;
        need(
            self.time_embedding_type != TimeEmbedding::Learned || rows >= timesteps,
            format!("unet.num_train_timesteps is {rows}, and training has {timesteps} timesteps"),
            "lower timesteps",
        )?;
        let trained = matches!(self.class(), Class::None | Class::Number(_));
        let kind = format!("{:?}", self.class_embed_type).to_lowercase();
        need(trained, format!("unet.class_embed_type is {kind}: denoir trains classes with a table"), HINT)
    }

    /// What its numbers may be.
    pub(crate) fn limits(&self) -> Vec<Limit> {
        let least = usize::from(self.projects_classes());
        let widths = self.projection_class_embeddings_input_dim;
        let mut limits = vec![
            Limit::whole("in_channels", self.in_channels, [1, 4096]),
            Limit::whole("out_channels", self.out_channels, [1, 4096]),
            Limit::whole("projection_class_embeddings_input_dim", widths, [least, 65_536]),
            Limit::whole("downsample_padding", self.downsample_padding, [0, 1]),
            Limit::whole("norm_num_groups", self.norm_num_groups, [1, 65_536]),
            Limit::whole("attn_norm_num_groups", self.attn_norm_num_groups, [0, 65_536]),
            Limit::whole("time_embedding_dim", self.time_embedding_dim, [0, 65_536]),
            Limit::whole("num_class_embeds", self.num_class_embeds, [0, 1 << 20]),
            Limit::whole("num_train_timesteps", self.num_train_timesteps, [0, 1 << 20]),
            Limit::whole("attention_head_dim", self.attention_head_dim, [0, WIDEST_HEAD]),
            Limit::whole("encoder_hid_dim", self.encoder_hid_dim, [0, 65_536]),
            Limit::real("dropout", self.dropout, Range::Share),
            Limit::real("norm_eps", self.norm_eps, Range::Positive),
            Limit::real("mid_block_scale_factor", self.mid_block_scale_factor, Range::Positive),
        ];
        for (key, of, range) in [
            ("layers_per_block", &self.layers_per_block, [1, 64]),
            ("transformer_layers_per_block", &self.transformer_layers_per_block, [1, 64]),
        ] {
            limits.extend(of.values().iter().map(|&value| Limit::whole(key, value, range)));
        }
        limits
    }

    /// Checks the options, for images of `[h, w]` pixels.
    ///
    /// # Errors
    /// Names the key, its value and the allowed values.
    pub fn validate(&self, [h, w]: [usize; 2]) -> Result<()> {
        let widths = &self.block_out_channels;
        let levels = widths.len();
        let named = format!("unet.block_out_channels is {widths:?}");
        need(levels > 0 && !widths.contains(&0), &named, "it needs one width above 0 for each level")?;
        for (key, blocks) in
            [("down_block_types", self.down_block_types.len()), ("up_block_types", self.up_block_types.len())]
        {
            let message = format!("unet.{key} names {blocks} blocks for {levels} levels");
            need(blocks == levels, message, "give one for each number in unet.block_out_channels")?;
        }
        self.layers_per_block.of("unet.layers_per_block", levels)?;
        need_limits("unet", &self.limits())?;
        let hint =
            "widths must be from 1 to 16384, the first at least 2 (for the timestep's sines and cosines)";
        need(widths.iter().all(|&c| c <= 16_384) && widths[0] >= 2, named, hint)?;
        need(
            self.time_embedding_type != TimeEmbedding::Learned || self.num_train_timesteps > 0,
            "unet.time_embedding_type is learned, and unet.num_train_timesteps is 0",
            "give the number of rows of the table",
        )?;
        let powers = &self.fourier_features;
        let rise = powers.windows(2).all(|pair| pair[0] < pair[1]) && powers.iter().all(|&n| n <= 12);
        let message = format!("unet.fourier_features is {powers:?}");
        need(rise, message, "give whole numbers from 0 to 12 in rising order, [6, 7] for example")?;
        let shift = self.freq_shift;
        let hint = "it must be below half of the first number in unet.block_out_channels";
        let below = shift.is_finite() && shift < (widths[0] / 2) as f64;
        need(below, format!("unet.freq_shift is {shift}"), hint)?;
        let (groups, head, deepest) = (self.norm_num_groups, self.attention_head_dim, widths[levels - 1]);
        for (level, &c) in widths.iter().enumerate() {
            let message =
                format!("unet.norm_num_groups = {groups} does not divide the {c} channels of a level");
            let hint = "choose a divisor of every number in unet.block_out_channels";
            need(c.is_multiple_of(groups), message, hint)?;
            let attends = self.down_block_types[level] == DownBlock::Attention
                || self.up_block_types[levels - 1 - level] == UpBlock::Attention
                || level + 1 == levels && self.add_attention && self.mid_block && !self.sees_text();
            let message = format!("one attention head would be {c} channels wide");
            let hint = format!("set unet.attention_head_dim to at most {WIDEST_HEAD}");
            need(!attends || head > 0 || c <= WIDEST_HEAD, message, hint)?;
            let message = format!("unet.attention_head_dim = {head} is wider than a level of {c} channels");
            let hint = "choose at most the smallest width of a level with attention, or 0 for one head";
            need(!attends || head <= c, message, hint)?;
        }
        let groups = self.attn_norm_num_groups;
        let message = format!("unet.attn_norm_num_groups = {groups} does not divide {deepest} channels");
        let hint = "choose a divisor of the last number in unet.block_out_channels";
        need(groups == 0 || deepest.is_multiple_of(groups), message, hint)?;
        validate_transformers(self)?;
        // As in the library, where convolutions halve images, a net that sees a text takes any size.
        let by_resnet = self.down_block_types.contains(&DownBlock::Resnet)
            || self.up_block_types.contains(&UpBlock::Resnet);
        let any = self.sees_text() && self.downsample_padding == 1 && !by_resnet;
        let halvings = if any { 0 } else { levels - 1 };
        need_halvings([h, w], halvings, "levels in unet.block_out_channels")
    }

    /// Whether it sees a text beside the image: a `UNet2DConditionModel`.
    pub fn sees_text(&self) -> bool {
        self.cross_attention_dim != Levels::All(0)
    }

    /// Width of the text that it sees; 0: none.
    pub fn text_width(&self) -> usize {
        match (&self.cross_attention_dim, self.encoder_hid_dim) {
            (Levels::All(0), _) => 0,
            (Levels::All(width), 0) => *width,
            // Those of the levels that see it are the same.
            (Levels::Each(widths), 0) => widths.iter().copied().max().unwrap_or(0),
            (_, width) => width,
        }
    }

    fn projects_classes(&self) -> bool {
        matches!(self.class_embed_type, ClassEmbedding::Projection | ClassEmbedding::SimpleProjection)
    }

    /// A warning: what looks like a defect elsewhere.
    pub(crate) fn remark(&self) -> Option<String> {
        let groups = self.norm_num_groups;
        let cancelled = self.resnet_time_scale_shift == TimeScaleShift::Default
            && self.block_out_channels.contains(&groups);
        cancelled.then(|| cancels("level", groups))
    }
}

/// Checks the options of the transformers of a net.
fn validate_transformers(config: &UNetConfig) -> Result<()> {
    let widths = &config.block_out_channels;
    let levels = widths.len();
    let texts = config.cross_attention_dim.of("unet.cross_attention_dim", levels)?;
    let heads = config.transformer_heads.of("unet.transformer_heads", levels)?;
    config.transformer_layers_per_block.of("unet.transformer_layers_per_block", levels)?;
    config.only_cross_attention.of("unet.only_cross_attention", levels)?;
    let has = |level: usize| {
        config.down_block_types[level] == DownBlock::CrossAttention
            || config.up_block_types[levels - 1 - level] == UpBlock::CrossAttention
            || level + 1 == levels && config.sees_text() && config.mid_block && config.add_attention
    };
    let seen: Vec<usize> = (0..levels).filter(|&level| has(level)).collect();
    let Some(&first) = seen.first() else {
        return need(
            !config.sees_text(),
            "unet.cross_attention_dim is above 0, and no block of the net sees a text",
            "name CrossAttnDownBlock2D among unet.down_block_types, or set it to 0",
        );
    };
    let own = config.down_block_types.contains(&DownBlock::Attention)
        || config.up_block_types.contains(&UpBlock::Attention);
    let hint = "choose CrossAttnDownBlock2D and CrossAttnUpBlock2D instead";
    need(!own, "a net that sees a text has AttnDownBlock2D or AttnUpBlock2D blocks", hint)?;
    for level in seen {
        let (c, text, heads) = (widths[level], texts[level], heads[level]);
        need(
            (1..=65_536).contains(&text) && text == texts[first],
            format!("unet.cross_attention_dim is {text} at level {level} and {} at another", texts[first]),
            "all levels see one text: give its width, from 1 to 65536",
        )?;
        let fits = heads > 0 && c.is_multiple_of(heads) && c / heads <= WIDEST_HEAD;
        let message = format!("unet.transformer_heads is {heads} for a level of {c} channels");
        need(fits, message, format!("choose a divisor, with heads of at most {WIDEST_HEAD} channels"))?;
    }
    Ok(())
}

/// A warning of a part of a net whose channels are norm groups.
pub(super) fn cancels(part: &str, groups: usize) -> String {
    format!(
        "a {part} of {groups} channels has {groups} norm groups: the norm removes any constant of a channel, \
         so the timestep embedding has no effect in that {part}"
    )
}

fn down_blocks(attention: &[bool]) -> Vec<DownBlock> {
    attention.iter().map(|&on| if on { DownBlock::Attention } else { DownBlock::Plain }).collect()
}

fn up_blocks(attention: &[bool]) -> Vec<UpBlock> {
    attention.iter().map(|&on| if on { UpBlock::Attention } else { UpBlock::Plain }).collect()
}
