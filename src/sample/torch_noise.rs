//! The random numbers of PyTorch's generator.

use crate::latent_file::transposed;
use crate::torch::Generator;

/// Noise of PyTorch's generator, which the host draws for all samples at once: a batch of them takes its
/// part.
pub(super) struct TorchNoise {
    pub generator: Generator,
    /// Samples of which the generator draws.
    pub whole: usize,
    /// `[H, W, C]`.
    pub shape: [usize; 3],
    /// Element of the store where the device looks for a step's noise.
    pub place: usize,
}

impl TorchNoise {
    /// The next noise of `count` samples alone, `[count, H, W, C]`.
    pub fn draw_of(&mut self, count: usize) -> Vec<f32> {
        let mut all = vec![0.0; count * self.shape.iter().product::<usize>()];
        self.generator.fill_normal(&mut all);
        transposed(&all, self.shape, true)
    }

    /// The next noise of `batch` samples from `first` on, `[batch, H, W, C]`; drawn as `[whole, C, H, W]`.
    pub fn draw(&mut self, first: usize, batch: usize) -> Vec<f32> {
        let size = self.shape.iter().product::<usize>();
        let mut all = vec![0.0; self.whole.max(first + batch) * size];
        self.generator.fill_normal(&mut all);
        transposed(&all[first * size..(first + batch) * size], self.shape, true)
    }
}
