//! Products on the CPU: B packed into panels, times rows of A that are read where they stand.

#[cfg(target_arch = "x86_64")]
mod bf16;
mod gather;
pub mod multiply;
mod outer;
pub mod panels;
pub mod rows;
mod tile;
mod unrounded;
pub mod winograd;

#[cfg(test)]
mod tests;

use std::cell::RefCell;

use rayon::prelude::*;

use self::panels::panel_elements;
use self::tile::Extra;
use super::{Loader, Product};
use crate::launch::Io;
use crate::shared::split;
use crate::simd::vectorized;

impl Product {
    /// True where the sum runs along the rows of both tensors as they are stored.
    pub(super) fn is_outer(&self) -> bool {
        matches!(self.a, Loader::ConvWeights(_) | Loader::Transposed)
    }

    /// Working memory in elements: first what holds B packed or partial sums, then sums of columns.
    pub(super) fn cpu_scratch(&self) -> Vec<usize> {
        let first = match (self.a, winograd::suits(self)) {
            (Loader::ConvWeights(_), true) => self.winograd_weights_scratch(),
            (_, true) => winograd::PLACES * panel_elements(self.depth / 9, self.cols),
            _ if self.is_outer() => self.outer_deal().scratch(),
            _ => self.packed_elements(self.view().blocks),
        };
        vec![first, if self.column_sums { 2 * self.ranges() * self.cols } else { 0 }]
    }

    pub(super) fn run_on_cpu(&self, io: &Io) {
        let terms = self.epilogue.reads().map(|read| read.map(|i| io.read(i)));
        let extra = Extra { terms, cols: self.cols, pixels: self.epilogue.pixels };
        let (a, y) = (io.read(0), io.write(0));
        match (self.a, winograd::suits(self)) {
            (Loader::ConvWeights(_), true) => self.winograd_weights(a, io.read(1), y, io.scratch(0)),
            (_, true) => self.winograd(a, io.weights(1), y, extra, io.prepacked()),
            _ if self.is_outer() => self.outer(a, io.read(1), y, extra, io.scratch(0)),
            _ => self.gather(a, io.weights(1), y, extra, io.prepacked()),
        }
        if self.column_sums {
            self.sum_columns(io.read(1), bytemuck::cast_slice_mut(io.scratch(1)), io.write(1));
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
            partial.fill(0.0);
            add_rows(partial, b[from..to].chunks_exact(n));
        });
        for (col, sum) in sums.iter_mut().enumerate() {
            *sum = partials.iter().skip(col).step_by(n).sum::<f64>() as f32;
        }
    }
}

/// Adds each of the rows to the sums.
fn add_rows<'a>(sums: &mut [f64], rows: impl Iterator<Item = &'a [f32]>) {
    vectorized(
        #[inline(always)]
        || {
            for row in rows {
                for (sum, x) in sums.iter_mut().zip(row) {
                    *sum += f64::from(*x);
                }
            }
        },
    );
}

/// Working memory of a task, kept by its thread.
fn with_memory<const N: usize>(elements: [usize; N], work: impl FnOnce([&mut [f32]; N])) {
    thread_local! {
        static MEMORY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    MEMORY.with_borrow_mut(|memory| {
        let all = elements.iter().sum();
        memory.resize(memory.len().max(all), 0.0);
        work(split(&mut memory[..all], elements));
    });
}
