//! Samples beside what they were drawn from.

use super::{Drawing, Sheet};
use crate::sample::{Given, Source};

/// Samples `[N, H, W, C]`, each between its condition and its original (if that is known), in about as many
/// rows as columns.
pub fn conditioned(source: &Source, given: &Given, samples: &[f32]) -> Drawing {
    let (image, recipe) = (source.image(), source.recipe);
    let size: usize = image.iter().product();
    let conditions = recipe.condition.shown(&given.conditions, image[2]);
    let mut names = vec!["condition", "sample"];
    names.extend((!given.images.is_empty()).then_some("original"));
    let mut cells = Vec::new();
    for (i, sample) in samples.chunks_exact(size).enumerate() {
        let of = |all: &[f32]| all[i * size % all.len()..][..size].to_vec();
        cells.extend(of(&conditions));
        cells.extend(sample);
        if !given.images.is_empty() {
            cells.extend(of(&given.images));
        }
    }
    let count = samples.len() / size;
    let abreast = ((count as f64 / names.len() as f64).sqrt().ceil() as usize).clamp(1, count.max(1));
    let column_labels = names.repeat(abreast).into_iter().map(str::to_owned).collect::<Vec<_>>();
    let sheet = Sheet { column_labels, ..Sheet::new(names.len() * abreast) };
    Drawing { sheet, cells, image }
}
