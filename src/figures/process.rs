//! Figures of a diffusion process, of images or of latents, which are shown decoded.

use std::num::NonZero;

use super::{Drawing, Sheet};
use crate::error::Result;
use crate::philox::Stream;
use crate::sample::{Options, Sampler, Source};

/// Columns of a strip.
const COLUMNS: usize = 10;

/// Called after each step of sampling; an error ends the work.
type Progress<'a> = &'a mut dyn FnMut() -> Result<()>;

/// A sheet with one row for each of `rows` samples, whose columns are timesteps.
fn strip(column_labels: Vec<String>) -> Sheet {
    let columns = column_labels.len();
    Sheet { column_labels, column_axis: "t", ..Sheet::new(columns) }
}

/// `frames [columns][rows, ..]` as pictures row by row.
fn rows_of(frames: &[Vec<f32>], rows: usize) -> Vec<f32> {
    let size = frames.first().map_or(0, |f| f.len() / rows);
    (0..rows).flat_map(|r| frames.iter().flat_map(move |f| f[r * size..(r + 1) * size].to_vec())).collect()
}

/// `x_t` of images `[rows, H, W, C]` for `t` from 0 to T - 1 in equal steps (Ho et al. 2020, equation 4);
/// latents are noised and decoded.
pub fn forward(source: &Source, images: &[f32], seed: u64) -> Result<Drawing> {
    let schedule = source.recipe.schedule();
    let (image, size) = (source.image(), source.recipe.diffused().iter().product::<usize>());
    let samples = source.samples_of(images)?;
    let shown: Vec<usize> = (0..COLUMNS).map(|i| i * (schedule.steps() - 1) / (COLUMNS - 1)).collect();
    let mut strip_of = Vec::new();
    for (row, x0) in samples.chunks_exact(size).enumerate() {
        // One eps for a row: the picture drowns in the same noise.
        let eps = super::noise(seed, Stream::Noise, row as u32, size);
        for &t in &shown {
            strip_of.extend(noised(x0, &eps, schedule.alpha_bars[t]));
        }
    }
    let pictures = source.images_of(strip_of)?;
    Ok(Drawing { sheet: strip(shown.iter().map(usize::to_string).collect()), cells: pictures, image })
}

/// `sqrt(alpha_bar) x_0 + sqrt(1 - alpha_bar) eps`.
fn noised(x0: &[f32], eps: &[f32], alpha_bar: f64) -> Vec<f32> {
    let (a, b) = (alpha_bar.sqrt() as f32, (1.0 - alpha_bar).sqrt() as f32);
    x0.iter().zip(eps).map(|(x, e)| a * x + b * e).collect()
}

/// `rows` samples `x_t` at falling `t`, from the first reverse step's result to the picture.
pub fn backward(source: &Source, options: &Options, rows: usize, progress: Progress) -> Result<Drawing> {
    // The result of a step is the state at the timestep of the next.
    let label =
        |timesteps: &[f64], row: usize| timesteps.get(row + 1).map_or_else(|| "x₀".to_owned(), |&t| shown(t));
    watched(source, options, rows, progress, label, Sampler::current)
}

/// The prediction of `x_0` at falling `t` of `rows` samples (Ho et al. 2020, figure 6).
pub fn progressive(source: &Source, options: &Options, rows: usize, progress: Progress) -> Result<Drawing> {
    let label = |timesteps: &[f64], row: usize| shown(timesteps[row]);
    watched(source, options, rows, progress, label, Sampler::predicted)
}

fn watched(
    source: &Source,
    options: &Options,
    rows: usize,
    progress: Progress,
    label: impl Fn(&[f64], usize) -> String,
    look: impl Fn(&Sampler) -> Result<Vec<f32>>,
) -> Result<Drawing> {
    let mut sampler = source.sampler(options, rows)?;
    let steps = sampler.timesteps().len();
    let columns = COLUMNS.min(steps);
    let chosen: Vec<usize> = (0..columns).map(|i| i * (steps - 1) / (columns - 1).max(1)).collect();
    let labels: Vec<String> = chosen.iter().map(|&row| label(sampler.timesteps(), row)).collect();
    let mut frames: Vec<Vec<f32>> = Vec::new();
    sampler.run(0, &source.labels(0, rows, None)?, |row, _, sampler| {
        if chosen.contains(&row) {
            let mut frame = look(sampler)?;
            source.keep_known(options, &mut frame);
            frames.push(frame);
        }
        progress()
    })?;
    let pictures = source.images_of(rows_of(&frames, rows))?;
    Ok(Drawing { sheet: strip(labels), cells: pictures, image: source.image() })
}

/// The row of the reverse process whose timestep is `t`, or the next lower one.
fn row_at(timesteps: &[f64], t: usize) -> usize {
    timesteps.iter().position(|&at| at <= t as f64).unwrap_or(timesteps.len() - 1)
}

/// A timestep to the nearest whole one.
fn shown(t: f64) -> String {
    format!("{t:.0}")
}

