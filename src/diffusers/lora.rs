//! Low-rank adapters: y = W x + s B (A x), s = alpha / r, in the spellings of peft, the library and kohya.
//!
//! A model's own layers are listed first ([`Layers`]): a name in a file is looked up among them with dots as
//! underscores, because kohya's names cannot be taken apart. Source of the spellings: the library's
//! `lora_conversion_utils.py`; of the formula Hu et al. 2021 (arXiv:2106.09685).

mod alpha;
mod spelling;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde_json::{Map, Value, json};

use self::alpha::Alphas;
use self::spelling::{Piece, other_method, spelled};
use super::single::Part;
use super::single::names::Names;
use crate::checkpoint::write_tensors;
use crate::error::{Error, Result};
use crate::nn::{Params, Spec};
use crate::weights::Weights;

/// Before the names of a text model, as the library's folders have it.
const TEXT_MODEL: &str = "text_model.";
/// Key of peft's configuration in the metadata of a file.
const METADATA: &str = "lora_adapter_metadata";

/// What is added to one layer.
#[derive(Clone, Debug, PartialEq)]
pub struct Adapter {
    /// Of this component.
    pub part: Part,
    /// The layer's own name, without `.weight`.
    pub layer: String,
    /// Shape of the layer's weight: (out, in), of a convolution (out, in, k, k).
    pub shape: Vec<usize>,
    /// Rows of A.
    pub rank: usize,
    /// s = alpha / rank.
    pub scale: f32,
    /// A, (rank, in) or (rank, in, k, k), row-major.
    pub a: Vec<f32>,
    /// B, (out, rank).
    pub b: Vec<f32>,
}

/// The linear and convolutional layers of a model, by all names that a file may give them.
#[derive(Default)]
pub struct Layers {
    layers: Vec<(Part, String, Vec<usize>)>,
    by_key: HashMap<(Part, String), usize>,
}

/// A name without what only some files have, and with underscores alone.
fn key_of(name: &str) -> String {
    let key = name.replace('.', "_");
    key.strip_prefix("text_model_").map(str::to_owned).unwrap_or(key)
}

impl Layers {
    /// Of a U-Net and a text encoder: component, name without `.weight`, shape of the weight as in the
    /// library's files.
    pub fn new<'a>(layers: impl IntoIterator<Item = (Part, &'a str, &'a [usize])>) -> Layers {
        let mut all = Layers::default();
        for (part, name, shape) in layers {
            all.by_key.insert((part, key_of(name)), all.layers.len());
            all.layers.push((part, name.to_owned(), shape.to_vec()));
        }
        let has = |prefix: String| all.layers.iter().any(|(_, name, _)| name.starts_with(&prefix));
        let per_level = (0..).take_while(|j| has(format!("down_blocks.0.resnets.{j}."))).count();
        let levels = (0..).take_while(|b| has(format!("down_blocks.{b}."))).count();
        let attention: Vec<bool> = (0..levels).map(|b| has(format!("down_blocks.{b}.attentions."))).collect();
        let names = Names::unet(per_level, &attention);
        for (at, (part, name, _)) in all.layers.iter().enumerate().filter(|(_, layer)| layer.0 == Part::Unet)
        {
            if let Some(theirs) = names.to_compvis(name) {
                all.by_key.entry((*part, key_of(&theirs))).or_insert(at);
            }
        }
        all
    }

    fn find(&self, part: Option<Part>, name: &str) -> Option<usize> {
        let key = key_of(name);
        let parts = part.map_or(vec![Part::Unet, Part::TextEncoder], |part| vec![part]);
        parts.into_iter().find_map(|part| self.by_key.get(&(part, key.clone())).copied())
    }
}

/// The tensors of one adapter: names in the file.
#[derive(Default)]
struct Found<'a> {
    down: Option<(&'a str, &'a [usize])>,
    up: Option<(&'a str, &'a [usize])>,
    alpha: Option<&'a str>,
}

/// A shape without the ones at its end that tell a convolution of one pixel from a matrix.
fn as_matrix(shape: &[usize]) -> &[usize] {
    match shape {
        [_, _, 1, 1] => &shape[..2],
        shape => shape,
    }
}

