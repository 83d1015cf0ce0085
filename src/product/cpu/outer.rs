//! Products whose sum runs along the rows of both tensors as they are stored: sums of outer products of rows.
//! The gradient of a convolution's weights, whose rows are pixels; with one tap, of a matrix product's second
//! factor.

use std::iter;
use std::ops::Range;

use rayon::prelude::*;

use super::multiply::multiply;
use super::panels::{Panels, Source, Taps, copy_short, panel};
use super::rows::Rows;
use super::tile::{Extra, Target};
use super::{add_rows, with_memory};
use crate::launch::Weights;
use crate::product::{Geometry, Loader, Product};
use crate::shared::Shared;

/// Rows and columns of the result that a task takes at most: what it reads and adds to stays in the
/// second-level cache. With several taps, and with one.
pub const BLOCK: [usize; 2] = [64, 64];
const BLOCK_OF_ONE_TAP: [usize; 2] = [192, 256];

/// A smaller block is mostly packing.
const LEAST: usize = 64;

/// Tasks that keep many cores busy, and fewer that still do.
const WANTED: usize = 24;
const FEW_TASKS: usize = 8;

/// Pixels whose products are added up in one chain, about; and in one partial sum at least, where there is
/// one tap.
const CHAIN: usize = 128;
const SHORTEST: usize = 512;

/// How sums that are long and few are dealt out to tasks: by blocks of rows and columns, and by partial sums,
/// which are added up in order. Depends on the shape alone, since the order of the sums depends on it.
pub struct Deal {
    items: usize,
    /// Matrices `[rows, cols]` of an item.
    taps: usize,
    sizes: [usize; 2],
    /// Rows and columns of a block.
    block: [usize; 2],
    /// Each sum is one of so many chains.
    chains: usize,
    partials: usize,
}

impl Deal {
    /// In at most `most` partial sums.
    pub fn new(items: usize, taps: usize, sizes: [usize; 2], chains: usize, most: usize) -> Deal {
        let limits = if taps == 1 { BLOCK_OF_ONE_TAP } else { BLOCK };
        let mut counts = [0, 1].map(|i: usize| sizes[i].div_ceil(limits[i]));
        let tasks = |counts: [usize; 2]| counts[0] * counts[1] * items;
        let partials = WANTED.div_ceil(tasks(counts)).min(most).min(chains).max(1);
        // Blocks of one size, and more than one or two, so that no core waits for the last of them.
        while taps == 1 && tasks(counts) * partials < FEW_TASKS {
            let side = |i: usize| sizes[i] / counts[i];
            let longer = usize::from(side(1) > side(0));
            if side(longer) < 2 * LEAST {
                break;
            }
            counts[longer] += 1;
        }
        // Whole vectors and panels of any machine, which may leave one block less.
        let block = [0, 1].map(|i: usize| sizes[i].div_ceil(counts[i]).next_multiple_of([16, 32][i]));
        Deal { items, taps, sizes, block, chains, partials }
    }

    /// Elements of the partial sums after the first.
    pub fn scratch(&self) -> usize {
        (self.partials - 1) * self.items * self.taps * self.sizes[0] * self.sizes[1]
    }

    /// Writes y `[items, taps, rows, cols]`. `work` is given an item, a chain, rows and columns, and calls
    /// its last argument with each tap and the factors of that part of the sum.
    pub fn run(
        &self,
        y: &mut [f32],
        scratch: &mut [f32],
        work: impl Fn(usize, usize, [Range<usize>; 2], &dyn Fn(usize, Rows, Panels)) + Sync,
    ) {
        let Deal { items, taps, sizes: [rows, cols], block, chains, partials } = *self;
        let [down, across] = [rows.div_ceil(block[0]), cols.div_ceil(block[1])];
        let (first, others) = (Shared::new(y), Shared::new(scratch));
        (0..partials * items * down * across).into_par_iter().for_each(|task| {
            let (stack, i) = (task / across / down, task / across % down * block[0]);
            let j = task % across * block[1];
            let (partial, item) = (stack / items, stack % items);
            let (dst, stack) = if partial == 0 { (first, item) } else { (others, stack - items) };
            let start = partial * chains / partials;
            for chain in start..(partial + 1) * chains / partials {
                let add = |tap: usize, a: Rows, b: Panels| {
                    let first = (stack * taps + tap) * rows + i;
                    let (keep, extra) = (chain > start, Extra::default());
                    let target = Target { dst, first, rows: None, stride: cols, col: j, keep, extra };
                    // SAFETY: every task has rows and columns, or a partial sum, of its own.
                    unsafe { multiply(a, b, &target) };
                };
                work(item, chain, [i..rows.min(i + block[0]), j..cols.min(j + block[1])], &add);
            }
        });
        if partials > 1 {
            add_partials(y, scratch);
        }
    }
}

