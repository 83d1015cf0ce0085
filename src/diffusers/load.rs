//! Weights under the reference library's names into a model's flat parameters.

use std::collections::BTreeMap;

use safetensors::Dtype;

use crate::error::{Error, Result};
use crate::nn::{Flat, Layout, Params, Spec};
use crate::recipe::TEXT_MODULE;
use crate::weights::{Number, Weights};

/// The parts of a tensor's name without those that wrappers put in: `DataParallel` before all others
/// (`module`), `torch.compile` before those of what it compiled (`_orig_mod`).
fn parts_of(name: &str) -> Vec<&str> {
    let parts = name.split('.').filter(|part| *part != "_orig_mod");
    parts.skip_while(|part| *part == "module").collect()
}

/// The parameter of a text model that a tensor of a file holds; none for what such a file may have besides.
///
/// Version 5 of the transformers library writes names without the module that holds the model in version 4.
/// A whole CLIP has a model of images too, and projections of both.
pub(crate) fn of_text_model(name: &str) -> Option<String> {
    let mut parts = parts_of(name);
    if parts.first() == Some(&TEXT_MODULE) {
        parts.remove(0);
    }
    let others = ["vision_model", "logit_scale", "text_projection", "visual_projection"];
    let other = parts.first().is_some_and(|first| others.contains(first));
    // Numbers from 0 on, which a state once was.
    let other = other || parts == ["embeddings", "position_ids"];
    (!other).then(|| format!("{TEXT_MODULE}.{}", parts.join(".")))
}

/// The same of another network.
pub(crate) fn of_network(name: &str) -> Option<String> {
    // The positions of a DiT are computed.
    Some(modern(name)).filter(|name| name != "pos_embed.pos_embed")
}

/// A tensor's name as the library writes it today: attention was spelled otherwise until version 0.12.
fn modern(name: &str) -> String {
    let parts = parts_of(name);
    let inside = parts.iter().position(|p| *p == "attentions");
    let renamed = parts.iter().enumerate().map(|(at, part)| match *part {
        "query" if inside.is_some_and(|inside| at > inside) => "to_q",
        "key" if inside.is_some_and(|inside| at > inside) => "to_k",
        "value" if inside.is_some_and(|inside| at > inside) => "to_v",
        "proj_attn" if inside.is_some_and(|inside| at > inside) => "to_out.0",
        part => part,
    });
    renamed.collect::<Vec<_>>().join(".")
}

/// True if the shape of a tensor in a file is that of the parameter, or for the linear layers of attention
/// that of a convolution over one pixel, as older files have it.
fn fits(spec: &Spec, shape: &[usize]) -> bool {
    let wanted = spec.file_shape();
    let squeezed = match spec.layout {
        Layout::Linear => shape.len() > 2 && shape.len() <= 4 && shape[2..].iter().all(|&d| d == 1),
        _ => false,
    };
    shape == wanted || squeezed && shape[..2] == wanted[..]
}

/// The first few of a list.
fn some(what: &str, names: &[String]) -> Option<String> {
    const SHOWN: usize = 5;
    let shown = names.iter().take(SHOWN).cloned().collect::<Vec<_>>().join(", ");
    match names.len() {
        0 => None,
        n if n <= SHOWN => Some(format!("{what}: {shown}")),
        n => Some(format!("{what}: {shown} and {} more", n - SHOWN)),
    }
}

/// A parameter's numbers in a file.
pub(crate) struct Held<'a> {
    /// The parameter's name.
    pub name: String,
    /// The tensor that holds it, perhaps among others.
    pub source: &'a str,
    /// Its first row there.
    pub first_row: usize,
    /// As in files of the library.
    pub shape: &'a [usize],
}

impl Held<'_> {
    /// Its numbers in row-major order.
    fn values<T: Number>(&self, weights: &Weights) -> Result<Vec<T>> {
        let mut values = weights.numbers(self.source)?;
        let count: usize = self.shape.iter().product();
        let first = self.first_row * (count / self.shape.first().map_or(1, |&rows| rows.max(1)));
        if first != 0 || values.len() != count {
            values = values.into_iter().skip(first).take(count).collect();
        }
        Ok(values)
    }
}

/// The parameters that a file of the library holds. `known`: the parameter of a tensor, by its name in the
/// file; none for one that is of no use.
pub(crate) fn held_of<'a>(
    weights: &'a Weights,
    known: impl Fn(&str) -> Option<String> + 'a,
) -> impl Iterator<Item = Held<'a>> {
    let held = move |(source, shape)| Some(Held { name: known(source)?, source, first_row: 0, shape });
    weights.shapes().filter_map(held)
}