/// The adapters of a file for a model of these layers, by component and layer.
///
/// # Errors
/// When the file is of another method or for another model, or a tensor is missing, of a wrong shape or not
/// finite: one line that names the first.
pub fn read(weights: &Weights, layers: &Layers) -> Result<Vec<Adapter>> {
    let wrong = |reason: String| {
        Error::new(format!("{}: {reason}", weights.path().display()))
            .hint("give a LoRA file that was trained on this kind of model")
    };
    if let Some(other) = weights.shapes().find_map(|(name, _)| other_method(name)) {
        return Err(wrong(other.to_owned()));
    }
    let mut found: BTreeMap<usize, Found<'_>> = BTreeMap::new();
    let (mut unknown, mut is_peft) = (Vec::new(), false);
    for (name, shape) in weights.shapes() {
        let Some((part, layer, piece)) = spelled(name) else {
            return Err(wrong(format!("it holds {name}, which is no part of a LoRA")));
        };
        is_peft |= name.starts_with(spelling::PEFT);
        let Some(at) = layers.find(part, &layer) else {
            unknown.push(name);
            continue;
        };
        let of_layer = found.entry(at).or_default();
        let twice = match piece {
            Piece::Down => of_layer.down.replace((name, shape)).is_some(),
            Piece::Up => of_layer.up.replace((name, shape)).is_some(),
            Piece::Alpha => of_layer.alpha.replace(name).is_some(),
        };
        if twice {
            return Err(wrong(format!("it holds {name} twice, in two spellings")));
        }
    }
    if let Some(first) = unknown.first() {
        let (count, all) = (unknown.len(), weights.shapes().count());
        return Err(wrong(format!(
            "{count} of its {all} tensors are of layers that this model does not have, the first {first}"
        )));
    }
    if found.is_empty() {
        return Err(wrong("it is empty".to_owned()));
    }
    let alphas = Alphas::of(weights, is_peft)?;
    let adapter = |(at, of_layer): (usize, Found<'_>)| -> Result<Adapter> {
        let (part, layer, shape) = &layers.layers[at];
        let (Some((down, a)), Some((up, b))) = (of_layer.down, of_layer.up) else {
            return Err(wrong(format!("it has only one of the two matrices of {layer}")));
        };
        let [a, b, own] = [a, b, shape].map(as_matrix);
        let rank = a.first().copied().unwrap_or(0);
        let fits = a.len() == own.len() && a[1..] == own[1..] && b == [own[0], rank];
        if rank == 0 || !fits {
            let said = format!("{down} is {a:?} and {up} is {b:?}, and the layer is {own:?}");
            return Err(wrong(said));
        }
        let scale = match of_layer.alpha {
            Some(name) => match weights.values(name)?[..] {
                [alpha] => alpha / rank as f32,
                _ => return Err(wrong(format!("{name} is not one number"))),
            },
            None => alphas.scale(*part, layer, rank).map_err(wrong)?,
        };
        let (layer, shape) = (layer.clone(), shape.clone());
        Ok(Adapter {
            part: *part,
            layer,
            shape,
            rank,
            scale,
            a: weights.values(down)?,
            b: weights.values(up)?,
        })
    };
    let mut adapters = found.into_iter().map(adapter).collect::<Result<Vec<Adapter>>>()?;
    adapters.sort_by(|a, b| (a.part, &a.layer).cmp(&(b.part, &b.layer)));
    Ok(adapters)
}

/// The adapters of a run, whose parameters are `params` and their values `values`. `scale`, the factor of
/// what they add, becomes part of B: a file of them needs none.
pub(crate) fn of_run(params: &Params, values: &[f32], scale: f32) -> Vec<Adapter> {
    let of_layer = |spec: &Spec| -> Option<Adapter> {
        let layer = spec.name.strip_suffix(".lora_A.weight")?;
        let up = params.find(&format!("{layer}.lora_B.weight"))?;
        let in_file = |spec: &Spec, factor: f32| {
            let mut all = vec![0.0; spec.shape.elements()];
            spec.for_each_index(|here, there| all[there] = factor * values[spec.first + here]);
            all
        };
        let is_text = layer.starts_with(TEXT_MODEL);
        Some(Adapter {
            part: if is_text { Part::TextEncoder } else { Part::Unet },
            layer: layer.to_owned(),
            shape: vec![up.file_shape()[0], spec.file_shape()[1]],
            rank: spec.file_shape()[0],
            scale: 1.0,
            a: in_file(spec, 1.0),
            b: in_file(up, scale),
        })
    };
    params.specs().iter().filter_map(of_layer).collect()
}

