//! Products on the CPU: B packed into panels, times rows of A that are read where they stand.

mod gather;
mod outer;
pub mod panels;
pub mod shared;
pub mod tile;
pub mod winograd;

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use self::tile::Extra;
use super::{Loader, Product};
use crate::launch::Io;
use crate::simd::vectorized;

/// Elements of a task of element-wise work.
const CHUNK: usize = 16_384;

/// How a product is computed on the CPU.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Path {
    /// B packed, rows of A gathered.
    Gather,
    /// A is copied to rows first.
    Transpose,
    /// Sums of outer products.
    Outer,
    Winograd,
    WinogradWeights,
}

impl Product {
    fn path(&self) -> Path {
        match self.a {
            Loader::ConvWeights(_) if winograd::suits(self) => Path::WinogradWeights,
            _ if winograd::suits(self) => Path::Winograd,
            Loader::ConvWeights(_) => Path::Outer,
            Loader::Transposed { .. } if self.b == Loader::Dense => Path::Outer,
            Loader::Transposed { .. } => Path::Transpose,
            _ => Path::Gather,
        }
    }

    /// Working memory in elements: first what holds B packed, then the rest.
    pub(super) fn cpu_scratch(&self) -> Vec<usize> {
        let first = match (self.path(), self.a) {
            (Path::Winograd, _) => self.winograd_packed(),
            (Path::WinogradWeights, Loader::ConvWeights(g)) => winograd::backward_w_scratch(&g),
            (Path::Outer, _) => self.outer_scratch(),
            _ => self.packed_elements(),
        };
        let transposed = if self.path() == Path::Transpose { self.batch * self.rows * self.depth } else { 0 };
        let column_sums = if self.column_sums { 2 * self.ranges() * self.cols } else { 0 };
        vec![first, transposed, column_sums]
    }

    /// The read that is packed into the first block of working memory.
    pub(super) fn prepacked_from(&self) -> Option<usize> {
        matches!(self.path(), Path::Gather | Path::Winograd | Path::Transpose).then_some(1)
    }

    pub(super) fn run_on_cpu(&self, io: &Io) {
        let [bias, shift, residual] = self.epilogue.reads().map(|read| read.map(|i| io.read(i)));
        let extra = Extra { bias, shift, residual, cols: self.cols, pixels: self.epilogue.pixels };
        let (a, b, y) = (io.read(0), io.read(1), io.write(0));
        match (self.path(), self.a) {
            (Path::Winograd, _) => self.winograd(a, b, y, extra, io.prepacked()),
            (Path::WinogradWeights, Loader::ConvWeights(g)) => {
                winograd::backward_w(&g, a, b, y, io.scratch(0))
            }
            (Path::Outer, _) => self.outer(a, b, y, extra, io.scratch(0)),
            (Path::Transpose, _) => {
                let rows = io.scratch(1);
                self.transpose_a(a, rows);
                Product { a: Loader::Dense, ..*self }.gather(rows, b, y, extra, io.prepacked());
            }
            _ => self.gather(a, b, y, extra, io.prepacked()),
        }
        if self.column_sums {
            self.sum_columns(b, bytemuck::cast_slice_mut(io.scratch(2)), io.write(1));
        }
    }

    fn transpose_a(&self, a: &[f32], rows: &mut [f32]) {
        let (m, k) = (self.rows, self.depth);
        for (a, rows) in a.chunks_exact(k * m).zip(rows.chunks_exact_mut(m * k)) {
            rows.par_chunks_exact_mut(k).enumerate().for_each(|(i, row)| {
                row.iter_mut().zip(a[i..].iter().step_by(m)).for_each(|(y, x)| *y = *x);
            });
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
                        partial.iter_mut().zip(row).for_each(|(sum, x)| *sum += f64::from(*x));
                    }
                },
            );
        });
        for (col, sum) in sums.iter_mut().enumerate() {
            *sum = partials.iter().skip(col).step_by(n).sum::<f64>() as f32;
        }
    }
}

/// Splits a slice into parts of so many elements.
pub fn split<const N: usize>(mut data: &mut [f32], elements: [usize; N]) -> [&mut [f32]; N] {
    elements.map(|elements| {
        let (part, rest) = std::mem::take(&mut data).split_at_mut(elements);
        data = rest;
        part
    })
}
