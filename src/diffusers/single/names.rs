//! CompVis' names of modules and the library's, in one table that is read both ways.

use std::collections::HashMap;

use super::{TEXT_MODEL, UNUSED_LAYER};

/// Modules of a residual block, theirs and ours.
const RESNET: [[&str; 2]; 6] = [
    ["in_layers.0", "norm1"],
    ["in_layers.2", "conv1"],
    ["emb_layers.1", "time_emb_proj"],
    ["out_layers.0", "norm2"],
    ["out_layers.3", "conv2"],
    ["skip_connection", "conv_shortcut"],
];
/// Modules of the VAE's attention.
const ATTENTION: [[&str; 2]; 5] =
    [["norm", "group_norm"], ["q", "to_q"], ["k", "to_k"], ["v", "to_v"], ["proj_out", "to_out.0"]];

/// Names of modules both ways. What lies within a module of the table has the same name on both sides.
#[derive(Default)]
pub(in crate::diffusers) struct Names {
    to_library: HashMap<String, String>,
    to_compvis: HashMap<String, String>,
}

/// Replaces the longest prefix of whole parts that the table has.
fn renamed(table: &HashMap<String, String>, name: &str) -> Option<String> {
    let mut end = name.len();
    loop {
        if let Some(module) = table.get(&name[..end]) {
            return Some([module, &name[end..]].concat());
        }
        end = name[..end].rfind('.')?;
    }
}

impl Names {
    /// The library's name of a module or tensor of CompVis' name.
    pub(in crate::diffusers) fn to_library(&self, name: &str) -> Option<String> {
        renamed(&self.to_library, name)
    }

    /// CompVis' name of a module or tensor of the library's name.
    pub(in crate::diffusers) fn to_compvis(&self, name: &str) -> Option<String> {
        renamed(&self.to_compvis, name)
    }

    fn add(&mut self, compvis: impl Into<String>, library: impl Into<String>) {
        let (compvis, library) = (compvis.into(), library.into());
        self.to_library.insert(compvis.clone(), library.clone());
        self.to_compvis.insert(library, compvis);
    }

    fn add_each(&mut self, compvis: &str, library: &str, modules: &[[&str; 2]]) {
        for [theirs, ours] in modules {
            self.add(format!("{compvis}.{theirs}"), format!("{library}.{ours}"));
        }
    }

    /// A U-Net with `layers` blocks on each level on the way down, and one more on the way up; `attention`
    /// tells the levels whose blocks are followed by a transformer.
    pub(in crate::diffusers) fn unet(layers: usize, attention: &[bool]) -> Names {
        let mut names = Names::default();
        for [theirs, ours] in [
            ["time_embed.0", "time_embedding.linear_1"],
            ["time_embed.2", "time_embedding.linear_2"],
            ["input_blocks.0.0", "conv_in"],
            ["out.0", "conv_norm_out"],
            ["out.2", "conv_out"],
        ] {
            names.add(theirs, ours);
        }
        let levels = attention.len();
        for (b, has) in attention.iter().enumerate() {
            for j in 0..layers {
                let (theirs, ours) = (b * (layers + 1) + j + 1, format!("down_blocks.{b}"));
                names.add_each(&format!("input_blocks.{theirs}.0"), &format!("{ours}.resnets.{j}"), &RESNET);
                if *has {
                    names.add(format!("input_blocks.{theirs}.1"), format!("{ours}.attentions.{j}"));
                }
            }
            if b + 1 < levels {
                let theirs = format!("input_blocks.{}.0.op", (b + 1) * (layers + 1));
                names.add(theirs, format!("down_blocks.{b}.downsamplers.0.conv"));
            }
        }
        names.add_each("middle_block.0", "mid_block.resnets.0", &RESNET);
        names.add("middle_block.1", "mid_block.attentions.0");
        names.add_each("middle_block.2", "mid_block.resnets.1", &RESNET);
        for (b, has) in attention.iter().rev().enumerate() {
            for j in 0..=layers {
                let (theirs, ours) = (b * (layers + 1) + j, format!("up_blocks.{b}"));
                names.add_each(&format!("output_blocks.{theirs}.0"), &format!("{ours}.resnets.{j}"), &RESNET);
                if *has {
                    names.add(format!("output_blocks.{theirs}.1"), format!("{ours}.attentions.{j}"));
                }
            }
            if b + 1 < levels {
                let theirs =
                    format!("output_blocks.{}.{}.conv", b * (layers + 1) + layers, 1 + usize::from(*has));
                names.add(theirs, format!("up_blocks.{b}.upsamplers.0.conv"));
            }
        }
        names
    }

