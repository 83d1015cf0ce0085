//! The CPU twins of matmul: rows times packed columns, and, where the sum runs along the rows of the left side
//! as it is stored, sums of outer products.

use std::cell::RefCell;

use rayon::prelude::*;

use super::Product;
use crate::launch::Prepacked;
use crate::matrix::Tiles;
use crate::micro::dense::{Left, Right, Start, product_into};
use crate::micro::panels::{Panels, copy_short, copy_turned, height, panel, panel_elements};
use crate::ops::CHUNK;
use crate::simd::vectorized;

/// Tasks that keep many cores busy.
const WANTED: usize = 32;

/// Rows of a task: whole tiles of any machine, few enough for their left side to stay in the cache, enough to
/// read the packed columns not too often.
const ROWS: usize = 192;

/// Panels that a task packs and multiplies at most, where it packs its own: a row of them is read as one run,
/// which the memory gives faster than lines that lie apart. And tasks that are wanted rather than wide ones.
const STRIP: usize = 4;
const FEW: usize = 8;

/// Rows and columns of the result that a task of a sum of outer products takes at most, and terms that it adds
/// up in one chain: what it reads and adds to stays in the second-level cache.
const BLOCK: [usize; 2] = [192, 256];
const CHAIN: usize = 128;

/// Shortest part of a sum that is cut into parts.
const SHORTEST: usize = 512;

impl Product {
    /// Whether the left side is stored with the terms of the sum as its rows.
    fn is_outer(&self) -> bool {
        self.transpose.a && !self.transpose.b
    }

    fn outer_tasks(&self) -> usize {
        self.batch * self.m.div_ceil(BLOCK[0]) * self.n.div_ceil(BLOCK[1])
    }

    /// Into how many parts a sum of outer products is cut, where its result is too small for many tasks. It
    /// depends on the shape alone, since the order of the sum depends on it.
    fn outer_parts(&self) -> usize {
        if !self.cuts {
            return 1;
        }
        WANTED.div_ceil(self.outer_tasks()).min(self.k / SHORTEST).max(1)
    }

    /// How many blocks of the result of a sum of outer products lie below and beside each other: [`BLOCK`] at most,
    /// of one size, and more than one or two, so that no core waits for the last of them.
    fn blocks(&self) -> [usize; 2] {
        /// A smaller block is mostly packing.
        const LEAST: usize = 64;
        let sizes = [self.m, self.n];
        let mut counts = [self.m.div_ceil(BLOCK[0]), self.n.div_ceil(BLOCK[1])];
        while counts[0] * counts[1] * self.batch * self.outer_parts() < FEW {
            let side = |i: usize| sizes[i] / counts[i];
            let longer = usize::from(side(1) > side(0));
            if side(longer) < 2 * LEAST {
                break;
            }
            counts[longer] += 1;
        }
        counts
    }

    fn packed(&self) -> usize {
        panel_elements(self.k, self.n)
    }

    /// Elements of working memory: packed columns, and the left side where it has to be turned; or the parts
    /// of the sums.
    pub(super) fn room(&self) -> [usize; 2] {
        match (self.is_outer(), self.outer_parts()) {
            (true, 1) => [0, 0],
            (true, parts) => [parts * self.outputs(), 0],
            (false, _) => {
                let turned = if self.transpose.a { self.batch * self.m * self.k } else { 0 };
                [self.batch * self.packed(), turned]
            }
        }
    }

    /// Whether the working memory holds b, packed, and nothing else.
    pub(super) fn packs_b_alone(&self) -> bool {
        !self.is_outer() && self.room()[1] == 0
    }

    pub(super) fn multiply(
        &self,
        a: &[f32],
        b: &[f32],
        bias: Option<&[f32]>,
        y: &mut [f32],
        Prepacked { memory: room, done }: Prepacked,
    ) {
        if self.is_outer() {
            return match self.outer_parts() {
                1 => {
                    self.outer_products(a, b, y);
                    if let Some(bias) = bias {
                        y.par_chunks_mut(CHUNK.next_multiple_of(self.n)).for_each(|y| add_bias(bias, y));
                    }
                }
                _ => {
                    self.outer_products(a, b, room);
                    sum_parts(room, bias, y);
                }
            };
        }
        let (panels, turned) = room.split_at_mut(self.batch * self.packed());
        let a = if self.transpose.a {
            turn(a, turned, self.k, self.m);
            &*turned
        } else {
            a
        };
        self.rows_times_columns(a, b, bias, y, Prepacked { memory: panels, done });
    }

