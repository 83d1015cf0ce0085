//! The codebook of a VQModel: latents rounded to its codes, in a recording and on the host.
//!
//! van den Oord et al. 2017 (arXiv:1711.00937).

use rayon::prelude::*;

use super::vae_config::VaeConfig;
use crate::nn::{Init, Layout, Scope};
use crate::ops::embedding::embedding;
use crate::ops::loss::mse;
use crate::ops::quantise::{nearest, straight_through};
use crate::tape::Tensor;

/// Name of the codebook's parameter.
pub const CODEBOOK: &str = "quantize.embedding.weight";
/// Name of the state that counts how much its codes are used.
pub const COUNTS: &str = "quantize.counts";

/// The codebook, `[codes, latent]`.
#[track_caller]
pub fn codebook(config: &VaeConfig, scope: &Scope) -> Tensor {
    let codes = config.num_vq_embeddings;
    // Uniform within one over their number.
    let init = Init::FanIn(codes.saturating_mul(codes));
    scope.param(CODEBOOK, [codes, config.latent], Layout::Plain, init)
}

/// Latents rounded to a codebook, as it is trained.
pub struct Quantised {
    /// The nearest codes, in the latents' shape; the gradient goes through them to the latents as it is.
    pub latents: Tensor,
    /// The latents as rows `[M, latent]`, and the number of the code of each, `[M]`.
    pub rows: [Tensor; 2],
    /// The mean squared difference of latents and codes, `[1]`, whose gradient goes to the latents alone.
    pub commitment: Tensor,
    /// The same, whose gradient goes to the codes alone.
    pub of_codes: Tensor,
}

/// Records the rounding of `z [N, h, w, latent]` (equations 1 to 3).
#[track_caller]
pub fn quantise(config: &VaeConfig, scope: &Scope, z: &Tensor) -> Quantised {
    let codes = codebook(config, scope);
    scope.sub("quantize").label(|| {
        let rows = z.reshape([z.elements() / config.latent, config.latent]);
        let index = nearest(&rows, &codes);
        let chosen = embedding(&codes, &index);
        let latents = straight_through(&rows, &chosen).reshape(z.shape().clone());
        // Each is the other's target, through which no gradient goes.
        let (commitment, of_codes) = (mse(&rows, &chosen, None), mse(&chosen, &rows, None));
        Quantised { latents, rows: [rows, index], commitment, of_codes }
    })
}

/// The numbers of the codes that are nearest to each vector of `width` numbers, of the codebook `[codes,
/// width]`; of two as near, the first.
///
/// # Panics
/// When either is no whole number of vectors, or the codebook is empty.
#[track_caller]
pub fn nearest_codes(latents: &[f32], codebook: &[f32], width: usize) -> Vec<usize> {
    assert!(
        width > 0 && latents.len().is_multiple_of(width) && codebook.len().is_multiple_of(width),
        "nearest_codes: {} numbers, a codebook of {}, vectors of {width}",
        latents.len(),
        codebook.len()
    );
    assert!(!codebook.is_empty(), "nearest_codes: an empty codebook");
    let distance = |a: &[f32], b: &[f32]| -> f64 {
        a.iter().zip(b).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum()
    };
    let nearest = |vector: &[f32]| {
        let distances = codebook.chunks_exact(width).map(|code| distance(code, vector)).enumerate();
        distances.min_by(|a, b| a.1.total_cmp(&b.1)).map_or(0, |(index, _)| index)
    };
    latents.par_chunks_exact(width).map(nearest).collect()
}

/// Each vector replaced by the code that [`nearest_codes`] finds.
#[track_caller]
pub fn quantised(latents: &[f32], codebook: &[f32], width: usize) -> Vec<f32> {
    let indices = nearest_codes(latents, codebook, width);
    indices.iter().flat_map(|&index| &codebook[index * width..][..width]).copied().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_nearest_code_is_taken() {
        let codebook = [0.0, 0.0, 1.0, 1.0, -1.0, 1.0, 1.0, 1.0];
        let got = quantised(&[0.4, 0.4, 0.6, 0.6, -9.0, 0.0, 0.5, 0.5], &codebook, 2);
        assert_eq!(got, [0.0, 0.0, 1.0, 1.0, -1.0, 1.0, 0.0, 0.0]);
    }
}
