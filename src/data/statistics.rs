//! Statistics of the pixels and labels of a data set.

use rayon::prelude::*;

use super::Dataset;
use super::order::permutation;
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
    /// Pictures with each label, in the order of `classes()`: of the whole set where labels are known without
    /// reading pictures, else of those read. Empty: unlabelled.
    pub histogram: Vec<u64>,
}

/// `count` pictures of a set, in order: all if it has no more, a random choice over the whole of it, or the
/// first of an endless set.
pub fn choice(dataset: &dyn Dataset, count: u64, seed: u64) -> Vec<u64> {
    match dataset.len() {
        Some(len) if count < len => {
            let mut chosen = permutation(seed, 0, len as usize);
            chosen.truncate(count as usize);
            chosen.sort_unstable();
            chosen.into_iter().map(u64::from).collect()
        }
        len => (0..len.unwrap_or(count)).collect(),
    }
}

/// The statistics of these pictures.
///
/// # Panics
/// If there are none.
#[track_caller]
pub fn statistics(dataset: &dyn Dataset, pictures: &[u64]) -> Result<Statistics> {
    assert!(!pictures.is_empty(), "statistics: of 0 pictures");
    let (channels, classes) = (dataset.shape()[2], dataset.classes().len());
    let chunk = |pictures: &[u64]| -> Result<(Vec<Channel>, Vec<u64>)> {
        let (mut sums, mut histogram) = (vec![Channel::EMPTY; channels], vec![0; classes]);
        let mut pixels = vec![0.0; dataset.shape().iter().product()];
        for &index in pictures {
            let label = dataset.read(index, &mut pixels)? as usize;
            if let Some(n) = histogram.get_mut(label) {
                *n += 1;
            }
            for pixel in pixels.chunks_exact(channels) {
                for (channel, &v) in sums.iter_mut().zip(pixel) {
                    let wide = f64::from(v);
                    *channel = channel.plus(&Channel { sum: wide, squares: wide * wide, min: v, max: v });
                }
            }
        }
        Ok((sums, histogram))
    };
    // Chunks have a fixed size and are added in order: the number of threads does not change the result.
    let chunks: Vec<_> = pictures.par_chunks(CHUNK).map(chunk).collect();
    let (mut total, mut histogram) = (vec![Channel::EMPTY; channels], vec![0; classes]);
    for sums in chunks {
        let (sums, labels) = sums?;
        total.iter_mut().zip(&sums).for_each(|(all, some)| *all = all.plus(some));
        histogram.iter_mut().zip(labels).for_each(|(all, some)| *all += some);
    }
    if let Some(labels) = dataset.labels() {
        histogram.fill(0);
        for label in labels {
            if let Some(n) = histogram.get_mut(label as usize) {
                *n += 1;
            }
        }
    }
    let pixels = (pictures.len() * dataset.shape()[0] * dataset.shape()[1]) as f64;
    let mean: Vec<f64> = total.iter().map(|c| c.sum / pixels).collect();
    let std = |(c, mean): (&Channel, &f64)| (c.squares / pixels - mean * mean).max(0.0).sqrt();
    let std = total.iter().zip(&mean).map(std).collect();
    let (min, max) = (total.iter().map(|c| c.min).collect(), total.iter().map(|c| c.max).collect());
    Ok(Statistics { count: pictures.len() as u64, mean, std, min, max, histogram })
}

/// Pictures added up at a time.
const CHUNK: usize = 64;

#[derive(Clone, Copy)]
struct Channel {
    sum: f64,
    squares: f64,
    min: f32,
    max: f32,
}

impl Channel {
    const EMPTY: Channel = Channel { sum: 0.0, squares: 0.0, min: f32::INFINITY, max: f32::NEG_INFINITY };

    fn plus(&self, other: &Channel) -> Channel {
        Channel {
            sum: self.sum + other.sum,
            squares: self.squares + other.squares,
            min: self.min.min(other.min),
            max: self.max.max(other.max),
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
        let all = statistics(&data, &choice(&data, 1000, 0)).unwrap();
        assert_eq!((all.count, &all.histogram), (101, &vec![34, 34, 33]));
        assert_eq!((&all.min, &all.max), (&vec![0.0, -1.0], &vec![0.0, 1.0]));
        // Mean of (i / 100)^2 for i = 0..=100 is 0.335.
        assert!(
            (all.std[1] - 0.335_f64.sqrt()).abs() < 1e-6 && all.mean[1].abs() < 1e-9 && all.std[0] == 0.0
        );
        assert_eq!(statistics(&data, &[0, 1, 2, 3]).unwrap().histogram, [2, 1, 1]);
        assert_eq!(statistics(&Ramp(vec![]), &[0, 100]).unwrap().histogram, [0; 0]);
    }

    #[test]
    fn a_choice_covers_the_whole_set_and_follows_its_seed() {
        let data = Ramp(vec![]);
        let chosen = choice(&data, 20, 7);
        assert!(chosen.len() == 20 && chosen.is_sorted_by(|a, b| a < b) && chosen[19] < 101, "{chosen:?}");
        assert!(chosen[..].iter().filter(|&&i| i >= 50).count() >= 4, "{chosen:?}");
        assert_eq!(chosen, choice(&data, 20, 7));
        assert_ne!(chosen, choice(&data, 20, 8));
        assert_eq!(choice(&data, 101, 7), (0..101).collect::<Vec<_>>());
    }

    #[test]
    fn known_labels_are_counted_over_the_whole_set() {
        struct Known(Ramp);
        impl Dataset for Known {
            fn len(&self) -> Option<u64> {
                self.0.len()
            }
            fn shape(&self) -> [usize; 3] {
                self.0.shape()
            }
            fn classes(&self) -> &[String] {
                self.0.classes()
            }
            fn labels(&self) -> Option<Vec<u32>> {
                Some((0..101).map(|i| i % 3).collect())
            }
            fn read(&self, index: u64, out: &mut [f32]) -> Result<u32> {
                self.0.read(index, out)
            }
        }
        let data = Known(Ramp(vec![String::new(); 3]));
        assert_eq!(statistics(&data, &[0, 3]).unwrap().histogram, [34, 34, 33]);
    }
}