/// `y += the sum of the partials`, each as long as y, in their order.
fn add_partials(y: &mut [f32], partials: &[f32]) {
    const COUNT: usize = 256;
    let count = y.len();
    y.par_chunks_mut(COUNT).with_min_len(64).enumerate().for_each(|(block, y)| {
        let mut sums = [-0.0; COUNT]; // to which -0 may be added too
        let partials = partials.chunks_exact(count).map(|partial| &partial[block * COUNT..][..y.len()]);
        add_rows(&mut sums, iter::once(&*y).chain(partials));
        for (y, sum) in y.iter_mut().zip(&sums) {
            *y = *sum as f32;
        }
    });
}

/// Pixels of a chain, whole rows.
fn chain_pixels(g: &Geometry) -> usize {
    (CHAIN / g.ow).clamp(1, g.n * g.oh) * g.ow
}

impl Product {
    pub(super) fn outer_deal(&self) -> Deal {
        let g = self.geometry();
        let chains = self.depth.div_ceil(chain_pixels(&g));
        let most = if g.taps() == 1 { self.depth / SHORTEST } else { chains };
        Deal::new(self.batch, g.taps(), [g.cin, g.cout], chains, if self.split_k { most } else { 1 })
    }

    /// `y[(kh, kw, i), j] = sum over the pixels of a[.., i] * b[.., j]`, with zeros where the tap lies
    /// outside the image.
    pub(super) fn outer(&self, a: &[f32], b: &[f32], y: &mut [f32], extra: Extra, scratch: &mut [f32]) {
        let (g, class) = (self.geometry(), self.class(0));
        let chain_pixels = chain_pixels(&g);
        self.outer_deal().run(y, scratch, |item, chain, [rows, cols], add| {
            let pixels = chain * chain_pixels..self.depth.min((chain + 1) * chain_pixels);
            let (first, count, c) = (pixels.start, pixels.len(), rows.len());
            let (a, b) = (&a[item * self.depth * self.rows..], &b[item * self.depth * self.cols..]);
            let transposed = self.b != Loader::Dense;
            let [pixel, stride] = if transposed { [1, self.depth] } else { [self.cols; 2] };
            let data = &b[first * pixel..];
            let b = Source {
                data: Weights::F32(data),
                cols: self.cols,
                stride,
                block: count,
                blocks: Taps::ONE,
                transposed,
            };
            let panel = panel(cols.len());
            // The rows of several taps follow one another in y where all their channels are in the block.
            let taps_at_once = if c == g.cin { (BLOCK[0] / c).clamp(1, g.taps()) } else { 1 };
            // An odd number of lines of the cache: else the pixels would fall into the same few sets of it.
            let row = (taps_at_once * c).next_multiple_of(32) + 16;
            with_memory([count * row, count * cols.len().next_multiple_of(panel)], |[a_rows, panels]| {
                b.columns(cols.start, cols.len(), panel, panels);
                let b = Panels::packed(panels, count, cols.len(), panel);
                let runs = class.runs(a, pixels);
                for (group, starts) in runs.starts.chunks(taps_at_once * count).enumerate() {
                    for (tap, starts) in starts.chunks(count).enumerate() {
                        for (out, start) in a_rows.chunks_exact_mut(row).zip(starts) {
                            // SAFETY: a run has the channels of a pixel.
                            let x = unsafe { std::slice::from_raw_parts(start.add(rows.start), c) };
                            copy_short(&mut out[tap * c..][..c], x);
                        }
                    }
                    let rows = starts.len() / count * c;
                    add(group * taps_at_once, Rows::matrix(a_rows, [rows, count], [1, row]), b);
                }
            });
        });
        if extra.any() {
            y.par_chunks_mut(self.cols).enumerate().for_each(|(row, y)| extra.add(row, 0, y));
        }
    }
}
