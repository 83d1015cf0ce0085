//! Stable Diffusion 1 and 2 in one file, under the names of CompVis' code: each tensor's place in the
//! library's folder, and the configuration, which such a file leaves to its reader.
//!
//! Source of the names: `openaimodel.py` and `model.py` of CompVis' latent-diffusion, OpenCLIP's
//! `transformer.py`, and the library's `single_file_utils.py`.

mod kind;
pub(super) mod names;
mod shapes;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use self::kind::{is_ignored, other_kind};
use self::names::Names;
use self::shapes::Shapes;
pub use self::shapes::{TextKind, TextShape, UNetShape, VaeShape, groups};
use crate::error::{Error, Result};
use crate::weights::Weights;

/// Before the names of the U-Net.
const UNET: &str = "model.diffusion_model.";
/// Before the names of the VAE; the second is that of some converters.
const VAE: [&str; 2] = ["first_stage_model.", "vae."];
/// Before the names of OpenAI's text encoder.
const CLIP: &str = "cond_stage_model.transformer.";
/// Before the names of OpenCLIP's text encoder.
const OPEN_CLIP: &str = "cond_stage_model.model.";
/// Before all names of a text model in the library's folder.
const TEXT_MODEL: &str = "text_model.";
/// Layer of OpenCLIP's ViT-H after which nothing is used: Stable Diffusion 2 takes the layer before it.
const UNUSED_LAYER: usize = 23;

/// A component of a pipeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Part {
    /// The denoiser.
    Unet,
    /// The autoencoder.
    Vae,
    /// CLIP's text model.
    TextEncoder,
}

impl Part {
    /// Its folder in a pipeline's.
    pub fn folder(self) -> &'static str {
        match self {
            Part::Unet => "unet",
            Part::Vae => "vae",
            Part::TextEncoder => "text_encoder",
        }
    }
}

/// A tensor of a component, and where the file has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Of this component.
    pub part: Part,
    /// As the library names it in that component's folder; of a text model with `text_model.`.
    pub name: String,
    /// Its name in the file.
    pub source: String,
    /// First row there: OpenCLIP stacks the three matrices of an attention.
    pub first_row: usize,
    /// As in the folder, where attention of a VAE is linear: (C, C), in the file (C, C, 1, 1).
    pub shape: Vec<usize>,
}

/// Which Stable Diffusion a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Layout {
    /// 1.x: OpenAI's text encoder; predicts the noise.
    Sd1,
    /// 2.x: OpenCLIP's text encoder; noise or v, which the weights do not tell.
    Sd2,
}

/// The contents of a file.
pub struct Single {
    /// Told by the text encoder's names; without one, by its width.
    pub layout: Layout,
    /// All tensors with a place, by component and name.
    pub entries: Vec<Entry>,
    /// Names that have no place in a Stable Diffusion model.
    pub unknown: Vec<String>,
    /// The U-Net.
    pub unet: UNetShape,
    /// The VAE, if there is one.
    pub vae: Option<VaeShape>,
    /// The text encoder, if there is one.
    pub text: Option<TextShape>,
    names: BTreeMap<Part, Names>,
}

/// Opens a file and finds the places of its tensors.
///
/// # Errors
/// When it cannot be read, or is no Stable Diffusion 1 or 2: the error says what it is instead.
pub fn open(path: &Path) -> Result<(Weights, Single)> {
    let weights = Weights::open(path)?;
    let single = split(weights.shapes()).map_err(|reason| {
        Error::new(format!("{}: {reason}", path.display()))
            .hint("give a run, one file of Stable Diffusion 1 or 2, or a folder of the diffusers library")
    })?;
    Ok((weights, single))
}

/// Finds the places of a file's tensors, given by name and shape.
///
/// # Errors
/// What the file is instead of a Stable Diffusion 1 or 2, or what is missing.
pub fn split<'a>(
    tensors: impl IntoIterator<Item = (&'a str, &'a [usize])>,
) -> std::result::Result<Single, String> {
    let all: BTreeMap<&str, &[usize]> = tensors.into_iter().collect();
    if let Some(other) = other_kind(&all) {
        return Err(other);
    }
    let has = |prefix: &str| all.range(prefix..).next().is_some_and(|(name, _)| name.starts_with(prefix));
    let mut layout = has(OPEN_CLIP).then_some(Layout::Sd2).or(has(CLIP).then_some(Layout::Sd1));
    let unet = UNetShape::of(&Shapes::new(&all, UNET), &mut layout)?;
    let layout = layout.unwrap_or(Layout::Sd1);
    let vae_prefix = VAE.into_iter().find(|prefix| has(prefix)).unwrap_or(VAE[0]);
    let vae = has(vae_prefix).then(|| VaeShape::of(&Shapes::new(&all, vae_prefix))).transpose()?;
    let text = match layout {
        Layout::Sd1 if has(CLIP) => {
            let bare = !has("cond_stage_model.transformer.text_model.");
            let prefix = [CLIP, if bare { "" } else { TEXT_MODEL }].concat();
            Some(TextShape::clip(&Shapes::new(&all, &prefix))?)
        }
        Layout::Sd2 if has(OPEN_CLIP) => Some(TextShape::open_clip(&Shapes::new(&all, OPEN_CLIP))?),
        _ => None,
    };
    let mut names = BTreeMap::from([(Part::Unet, Names::unet(unet.layers_per_block, &unet.attention))]);
    names.extend(vae.as_ref().map(|vae| (Part::Vae, Names::vae(vae.widths.len(), vae.layers_per_block))));
    names.extend(text.as_ref().map(|text| match text.kind {
        TextKind::ClipL => (Part::TextEncoder, Names::clip()),
        TextKind::OpenClip => (Part::TextEncoder, Names::open_clip(text.layers)),
    }));
    let mut single = Single { layout, entries: Vec::new(), unknown: Vec::new(), unet, vae, text, names };
    let prefixes = [(UNET, Part::Unet), (vae_prefix, Part::Vae), (single.text_prefix(), Part::TextEncoder)];
    for (&source, &shape) in all.iter().filter(|(name, _)| !is_ignored(name)) {
        let place = prefixes.iter().find_map(|(prefix, part)| Some((*part, source.strip_prefix(prefix)?)));
        let entries = place.map(|(part, rest)| single.place(part, rest, source, shape)).unwrap_or_default();
        if entries.is_empty() {
            single.unknown.push(source.to_owned());
        }
        single.entries.extend(entries);
    }
    single.entries.sort_by(|a, b| (a.part, &a.name).cmp(&(b.part, &b.name)));
    let mut seen = BTreeSet::new();
    match single.entries.iter().find(|entry| !seen.insert((entry.part, &entry.name))) {
        Some(twice) => Err(format!("it holds {} of its {} twice", twice.name, twice.part.folder())),
        None => Ok(single),
    }
}

