//! What is laid over a model when it is opened: adapters, and words of textual inversion.

use std::path::PathBuf;

use rayon::prelude::*;

use super::inversion;
use super::lora::{self, Adapter, Layers};
use super::single::Part;
use super::text_encoder::{Text, text_params};
use crate::error::{Error, Result};
use crate::nn::{Flat, Layout, Params, Spec};
use crate::recipe::{Recipe, TEXT_MODULE, params_of};
use crate::weights::Weights;

/// End of the name of a layer's weight.
const WEIGHT: &str = ".weight";

/// Files of adapters and words.
#[derive(Clone, Debug, Default)]
pub struct Extras {
    /// LoRA files, and the factor of each; all are added up.
    pub loras: Vec<(PathBuf, f32)>,
    /// Textual inversions.
    pub embeddings: Vec<PathBuf>,
}

/// The linear and convolutional layers of a component.
fn layers_of<'a>(part: Part, params: &'a Params) -> impl Iterator<Item = (Part, &'a str, Vec<usize>)> {
    let own = move |spec: &&Spec| {
        spec.layout != Layout::Plain && (part == Part::TextEncoder || !spec.name.starts_with(TEXT_MODULE))
    };
    let layer = move |spec: &'a Spec| Some((part, spec.name.strip_suffix(WEIGHT)?, spec.file_shape()));
    params.specs().iter().filter(own).filter_map(layer)
}

/// Adds `scale * s * B A` to a layer's weight; false if a number is not finite any more.
fn fuse(values: &mut [f32], spec: &Spec, adapter: &Adapter, scale: f32) -> bool {
    let (columns, factor) = (adapter.a.len() / adapter.rank, scale * adapter.scale);
    let mut product = vec![0.0_f32; columns * (adapter.b.len() / adapter.rank)];
    let rows = product.par_chunks_mut(columns).zip(adapter.b.par_chunks(adapter.rank));
    rows.for_each(|(row, b)| {
        for (b, a) in b.iter().zip(adapter.a.chunks(columns)) {
            row.iter_mut().zip(a).for_each(|(sum, a)| *sum += b * a);
        }
    });
    let own = &mut values[spec.first..spec.first + spec.shape.elements()];
    spec.for_each_index(|here, there| own[here] += factor * product[there]);
    own.iter().all(|value| value.is_finite())
}

/// Adds adapters of a run to the weights `flat` of the model `base`, of those layers that it has.
pub(crate) fn fuse_all(base: &Params, flat: &mut [f32], adapters: &[Adapter]) {
    for adapter in adapters {
        if let Some(spec) = base.find(&[&adapter.layer, WEIGHT].concat()) {
            // What is not finite is found in the samples.
            fuse(flat, spec, adapter, 1.0);
        }
    }
}

impl Extras {
    /// True without files.
    pub fn is_empty(&self) -> bool {
        self.loras.is_empty() && self.embeddings.is_empty()
    }

    /// Changes a model of this recipe: `values`, its parameters, flat, and its text encoder, whether or not
    /// that is among them. Returns remarks for the user.
    ///
    /// # Errors
    /// When the model sees no texts, or a file cannot be read or is for another model.
    pub(crate) fn apply(
        &self,
        recipe: &Recipe,
        values: &mut Flat,
        text: Option<&mut Text>,
    ) -> Result<Vec<String>> {
        if self.is_empty() {
            return Ok(Vec::new());
        }
        let Some(text) = text else {
            return Err(Error::usage("the model sees no text").hint("leave --lora and --embedding out"));
        };
        let (unet, encoder) = (params_of(recipe), text_params(&text.encoder.config));
        let (unet, encoder) = (unet.borrow(), encoder.borrow());
        let all: Vec<_> =
            layers_of(Part::Unet, &unet).chain(layers_of(Part::TextEncoder, &encoder)).collect();
        let layers = Layers::new(all.iter().map(|(part, name, shape)| (*part, *name, shape.as_slice())));
        for (path, scale) in &self.loras {
            for adapter in lora::read(&Weights::open(path)?, &layers)? {
                let (params, values) = match adapter.part {
                    Part::TextEncoder => (&encoder, &mut text.encoder.weights.widen()[..]),
                    _ => (&unet, &mut values.widen()[..]),
                };
                let spec = params.find(&[&adapter.layer, WEIGHT].concat());
                if !spec.is_some_and(|spec| fuse(values, spec, &adapter, *scale)) {
                    let (shown, layer) = (path.display(), &adapter.layer);
                    let message = format!("{shown}: at scale {scale} weights of {layer} are not finite");
                    return Err(Error::new(message).hint("give a smaller scale, FILE:SCALE"));
                }
            }
        }
        let mut remarks = Vec::new();
        for path in &self.embeddings {
            let word = inversion::read(&Weights::open(path)?, text.encoder.config.hidden_size)?;
            text.add_word(&word).map_err(|e| e.within(path.display()))?;
            remarks.push(format!("{} is {} in prompts", path.display(), word.token));
        }
        Ok(remarks)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::nn::Init;

    /// Three channels in, two out, of one and two pixels: in the order of memory, W(tap, in, out).
    #[test]
    fn products_are_added_in_the_layout_of_the_weight() {
        let b = vec![1.0, 10.0, 0.0, 2.0];
        let spec = |shape: crate::tensor::Shape, layout| {
            let (name, init) = ("w".to_owned(), Init::Zeros);
            Spec { name, shape, layout, init, first: 1, state: None }
        };
        let adapter = |shape: Vec<usize>, a: Vec<f32>| {
            let (part, layer) = (Part::Unet, "w".to_owned());
            Adapter { part, layer, shape, rank: 2, scale: 2.0, a, b: b.clone() }
        };
        // B A = [[11, 22, 33], [2, 4, 6]]; the first number of the store is another's.
        let linear = adapter(vec![2, 3], vec![1.0, 2.0, 3.0, 1.0, 2.0, 3.0]);
        let mut values = vec![7.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0];
        assert!(fuse(&mut values, &spec([3, 2].into(), Layout::Linear), &linear, 0.5));
        assert_eq!(values, [7.0, 12.0, 3.0, 23.0, 5.0, 34.0, 7.0]);
        // A(rank, in, 1, tap): B A = [[[51, 62], [73, 84]], [[10, 12], [14, 16]]].
        let conv = adapter(vec![2, 2, 1, 2], vec![1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]);
        let mut values = vec![0.0; 9];
        let of_conv = spec([1, 2, 2, 2].into(), Layout::Conv);
        assert!(fuse(&mut values, &of_conv, &conv, 0.5));
        assert_eq!(values, [0.0, 51.0, 10.0, 73.0, 14.0, 62.0, 12.0, 84.0, 16.0]);
        assert!(!fuse(&mut values, &of_conv, &conv, f32::MAX));
    }
}
