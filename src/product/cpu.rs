//! Products on the CPU: B packed into panels, times rows of A that are read where they stand.

mod gather;
mod outer;
pub mod panels;
pub mod shared;
pub mod tile;
pub mod winograd;

#[cfg(test)]
mod tests;

use std::cell::RefCell;

use rayon::prelude::*;

use self::tile::Extra;
use super::{Geometry, Loader, Product};
use crate::launch::Io;
use crate::simd::vectorized;

impl Product {
    /// The convolution that A is of; a matrix is an image one pixel wide, with one tap.
    fn geometry(&self) -> Geometry {
        match self.a {
            Loader::Conv(g) | Loader::ConvAdjoint(g) | Loader::ConvWeights(g) => g,
            Loader::Dense => Geometry::point(self.rows, self.depth, self.cols),
            Loader::Transposed { .. } => Geometry::point(self.depth, self.rows, self.cols),
        }
    }

    /// True where the sum runs along the rows of both tensors as they are stored.
    fn is_outer(&self) -> bool {
        matches!(self.a, Loader::ConvWeights(_) | Loader::Transposed { .. })
    }

    /// Working memory in elements: first what holds B packed or partial sums, then sums of columns.
    pub(super) fn cpu_scratch(&self) -> Vec<usize> {
        let first = match (self.a, winograd::suits(self)) {
            (Loader::ConvWeights(_), true) => self.winograd_weights_scratch(),
            (_, true) => self.winograd_packed(),
            _ if self.is_outer() => self.outer_deal().scratch(),
            _ => self.packed_elements(),
        };
        vec![first, if self.column_sums { 2 * self.ranges() * self.cols } else { 0 }]
    }

    /// The read that is packed into the first block of working memory.
    pub(super) fn prepacked_from(&self) -> Option<usize> {
        (!self.is_outer()).then_some(1)
    }

    pub(super) fn run_on_cpu(&self, io: &Io) {
        let [bias, shift, residual] = self.epilogue.reads().map(|read| read.map(|i| io.read(i)));
        let extra = Extra { bias, shift, residual, cols: self.cols, pixels: self.epilogue.pixels };
        let (a, b, y) = (io.read(0), io.read(1), io.write(0));
        match (self.a, winograd::suits(self)) {
            (Loader::ConvWeights(_), true) => self.winograd_weights(a, b, y, io.scratch(0)),
            (_, true) => self.winograd(a, b, y, extra, io.prepacked()),
            _ if self.is_outer() => self.outer(a, b, y, extra, io.scratch(0)),
            _ => self.gather(a, b, y, extra, io.prepacked()),
        }
        if self.column_sums {
            self.sum_columns(b, bytemuck::cast_slice_mut(io.scratch(1)), io.write(1));
        }
    }

    /// Ranges of k that tasks sum the columns of B over.
    fn ranges(&self) -> usize {
        (self.depth / 64).clamp(1, 32)
    }

    /// In f64, because gradients of what a norm follows nearly cancel.
    fn sum_columns(&self, b: &[f32], partials: &mut [f64], sums: &mut [f32]) {
        let (n, ranges) = (self.cols, self.ranges());
        partials.par_chunks_mut(n).enumerate().for_each(|(i, partial)| {
            let [from, to] = [i, i + 1].map(|i| i * self.depth / ranges * n);
            vectorized(
                #[inline(always)]
                || {
                    partial.fill(0.0);
                    for row in b[from..to].chunks_exact(n) {
                        for (sum, x) in partial.iter_mut().zip(row) {
                            *sum += f64::from(*x);
                        }
                    }
                },
            );
        });
        for (col, sum) in sums.iter_mut().enumerate() {
            *sum = partials.iter().skip(col).step_by(n).sum::<f64>() as f32;
        }
    }
}

/// Working memory of a task, kept by its thread.
fn with_memory<const N: usize>(elements: [usize; N], work: impl FnOnce([&mut [f32]; N])) {
    thread_local! {
        static MEMORY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    MEMORY.with_borrow_mut(|memory| {
        let all = elements.iter().sum();
        if memory.len() < all {
            memory.resize(all, 0.0);
        }
        work(split(&mut memory[..all], elements));
    });
}

/// Splits a slice into parts of so many elements.
pub fn split<const N: usize>(mut data: &mut [f32], elements: [usize; N]) -> [&mut [f32]; N] {
    elements.map(|elements| {
        let (part, rest) = std::mem::take(&mut data).split_at_mut(elements);
        data = rest;
        part
    })
}
