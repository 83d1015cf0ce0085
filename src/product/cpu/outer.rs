//! Products whose sum runs along the rows of both tensors as they are stored: sums of outer products of rows.
//! The gradient of a convolution's weights, whose rows are pixels; with one tap, of a matrix product's second
//! factor.

use std::cell::RefCell;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::CHUNK;
use super::shared::Shared;
use super::tile::{Extra, multiply_add};

use crate::product::{Geometry, Loader, Product};
use crate::simd::vectorized;

/// Channels of the image and of the result that a task takes at most: what it reads and adds to stays in the
/// second-level cache. With several taps, and with one.
const BLOCK: [usize; 2] = [64, 64];
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

/// How a product is dealt out. Depends on the shape alone, since the order of the sums depends on it.
struct Deal {
    g: Geometry,
    items: usize,
    /// Partial sums over the pixels, which are added up in order.
    partials: usize,
    /// Rows of pixels of a chain, and the number of chains.
    chain_rows: usize,
    chains: usize,
    /// Channels of a block on either side, and the number of blocks.
    block: [usize; 2],
    counts: [usize; 2],
}

impl Deal {
    fn of(p: &Product) -> Deal {
        let g = match p.a {
            Loader::ConvWeights(g) => g,
            // An image one pixel wide.
            _ => Geometry::point(p.depth, p.rows, p.cols),
        };
        let (sizes, lines) = ([g.cin, g.cout], g.n * g.oh);
        let chain_rows = (CHAIN / g.ow).clamp(1, lines);
        let chains = lines.div_ceil(chain_rows);
        let one_tap = g.taps() == 1;
        let limits = if one_tap { BLOCK_OF_ONE_TAP } else { BLOCK };
        let mut counts = [0, 1].map(|i: usize| sizes[i].div_ceil(limits[i]));
        let most = if one_tap { lines * g.ow / SHORTEST } else { chains };
        let tasks = |counts: [usize; 2]| counts[0] * counts[1] * p.batch;
        let partials = if p.split_k { WANTED.div_ceil(tasks(counts)).min(most).max(1) } else { 1 };
        // Blocks of one size, and more than one or two, so that no core waits for the last of them.
        while one_tap && tasks(counts) * partials < FEW_TASKS {
            let side = |i: usize| sizes[i] / counts[i];
            let longer = usize::from(side(1) > side(0));
            if side(longer) < 2 * LEAST {
                break;
            }
            counts[longer] += 1;
        }
        // Whole tiles, which may leave one block less.
        let block = [0, 1].map(|i: usize| sizes[i].div_ceil(counts[i]).next_multiple_of([8, 32][i]));
        let counts = [0, 1].map(|i: usize| sizes[i].div_ceil(block[i]));
        Deal { g, items: p.batch, partials, chain_rows, chains, block, counts }
    }

    /// The sums of one task: `dst` has its taps and rows as the gradient of all the weights has them.
    fn chains(&self, chains: Range<usize>, a: Side, b: Side, dst: Shared, first: usize) {
        thread_local! {
            static MEMORY: RefCell<Memory> = RefCell::default();
        }
        let g = &self.g;
        MEMORY.with_borrow_mut(|memory| {
            for chain in chains.clone() {
                let lines = chain * self.chain_rows..((chain + 1) * self.chain_rows).min(g.n * g.oh);
                memory.find_runs(g, lines.clone());
                let last = ((g.taps() - 1) * g.cin + a.cols - 1) * g.cout + b.cols;
                let outer = Outer {
                    a,
                    b,
                    b_rows: lines.start * g.ow..lines.end * g.ow,
                    g,
                    keep: chain > chains.start,
                    dst: dst.pointer(first, last),
                    memory,
                };
                Arch::new().dispatch(outer);
            }
        });
    }
}

impl Product {
    /// Elements of the partial sums of [`Product::outer`].
    pub(super) fn outer_scratch(&self) -> usize {
        match Deal::of(self).partials {
            1 => 0,
            partials => partials * self.outputs(),
        }
    }

