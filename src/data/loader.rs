//! The loader: which sample stands at which position of training, and threads that read ahead of the step.
//!
//! Position p = 0, 1, 2, ... counts the samples that training has seen. In a set of n pictures position p
//! shows number `permutation(seed, p / n)[p % n]` (where pictures stay together, a permutation of groups of
//! them); in an endless set it shows number p. Batch k holds the
//! positions from `first + k * batch` on, so batches run across the ends of epochs and are all full. All
//! of this is a pure function of (seed, p): neither the number of threads nor the position a run was
//! resumed at can change it.

use std::any::Any;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread::JoinHandle;

use super::Dataset;
use super::condition::{ConditionConfig, read_conditioned};
use super::order::Order;
pub use super::order::Positions;
use super::picture::mirror;
use crate::device::threads;
use crate::error::{Error, Result, lock};
use crate::ops::gather::MIRRORED;
use crate::philox::{Stream, draw, uniform};

/// Pictures for one step of training.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// `[N, H, W, C]` in [-1, 1], where there are conditions with their channels.
    pub images: Vec<f32>,
    /// `[N]`; 0 where the set has no labels.
    pub labels: Vec<u32>,
    /// `[N]`: their numbers in the set.
    pub samples: Vec<u64>,
}

/// Which pictures are for one step of training, where all of them lie on the device.
#[derive(Clone, Debug, PartialEq)]
pub struct Picks {
    /// `[N]`, with the bit [`MIRRORED`] where a picture is to be mirrored.
    pub samples: Vec<u32>,
    /// `[N]`; 0 where the set has no labels.
    pub labels: Vec<u32>,
}

/// Batches (or [`Picks`]) in order, made ahead in background threads. Dropping it ends and joins them.
///
/// ```
/// use denoir::data::{Loader, Options, Resize, Split, open};
/// # fn main() -> denoir::error::Result<()> {
/// let options = Options {
///     image_size: 16,
///     channels: Some(1),
///     crop: None,
///     resize: Resize::Bicubic,
///     seed: 0,
///     split: Split::Train,
/// };
/// let mut loader = Loader::new(open("digits", &options)?, 32, 0, false, 0)?;
/// let batch = loader.next()?;
/// assert_eq!((batch.images.len(), batch.labels.len()), (32 * 16 * 16, 32));
/// # Ok(())
/// # }
/// ```
pub struct Loader<B = Batch> {
    shared: Arc<Shared<B>>,
    threads: Vec<JoinHandle<()>>,
}

impl Loader<Picks> {
    /// The samples of the batches that [`Loader::new`] reads from a set of pictures with these labels, of
    /// which so many stay [`together`](Dataset::together).
    ///
    /// # Errors
    /// The system gives no thread.
    ///
    /// # Panics
    /// If `batch` or `together` is 0, or there are no labels, or more than 2^31.
    #[track_caller]
    pub fn picking(
        labels: Vec<u32>,
        together: u64,
        batch: usize,
        seed: u64,
        flip: bool,
        from: impl Into<Positions>,
    ) -> Result<Self> {
        assert!(!labels.is_empty() && labels.len() <= MIRRORED as usize, "Loader: {} labels", labels.len());
        let (order, from) = (Order::new(Some(labels.len() as u64), together, seed), from.into());
        let make = move |k: u64, _: &dyn Fn() -> bool| {
            let first = from.of(k, batch);
            let mut picks = Picks { samples: Vec::with_capacity(batch), labels: Vec::with_capacity(batch) };
            for (index, position) in order.samples(first, batch).into_iter().zip(first..) {
                let bit = if flip && mirrored(seed, position) { MIRRORED } else { 0 };
                picks.samples.push(index as u32 | bit);
                picks.labels.push(labels[index as usize]);
            }
            Ok(picks)
        };
        // It takes no time worth more threads; alone, a new epoch's order would make a step wait.
        Self::start(Box::new(make), batch, 1)
    }
}

