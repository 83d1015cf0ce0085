//! Samples, beside what they were drawn from.

use super::{Drawing, Sheet, grid};
use crate::sample::Source;

/// Samples `[N, H, W, C]`, in about as many rows as columns; of a model that draws from conditions, each
/// between its condition and its original, if that is known.
pub fn samples(source: &Source, samples: Vec<f32>) -> Drawing {
    let image = source.image();
    let Some(given) = source.given() else { return grid(samples, image) };
    let size: usize = image.iter().product();
    let count = samples.len() / size;
    let [conditions, originals] = given.shown(source.recipe, count);
    let columns = [("condition", conditions), ("sample", samples), ("original", originals)];
    let columns: Vec<_> = columns.into_iter().filter(|(_, pictures)| !pictures.is_empty()).collect();
    let of = |i: usize| columns.iter().flat_map(move |(_, pictures)| &pictures[i * size..][..size]);
    let cells = (0..count).flat_map(of).copied().collect();
    let abreast = ((count as f64 / columns.len().max(1) as f64).sqrt().ceil() as usize).max(1);
    let names: Vec<&str> = columns.iter().map(|(name, _)| *name).collect();
    let column_labels = names.repeat(abreast).into_iter().map(str::to_owned).collect();
    Drawing { sheet: Sheet { column_labels, ..Sheet::new(columns.len().max(1) * abreast) }, cells, image }
}