    /// `y[(kh, kw, i), j] = sum over the pixels of a[.., i] * b[.., j]`, those where the tap lies in the
    /// image.
    pub(super) fn outer(&self, a: &[f32], b: &[f32], y: &mut [f32], extra: Extra, scratch: &mut [f32]) {
        let deal = Deal::of(self);
        let Deal { g, items, partials, block, counts, chains, .. } = &deal;
        let tasks = counts[0] * counts[1];
        let out = if *partials == 1 { Shared::new(y) } else { Shared::new(scratch) };
        (0..partials * items * tasks).into_par_iter().for_each(|task| {
            let (stack, task) = (task / tasks, task % tasks);
            let (partial, item) = (stack / items, stack % items);
            let (i, j) = (task / counts[1] * block[0], task % counts[1] * block[1]);
            let [a, b] = [(a, g.cin), (b, g.cout)].map(|(x, stride)| {
                let rows = x.len() / items / stride;
                (&x[item * rows * stride..][..rows * stride], stride)
            });
            let a = Side { data: a.0, stride: a.1, first: i, cols: block[0].min(g.cin - i) };
            let b = Side { data: b.0, stride: b.1, first: j, cols: block[1].min(g.cout - j) };
            // Every task has channels, or a partial sum, of its own.
            let chains = partial * chains / partials..(partial + 1) * chains / partials;
            deal.chains(chains, a, b, out, stack * self.rows * self.cols + i * self.cols + j);
        });
        if *partials > 1 {
            sum_partials(scratch, y);
        }
        if extra.bias.is_some() || extra.residual.is_some() {
            y.par_chunks_mut(self.cols).enumerate().for_each(|(row, y)| extra.add(row, 0, y));
        }
    }
}

/// `y = the sum of the partials`, each as long as y, in their order.
fn sum_partials(partials: &[f32], y: &mut [f32]) {
    const BLOCK: usize = 256;
    let count = y.len();
    y.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, y)| {
        vectorized(
            #[inline(always)]
            || {
                for (block, y) in y.chunks_mut(BLOCK).enumerate() {
                    let first = chunk * CHUNK + block * BLOCK;
                    let mut sums = [0.0_f64; BLOCK];
                    for partial in partials.chunks_exact(count) {
                        for (sum, x) in sums.iter_mut().zip(&partial[first..first + y.len()]) {
                            *sum += f64::from(*x);
                        }
                    }
                    y.iter_mut().zip(&sums).for_each(|(y, sum)| *y = *sum as f32);
                }
            },
        );
    });
}

/// One side of a sum of outer products: a matrix of rows of `stride` elements, of which the columns
/// `first .. first + cols` count.
#[derive(Clone, Copy)]
struct Side<'a> {
    data: &'a [f32],
    stride: usize,
    first: usize,
    cols: usize,
}

impl Side<'_> {
    /// Copies `rows` of up to `width` columns from `col` on, padded with zeros: a tile reads them in order,
    /// where rows far apart would fall into the same few lines of the cache.
    #[inline(always)]
    fn pack(&self, rows: &Range<usize>, col: usize, width: usize, out: &mut [f32]) {
        let cols = width.min(self.cols - col);
        let rows = self.data[rows.start * self.stride..rows.end * self.stride].chunks_exact(self.stride);
        for (row, out) in rows.zip(out.chunks_exact_mut(width)) {
            let row = &row[self.first + col..][..cols];
            if cols == width {
                out.copy_from_slice(row);
            } else {
                out[..cols].copy_from_slice(row);
                out[cols..].fill(0.0);
            }
        }
    }
}

/// Pixels that lie side by side: `count` of the result from `b` on meet those of the image from `a` on, of
/// which every `stride`-th counts.
#[derive(Clone, Copy, Debug)]
struct Run {
    a: usize,
    b: usize,
    count: usize,
}

/// Kept by each thread from one use to the next.
#[derive(Default)]
struct Memory {
    runs: Vec<Run>,
    /// Which runs each tap has.
    taps: Vec<Range<usize>>,
    /// Pixels of the image that any run has.
    a_rows: Range<usize>,
    packed: [Vec<f32>; 2],
}

impl Memory {
    /// The runs of some rows of pixels (of all images) of the result.
    fn find_runs(&mut self, g: &Geometry, lines: Range<usize>) {
        let Memory { runs, taps, .. } = self;
        runs.clear();
        taps.clear();
        for tap in 0..g.taps() {
            let before = runs.len();
            for run in lines.clone().filter_map(|line| run_of(g, line, tap / g.kw, tap % g.kw)) {
                match runs[before..].last_mut() {
                    Some(last) if last.a + last.count * g.stride == run.a && last.b + last.count == run.b => {
                        last.count += run.count;
                    }
                    _ => runs.push(run),
                }
            }
            taps.push(before..runs.len());
        }
        let first = runs.iter().map(|run| run.a).min().unwrap_or(0);
        self.a_rows = first..runs.iter().map(|run| run.a + (run.count - 1) * g.stride + 1).max().unwrap_or(0);
    }
}

