//! The figures of the field: diffusion processes and VAEs as pictures with labelled axes.

mod animation;
mod autoencoder;
mod captions;
mod conditioned;
mod curves;
mod losses;
mod plot;
mod process;
mod raster;
mod sheet;
mod text;
mod ticks;

pub(crate) use animation::write_gif;
pub(crate) use autoencoder::{
    channels, draw, hallucination, manifold, pairs, posterior, prior, reconstruction,
};
pub(crate) use captions::with_captions;
pub(crate) use conditioned::samples;
pub(crate) use curves::{likelihood_curves, noised_by, schedule, schedules};
pub(crate) use losses::{loss, losses};
pub(crate) use plot::{Line, PALETTE, Plot, below, beside, pale};
pub(crate) use process::{backward, branches, forward, guidance, interpolation, progressive};
pub use sheet::Sheet;

use image::RgbImage;

use crate::philox::{Stream, fill_normal};
use crate::simd::vectorized;

/// Standard normal numbers of one sample.
fn noise(seed: u64, stream: Stream, sample: u32, size: usize) -> Vec<f32> {
    let mut eps = vec![0.0; size];
    vectorized(
        #[inline(always)]
        || fill_normal(&mut eps, seed, stream as u32, 0, sample, 0),
    );
    eps
}

/// A figure that is still to be drawn, at a size that the user chooses.
#[derive(Clone, Debug)]
pub struct Drawing {
    /// Columns and labels.
    pub sheet: Sheet,
    /// Pictures `[N, H, W, C]` in [-1, 1], row by row.
    pub cells: Vec<f32>,
    /// `[H, W, C]`.
    pub image: [usize; 3],
}

impl Drawing {
    /// Draws it, with pictures of at least `size` pixels; `None`: a size that can be looked at.
    pub fn draw(&self, size: Option<usize>) -> RgbImage {
        let n = self.cells.len() / self.image.iter().product::<usize>();
        let cell = size.or(self.sheet.cell);
        Sheet { cell, ..self.sheet.clone() }.draw(&self.cells, n, self.image)
    }

    /// With a title, if there is one.
    pub(crate) fn titled(mut self, title: Option<String>) -> Self {
        self.sheet.title = title.unwrap_or(self.sheet.title);
        self
    }
}

/// Pictures `[N, H, W, C]` in as many rows as columns.
pub fn grid(images: Vec<f32>, image: [usize; 3]) -> Drawing {
    let n = images.len() / image.iter().product::<usize>();
    let columns = (n as f64).sqrt().ceil().max(1.0) as usize;
    Drawing { sheet: Sheet::new(columns), cells: images, image }
}

/// Frames of an animation in one size, the largest of them: labels may be wider in some.
pub(crate) fn of_one_size(frames: Vec<RgbImage>) -> Vec<RgbImage> {
    let width = frames.iter().map(RgbImage::width).max().unwrap_or(0);
    let height = frames.iter().map(RgbImage::height).max().unwrap_or(0);
    let fill = |frame: RgbImage| {
        let mut page = RgbImage::from_pixel(width, height, image::Rgb([255; 3]));
        image::imageops::replace(&mut page, &frame, 0, 0);
        page
    };
    frames.into_iter().map(fill).collect()
}