    /// A VAE with `layers` blocks on each level of the encoder, and one more in the decoder.
    pub(super) fn vae(levels: usize, layers: usize) -> Names {
        let mut names = Names::default();
        for own in ["quant_conv", "post_quant_conv"] {
            names.add(own, own);
        }
        for half in ["encoder", "decoder"] {
            for [theirs, ours] in [["conv_in"; 2], ["conv_out"; 2], ["norm_out", "conv_norm_out"]] {
                names.add(format!("{half}.{theirs}"), format!("{half}.{ours}"));
            }
            for n in [0, 1] {
                let theirs = format!("{half}.mid.block_{}", n + 1);
                names.add_block(&theirs, &format!("{half}.mid_block.resnets.{n}"));
            }
            let [theirs, ours] = [format!("{half}.mid.attn_1"), format!("{half}.mid_block.attentions.0")];
            names.add_each(&theirs, &ours, &ATTENTION);
        }
        for b in 0..levels {
            // The decoder's levels are counted from the image on, its blocks from the latents on.
            let (down, up) = (format!("encoder.down.{b}"), format!("decoder.up.{}", levels - 1 - b));
            let [ours_down, ours_up] = [format!("encoder.down_blocks.{b}"), format!("decoder.up_blocks.{b}")];
            for j in 0..layers {
                names.add_block(&format!("{down}.block.{j}"), &format!("{ours_down}.resnets.{j}"));
            }
            for j in 0..=layers {
                names.add_block(&format!("{up}.block.{j}"), &format!("{ours_up}.resnets.{j}"));
            }
            if b + 1 < levels {
                names.add(format!("{down}.downsample.conv"), format!("{ours_down}.downsamplers.0.conv"));
                names.add(format!("{up}.upsample.conv"), format!("{ours_up}.upsamplers.0.conv"));
            }
        }
        names
    }

    /// A residual block of a VAE.
    fn add_block(&mut self, theirs: &str, ours: &str) {
        let modules =
            [["norm1"; 2], ["conv1"; 2], ["norm2"; 2], ["conv2"; 2], ["nin_shortcut", "conv_shortcut"]];
        self.add_each(theirs, ours, &modules);
    }

    /// OpenAI's text model, under transformers' names already, which some files have without `text_model.`.
    pub(super) fn clip() -> Names {
        let mut names = Names::default();
        for own in ["embeddings", "encoder", "final_layer_norm"] {
            names.add(own, [TEXT_MODEL, own].concat());
            let own = [TEXT_MODEL, own].concat();
            names.add(own.clone(), own);
        }
        names
    }

    /// The first `layers` layers of OpenCLIP's text model; matrices of attention are stacked there.
    pub(super) fn open_clip(layers: usize) -> Names {
        let mut names = Names::default();
        for [theirs, ours] in [
            ["positional_embedding", "embeddings.position_embedding.weight"],
            ["token_embedding", "embeddings.token_embedding"],
            ["ln_final", "final_layer_norm"],
        ] {
            names.add(theirs, [TEXT_MODEL, ours].concat());
        }
        for i in 0..layers.min(UNUSED_LAYER) {
            let (theirs, ours) =
                (format!("transformer.resblocks.{i}"), format!("{TEXT_MODEL}encoder.layers.{i}"));
            let modules = [
                ["ln_1", "layer_norm1"],
                ["ln_2", "layer_norm2"],
                ["attn.out_proj", "self_attn.out_proj"],
                ["mlp.c_fc", "mlp.fc1"],
                ["mlp.c_proj", "mlp.fc2"],
            ];
            names.add_each(&theirs, &ours, &modules);
            // Of the layer as such, for what is stacked.
            names.add(theirs, ours);
        }
        names
    }
}
