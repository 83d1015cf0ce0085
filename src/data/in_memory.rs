//! A data set that fits into memory, as bytes; resized while it is read.

use image::{DynamicImage, GrayImage, RgbImage};

use super::digest::Digest;
use super::picture::{fit, from_u8};
use super::{Dataset, Options, Values, Whole};
use crate::error::Result;

/// Pictures of one size as they came, MNIST and CIFAR-10 among them.
pub(super) struct InMemory {
    /// `[N, H, W, C]`, C 1 or 3.
    pixels: Vec<u8>,
    /// `[N]`, or empty.
    labels: Vec<u8>,
    classes: Vec<String>,
    own: [usize; 3],
    shape: [usize; 3],
    options: Options,
}

impl InMemory {
    /// `own` is the `[H, W, C]` of `pixels`; each label is below the number of `classes`.
    pub(super) fn new(
        pixels: Vec<u8>,
        labels: Vec<u8>,
        classes: Vec<String>,
        own: [usize; 3],
        options: &Options,
    ) -> Self {
        let size: usize = own.iter().product();
        assert!(size > 0 && !pixels.is_empty() && pixels.len().is_multiple_of(size), "InMemory: not {own:?}");
        let fits = labels.is_empty() || labels.len() == pixels.len() / size;
        assert!(fits, "InMemory: {} labels", labels.len());
        let shape = [options.image_size, options.image_size, options.channels.unwrap_or(own[2])];
        let options = Options { channels: Some(shape[2]), crop: None, ..options.clone() };
        InMemory { pixels, labels, classes, own, shape, options }
    }

    fn count(&self) -> usize {
        self.pixels.len() / self.own.iter().product::<usize>()
    }

    fn label(&self, i: usize) -> u32 {
        self.labels.get(i).map_or(0, |&label| label.into())
    }
}

impl Dataset for InMemory {
    fn len(&self) -> Option<u64> {
        Some(self.count() as u64)
    }

    fn shape(&self) -> [usize; 3] {
        self.shape
    }

    fn classes(&self) -> &[String] {
        &self.classes
    }

    fn labels(&self) -> Option<Vec<u32>> {
        Some((0..self.count()).map(|i| self.label(i)).collect())
    }

    fn whole(&self) -> Option<Whole<'_>> {
        let labels = self.labels().filter(|_| self.own == self.shape);
        labels.map(|labels| Whole { values: Values::Bytes(&self.pixels), labels })
    }

    fn digest(&self) -> Result<String> {
        let mut digest = Digest::default();
        self.own.iter().for_each(|&side| digest.field(&(side as u64).to_le_bytes()));
        digest.field(&self.pixels);
        digest.field(&self.labels);
        digest.names(&self.classes);
        Ok(digest.text())
    }

    fn read(&self, index: u64, out: &mut [f32]) -> Result<u32> {
        assert_eq!(out.len(), self.shape.iter().product::<usize>(), "read: `out` is not {:?}", self.shape);
        let size: usize = self.own.iter().product();
        let i = index as usize;
        let bytes = &self.pixels[i * size..(i + 1) * size];
        if self.own == self.shape {
            write(bytes, out);
        } else {
            let [h, w, c] = self.own;
            let (h, w) = (h as u32, w as u32);
            let image = match c {
                1 => GrayImage::from_raw(w, h, bytes.to_vec()).map(DynamicImage::ImageLuma8),
                _ => RgbImage::from_raw(w, h, bytes.to_vec()).map(DynamicImage::ImageRgb8),
            };
            // The slice above has just this length.
            let image = image.unwrap_or_else(|| unreachable!("{} bytes are not {:?}", bytes.len(), self.own));
            write(&fit(image, &self.options), out);
        }
        Ok(self.label(i))
    }
}

/// Bytes as values in [-1, 1].
pub(super) fn write(bytes: &[u8], out: &mut [f32]) {
    for (v, &b) in out.iter_mut().zip(bytes) {
        *v = from_u8(b);
    }
}

#[cfg(test)]
mod tests {
    use super::super::picture::to_u8;
    use super::super::tests::options;
    use super::*;

    fn bytes(data: &InMemory, index: u64) -> Vec<u8> {
        let mut out = vec![f32::NAN; data.shape().iter().product()];
        data.read(index, &mut out).unwrap();
        out.into_iter().map(to_u8).collect()
    }

    #[test]
    fn pictures_of_the_right_size_come_back_as_they_are() {
        let pixels: Vec<u8> = (0..128).collect();
        let data = InMemory::new(pixels.clone(), vec![], vec![], [8, 8, 1], &options(8));
        assert_eq!((data.len(), data.shape()), (Some(2), [8, 8, 1]));
        assert_eq!(bytes(&data, 1), pixels[64..]);
    }

    #[test]
    fn others_are_resized_cut_and_given_their_channels() {
        // 8 high, 12 wide: black, with white columns 0, 1 and 10, 11 that the square leaves out.
        let row: Vec<u8> = (0..12).map(|x| if (2..10).contains(&x) { 0 } else { 255 }).collect();
        let rgb = Options { channels: Some(3), ..options(16) };
        let data = InMemory::new(row.repeat(8), vec![4], vec![String::new(); 5], [8, 12, 1], &rgb);
        assert_eq!(data.shape(), [16, 16, 3]);
        assert_eq!(bytes(&data, 0), vec![0; 16 * 16 * 3]);
        let grey = Options { channels: Some(1), ..options(8) };
        let data = InMemory::new([255, 0, 0].repeat(64), vec![], vec![], [8, 8, 3], &grey);
        assert!(bytes(&data, 0).iter().all(|v| (40..=90).contains(v)), "red is a dark grey");
    }
}
