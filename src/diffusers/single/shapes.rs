//! The configuration of a model out of the shapes of its tensors.

use std::collections::BTreeMap;

use super::{Layout, UNUSED_LAYER};

/// The tensors of one component.
pub(super) struct Shapes<'a> {
    all: &'a BTreeMap<&'a str, &'a [usize]>,
    prefix: &'a str,
}

impl<'a> Shapes<'a> {
    pub(super) fn new(all: &'a BTreeMap<&'a str, &'a [usize]>, prefix: &'a str) -> Self {
        Shapes { all, prefix }
    }

    fn find(&self, name: &str) -> Option<&'a [usize]> {
        self.all.get([self.prefix, name].concat().as_str()).copied()
    }

    fn has(&self, name: &str) -> bool {
        self.find(name).is_some()
    }

    /// Rows and columns of a weight, or the channels that go out of a convolution and into it.
    fn matrix(&self, name: &str) -> Result<[usize; 2], String> {
        match self.find(name) {
            Some(&[rows, columns] | &[rows, columns, _, _]) => Ok([rows, columns]),
            Some(shape) => Err(format!("{}{name} is {shape:?}, and no matrix", self.prefix)),
            None => Err(format!("it has no {}{name}", self.prefix)),
        }
    }

    /// How many of the tensors exist that `name` makes of 0, 1, 2, ...
    fn count(&self, name: impl Fn(usize) -> String) -> usize {
        (0..).take_while(|n| self.has(&name(*n))).count()
    }
}

/// Groups of the norms of a net of these widths: CompVis' 32, or as many fewer as divide them all.
pub fn groups(widths: &[usize]) -> usize {
    let common = |a: usize, &b: &usize| {
        let (mut a, mut b) = (a, b);
        while b != 0 {
            (a, b) = (b, a % b);
        }
        a
    };
    widths.iter().fold(32, common)
}

/// The configuration of a U-Net. Its group norms have 32 groups, as all of CompVis' do, unless it is too
/// narrow: see [`groups`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UNetShape {
    /// Channels that go in: those of the latents, or for inpainting twice as many and a mask.
    pub in_channels: usize,
    /// Channels that come out, those of the latents.
    pub out_channels: usize,
    /// Channels of each level.
    pub widths: Vec<usize>,
    /// Residual blocks of each level on the way down.
    pub layers_per_block: usize,
    /// Whether the level's blocks are followed by transformers.
    pub attention: Vec<bool>,
    /// Blocks of each transformer.
    pub transformer_layers: usize,
    /// Width of the text's hidden states.
    pub cross_width: usize,
    /// Heads of each level. They are not in the file: Stable Diffusion 1 has 8 everywhere, 2 one for each 64
    /// channels.
    pub heads: Vec<usize>,
    /// Whether the layers before and behind a transformer are linear; otherwise convolutions.
    pub linear_projection: bool,
}

impl UNetShape {
    /// The layout is set from the width of the text if nothing else has told it.
    pub(super) fn of(shapes: &Shapes<'_>, layout: &mut Option<Layout>) -> Result<UNetShape, String> {
        let [_, in_channels] = shapes.matrix("input_blocks.0.0.weight")?;
        let [out_channels, _] = shapes.matrix("out.2.weight")?;
        // Of each level, of each block: width, and whether a transformer follows.
        let mut levels: Vec<Vec<(usize, bool)>> = vec![Vec::new()];
        let mut transformers = Vec::new();
        for i in 1.. {
            let block = format!("input_blocks.{i}");
            if shapes.has(&format!("{block}.0.in_layers.2.weight")) {
                let [width, _] = shapes.matrix(&format!("{block}.0.in_layers.2.weight"))?;
                let transformer = format!("{block}.1.transformer_blocks");
                let has = shapes.has(&format!("{transformer}.0.attn2.to_k.weight"));
                levels.last_mut().into_iter().for_each(|level| level.push((width, has)));
                transformers.extend(has.then_some(transformer));
            } else if shapes.has(&format!("{block}.0.op.weight")) {
                levels.push(Vec::new());
            } else {
                break;
            }
        }
        let layers_per_block = levels[0].len();
        let even = |level: &Vec<(usize, bool)>| {
            level.len() == layers_per_block && level.iter().all(|block| *block == level[0])
        };
        if layers_per_block == 0 || !levels.iter().all(even) {
            return Err("the blocks of its U-Net are not those of Stable Diffusion".to_owned());
        }
        let Some(first) = transformers.first() else {
            return Err("its U-Net has no transformers, and so takes no text".to_owned());
        };
        let [_, cross_width] = shapes.matrix(&format!("{first}.0.attn2.to_k.weight"))?;
        let depth = |blocks: &String| shapes.count(|k| format!("{blocks}.{k}.attn2.to_k.weight"));
        let transformer_layers = depth(first);
        if let Some(other) = transformers.iter().find(|blocks| depth(blocks) != transformer_layers) {
            let other = depth(other);
            return Err(format!("its U-Net has transformers of {transformer_layers} and of {other} blocks"));
        }
        let proj_in = format!("{}.proj_in.weight", first.trim_end_matches(".transformer_blocks"));
        let linear_projection = shapes.find(&proj_in).is_some_and(|shape| shape.len() == 2);
        match in_channels.checked_sub(out_channels) {
            Some(0) => {}
            Some(more) if more.checked_sub(out_channels) == Some(1) => {}
            Some(1) => return Err("it is a depth-to-image model, which denoir does not have".to_owned()),
            Some(more) if more == out_channels => {
                return Err("it is an InstructPix2Pix model, which denoir does not have".to_owned());
            }
            _ => return Err(format!("its U-Net takes {in_channels} channels and gives {out_channels}")),
        }
        let two =
            *layout.get_or_insert(if cross_width == 1024 { Layout::Sd2 } else { Layout::Sd1 }) == Layout::Sd2;
        let (widths, attention): (Vec<usize>, Vec<bool>) = levels.iter().map(|level| level[0]).unzip();
        let heads = widths.iter().map(|width| if two { (width / 64).max(1) } else { 8 }).collect();
        Ok(UNetShape {
            in_channels,
            out_channels,
            widths,
            layers_per_block,
            attention,
            transformer_layers,
            cross_width,
            heads,
            linear_projection,
        })
    }
}