/// Interpolations between pairs of images `[2 pairs, H, W, C]`: both are noised to `x_t`, mixed as `(1 -
/// lambda) x_t + lambda x_t'`, and denoised; `labels`: of each image (Ho et al. 2020, figures 8 and 9). One
/// row for each pair and each of `times`; the first and last column are the images themselves.
pub fn interpolation(
    source: &Source,
    options: &Options,
    images: &[f32],
    labels: &[u32],
    times: &[usize],
    columns: usize,
    progress: Progress,
) -> Result<Drawing> {
    let (image, size) = (source.image(), source.recipe.diffused().iter().product::<usize>());
    let pixels: usize = image.iter().product();
    let pairs = images.len() / (2 * pixels);
    let samples = source.samples_of(images)?;
    let lambdas: Vec<f32> = (0..columns).map(|i| i as f32 / (columns - 1).max(1) as f32).collect();
    // One sample at a time: all of a row then draw the same noise on their way back, so that lambda is
    // all that differs.
    let mut sampler = source.sampler(options, 1)?;
    let mut pictures = Vec::new();
    let mut row_labels = Vec::new();
    for pair in 0..pairs {
        let [a, b] = [2 * pair, 2 * pair + 1].map(|i| {
            let eps = super::noise(options.seed, Stream::Noise, i as u32, size);
            (&images[i * pixels..(i + 1) * pixels], &samples[i * size..(i + 1) * size], eps)
        });
        for &t in times {
            let row = row_at(sampler.timesteps(), t);
            let alpha_bar = sampler.alpha_bar(row);
            let [x_t, other] = [&a, &b].map(|(_, x0, eps)| noised(x0, eps, alpha_bar));
            let mut mixtures = Vec::new();
            for &lambda in &lambdas {
                let mixed: Vec<f32> =
                    x_t.iter().zip(&other).map(|(x, y)| (1.0 - lambda) * x + lambda * y).collect();
                // Of a model with classes: that of the nearer image.
                let label = labels[2 * pair + usize::from(lambda > 0.5)];
                mixtures.extend(sampler.run_from(row, &mixed, pair as u32, &[label], |_, _, _| progress())?);
            }
            pictures.extend_from_slice(a.0);
            pictures.extend(source.images_of(mixtures)?);
            pictures.extend_from_slice(b.0);
            row_labels.push(format!("t = {}", shown(sampler.timesteps()[row])));
        }
    }
    let middle = lambdas.iter().map(|l| ((l * 100.0).round() / 100.0).to_string());
    let end = || std::iter::once("source".to_owned());
    let column_labels = end().chain(middle).chain(end()).collect();
    let group = NonZero::new(times.len());
    let sheet = Sheet { column_labels, column_axis: "λ", row_labels, group, ..Sheet::new(columns + 2) };
    Ok(Drawing { sheet, cells: pictures, image })
}

/// A reverse process that is shared until `t`, then branches with noise of their own: one row for each of
/// `times`, the first column with the noise of the shared steps (Ho et al. 2020, figure 7).
pub fn branches(
    source: &Source,
    options: &Options,
    times: &[usize],
    columns: usize,
    progress: Progress,
) -> Result<Drawing> {
    let mut trunk = source.sampler(options, 1)?;
    let timesteps = trunk.timesteps().to_vec();
    let rows: Vec<usize> = times.iter().map(|&t| row_at(&timesteps, t)).collect();
    let label = source.labels(0, 1, None)?;
    let last = rows.iter().copied().max().unwrap_or(0);
    // x_t as it is before the step of each row.
    let mut states: Vec<Vec<f32>> = vec![trunk.start(0)?];
    trunk.run(0, &label, |row, _, sampler| {
        if row < last {
            states.push(sampler.current()?);
        }
        progress()
    })?;
    let mut sampler = source.sampler(options, columns)?;
    let labels: Vec<u32> = vec![label[0]; columns];
    let mut pictures = Vec::new();
    for &row in &rows {
        let shared = states[row].repeat(columns);
        pictures.extend(sampler.run_from(row, &shared, 0, &labels, |_, _, _| progress())?);
    }
    let row_labels = rows.iter().map(|&row| format!("t = {}", shown(timesteps[row]))).collect();
    let sheet = Sheet { row_labels, row_axis: "shared until", ..Sheet::new(columns) };
    Ok(Drawing { sheet, cells: source.images_of(pictures)?, image: source.image() })
}

/// Samples `columns [scales][rows, H, W, C]` of the classes, one row for each: a column for each scale of
/// guidance.
pub fn guidance(
    columns: &[Vec<f32>],
    image: [usize; 3],
    (row_axis, rows): (&'static str, Vec<String>),
    scales: &[f64],
) -> Drawing {
    let sheet = Sheet {
        column_labels: scales.iter().map(f64::to_string).collect(),
        column_axis: "scale",
        row_axis,
        ..Sheet::new(scales.len())
    };
    let cells = rows_of(columns, rows.len());
    Drawing { sheet: Sheet { row_labels: rows, ..sheet }, cells, image }
}
