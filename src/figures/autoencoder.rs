//! Figures of a VAE: reconstructions, and the meaning of its latents.

use std::num::NonZero;

use super::{Drawing, Sheet};
use crate::codec::{Codec, Posterior};
use crate::error::{Error, Result};
use crate::models::vae::VaeKind;
use crate::philox::Stream;

/// Standard normal numbers for `count` latents.
fn noise(seed: u64, count: usize, size: usize) -> Vec<f32> {
    (0..count).flat_map(|i| super::noise(seed, Stream::Posterior, i as u32, size)).collect()
}

/// Refuses an autoencoder: its latents are points.
fn has_gaussian(codec: &Codec) -> Result<()> {
    if codec.recipe().vae.variational {
        return Ok(());
    }
    Err(Error::new("this is an autoencoder: its latents are points, without sigma and without a prior")
        .hint("use a run of a VAE with vae.variational = true, which a VQModel cannot have"))
}

fn pixels(codec: &Codec) -> usize {
    codec.image().iter().product()
}

fn latent_size(codec: &Codec) -> usize {
    codec.latent().iter().product()
}

/// Images in a row of a sheet of pairs.
const PAIRS: usize = 8;

/// Images `[N, H, W, C]`, each above its reconstruction from the mean of its latent.
pub fn pairs(codec: &Codec, images: &[f32]) -> Result<Drawing> {
    let decoded = codec.decode(&codec.encode(images)?.mean)?;
    Ok(above(codec, images, &decoded, "mean"))
}

/// Images `[N, H, W, C]`, each above a reconstruction from a latent drawn for it.
pub fn reconstruction(codec: &Codec, images: &[f32], seed: u64) -> Result<Drawing> {
    let posterior = codec.encode(images)?;
    // An autoencoder draws nothing.
    let name = if posterior.log_var.is_some() { "drawn" } else { "decoded" };
    let drawn = draw(codec, &posterior, seed);
    Ok(above(codec, images, &codec.decode(&drawn)?, name))
}

fn above(codec: &Codec, images: &[f32], below: &[f32], name: &str) -> Drawing {
    let size = pixels(codec);
    let count = images.len() / size;
    let columns = PAIRS.min(count);
    let mut cells = Vec::new();
    for (images, below) in images.chunks(columns * size).zip(below.chunks(columns * size)) {
        for row in [images, below] {
            cells.extend_from_slice(row);
            // An incomplete last row is filled up with white.
            cells.extend(std::iter::repeat_n(1.0, columns * size - row.len()));
        }
    }
    let rows = count.div_ceil(columns);
    let row_labels = (0..rows).flat_map(|_| ["image", name].map(str::to_owned)).collect();
    let sheet = Sheet { row_labels, group: NonZero::new(2), ..Sheet::new(columns) };
    Drawing { sheet, cells, image: codec.image() }
}

/// For each image: itself, the decoded mean, and `count` decoded draws of `z = mean + sigma eps`.
pub fn posterior(codec: &Codec, images: &[f32], count: usize, seed: u64) -> Result<Drawing> {
    has_gaussian(codec)?;
    let (size, latent) = (pixels(codec), latent_size(codec));
    let mut cells = Vec::new();
    for (row, image) in images.chunks_exact(size).enumerate() {
        let posterior = codec.encode(image)?;
        let eps = noise(seed.wrapping_add(row as u64), count, latent);
        let drawn: Vec<f32> = eps.chunks_exact(latent).flat_map(|eps| posterior.at(1.0, eps)).collect();
        cells.extend_from_slice(image);
        cells.extend(codec.decode(&posterior.mean)?);
        cells.extend(codec.decode(&drawn)?);
    }
    Ok(in_columns(codec, &["image", "mean"], count, cells))
}

/// Frames of `z = mean + a sigma eps`, decoded, for `a` from 0 to `most` in steps of 0.1, with one `eps`
/// for each image; the first row holds the images themselves.
pub fn hallucination(
    codec: &Codec,
    images: &[f32],
    seed: u64,
    most: f32,
    progress: &mut dyn FnMut() -> Result<()>,
) -> Result<Vec<Drawing>> {
    has_gaussian(codec)?;
    let posterior = codec.encode(images)?;
    let count = images.len() / pixels(codec);
    let eps = noise(seed, count, latent_size(codec));
    let frames = (most * 10.0).round() as usize;
    let mut pictures = Vec::new();
    for frame in 0..=frames {
        let a = frame as f32 / 10.0;
        let mut cells = images.to_vec();
        cells.extend(codec.decode(&posterior.at(a, &eps))?);
        let row_labels = ["image", "z"].map(str::to_owned).to_vec();
        let sheet =
            Sheet { row_labels, title: format!("z = μ + a·σ·ε, a = {a:.1}"), ..Sheet::new(count) };
        pictures.push(Drawing { sheet, cells, image: codec.image() });
        progress()?;
    }
    Ok(pictures)
}