/// The configuration of a VAE. Stable Diffusion 1 and 2 scale its latents by 0.18215.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VaeShape {
    /// Channels of an image.
    pub in_channels: usize,
    /// Channels of the latents.
    pub latent_channels: usize,
    /// Channels of each level.
    pub widths: Vec<usize>,
    /// Residual blocks of each level of the encoder.
    pub layers_per_block: usize,
    /// Whether the middle has attention.
    pub mid_attention: bool,
    /// Whether there are layers around the latents: `quant_conv`, `post_quant_conv`.
    pub quant_conv: bool,
}

impl VaeShape {
    pub(super) fn of(shapes: &Shapes<'_>) -> Result<VaeShape, String> {
        let conv = |level: usize, j: usize| format!("encoder.down.{level}.block.{j}.conv1.weight");
        let levels = shapes.count(|level| conv(level, 0));
        let widths = (0..levels).map(|level| Ok(shapes.matrix(&conv(level, 0))?[0]));
        let widths = widths.collect::<Result<Vec<usize>, String>>()?;
        if widths.is_empty() {
            return Err("its VAE has no encoder of CompVis' names".to_owned());
        }
        let layers_per_block = shapes.count(|j| conv(0, j));
        if (1..levels).any(|level| shapes.count(|j| conv(level, j)) != layers_per_block) {
            return Err("the levels of its VAE differ in their numbers of blocks".to_owned());
        }
        Ok(VaeShape {
            in_channels: shapes.matrix("encoder.conv_in.weight")?[1],
            latent_channels: shapes.matrix("decoder.conv_in.weight")?[1],
            widths,
            layers_per_block,
            mid_attention: shapes.has("encoder.mid.attn_1.norm.weight"),
            quant_conv: shapes.has("quant_conv.weight"),
        })
    }
}

/// Which text encoder.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextKind {
    /// OpenAI's, of Stable Diffusion 1: `quick_gelu`, padded with the end of text.
    ClipL,
    /// OpenCLIP's, of Stable Diffusion 2: `gelu`, padded with token 0.
    OpenClip,
}

/// The configuration of a text encoder.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TextShape {
    /// Activation and padding.
    pub kind: TextKind,
    /// Tokens.
    pub vocabulary: usize,
    /// Longest text in tokens.
    pub positions: usize,
    /// Of the hidden states.
    pub width: usize,
    /// Of the layers between.
    pub mlp_width: usize,
    /// Layers that are used: of OpenCLIP's 24 all but the last.
    pub layers: usize,
    /// Not in the file: one for each 64 channels.
    pub heads: usize,
}

impl TextShape {
    pub(super) fn clip(shapes: &Shapes<'_>) -> Result<TextShape, String> {
        let fc1 = |i: usize| format!("encoder.layers.{i}.mlp.fc1.weight");
        let names = ["embeddings.token_embedding.weight", "embeddings.position_embedding.weight"];
        Self::of(shapes, TextKind::ClipL, names, fc1)
    }

    pub(super) fn open_clip(shapes: &Shapes<'_>) -> Result<TextShape, String> {
        let fc1 = |i: usize| format!("transformer.resblocks.{i}.mlp.c_fc.weight");
        let names = ["token_embedding.weight", "positional_embedding"];
        let text = Self::of(shapes, TextKind::OpenClip, names, fc1)?;
        Ok(TextShape { layers: text.layers.min(UNUSED_LAYER), ..text })
    }

    fn of(
        shapes: &Shapes<'_>,
        kind: TextKind,
        [tokens, positions]: [&str; 2],
        fc1: impl Fn(usize) -> String,
    ) -> Result<TextShape, String> {
        let [vocabulary, width] = shapes.matrix(tokens)?;
        let [positions, _] = shapes.matrix(positions)?;
        let [mlp_width, _] = shapes.matrix(&fc1(0))?;
        let (layers, heads) = (shapes.count(fc1), (width / 64).max(1));
        Ok(TextShape { kind, vocabulary, positions, width, mlp_width, layers, heads })
    }
}
