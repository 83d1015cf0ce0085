//! The pictures that training leaves: a forward strip, a backward strip, and the grid of samples.

use image::RgbImage;

use crate::data::picture::{enlarge, grid};
use crate::error::Result;
use crate::philox::{Stream, draw, normal};
use crate::recipe::Recipe;
use crate::sample::{Options, Source};

/// Columns of a strip.
const COLUMNS: usize = 10;
/// White pixels between pictures.
pub(super) const GAP: usize = 2;

/// Images `[rows, H, W, C]`, each at rising noise levels: `x_t` for `t` in equal steps from 0 to T - 1.
pub fn forward_strip(recipe: &Recipe, images: &[f32], image: [usize; 3]) -> RgbImage {
    let schedule = recipe.schedule();
    let pixels: usize = image.iter().product();
    let rows = images.len() / pixels;
    let mut strip = Vec::new();
    for (row, x0) in images.chunks_exact(pixels).enumerate() {
        // One eps for a row: the picture drowns in the same noise.
        let words = |block: usize| draw(recipe.seed, Stream::Noise as u32, 0, row as u32, block as u32);
        let eps: Vec<f32> = (0..pixels.div_ceil(4)).flat_map(|block| normal(words(block))).collect();
        for column in 0..COLUMNS {
            let t = column * (schedule.steps() - 1) / (COLUMNS - 1);
            let alpha_bar = schedule.alpha_bars[t];
            let (a, b) = (alpha_bar.sqrt() as f32, (1.0 - alpha_bar).sqrt() as f32);
            let a = if column == 0 { 1.0 } else { a };
            let b = if column == 0 { 0.0 } else { b };
            strip.extend(x0.iter().zip(&eps).map(|(x, e)| a * x + b * e));
        }
    }
    enlarge(grid(&strip, rows * COLUMNS, image, COLUMNS, GAP), image[0])
}

/// `rows` samples at falling `t`, from the first reverse step to the picture. `progress` is called after
/// each step.
///
/// # Errors
/// When the driver reports an error.
pub fn backward_strip(
    source: &Source,
    options: Options,
    rows: usize,
    mut progress: impl FnMut() -> Result<()>,
) -> Result<RgbImage> {
    let mut sampler = source.sampler(options, rows)?;
    let steps = sampler.timesteps().len();
    let pixels: usize = source.image.iter().product();
    let shown: Vec<usize> = (0..COLUMNS).map(|column| column * (steps - 1) / (COLUMNS - 1)).collect();
    let mut frames: Vec<Vec<f32>> = Vec::new();
    sampler.run(0, &source.labels(0, rows, None), |row, _, sampler| {
        // With fewer steps than columns the same frame is shown more than once.
        for _ in shown.iter().filter(|&&s| s == row) {
            frames.push(sampler.current()?);
        }
        progress()
    })?;
    let mut strip = Vec::new();
    for row in 0..rows {
        frames.iter().for_each(|frame| strip.extend_from_slice(&frame[row * pixels..(row + 1) * pixels]));
    }
    Ok(enlarge(grid(&strip, rows * COLUMNS, source.image, COLUMNS, GAP), source.image[0]))
}
