//! The bounds of a VAE: the ELBO, and the importance-weighted bound.

use std::ops::Range;

use serde::Serialize;

use super::Arguments;
use crate::cli::{bar, print_report, ticks};
use crate::codec::{Codec, Posterior};
use crate::data::picture::to_u8;
use crate::error::{Error, Result};
use crate::likelihood::{Estimate, LevelLaw, importance_bound, log_density_ratio};
use crate::models::vae::Reconstruction;
use crate::philox::{Stream, fill_normal};

/// Draws that are decoded at a time.
const TOGETHER: usize = 64;

#[derive(Serialize)]
struct Report {
    data: String,
    images: usize,
    /// Of z, for each image.
    draws: usize,
    decoder: &'static str,
    /// Deviation or mean absolute error of the decoder's law, of 255; measured on the images.
    #[serde(skip_serializing_if = "Option::is_none")]
    scale: Option<f64>,
    /// The ELBO in bits per dimension, an upper bound, and its standard error over images.
    bits_per_dim: f64,
    standard_error: f64,
    /// Its parts: the 256 levels given z, and the divergence of z.
    decoder_bits: f64,
    kl_bits: f64,
    /// The importance-weighted bound, which is tighter.
    importance_bits_per_dim: f64,
    importance_standard_error: f64,
}

/// `images [N, H, W, C]`, of `data`. One draw of each tells the decoder's scale, so that the bound does not
/// hang on a constant of the loss (Rybkin et al. 2021, arXiv:2006.13202).
pub fn autoencoder(arguments: &Arguments, codec: &Codec, data: String, images: &[f32]) -> Result<()> {
    let recipe = codec.recipe();
    let size: usize = codec.image().iter().product();
    let count = images.len() / size;
    let draws = arguments.draws.unwrap_or(64);
    let Posterior { mean, log_var: Some(log_var) } = codec.encode(images)? else {
        return Err(Error::usage(format!(
            "{} is an autoencoder without a Gaussian: it has no likelihood",
            arguments.run.display()
        ))
        .hint("give a VAE, or a diffusion run of pixels"));
    };
    let z_size = mean.len() / count;
    // Decoded draws of an image's z, and the draws.
    let decoded = |image: usize, draws: Range<usize>| -> Result<(Vec<f32>, Vec<f32>)> {
        let mut z = vec![0.0; draws.len() * z_size];
        let here = image * z_size..(image + 1) * z_size;
        for (z, draw) in z.chunks_exact_mut(z_size).zip(draws) {
            fill_normal(z, arguments.seed, Stream::Posterior as u32, draw as u32, image as u32, 0);
            let moments = mean[here.clone()].iter().zip(&log_var[here.clone()]);
            z.iter_mut().zip(moments).for_each(|(z, (m, v))| *z = m + (0.5 * v).exp() * *z);
        }
        Ok((codec.decode(&z)?, z))
    };
    let progress = bar((count * (1 + draws.div_ceil(TOGETHER))) as u64, "{bar:30} {percent}% {eta} left");
    let mut tick = ticks(&progress);
    let mut errors = [0.0_f64; 2];
    for (image, x) in images.chunks_exact(size).enumerate() {
        for (&x, seen) in x.iter().zip(decoded(image, 0..1)?.0) {
            let error = f64::from(x - seen);
            errors[0] += error * error;
            errors[1] += error.abs();
        }
        tick()?;
    }
    // Not 0, where images come back as they are.
    let [square, absolute] = errors.map(|sum| (sum / images.len() as f64).max(1e-8));
    let (law, name, scale) = match recipe.reconstruction {
        Reconstruction::Mse => {
            let deviation = square.sqrt();
            (LevelLaw::Gaussian { deviation }, "Gaussian", Some(deviation))
        }
        Reconstruction::L1 => (LevelLaw::Laplace { scale: absolute }, "Laplace", Some(absolute)),
        Reconstruction::Bce => (LevelLaw::ContinuousBernoulli, "continuous Bernoulli", None),
    };
    let mut nats: [Vec<f64>; 4] = Default::default();
    for (image, x) in images.chunks_exact(size).enumerate() {
        let levels: Vec<u8> = x.iter().map(|&v| to_u8(v)).collect();
        let here = image * z_size..(image + 1) * z_size;
        let (mean, log_var) = (&mean[here.clone()], &log_var[here]);
        let (mut weights, mut decoder) = (Vec::new(), 0.0);
        for first in (0..draws).step_by(TOGETHER) {
            let (images, z) = decoded(image, first..draws.min(first + TOGETHER))?;
            for (image, z) in images.chunks_exact(size).zip(z.chunks_exact(z_size)) {
                let given_z = law.of_image(&levels, image);
                decoder -= given_z / draws as f64;
                weights.push(given_z + log_density_ratio(z, mean, log_var));
            }
            tick()?;
        }
        let kl: f64 = mean
            .iter()
            .zip(log_var)
            .map(|(&m, &v)| {
                let (m, v) = (f64::from(m), f64::from(v));
                0.5 * (m * m + v.exp_m1() - v)
            })
            .sum();
        let all = [decoder, kl, decoder + kl, -importance_bound(&weights)];
        nats.iter_mut()
            .zip(all)
            .for_each(|(sums, nats)| sums.push(nats / (size as f64 * std::f64::consts::LN_2)));
    }
    progress.finish_and_clear();
    let [decoder, kl, elbo, importance] = nats.map(|bits| Estimate::of(&bits));
    if !elbo.mean.is_finite() {
        return Err(Error::new("the bound is not a finite number")
            .hint("the model has diverged: train again with a lower lr, or use an older checkpoint"));
    }
    let report = Report {
        data,
        images: count,
        draws,
        decoder: name,
        scale: scale.map(|scale| 127.5 * scale),
        bits_per_dim: elbo.mean,
        standard_error: elbo.standard_error,
        decoder_bits: decoder.mean,
        kl_bits: kl.mean,
        importance_bits_per_dim: importance.mean,
        importance_standard_error: importance.standard_error,
    };
    print_report(&report, arguments.json, describe)
}

fn describe(report: &Report) -> String {
    let Report { data, images, draws, decoder, bits_per_dim, standard_error, .. } = report;
    let Report { decoder_bits, kl_bits, importance_bits_per_dim, importance_standard_error, .. } = report;
    let scale = match report.scale {
        Some(scale) => format!("{decoder} decoder of scale {scale:.2} of 255, measured on the images"),
        None => format!("{decoder} decoder"),
    };
    format!(
        "{bits_per_dim:.4} ± {standard_error:.4} bits/dim, an upper bound (ELBO): {images} images of \
         {data},\n\
         {scale}, weights of the moving average\n\n  decoder  {decoder_bits:9.5}  256 levels given z\n  \
         KL       {kl_bits:9.5}  of z\n\n{importance_bits_per_dim:.4} ± {importance_standard_error:.4} \
         bits/dim, importance-weighted over {draws} draws of z, which is tighter\n"
    )
}
