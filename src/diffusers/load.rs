//! Weights under the reference library's names into a model's flat parameters.

use std::collections::BTreeMap;

use crate::error::{Error, Result};
use crate::nn::{Layout, Params, Spec};
use crate::recipe::TEXT_MODULE;
use crate::weights::Weights;

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

/// The values of all parameters, flat. `known`: the parameter of a tensor, by its name in the file; none for
/// one that is of no use. The error names all tensors that are missing, left over or of another shape. Memory
/// is allocated only when all fit.
pub(crate) fn flat_weights(
    weights: &Weights,
    params: &Params,
    known: impl Fn(&str) -> Option<String>,
) -> Result<Vec<f32>> {
    let (mut found, mut surplus, mut wrong) = (BTreeMap::new(), Vec::new(), Vec::new());
    for (name, shape) in weights.shapes() {
        let Some(modern) = known(name) else { continue };
        match params.find(&modern) {
            Some(spec) if !fits(spec, shape) => {
                wrong.push(format!("{name} is {shape:?} and must be {:?}", spec.file_shape()));
                found.insert(modern, name);
            }
            Some(_) if !found.contains_key(&modern) => _ = found.insert(modern, name),
            _ => surplus.push(name.to_owned()),
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
        return Err(Error::new(format!("the weights in {shown} are not those of its config.json"))
            .hint("get both from the same place")
            .caused_by(said.join("\n")));
    }
    let mut flat = vec![0.0; params.elements()];
    for spec in params.specs() {
        let values = weights.values(found[&spec.name])?;
        spec.for_each_index(|here, there| flat[spec.first + here] = values[there]);
    }
    Ok(flat)
}

#[cfg(test)]
mod tests {
    use super::*;

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
