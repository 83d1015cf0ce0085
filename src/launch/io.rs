//! The data of a launch on the CPU device.

use std::cell::Cell;
use std::marker::PhantomData;

use half::f16;
use rayon::prelude::*;

use crate::simd::vectorized;

/// Elements that one task of an elementwise CPU twin takes: enough to pay for the task, few enough to stay
/// in the L2 cache.
pub(crate) const CHUNK: usize = 16_384;

/// A range of CPU memory, resolved when the program is compiled.
#[derive(Clone, Copy)]
pub(crate) struct Raw {
    pub start: *mut u8,
    pub elements: usize,
    /// Elements of 16 bits, which a launch that packs them widens itself.
    pub half: bool,
}

// SAFETY: plain memory; the plan of a program keeps accesses apart.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

/// Weights as their store has them.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// Of 32 bits.
    F32(&'a [f32]),
    /// Of 16 bits.
    F16(&'a [f16]),
}

impl Weights<'_> {
    /// Those from an element on.
    pub fn from(self, first: usize) -> Self {
        match self {
            Weights::F32(all) => Weights::F32(&all[first..]),
            Weights::F16(all) => Weights::F16(&all[first..]),
        }
    }
}

/// Working memory for one read of a launch in another order, packed once for all runs that find the read
/// unchanged.
pub struct Prepacked<'a> {
    /// The first block of scratch.
    pub memory: &'a mut [f32],
    /// The memory holds the packed read; otherwise the launch packs it.
    pub done: bool,
}

/// The data of one launch on the CPU device.
pub struct Io<'a> {
    reads: &'a [Raw],
    writes: &'a [Raw],
    scratch: &'a [Raw],
    /// Which writes and scratch blocks were handed out: each only once, so that no two `&mut` overlap.
    taken: Cell<u64>,
    prepacked: bool,
    lifetime: PhantomData<&'a mut f32>,
}

impl<'a> Io<'a> {
    /// `prepacked`: the first block of scratch holds what the last run packed of a read that is the same now.
    pub(crate) fn new(reads: &'a [Raw], writes: &'a [Raw], scratch: &'a [Raw], prepacked: bool) -> Self {
        assert!(writes.len() + scratch.len() <= 64, "a launch writes at most 64 tensors");
        Io { reads, writes, scratch, taken: Cell::new(0), prepacked, lifetime: PhantomData }
    }

    /// Read number `index`, of `f32`.
    pub fn read(&self, index: usize) -> &'a [f32] {
        let raw = self.reads[index];
        assert!(!raw.half, "read {index} has 16 bits: it is taken by `Io::weights`");
        // SAFETY: the compiled plan gives a launch reads that no write of it overlaps, inside blocks that
        // outlive it.
        unsafe { std::slice::from_raw_parts(raw.start.cast::<f32>(), raw.elements) }
    }

    /// Read number `index`, the one that
    /// [`LaunchInfo::prepacked_from`](super::LaunchInfo::prepacked_from) names.
    pub fn weights(&self, index: usize) -> Weights<'a> {
        let raw = self.reads[index];
        if !raw.half {
            return Weights::F32(self.read(index));
        }
        // SAFETY: as for `read`.
        Weights::F16(unsafe { std::slice::from_raw_parts(raw.start.cast::<f16>(), raw.elements) })
    }

    /// Read number `index`, of `u32`.
    pub fn read_u32(&self, index: usize) -> &'a [u32] {
        bytemuck::cast_slice(self.read(index))
    }

    /// Write number `index`, as the last launch left it.
    ///
    /// # Panics
    /// When the same one is asked for twice.
    #[allow(clippy::mut_from_ref, reason = "each index is handed out once, which is checked")]
    pub fn write(&self, index: usize) -> &'a mut [f32] {
        self.take(index, self.writes[index])
    }

    /// Block number `index` of scratch.
    ///
    /// # Panics
    /// When the same one is asked for twice.
    #[allow(clippy::mut_from_ref, reason = "each index is handed out once, which is checked")]
    pub fn scratch(&self, index: usize) -> &'a mut [f32] {
        self.take(self.writes.len() + index, self.scratch[index])
    }

    /// The first block of scratch, for the read that
    /// [`LaunchInfo::prepacked_from`](super::LaunchInfo::prepacked_from) names.
    ///
    /// # Panics
    /// When it is asked for twice.
    pub fn prepacked(&self) -> Prepacked<'a> {
        Prepacked { memory: self.scratch(0), done: self.prepacked }
    }

    /// Gives `f` the chunks of write 0 and of read 0, in parallel. `f` must be `#[inline(always)]`, as in
    /// [`vectorized`], and hold a `for` loop over local copies of all that it captures: what it would read
    /// through a reference in each turn keeps the loop from being vectorised.
    #[inline(always)]
    pub(crate) fn map(&self, f: impl Fn(&mut [f32], &[f32]) + Sync) {
        self.write(0).par_chunks_mut(CHUNK).zip(self.read(0).par_chunks(CHUNK)).for_each(|(y, x)| {
            vectorized(
                #[inline(always)]
                || f(y, x),
            );
        });
    }

    /// As [`Io::map`], of reads 0 and 1.
    #[inline(always)]
    pub(crate) fn map2(&self, f: impl Fn(&mut [f32], &[f32], &[f32]) + Sync) {
        let (a, b) = (self.read(0).par_chunks(CHUNK), self.read(1).par_chunks(CHUNK));
        self.write(0).par_chunks_mut(CHUNK).zip(a).zip(b).for_each(|((y, a), b)| {
            vectorized(
                #[inline(always)]
                || f(y, a, b),
            );
        });
    }

    #[allow(clippy::mut_from_ref, reason = "each bit is handed out once, which is checked")]
    fn take(&self, bit: usize, raw: Raw) -> &'a mut [f32] {
        let mask = 1_u64 << bit;
        assert!(self.taken.get() & mask == 0, "a write is handed out once");
        self.taken.set(self.taken.get() | mask);
        // SAFETY: handed out once, and disjoint from every other tensor of the launch by the compiled plan.
        unsafe { std::slice::from_raw_parts_mut(raw.start.cast::<f32>(), raw.elements) }
    }
}