/// Writes adapters as the library's training scripts do.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(path: &Path, adapters: &[Adapter]) -> Result<()> {
    let named = tensors(adapters);
    let named: Vec<_> = named.iter().map(|(name, shape, of)| (name.as_str(), shape.clone(), *of)).collect();
    write_tensors(path, &named, "format", "pt".to_owned())
}

/// Names, shapes and numbers of adapters as the library's training scripts write them: `lora.down` in the
/// attention of a U-Net, `lora_linear_layer.down` in that of a text encoder, `lora_A` elsewhere.
pub fn tensors(adapters: &[Adapter]) -> Vec<(String, Vec<usize>, &[f32])> {
    let both = |adapter| {
        let Adapter { part, layer, shape, rank, a, b, .. }: &Adapter = adapter;
        let attention = [".attn1.", ".attn2.", ".self_attn."].iter().any(|within| layer.contains(within));
        let [down, up] = match part {
            _ if !attention => ["lora_A", "lora_B"],
            Part::TextEncoder => ["lora_linear_layer.down", "lora_linear_layer.up"],
            _ => ["lora.down", "lora.up"],
        };
        let name = |end: &str| format!("{}.{layer}.{end}.weight", part.folder());
        let rows = shape.first().copied().unwrap_or(0);
        let of_a = [&[*rank], shape.get(1..).unwrap_or_default()].concat();
        let of_b = [&[rows, *rank][..], &vec![1; shape.len().saturating_sub(2)]].concat();
        [(name(down), of_a, a.as_slice()), (name(up), of_b, b.as_slice())]
    };
    adapters.iter().flat_map(both).collect()
}

/// The metadata of such a file: its format, and where an alpha is not its rank the settings of peft, without
/// which alpha would be lost.
pub fn metadata(adapters: &[Adapter]) -> BTreeMap<String, String> {
    let mut said = BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
    if adapters.iter().all(|adapter| adapter.scale == 1.0) {
        return said;
    }
    let mut settings = Map::new();
    for part in [Part::Unet, Part::TextEncoder] {
        let own: Vec<(&str, &Adapter)> = adapters
            .iter()
            .filter(|adapter| adapter.part == part)
            .map(|adapter| (adapter.layer.trim_start_matches(TEXT_MODEL), adapter))
            .collect();
        let Some((_, first)) = own.first() else { continue };
        let alpha = |adapter: &Adapter| number(adapter.scale * adapter.rank as f32);
        let mut layers: Vec<&str> = own.iter().map(|(layer, _)| *layer).collect();
        layers.sort_unstable();
        let mut set = |key: &str, value: Value| settings.insert(format!("{}.{key}", part.folder()), value);
        set("r", json!(first.rank));
        set("lora_alpha", alpha(first));
        set("target_modules", json!(layers));
        let other =
            |differs: &dyn Fn(&Adapter) -> bool, value: &dyn Fn(&Adapter) -> Value| -> Map<String, Value> {
                let those = own.iter().filter(|(_, adapter)| differs(adapter));
                those.map(|(layer, adapter)| ((*layer).to_owned(), value(adapter))).collect()
            };
        for (key, pattern) in [
            ("rank_pattern", other(&|a| a.rank != first.rank, &|a| json!(a.rank))),
            ("alpha_pattern", other(&|a| alpha(a) != alpha(first), &alpha)),
        ] {
            if !pattern.is_empty() {
                set(key, Value::Object(pattern));
            }
        }
    }
    let text = serde_json::to_string_pretty(&sorted(settings)).unwrap_or_default();
    said.insert(METADATA.to_owned(), text);
    said
}

/// Whole numbers without a fraction, as peft has them.
fn number(value: f32) -> Value {
    if value.fract() == 0.0 && value.abs() < 1e6 { json!(value as i64) } else { json!(value) }
}

/// By key, whatever order the map keeps.
fn sorted(map: Map<String, Value>) -> BTreeMap<String, Value> {
    map.into_iter().collect()
}

#[cfg(test)]
mod tests;