impl Single {
    fn text_prefix(&self) -> &'static str {
        match self.layout {
            Layout::Sd1 => CLIP,
            Layout::Sd2 => OPEN_CLIP,
        }
    }

    /// The entries of a tensor whose name without its prefix is `rest`; none if it has no place.
    fn place(&self, part: Part, rest: &str, source: &str, shape: &[usize]) -> Vec<Entry> {
        let entry = |name: String, first_row: usize, shape: Vec<usize>| Entry {
            part,
            name,
            source: source.to_owned(),
            first_row,
            shape,
        };
        if let Some((layer, kind)) = rest.rsplit_once(".attn.in_proj_").filter(|_| part == Part::TextEncoder)
        {
            let layer = self.names.get(&part).and_then(|names| names.to_library(layer));
            let (Some(layer), Some(&rows)) = (layer, shape.first()) else { return Vec::new() };
            if rows % 3 != 0 || !["weight", "bias"].contains(&kind) {
                return Vec::new();
            }
            let third = |(n, matrix): (usize, &str)| {
                let shape = [&[rows / 3], &shape[1..]].concat();
                entry(format!("{layer}.self_attn.{matrix}.{kind}"), n * (rows / 3), shape)
            };
            return THIRDS.into_iter().enumerate().map(third).collect();
        }
        let name = self.names.get(&part).and_then(|names| names.to_library(rest));
        let squeezed = match shape {
            [rows, columns, ones @ ..] if is_attention_of_vae(part, rest) && ones.iter().all(|&d| d == 1) => {
                vec![*rows, *columns]
            }
            shape => shape.to_vec(),
        };
        name.map(|name| entry(name, 0, squeezed)).into_iter().collect()
    }

    /// The name in the file of a component's tensor, and which third of its rows it is where OpenCLIP stacks
    /// three. `None` where this model has no such tensor.
    pub fn to_compvis(&self, part: Part, name: &str) -> Option<(String, Option<usize>)> {
        let prefix = match part {
            Part::Unet => UNET,
            Part::Vae => VAE[0],
            Part::TextEncoder => self.text_prefix(),
        };
        let names = self.names.get(&part)?;
        let stacked = name.split_once(".self_attn.").filter(|_| self.layout == Layout::Sd2);
        if let Some((layer, rest)) = stacked.filter(|_| part == Part::TextEncoder)
            && let Some((matrix, kind)) = rest.split_once('.')
            && let Some(third) = THIRDS.iter().position(|name| *name == matrix)
        {
            return Some((format!("{prefix}{}.attn.in_proj_{kind}", names.to_compvis(layer)?), Some(third)));
        }
        Some((format!("{prefix}{}", names.to_compvis(name)?), None))
    }

    /// Lines for the user: tensors without a place, and what had to be guessed.
    pub fn remarks(&self) -> Vec<String> {
        const SHOWN: usize = 3;
        let shown = self.unknown.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
        let more = match self.unknown.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => format!(" and {more} more"),
        };
        let mut remarks = Vec::new();
        if !self.unknown.is_empty() {
            remarks.push(format!(
                "tensors that have no place in a Stable Diffusion model are not read: {shown}{more}"
            ));
        }
        let of_unet = if self.layout == Layout::Sd2 { 64 } else { 8 };
        let odd_unet = self.unet.widths.iter().any(|width| width % of_unet != 0);
        if odd_unet || self.text.as_ref().is_some_and(|text| text.width % 64 != 0) {
            let text =
                self.text.as_ref().map_or(String::new(), |text| format!(", {} of the text", text.heads));
            let heads = &self.unet.heads;
            remarks.push(format!(
                "the file does not tell its numbers of heads and groups, and its widths are not those of \
                 Stable Diffusion: taken as {heads:?} of the U-Net's levels{text}"
            ));
        }
        remarks
    }
}

/// The matrices that OpenCLIP stacks, in this order.
const THIRDS: [&str; 3] = ["q_proj", "k_proj", "v_proj"];

/// Convolutions of one pixel in the file, linear layers in the folder.
fn is_attention_of_vae(part: Part, rest: &str) -> bool {
    part == Part::Vae && rest.contains(".attn_1.")
}

#[cfg(test)]
mod tests;