impl Loader {
    /// Starts to read batches of `batch` samples `from` a position on (samples seen before: steps done times
    /// batch size), or at some [`Positions`]. `flip` mirrors half of the pictures, by (seed, position).
    ///
    /// # Errors
    /// The system gives no thread.
    ///
    /// # Panics
    /// If `batch` is 0.
    #[track_caller]
    pub fn new(
        dataset: Arc<dyn Dataset>,
        batch: usize,
        seed: u64,
        flip: bool,
        from: impl Into<Positions>,
    ) -> Result<Self> {
        // Decoding large photographs keeps eight cores busy ahead of any step; more would only hold memory.
        let threads = threads::cores().min(8);
        Self::pictures(dataset, false, batch, seed, flip, from.into(), threads)
    }

    /// As [`Loader::new`], with a square of each picture that (seed, position) chooses, instead of the one in
    /// its middle.
    ///
    /// # Errors
    /// As [`Loader::new`].
    ///
    /// # Panics
    /// As [`Loader::new`].
    #[track_caller]
    pub fn cropping(
        dataset: Arc<dyn Dataset>,
        batch: usize,
        seed: u64,
        flip: bool,
        from: impl Into<Positions>,
    ) -> Result<Self> {
        Self::pictures(dataset, true, batch, seed, flip, from.into(), threads::cores().min(8))
    }

    /// As [`Loader::new`], with the condition of each picture beside it: batches of `[N, H, W, C +
    /// condition's]`. It is made of the picture as it is mirrored, and its random numbers depend on (seed,
    /// position).
    ///
    /// # Errors
    /// As [`Loader::new`].
    ///
    /// # Panics
    /// As [`Loader::new`]; and in the threads when conditions are pairs and the data has none.
    #[track_caller]
    pub fn conditioned(
        dataset: Arc<dyn Dataset>,
        condition: ConditionConfig,
        batch: usize,
        seed: u64,
        flip: bool,
        from: impl Into<Positions>,
    ) -> Result<Self> {
        let ([h, w, c], order) = (dataset.shape(), Order::of(&*dataset, seed));
        let size = h * w * (c + condition.channels_of(c));
        let read = move |index: u64, position: u64, out: &mut [f32]| {
            let mirrored = flip && mirrored(seed, position);
            read_conditioned(&*dataset, &condition, index, mirrored, [seed, position], out)
        };
        Self::reading(read, order, size, batch, from.into(), threads::cores().min(8))
    }

    #[track_caller]
    fn pictures(
        dataset: Arc<dyn Dataset>,
        crop: bool,
        batch: usize,
        seed: u64,
        flip: bool,
        from: Positions,
        threads: usize,
    ) -> Result<Self> {
        let (shape, order) = (dataset.shape(), Order::of(&*dataset, seed));
        let read = move |index: u64, position: u64, out: &mut [f32]| {
            let label = if crop {
                let [_, across, down, _] = augmentation(seed, position);
                dataset.read_cropped(index, [across, down].map(uniform), out)?
            } else {
                dataset.read(index, out)?
            };
            if flip && mirrored(seed, position) {
                mirror(out, shape);
            }
            Ok(label)
        };
        Self::reading(read, order, shape.iter().product(), batch, from, threads)
    }

    /// `read`: writes picture `index`, at a position of training, and returns its label.
    #[track_caller]
    fn reading(
        read: impl Fn(u64, u64, &mut [f32]) -> Result<u32> + Send + Sync + 'static,
        order: Order,
        size: usize,
        batch: usize,
        from: Positions,
        threads: usize,
    ) -> Result<Self> {
        let make = move |k: u64, stop: &dyn Fn() -> bool| {
            let first = from.of(k, batch);
            let (mut images, mut labels) = (vec![0.0; batch * size], Vec::with_capacity(batch));
            let samples = order.samples(first, batch);
            for ((out, &index), position) in images.chunks_exact_mut(size).zip(&samples).zip(first..) {
                if stop() {
                    break;
                }
                labels.push(read(index, position, out)?);
            }
            Ok(Batch { images, labels, samples })
        };
        Self::start(Box::new(make), batch, threads)
    }
}

