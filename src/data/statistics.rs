//! Statistics of the pixels and labels of a data set.

use rayon::prelude::*;

use super::Dataset;
use crate::error::Result;

/// The result of [`statistics`].
#[derive(Clone, Debug, PartialEq)]
pub struct Statistics {
    /// Pictures read.
    pub count: u64,
    /// Of each channel over all pixels, in [-1, 1], as are the next three.
    pub mean: Vec<f64>,
    /// Standard deviation.
    pub std: Vec<f64>,
    /// Least value.
    pub min: Vec<f32>,
    /// Largest value.
    pub max: Vec<f32>,
    /// Pictures with each label, in the order of `classes()`; empty: unlabelled.
    pub histogram: Vec<u64>,
}

/// The statistics of the first `count` pictures (of all if there are fewer).
///
/// # Errors
/// The data cannot be read.
///
/// # Panics
/// If `count` is 0.
#[track_caller]
pub fn statistics(dataset: &dyn Dataset, count: u64) -> Result<Statistics> {
    assert!(count > 0, "statistics: of 0 pictures");
    let count = dataset.len().map_or(count, |len| len.min(count));
    let (channels, classes) = (dataset.shape()[2], dataset.classes().len());
    let part = |first: u64| -> Result<Sums> {
        let mut sums = Sums::new(channels, classes);
        let mut pixels = vec![0.0; dataset.shape().iter().product()];
        for index in first..count.min(first + PART) {
            let label = dataset.read(index, &mut pixels)? as usize;
            if let Some(n) = sums.histogram.get_mut(label) {
                *n += 1;
            }
            sums.add(&pixels);
        }
        Ok(sums)
    };
    // Parts have a fixed size and are added in order, so the result does not depend on the number of threads.
    let parts: Vec<Result<Sums>> =
        (0..count.div_ceil(PART)).into_par_iter().map(|i| part(i * PART)).collect();
    let mut total = Sums::new(channels, classes);
    for part in parts {
        total.merge(part?);
    }
    let pixels = (count as usize * dataset.shape()[0] * dataset.shape()[1]) as f64;
    let mean: Vec<f64> = total.sum.iter().map(|s| s / pixels).collect();
    let variance = |(square, mean): (&f64, &f64)| (square / pixels - mean * mean).max(0.0);
    let std = total.squares.iter().zip(&mean).map(variance).map(f64::sqrt).collect();
    Ok(Statistics { count, mean, std, min: total.min, max: total.max, histogram: total.histogram })
}

/// Pictures added up at a time.
const PART: u64 = 64;

struct Sums {
    sum: Vec<f64>,
    squares: Vec<f64>,
    min: Vec<f32>,
    max: Vec<f32>,
    histogram: Vec<u64>,
}

impl Sums {
    fn new(channels: usize, classes: usize) -> Self {
        Sums {
            sum: vec![0.0; channels],
            squares: vec![0.0; channels],
            min: vec![f32::INFINITY; channels],
            max: vec![f32::NEG_INFINITY; channels],
            histogram: vec![0; classes],
        }
    }

    fn add(&mut self, pixels: &[f32]) {
        for pixel in pixels.chunks_exact(self.sum.len()) {
            for (k, &v) in pixel.iter().enumerate() {
                self.sum[k] += f64::from(v);
                self.squares[k] += f64::from(v) * f64::from(v);
                self.min[k] = self.min[k].min(v);
                self.max[k] = self.max[k].max(v);
            }
        }
    }

    fn merge(&mut self, other: Sums) {
        for k in 0..self.sum.len() {
            self.sum[k] += other.sum[k];
            self.squares[k] += other.squares[k];
            self.min[k] = self.min[k].min(other.min[k]);
            self.max[k] = self.max[k].max(other.max[k]);
        }
        for (n, m) in self.histogram.iter_mut().zip(other.histogram) {
            *n += m;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pixels of two channels; picture `i` is `[0, i / 100, 0, -i / 100]`, its label `i % 3`.
    struct Ramp(Vec<String>);

    impl Dataset for Ramp {
        fn len(&self) -> Option<u64> {
            Some(101)
        }
        fn shape(&self) -> [usize; 3] {
            [1, 2, 2]
        }
        fn classes(&self) -> &[String] {
            &self.0
        }
        fn read(&self, index: u64, out: &mut [f32]) -> Result<u32> {
            let v = index as f32 / 100.0;
            out.copy_from_slice(&[0.0, v, 0.0, -v]);
            Ok(index as u32 % 3)
        }
    }

    #[test]
    fn the_numbers_are_those_of_the_pixels() {
        let data = Ramp(vec![String::new(); 3]);
        let all = statistics(&data, 1000).unwrap();
        assert_eq!((all.count, &all.histogram), (101, &vec![34, 34, 33]));
        assert_eq!((&all.min, &all.max), (&vec![0.0, -1.0], &vec![0.0, 1.0]));
        // Mean of (i / 100)^2 for i = 0..=100 is 0.335.
        assert!(
            (all.std[1] - 0.335_f64.sqrt()).abs() < 1e-6 && all.mean[1].abs() < 1e-9 && all.std[0] == 0.0
        );
        assert_eq!(statistics(&data, 4).unwrap().histogram, [2, 1, 1]);
        assert_eq!(statistics(&Ramp(vec![]), 4).unwrap().histogram, [0; 0]);
    }
}
