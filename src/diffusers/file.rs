//! Stable Diffusion in one file, opened as the folder that the library would make of it.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::component::{Component, Origin, Sampler, plain_name, vae};
use super::config::{self, Model};
use super::folder::{self, Folder, is_folder};
use super::load::{Held, flat_weights};
use super::single::{self, Layout, Part, Single, TextKind, TextShape, UNetShape, VaeShape, groups};
use super::text_encoder::{Text, TextEncoder, text_params};
use crate::checkpoint;
use crate::diffusion::{Keys, Prediction};
use crate::error::{Error, Result};
use crate::models::clip::{HiddenAct, TextConfig};
use crate::nn::{Flat, Params};
use crate::tokenizer::Tokenizer;
use crate::weights::{Weights, header_of};

/// Factor of the latents of Stable Diffusion 1 and 2.
const SCALING: f64 = 0.18215;

/// What a file of Stable Diffusion leaves to its reader.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Unsaid {
    /// A folder with `vocab.json` and `merges.txt`, or `tokenizer.json`.
    pub tokenizer: Option<PathBuf>,
    /// What the U-Net predicts; by default, of Stable Diffusion 1, the noise.
    pub prediction: Option<Prediction>,
}

impl Unsaid {
    /// What a run keeps of it, whose model `base` may be such a file: a folder with its tokenizer, and what
    /// it predicts.
    pub(crate) fn kept(base: &Path, tokenizer: PathBuf, prediction: Prediction) -> Unsaid {
        match is_file(base) {
            true => Unsaid { tokenizer: Some(tokenizer), prediction: Some(prediction) },
            false => Unsaid::default(),
        }
    }
}

/// True for a file of weights that is no checkpoint of denoir. Which model it holds is not looked at.
pub fn is_file(path: &Path) -> bool {
    let ending = path.extension().and_then(|ending| ending.to_str());
    path.is_file()
        && match ending {
            Some("safetensors") => header_of(path)
                .is_ok_and(|(names, notes)| !names.is_empty() && !notes.contains_key(checkpoint::KEY)),
            ending => ending.is_some_and(|ending| ["ckpt", "pt", "pth", "bin"].contains(&ending)),
        }
}

/// A folder of the library or a file of Stable Diffusion; `None` for what denoir wrote.
///
/// # Errors
/// As [`folder::open`] and [`open_file`], and when `unsaid` says something and it is no such file.
pub fn open_any(path: &Path, unsaid: &Unsaid) -> Result<Option<Folder>> {
    if is_file(path) {
        return open_file(path, unsaid).map(Some);
    }
    if unsaid.tokenizer.is_some() || unsaid.prediction.is_some() {
        let message =
            format!("{} is no single file of Stable Diffusion, and tells both itself", path.display());
        return Err(Error::usage(message).hint("leave --tokenizer and --prediction out"));
    }
    if is_folder(path) { folder::open(path).map(Some) } else { Ok(None) }
}

/// A file that is about to be read.
struct Opened<'a> {
    path: &'a Path,
    weights: Weights,
    single: Single,
}

impl<'a> Opened<'a> {
    fn open(path: &'a Path) -> Result<Self> {
        let (weights, single) = single::open(path)?;
        Ok(Opened { path, weights, single })
    }

    fn wrong(&self, reason: &str) -> Error {
        Error::new(format!("{}: {reason}", self.path.display()))
            .hint("give one file of Stable Diffusion 1 or 2 with its VAE and text encoder")
    }

    /// The weights of a component, flat.
    fn flat(&self, part: Part, params: &Params) -> Result<Flat> {
        let own = self.single.entries.iter().filter(|entry| entry.part == part);
        let held = own.map(|entry| Held {
            name: entry.name.clone(),
            source: &entry.source,
            first_row: entry.first_row,
            shape: &entry.shape,
        });
        flat_weights(&self.weights, params, held, "a Stable Diffusion model")
            .map_err(|e| e.hint("get the file again from where it came from"))
    }

    /// A component of this configuration, as the library writes it.
    fn origin(&self, part: Part, config: &Value) -> Result<Origin<'_>> {
        let config = config::model(&config.to_string()).map_err(|reason| self.wrong(&reason))?;
        Ok(Origin {
            config,
            file: self.path.to_owned(),
            name: plain_name(&self.path.file_stem().map(|n| n.to_string_lossy()).unwrap_or_default()),
            about: "imported from a file of Stable Diffusion",
            weights: Box::new(move |params| self.flat(part, params)),
        })
    }

    fn vae(&self, side: usize) -> Result<Origin<'_>> {
        let shape = self.single.vae.as_ref().ok_or_else(|| self.wrong("it has no VAE"))?;
        self.origin(Part::Vae, &vae_config(shape, side))
    }

    fn text(&self, unet: &Origin<'_>, tokenizer: Option<&Path>) -> Result<Text> {
        let shape = self.single.text.as_ref().ok_or_else(|| self.wrong("it has no text encoder"))?;
        let Some(folder) = tokenizer else {
            let message = format!("{} does not hold the vocabulary of its tokenizer", self.path.display());
            return Err(Error::usage(message).hint(
                "`denoir sample`, `denoir import` and `denoir train --base` take it from --tokenizer FOLDER, \
                 with vocab.json and merges.txt",
            ));
        };
        let mut tokenizer = Tokenizer::open(folder)?;
        if shape.kind == TextKind::OpenClip && tokenizer.pad() != 0 {
            tokenizer.pad_with(0).map_err(|e| e.within(folder.display()))?;
        }
        let config = text_config(shape);
        config.validate().map_err(|e| e.within(self.path.display()))?;
        let weights = self.flat(Part::TextEncoder, &text_params(&config).borrow())?;
        let encoder = TextEncoder { config, weights };
        let Model::UNet(unet) = &unet.config.model else { return Err(self.wrong("it has no U-Net")) };
        Text::of(unet, encoder, tokenizer).map_err(|reason| self.wrong(&reason))
    }

    fn prediction(&self, said: Option<Prediction>) -> Result<Prediction> {
        match (said, self.single.layout) {
            (Some(said), _) => Ok(said),
            (None, Layout::Sd1) => Ok(Prediction::Epsilon),
            (None, Layout::Sd2) => {
                let shown = self.path.display();
                let message = format!(
                    "{shown}: Stable Diffusion 2 predicts the noise or v, and the file does not say which"
                );
                Err(Error::usage(message).hint(
                    "say --prediction v_prediction (that of 768 pixels) or --prediction epsilon (the others)",
                ))
            }
        }
    }
}