impl<B: Send + 'static> Loader<B> {
    #[track_caller]
    fn start(make: Make<B>, batch: usize, threads: usize) -> Result<Self> {
        assert!(batch > 0, "Loader: a batch of 0 samples");
        let shared = Arc::new(Shared {
            make,
            ahead: threads as u64 + 2,
            state: Mutex::new(State { next_made: 0, next_taken: 0, ready: BTreeMap::new(), stop: false }),
            changed: Condvar::new(),
        });
        let mut loader = Loader { shared, threads: Vec::new() };
        for i in 0..threads {
            let shared = Arc::clone(&loader.shared);
            match threads::spawn(format!("data-{i}"), "read the data", move || shared.work()) {
                Ok(thread) => loader.threads.push(thread),
                Err(_) if i > 0 => break, // Fewer threads read as correctly, only slower.
                Err(error) => return Err(error),
            }
        }
        Ok(loader)
    }

    /// The next batch; waits for it if the threads are behind.
    ///
    /// # Errors
    /// The data can no longer be read. The call after that goes on with the following batch.
    // Not an iterator: it never ends, and its errors are to be looked at, not collected.
    #[allow(clippy::should_implement_trait)]
    pub fn next(&mut self) -> Result<B> {
        let mut state = lock(&self.shared.state);
        loop {
            let wanted = state.next_taken;
            if let Some(batch) = state.ready.remove(&wanted) {
                state.next_taken += 1;
                self.shared.changed.notify_all();
                return batch;
            }
            state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl<B> Drop for Loader<B> {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.changed.notify_all();
        for thread in self.threads.drain(..) {
            // A thread catches the panics of the functions that it calls.
            let _ = thread.join();
        }
    }
}

/// Makes batch `k`; may return a partial batch once `stop` returns true, as it is then dropped.
type Make<B> = Box<dyn Fn(u64, &dyn Fn() -> bool) -> Result<B> + Send + Sync>;

struct Shared<B> {
    make: Make<B>,
    /// Batches that may be made beyond the one that training waits for.
    ahead: u64,
    state: Mutex<State<B>>,
    /// Told whenever `state` changes.
    changed: Condvar,
}

struct State<B> {
    next_made: u64,
    next_taken: u64,
    ready: BTreeMap<u64, Result<B>>,
    stop: bool,
}

impl<B> Shared<B> {
    /// The loop of a thread: take the number of a batch, make it, add it to `ready`.
    fn work(&self) {
        loop {
            let mut state = lock(&self.state);
            while !state.stop && state.next_made >= state.next_taken + self.ahead {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.stop {
                return;
            }
            let k = state.next_made;
            state.next_made += 1;
            drop(state);
            // Without this a panic in a decoder would leave `next` waiting for ever.
            let made = catch_unwind(AssertUnwindSafe(|| (self.make)(k, &|| lock(&self.state).stop)));
            let batch = made.unwrap_or_else(|panic| {
                Err(Error::new("reading the data failed inside the program")
                    .hint("this is a mistake in denoir or a decoder, please report it")
                    .caused_by(panic_text(panic.as_ref())))
            });
            lock(&self.state).ready.insert(k, batch);
            self.changed.notify_all();
        }
    }
}

/// The message of a panic.
pub(super) fn panic_text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| (*s).to_owned());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".to_owned())
}

/// True if the picture at a position is mirrored: half of them are.
fn mirrored(seed: u64, position: u64) -> bool {
    augmentation(seed, position)[0] >> 31 == 1
}

/// Random words for what is done to the picture at a position.
fn augmentation(seed: u64, position: u64) -> [u32; 4] {
    draw(seed, Stream::Augment as u32, (position >> 32) as u32, position as u32, 0)
}

#[cfg(test)]
#[path = "loader_tests.rs"]
mod tests;
