//! What samples begin with: noise, or latents of a picture with noise, of which a mask may keep a part.

use std::rc::Rc;

/// Gaussians over latents `[M, h, w, c]`, scaled as the model has them.
#[derive(Clone)]
pub struct Latents {
    /// Means.
    pub mean: Rc<[f32]>,
    /// Standard deviations.
    pub sigma: Rc<[f32]>,
}

impl Latents {
    /// Latents of samples from number `first` on, of which number i has picture i mod M.
    pub(super) fn at(&self, first: usize, size: usize, eps: &[f32]) -> Vec<f32> {
        let known = self.mean.len() / size;
        let of = |i: usize| {
            let place = (first + i / size) % known * size + i % size;
            self.mean[place] + self.sigma[place] * eps[i]
        };
        (0..eps.len()).map(of).collect()
    }
}

/// A picture that samples begin with, as the library's image-to-image and inpainting pipelines do.
#[derive(Clone)]
pub struct Begin {
    /// Its latents.
    pub latents: Latents,
    /// `[h, w]`: 1 where samples are made anew, 0 where the picture is kept.
    pub mask: Option<Rc<[f32]>>,
    /// Latents of the picture with zeros where it is made anew, for models that see these.
    pub masked: Option<Latents>,
    /// Samples begin with noise alone.
    pub from_noise: bool,
}

/// What is kept of a picture in every step.
pub(super) struct Kept {
    pub latents: Vec<f32>,
    pub noise: Vec<f32>,
}