/// The pixels of row `line` of the result that have tap (kh, kw) in the image.
fn run_of(g: &Geometry, line: usize, kh: usize, kw: usize) -> Option<Run> {
    // Columns from..to have 0 <= ow * stride + kw - left < w.
    let from = g.left.saturating_sub(kw).div_ceil(g.stride);
    let to = (g.w + g.left).saturating_sub(kw).div_ceil(g.stride).min(g.ow);
    let count = to.checked_sub(from).filter(|&count| count > 0)?;
    let b = line * g.ow + from;
    Some(Run { a: g.under(b, kh, kw)?, b, count })
}

struct Outer<'a> {
    a: Side<'a>,
    b: Side<'a>,
    b_rows: Range<usize>,
    g: &'a Geometry,
    keep: bool,
    dst: *mut f32,
    memory: &'a mut Memory,
}

impl WithSimd for Outer<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 { self.all::<S, 8>(simd) } else { self.all::<S, 4>(simd) }
    }
}

impl Outer<'_> {
    /// In tiles of `M` of A's columns.
    #[inline(always)]
    fn all<S: Simd, const M: usize>(self, simd: S) {
        let a_rows = self.memory.a_rows.clone();
        let [mut packed_a, mut packed_b] = std::mem::take(&mut self.memory.packed);
        let tile = a_rows.len() * M;
        packed_a.resize(packed_a.len().max(tile * self.a.cols.div_ceil(M)), 0.0);
        packed_b.resize(packed_b.len().max(self.b_rows.len() * 2 * S::F32_LANES), 0.0);
        for (col, out) in (0..self.a.cols).step_by(M).zip(packed_a.chunks_exact_mut(tile.max(1))) {
            self.a.pack(&a_rows, col, M, out);
        }
        let mut col = 0;
        while col < self.b.cols {
            col += if self.b.cols - col > S::F32_LANES {
                self.columns::<S, M, 2>(simd, col, &packed_a, &mut packed_b)
            } else {
                self.columns::<S, M, 1>(simd, col, &packed_a, &mut packed_b)
            };
        }
        self.memory.packed = [packed_a, packed_b];
    }

    /// Up to `V` vectors of B's columns from `col` on, with all of A. Gives their number.
    #[inline(always)]
    fn columns<S: Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
        col: usize,
        packed_a: &[f32],
        packed_b: &mut [f32],
    ) -> usize {
        let (g, a_rows, width) = (self.g, &self.memory.a_rows, V * S::F32_LANES);
        self.b.pack(&self.b_rows, col, width, packed_b);
        let cols = width.min(self.b.cols - col);
        for (tap, range) in self.memory.taps.iter().enumerate() {
            for (tile, row) in (0..self.a.cols).step_by(M).enumerate() {
                let packed_a = &packed_a[tile * a_rows.len() * M..][..a_rows.len() * M];
                let mut sums = [[simd.splat_f32s(0.0); V]; M];
                for run in &self.memory.runs[range.clone()] {
                    let a = &packed_a[(run.a - a_rows.start) * M..][..((run.count - 1) * g.stride + 1) * M];
                    let b = &packed_b[(run.b - self.b_rows.start) * width..][..run.count * width];
                    let a = std::array::from_fn(|m| a.as_ptr().wrapping_add(m));
                    // SAFETY: the slices hold what the run has.
                    sums = unsafe { multiply_add(simd, sums, a, g.stride * M, b.as_ptr(), width, run.count) };
                }
                for (m, sums) in sums.iter().enumerate().take(self.a.cols - row) {
                    // SAFETY: inside the task's part of the result, whose last element `chains` checked.
                    let out = unsafe {
                        let first = (tap * g.cin + row + m) * g.cout + col;
                        std::slice::from_raw_parts_mut(self.dst.add(first), cols)
                    };
                    let sums: &[f32] = bytemuck::cast_slice(sums);
                    if self.keep {
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                    } else {
                        out.copy_from_slice(&sums[..cols]);
                    }
                }
            }
        }
        cols
    }
}