/// Opens a file: what it does not hold has the values of Stable Diffusion.
///
/// # Errors
/// When it cannot be read, is something else, or needs `unsaid` to say more.
pub fn open_file(path: &Path, unsaid: &Unsaid) -> Result<Folder> {
    let opened = Opened::open(path)?;
    let prediction = opened.prediction(unsaid.prediction)?;
    let latent = match (opened.single.layout, prediction) {
        (Layout::Sd2, Prediction::V) => 96,
        _ => 64,
    };
    let unet = opened.origin(Part::Unet, &unet_config(&opened.single.unet, latent))?;
    // Its side follows from that of the latents.
    let vae = opened.vae(latent)?;
    // The largest: last, when all else is known to be there.
    let text = opened.text(&unet, unsaid.tokenizer.as_deref())?;
    let sampler = Sampler { keys: scheduler(prediction)?, file: path.to_owned() };
    Folder::of(&unet, Some(&vae), &sampler, Some(text), opened.single.remarks())
}

/// The VAE of a file.
///
/// # Errors
/// When the file cannot be read, is something else, or has none.
pub fn open_vae(path: &Path) -> Result<Component> {
    let opened = Opened::open(path)?;
    vae(&opened.vae(512)?, None)
}

/// The scheduler that Stable Diffusion 1 came with.
fn scheduler(prediction: Prediction) -> Result<Keys> {
    let keys = json!({
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": false,
        "num_train_timesteps": 1000,
        "prediction_type": prediction,
        "set_alpha_to_one": false,
        "skip_prk_steps": true,
        "steps_offset": 1,
    });
    Keys::parse(&keys.to_string())
}

fn unet_config(shape: &UNetShape, side: usize) -> Value {
    let blocks = |has: &bool, way: &str| format!("{}{way}Block2D", if *has { "CrossAttn" } else { "" });
    json!({
        "_class_name": "UNet2DConditionModel",
        "sample_size": side,
        "in_channels": shape.in_channels,
        "out_channels": shape.out_channels,
        "block_out_channels": shape.widths,
        "layers_per_block": shape.layers_per_block,
        "down_block_types": shape.attention.iter().map(|has| blocks(has, "Down")).collect::<Vec<_>>(),
        "up_block_types": shape.attention.iter().rev().map(|has| blocks(has, "Up")).collect::<Vec<_>>(),
        "transformer_layers_per_block": shape.transformer_layers,
        "cross_attention_dim": shape.cross_width,
        "attention_head_dim": shape.heads,
        "use_linear_projection": shape.linear_projection,
        "norm_num_groups": groups(&shape.widths),
    })
}

fn vae_config(shape: &VaeShape, side: usize) -> Value {
    let levels = shape.widths.len();
    json!({
        "_class_name": "AutoencoderKL",
        "sample_size": side,
        "in_channels": shape.in_channels,
        "out_channels": shape.in_channels,
        "latent_channels": shape.latent_channels,
        "block_out_channels": shape.widths,
        "layers_per_block": shape.layers_per_block,
        "down_block_types": vec!["DownEncoderBlock2D"; levels],
        "up_block_types": vec!["UpDecoderBlock2D"; levels],
        "mid_block_add_attention": shape.mid_attention,
        "use_quant_conv": shape.quant_conv,
        "use_post_quant_conv": shape.quant_conv,
        "norm_num_groups": groups(&shape.widths),
        "scaling_factor": SCALING,
    })
}

fn text_config(shape: &TextShape) -> TextConfig {
    TextConfig {
        vocab_size: shape.vocabulary,
        hidden_size: shape.width,
        intermediate_size: shape.mlp_width,
        num_hidden_layers: shape.layers,
        num_attention_heads: shape.heads,
        max_position_embeddings: shape.positions,
        hidden_act: match shape.kind {
            TextKind::ClipL => HiddenAct::QuickGelu,
            TextKind::OpenClip => HiddenAct::Gelu,
        },
        ..TextConfig::default()
    }
}