/// Latents of two numbers, decoded on a grid of `side` by `side` points from `-range` to `range`; the
/// second number rises upwards (Kingma & Welling 2014, figure 4, on a plain grid).
pub fn manifold(codec: &Codec, side: usize, range: f32) -> Result<Drawing> {
    if latent_size(codec) != 2 {
        return Err(Error::new(format!("latents of this VAE are {} numbers", latent_size(codec)))
            .hint("the manifold is drawn for latents of 2, such as those of mnist-mlp-vae"));
    }
    let at = |i: usize| range * (2.0 * i as f32 / (side - 1).max(1) as f32 - 1.0);
    let latents: Vec<f32> =
        (0..side).rev().flat_map(|y| (0..side).flat_map(move |x| [at(x), at(y)])).collect();
    let pictures = codec.decode(&latents)?;
    let label = |i: usize| format!("{:.1}", at(i)).replace("-0.0", "0.0").replace('-', "−");
    let (column_labels, row_labels) = ((0..side).map(label).collect(), (0..side).rev().map(label).collect());
    let sheet =
        Sheet { column_labels, row_labels, column_axis: "z₁", row_axis: "z₂", ..Sheet::new(side) };
    Ok(Drawing { sheet, cells: pictures, image: codec.image() })
}

/// Images `[N, H, W, C]` and the channels of the means of their latents as grey pictures, each channel
/// spread over its own range from black to white.
pub fn channels(codec: &Codec, images: &[f32]) -> Result<Drawing> {
    let ([lh, lw, lc], [h, w, c]) = (codec.latent(), codec.image());
    if codec.recipe().vae.kind == VaeKind::Mlp {
        return Err(Error::new("latents of this VAE are vectors, without channels")
            .hint("use a run of a convolutional VAE"));
    }
    let mean = codec.encode(images)?.mean;
    let range = |k: usize| {
        let of = mean.iter().skip(k).step_by(lc);
        of.fold((f32::INFINITY, f32::NEG_INFINITY), |(low, high), &v| (low.min(v), high.max(v)))
    };
    let ranges: Vec<(f32, f32)> = (0..lc).map(range).collect();
    let mut cells = Vec::new();
    for (image, latent) in images.chunks_exact(h * w * c).zip(mean.chunks_exact(lh * lw * lc)) {
        cells.extend_from_slice(image);
        for (k, (low, high)) in ranges.iter().enumerate() {
            for (y, x) in (0..h).flat_map(|y| (0..w).map(move |x| (y, x))) {
                let v = latent[(y * lh / h * lw + x * lw / w) * lc + k];
                let grey = 2.0 * (v - low) / (high - low).max(1e-12) - 1.0;
                cells.extend(std::iter::repeat_n(grey, c));
            }
        }
    }
    Ok(in_columns(codec, &["image"], lc, cells))
}

/// Columns with these names, and `count` others: z1, z2, ...
fn in_columns(codec: &Codec, first: &[&str], count: usize, cells: Vec<f32>) -> Drawing {
    let small = |digit: char| char::from_u32(digit as u32 - '0' as u32 + '₀' as u32).unwrap_or(digit);
    let others = (1..=count).map(|i| format!("z{}", i.to_string().chars().map(small).collect::<String>()));
    let column_labels: Vec<String> = first.iter().map(|&name| name.to_owned()).chain(others).collect();
    let sheet = Sheet { column_labels, ..Sheet::new(first.len() + count) };
    Drawing { sheet, cells, image: codec.image() }
}

/// `count` images decoded from latents drawn from the prior, a standard normal.
pub fn prior(codec: &Codec, count: usize, seed: u64) -> Result<Vec<f32>> {
    has_gaussian(codec)?;
    codec.decode(&noise(seed, count, latent_size(codec)))
}

/// Latents drawn from a posterior: `z = mean + sigma eps`.
pub fn draw(codec: &Codec, posterior: &Posterior, seed: u64) -> Vec<f32> {
    let size = latent_size(codec);
    posterior.at(1.0, &noise(seed, posterior.mean.len() / size, size))
}