    /// Writes rows `from ..` of some columns of one b to a panel, or a piece of one.
    fn pack(&self, b: &[f32], from: usize, first: usize, cols: usize, out: &mut [f32], width: usize) {
        let Product { n, k, .. } = *self;
        if self.transpose.b {
            copy_turned(&b[first * k + from..], k, cols, out, width);
        } else {
            for (out, b) in out.chunks_exact_mut(width).zip(b[from * n..].chunks_exact(n)) {
                copy_short(&mut out[..cols], &b[first..first + cols]);
            }
        }
    }

    /// Writes some columns of one b to their panels.
    fn pack_strip(&self, b: &[f32], first: usize, cols: usize, out: &mut [f32], width: usize) {
        let Product { n, k, .. } = *self;
        if self.transpose.b {
            for (panel, out) in out.chunks_exact_mut(k * width).enumerate() {
                let from = panel * width;
                self.pack(b, 0, first + from, width.min(cols - from), out, width);
            }
            return;
        }
        for (row, b) in b.chunks_exact(n).enumerate() {
            for (panel, b) in b[first..first + cols].chunks(width).enumerate() {
                copy_short(&mut out[(panel * k + row) * width..][..b.len()], b);
            }
        }
    }

    /// The product of rows `a [batch, m, k]` with b, which is packed into `room` first.
    fn rows_times_columns(
        &self,
        a: &[f32],
        b: &[f32],
        bias: Option<&[f32]>,
        y: &mut [f32],
        Prepacked { memory: room, done }: Prepacked,
    ) {
        let Product { batch, m, n, k, .. } = *self;
        let y = Tiles::new(y);
        // Some rows of item number `item` times the panels from column `first` on.
        let multiply = |item: usize, row: usize, panels: Panels, first: usize| {
            let (rows, cols) = (ROWS.min(m - row), panels.cols());
            let left = Left::new(&a[(item * m + row) * k..], k, 1);
            let dst = y.pointer((item * m + row) * n + first, (rows - 1) * n + cols);
            let start = bias.map_or(Start::Zero, |bias| Start::Bias(&bias[first..][..cols]));
            // SAFETY: every task has rows, or columns, of its own, and `pointer` checked the last row.
            unsafe { product_into([rows, k, cols], left, Right::packed(panels), dst, n, start) };
        };
        let width = panel(n);
        if m <= ROWS {
            // Few rows: each task packs the columns that it multiplies, and finds them in the cache.
            let strip = (n.div_ceil(width) * batch / FEW).clamp(1, STRIP);
            room.par_chunks_mut(self.packed()).zip(b.par_chunks(k * n)).enumerate().for_each(
                |(item, (room, b))| {
                    room.par_chunks_mut(k * width * strip).enumerate().for_each(|(task, room)| {
                        let first = task * strip * width;
                        let cols = (strip * width).min(n - first);
                        let pack = |out: &mut [f32]| self.pack_strip(b, first, cols, out, width);
                        let panels = Panels::some(room, k, cols, width, (!done).then_some(pack));
                        multiply(item, 0, panels, first);
                    });
                },
            );
            return;
        }
        let items = b.chunks_exact(k * n).zip(room.chunks_exact_mut(self.packed()));
        for (b, room) in items.filter(|_| !done) {
            // Pieces of whole rows, so that a product of few columns is packed by more than one core too.
            let pieces = [8, 4, 2].into_iter().find(|p| k.is_multiple_of(*p)).unwrap_or(1);
            Panels::fill(room, k, n, pieces, |piece, first, cols, out, width| {
                self.pack(b, piece * (k / pieces), first, cols, out, width);
            });
        }
        let room = &*room;
        let panels = |item: usize| Panels::new(&room[item * self.packed()..][..self.packed()], k, n);
        let down = m.div_ceil(ROWS);
        let across = WANTED.div_ceil(batch * down).min(n.div_ceil(width));
        (0..batch * down * across).into_par_iter().for_each(|task| {
            let (item, row, share) = (task / across / down, task / across % down * ROWS, task % across);
            let (panels, first) = panels(item).share(share, across);
            multiply(item, row, panels, first);
        });
    }

