//! Features of a set of images, checked once.

use crate::error::{Error, Result};

/// Features of n images, `[n, width]`, all finite.
#[derive(Clone, Debug, PartialEq)]
pub struct Features {
    values: Vec<f64>,
    width: usize,
}

impl Features {
    /// Rows of `width` values.
    ///
    /// # Errors
    /// If a value is not finite: no distance to such an image has a meaning.
    ///
    /// # Panics
    /// If there is no value, or the last row is not full.
    #[track_caller]
    pub fn new<F: Copy + Into<f64>>(values: &[F], width: usize) -> Result<Self> {
        let fits = width > 0 && !values.is_empty() && values.len().is_multiple_of(width);
        assert!(fits, "{} features are not rows of {width}", values.len());
        let values: Vec<f64> = values.iter().map(|&value| value.into()).collect();
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(Features { values, width }),
            Some(at) => {
                let (image, value) = (at / width, values[at]);
                Err(Error::new(format!("feature {} of image {image} is {value}", at % width))
                    .hint("the image or the classifier has values that are not finite: look at both"))
            }
        }
    }

    /// Number of images.
    #[allow(clippy::len_without_is_empty, reason = "never empty")]
    pub fn len(&self) -> usize {
        self.values.len() / self.width
    }

    /// Features of an image.
    pub fn width(&self) -> usize {
        self.width
    }

    /// The features of image `i`.
    pub fn row(&self, i: usize) -> &[f64] {
        &self.values[i * self.width..][..self.width]
    }

    /// The features of one image after another.
    pub fn rows(&self) -> impl Iterator<Item = &[f64]> {
        self.values.chunks_exact(self.width)
    }

    pub(super) fn values(&self) -> &[f64] {
        &self.values
    }

    /// Some of the images, of one class for instance.
    #[track_caller]
    pub fn pick(&self, images: &[usize]) -> Features {
        assert!(!images.is_empty(), "features of no image");
        Features { values: images.iter().flat_map(|&i| self.row(i)).copied().collect(), width: self.width }
    }

    #[track_caller]
    pub(super) fn assert_fits(&self, other: &Features) {
        let (a, b) = (self.width, other.width);
        assert_eq!(a, b, "features of two sets have widths {a} and {b}");
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::philox::fill_normal;

    /// `sin(factor (i + 1) (j + 1) + offset)`, `[n, 4]`.
    pub(crate) fn waves(n: usize, factor: f64, offset: f64) -> Features {
        let value = |i: usize| (factor * (i / 4 + 1) as f64 * (i % 4 + 1) as f64 + offset).sin();
        Features::new(&(0..4 * n).map(value).collect::<Vec<_>>(), 4).unwrap()
    }

    /// Standard normal features.
    pub(crate) fn normal(n: usize, width: usize, seed: u64) -> Features {
        let mut values = vec![0.0; n * width];
        fill_normal(&mut values, seed, 4, 0, 0, 0);
        Features::new(&values, width).unwrap()
    }

    #[test]
    fn rows_and_what_they_refuse() {
        let features = Features::new(&[1.0_f32, 2.0, 3.0, 4.0, 5.0, 6.0], 2).unwrap();
        assert_eq!((features.len(), features.width(), features.row(1)), (3, 2, &[3.0, 4.0][..]));
        assert_eq!(features.pick(&[2, 0]), Features::new(&[5.0, 6.0, 1.0, 2.0], 2).unwrap());
        let error = Features::new(&[1.0, 2.0, 3.0, f32::NAN], 2).unwrap_err().to_string();
        assert!(error.starts_with("feature 1 of image 1 is NaN"), "{error}");
    }

    #[test]
    #[should_panic(expected = "5 features are not rows of 2")]
    fn ragged_rows_panic() {
        let _ = Features::new(&[0.0; 5], 2);
    }
}
