//! How well a VAE does on images, if possible on such as it was not trained on.

use std::cell::OnceCell;
use std::sync::Arc;

use crate::codec::{Codec, Posterior};
use crate::data::Dataset;
use crate::data::quality::{active_units, psnr, ssim};
use crate::error::{Error, Result};
use crate::models::codebook::nearest_codes;
use crate::models::vae::Reconstruction;
use crate::ops::quantise::perplexity_of;
use crate::run::Evaluation;

/// Images, read once when they are first asked for, and what is measured on them.
pub struct Evaluator {
    data: Arc<dyn Dataset>,
    images: OnceCell<Vec<f32>>,
    count: usize,
    held_out: bool,
}

impl Evaluator {
    /// For the first `count` images, or all that there are. `held_out`: whether training leaves them out.
    pub fn new(data: Arc<dyn Dataset>, count: usize, held_out: bool) -> Result<Evaluator> {
        let pixels: usize = data.shape().iter().product();
        let count = data.len().map_or(count, |len| count.min(len as usize));
        // The images, their latents and the decoded images.
        let bytes = 12 * (count * pixels) as u64;
        if crate::device::available_memory().is_some_and(|available| bytes > available) {
            return Err(Error::new(format!("{count} images to measure on do not fit into memory"))
                .hint("lower evaluate_count"));
        }
        Ok(Evaluator { data, images: OnceCell::new(), count, held_out })
    }

    /// The first `count` images, or as many as there are, `[N, H, W, C]`.
    pub fn images(&self, count: usize) -> Result<&[f32]> {
        let pixels: usize = self.data.shape().iter().product();
        let images = match self.images.get() {
            Some(images) => images,
            None => {
                let mut images = vec![0.0; self.count * pixels];
                for (i, out) in images.chunks_exact_mut(pixels).enumerate() {
                    self.data.read(i as u64, out)?;
                }
                self.images.get_or_init(|| images)
            }
        };
        Ok(&images[..count.min(self.count) * pixels])
    }

    /// Measures the decoded means of the latents after `step` steps.
    pub fn evaluate(&self, codec: &Codec, step: u64) -> Result<Evaluation> {
        let images = self.images(self.count)?;
        let posterior = codec.encode(images)?;
        let decoded = codec.decode(&posterior.mean)?;
        let (active, units) = active_units(&posterior.mean, self.count);
        let used =
            codec.codebook()?.map(|codebook| code_counts(&posterior.mean, &codebook, codec.latent()[2]));
        Ok(Evaluation {
            step,
            images: self.count,
            held_out: self.held_out,
            reconstruction: distance(images, &decoded, codec.recipe().reconstruction) / self.count as f64,
            kl: divergence(&posterior).map(|kl| kl / self.count as f64),
            perplexity: used.as_ref().map(|counts| perplexity_of(counts.iter().copied())),
            codes_used: used.as_ref().map(|counts| counts.iter().filter(|&&n| n > 0.0).count()),
            psnr: psnr(images, &decoded, self.count),
            ssim: ssim(images, &decoded, self.count, codec.image()),
            active_units: active,
            units,
        })
    }
}

/// How many of the vectors are nearest to each code.
fn code_counts(latents: &[f32], codebook: &[f32], width: usize) -> Vec<f64> {
    let mut counts = vec![0.0; codebook.len() / width];
    nearest_codes(latents, codebook, width).into_iter().for_each(|index| counts[index] += 1.0);
    counts
}

/// The reconstruction's part of the loss, summed over all pixels.
fn distance(images: &[f32], decoded: &[f32], form: Reconstruction) -> f64 {
    let of = |(&x, &y): (&f32, &f32)| {
        let (x, y) = (f64::from(x), f64::from(y));
        match form {
            Reconstruction::Mse => (x - y).powi(2),
            Reconstruction::L1 => (x - y).abs(),
            Reconstruction::Bce => {
                // Pixels as probabilities; an f32 image comes no nearer to certainty than this.
                let (t, p) = (0.5 + 0.5 * x, (0.5 + 0.5 * y).clamp(3e-8, 1.0 - 3e-8));
                -(t * p.ln() + (1.0 - t) * (1.0 - p).ln())
            }
        }
    };
    images.iter().zip(decoded).map(of).sum()
}

/// The Gaussian divergence from a standard normal (Kingma & Welling 2014, appendix B), summed over all
/// latents.
fn divergence(posterior: &Posterior) -> Option<f64> {
    let of = |(&m, &v): (&f32, &f32)| {
        let (m, v) = (f64::from(m), f64::from(v));
        0.5 * (m * m + v.exp() - 1.0 - v)
    };
    Some(posterior.mean.iter().zip(posterior.log_var.as_ref()?).map(of).sum())
}