/// The values of all parameters, flat, of 16 bits if all in the file are. The error names all tensors that
/// are missing, left over or of another shape than `wanted` says. Memory is allocated only when all fit, and
/// filled a tensor at a time.
pub(crate) fn flat_weights<'a>(
    weights: &'a Weights,
    params: &Params,
    held: impl Iterator<Item = Held<'a>>,
    wanted: &str,
) -> Result<Flat> {
    let (mut found, mut surplus, mut wrong) = (BTreeMap::new(), Vec::new(), Vec::new());
    for held in held {
        match params.find(&held.name) {
            Some(spec) if !fits(spec, held.shape) => {
                wrong.push(format!(
                    "{} is {:?} and must be {:?}",
                    held.source,
                    held.shape,
                    spec.file_shape()
                ));
                found.insert(held.name.clone(), held);
            }
            Some(_) if !found.contains_key(&held.name) => _ = found.insert(held.name.clone(), held),
            _ => surplus.push(held.source.to_owned()),
        }
    }
    let missing: Vec<String> =
        params.specs().iter().filter(|s| !found.contains_key(&s.name)).map(|s| s.name.clone()).collect();
    let said: Vec<String> =
        [some("missing", &missing), some("left over", &surplus), some("of another shape", &wrong)]
            .into_iter()
            .flatten()
            .collect();
    if !said.is_empty() {
        let shown = weights.path().display();
        return Err(Error::new(format!("the weights in {shown} are not those of {wanted}"))
            .hint("get both from the same place")
            .caused_by(said.join("\n")));
    }
    let halves = found.values().all(|held| weights.dtype(held.source) == Dtype::F16);
    Ok(if halves {
        Flat::F16(filled(weights, params, &found)?)
    } else {
        Flat::F32(filled(weights, params, &found)?)
    })
}

/// The values of all parameters, each as `found`.
fn filled<T: Number>(weights: &Weights, params: &Params, found: &BTreeMap<String, Held>) -> Result<Vec<T>> {
    let mut flat = vec![T::zeroed(); params.elements()];
    for spec in params.specs() {
        let target = &mut flat[spec.first..spec.first + spec.shape.elements()];
        spec.in_memory_order(&found[&spec.name].values(weights)?, target);
    }
    Ok(flat)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The thirds of a stacked matrix, and a convolution of one pixel, as numbers out of a file.
    #[test]
    fn a_parameter_is_read_from_its_rows() {
        let at = tempfile::tempdir().unwrap();
        let path = at.path().join("a.safetensors");
        let header = r#"{"w":{"dtype":"F32","shape":[6,2],"data_offsets":[0,48]}}"#;
        let data: Vec<u8> = (0..12_u8).flat_map(|v| f32::from(v).to_le_bytes()).collect();
        let length = (header.len() as u64).to_le_bytes();
        std::fs::write(&path, [&length, header.as_bytes(), &data].concat()).unwrap();
        let weights = Weights::open(&path).unwrap();
        let rows = |first_row: usize, shape: &[usize]| {
            Held { name: "x".to_owned(), source: "w", first_row, shape }.values::<f32>(&weights).unwrap()
        };
        assert_eq!(rows(0, &[2, 2]), [0.0, 1.0, 2.0, 3.0]);
        assert_eq!(rows(2, &[2, 2]), [4.0, 5.0, 6.0, 7.0]);
        assert_eq!(rows(4, &[2, 2]), [8.0, 9.0, 10.0, 11.0]);
        assert_eq!(rows(0, &[6, 2]).len(), 12);
    }

    #[test]
    fn names_of_old_versions_and_of_wrappers() {
        for (old, new) in [
            ("mid_block.attentions.0.query.weight", "mid_block.attentions.0.to_q.weight"),
            ("mid_block.attentions.0.key.bias", "mid_block.attentions.0.to_k.bias"),
            ("up_blocks.0.attentions.1.value.bias", "up_blocks.0.attentions.1.to_v.bias"),
            (
                "encoder.mid_block.attentions.0.proj_attn.weight",
                "encoder.mid_block.attentions.0.to_out.0.weight",
            ),
            ("value.attentions.0.to_q.weight", "value.attentions.0.to_q.weight"),
            ("module.conv_in.weight", "conv_in.weight"),
            (
                "_orig_mod.module.down_blocks.0._orig_mod.resnets.0.conv1.bias",
                "down_blocks.0.resnets.0.conv1.bias",
            ),
        ] {
            assert_eq!(modern(old), new);
        }
    }
}
