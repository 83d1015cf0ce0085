//! The order in which training meets the samples of a data set.

use std::sync::{Arc, Mutex};

use super::Dataset;
use super::rng::below;
use crate::error::lock;
use crate::philox::{Sequence, Stream};

/// Which positions of training the batches of a loader show.
#[derive(Clone, Copy, Debug)]
pub struct Positions {
    /// That of the first batch's first sample.
    pub first: u64,
    /// From the first sample of a batch to that of the next; `None`: as many as a batch has.
    pub stride: Option<u64>,
}

impl From<u64> for Positions {
    fn from(first: u64) -> Positions {
        Positions { first, stride: None }
    }
}

impl Positions {
    /// Position of the first sample of batch `k` of so many.
    pub(super) fn of(&self, k: u64, batch: usize) -> u64 {
        self.first + k * self.stride.unwrap_or(batch as u64)
    }
}

/// The sample at each position.
pub(super) struct Order {
    len: Option<u64>,
    /// Samples that follow one another, in the order of their numbers.
    together: u64,
    seed: u64,
    /// The permutations in use, newest last. Batches being made lie in one or two epochs as a rule.
    epochs: Mutex<Vec<(u64, Arc<Vec<u32>>)>>,
}

impl Order {
    /// `together`: a divisor of `len`.
    pub(super) fn new(len: Option<u64>, together: u64, seed: u64) -> Order {
        Order { len, together, seed, epochs: Mutex::default() }
    }

    pub(super) fn of(data: &dyn Dataset, seed: u64) -> Order {
        Order::new(data.len(), data.together(), seed)
    }

    pub(super) fn samples(&self, first: u64, count: usize) -> Vec<u64> {
        let positions = first..first + count as u64;
        let Some(len) = self.len else { return positions.collect() };
        let mut current = (u64::MAX, Arc::default());
        let sample = |p: u64| {
            let epoch = p / len;
            if current.0 != epoch {
                current = (epoch, self.permutation(epoch, (len / self.together) as usize));
            }
            let group = current.1[(p % len / self.together) as usize];
            u64::from(group) * self.together + p % self.together
        };
        positions.map(sample).collect()
    }

    fn permutation(&self, epoch: u64, len: usize) -> Arc<Vec<u32>> {
        let mut epochs = lock(&self.epochs);
        if let Some((_, known)) = epochs.iter().find(|(e, _)| *e == epoch) {
            return Arc::clone(known);
        }
        if epochs.len() == 3 {
            epochs.remove(0);
        }
        let made = Arc::new(permutation(self.seed, epoch, len));
        epochs.push((epoch, Arc::clone(&made)));
        made
    }
}

/// The order of `0..len` in an epoch (Fisher and Yates, as in Knuth's algorithm P).
pub(super) fn permutation(seed: u64, epoch: u64, len: usize) -> Vec<u32> {
    let mut rng = Sequence::new(seed, Stream::Shuffle, epoch as u32, (epoch >> 32) as u32);
    let mut order: Vec<u32> = (0..len as u32).collect();
    for i in (1..len).rev() {
        order.swap(i, below(&mut rng, i + 1));
    }
    order
}