    /// The product of `a [batch, k, m]`, transposed, with `b [batch, k, n]`, in parts over k:
    /// `out [parts, batch, m, n]`.
    fn outer_products(&self, a: &[f32], b: &[f32], out: &mut [f32]) {
        let Product { batch, m, n, k, .. } = *self;
        let (parts, chains) = (self.outer_parts(), k.div_ceil(CHAIN));
        // Whole tiles, which may leave one block less.
        let [down, across] = self.blocks();
        let block =
            [m.div_ceil(down).next_multiple_of(height()), n.div_ceil(across).next_multiple_of(panel(n))];
        let [down, across] = [m.div_ceil(block[0]), n.div_ceil(block[1])];
        let tasks = down * across;
        let out = Tiles::new(out);
        thread_local! {
            static PACKED: RefCell<[Vec<f32>; 2]> = RefCell::default();
        }
        (0..parts * batch * tasks).into_par_iter().for_each(|task| {
            let (stack, task) = (task / tasks, task % tasks);
            let (part, item) = (stack / batch, stack % batch);
            let (row, col) = (task / across * block[0], task % across * block[1]);
            let (rows, cols) = (block[0].min(m - row), block[1].min(n - col));
            let (a, b) = (&a[item * k * m..][..k * m], &b[item * k * n..][..k * n]);
            let dst = out.pointer((stack * m + row) * n + col, (rows - 1) * n + cols);
            let first = part * chains / parts;
            PACKED.with_borrow_mut(|[packed_a, packed_b]| {
                for chain in first..(part + 1) * chains / parts {
                    let terms = chain * CHAIN..k.min((chain + 1) * CHAIN);
                    let depth = terms.len();
                    let left = Left::tiles(&a[terms.start * m..terms.end * m], m, row, rows, packed_a);
                    let elements = panel_elements(depth, cols);
                    if packed_b.len() < elements {
                        packed_b.resize(elements, 0.0);
                    }
                    let pack = |first, count, out: &mut [f32], width| {
                        let b = b[terms.start * n..terms.end * n].chunks_exact(n);
                        for (out, b) in out.chunks_exact_mut(width).zip(b) {
                            copy_short(&mut out[..count], &b[col + first..][..count]);
                        }
                    };
                    let right =
                        Right::packed(Panels::fill_here(&mut packed_b[..elements], depth, cols, pack));
                    let start = if chain > first { Start::Kept } else { Start::Zero };
                    // SAFETY: every task has a tile of its own, and `pointer` checked its last row.
                    unsafe { product_into([rows, depth, cols], left, right, dst, n, start) };
                }
            });
        });
    }
}

/// `y [.., m, k]` from `x [.., k, m]`.
fn turn(x: &[f32], y: &mut [f32], k: usize, m: usize) {
    for (x, y) in x.chunks_exact(k * m).zip(y.chunks_exact_mut(m * k)) {
        y.par_chunks_exact_mut(k).enumerate().for_each(|(i, y)| {
            for (y, x) in y.iter_mut().zip(x[i..].iter().step_by(m)) {
                *y = *x;
            }
        });
    }
}

fn add_bias(bias: &[f32], y: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            for y in y.chunks_mut(bias.len()) {
                for (y, b) in y.iter_mut().zip(bias) {
                    *y += b;
                }
            }
        },
    );
}

/// `y = the sum of the parts`, each as long as y, in their order.
fn sum_parts(parts: &[f32], bias: Option<&[f32]>, y: &mut [f32]) {
    const BLOCK: usize = 256;
    let count = y.len();
    y.par_chunks_mut(CHUNK).enumerate().for_each(|(chunk, y)| {
        vectorized(
            #[inline(always)]
            || {
                for (block, y) in y.chunks_mut(BLOCK).enumerate() {
                    let first = chunk * CHUNK + block * BLOCK;
                    let mut sum = [0.0_f64; BLOCK];
                    for part in parts.chunks(count) {
                        for (sum, x) in sum.iter_mut().zip(&part[first..first + y.len()]) {
                            *sum += f64::from(*x);
                        }
                    }
                    for (y, sum) in y.iter_mut().zip(&sum) {
                        *y = *sum as f32;
                    }
                    if let Some(bias) = bias {
                        let n = bias.len();
                        y.iter_mut().enumerate().for_each(|(i, y)| *y += bias[(first + i) % n]);
                    }
                }
            },
        );
    });
}
