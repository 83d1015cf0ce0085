//! The CPU twins of attention: a block of queries at a time, whose scores stay in the cache.

use rayon::prelude::*;

use super::Size;
use crate::launch::Weights;
use crate::product::cpu::multiply::multiply_into;
use crate::product::cpu::panels::{Panels, Source, Taps, panel, panel_elements};
use crate::product::cpu::rows::Rows;
use crate::shared::{Shared, split};
use crate::simd::{exp_within, vectorized};

/// Queries of a block: whole tiles of the products, few enough for their scores to stay in the cache.
const BLOCK: usize = 24;

/// Tasks at most, each with scratch of its own: a constant, so that the memory needed does not depend on the
/// machine.
const TASKS: usize = 32;

/// Partial sums of a sum over the keys, so that the loop vectorises.
const LANES: usize = 16;

impl Size {
    /// Elements of a row of scores: the keys, padded to whole panels and whole lanes.
    fn row(&self) -> usize {
        panel_elements(1, self.keys).next_multiple_of(LANES)
    }

    /// Elements of a row of one head's channels, padded to whole panels.
    fn head_row(&self) -> usize {
        panel_elements(1, self.d)
    }

    fn blocks(&self) -> usize {
        self.queries.div_ceil(BLOCK)
    }

    /// One head of k or v as the matrix `[keys, d]` or, transposed, `[d, keys]`.
    fn pack<'a>(&self, x: &[f32], pair: usize, transposed: bool, memory: &'a mut [f32]) -> Panels<'a> {
        let data = &x[self.at(pair, self.keys, 0)..];
        let [depth, cols] = if transposed { [self.d, self.keys] } else { [self.keys, self.d] };
        let source = Source {
            data: Weights::F32(data),
            cols,
            stride: self.channels(),
            block: depth,
            blocks: Taps::ONE,
            transposed,
        };
        source.columns(0, cols, panel(cols), memory);
        Panels::packed(memory, depth, cols, panel(cols))
    }
}

/// Scratch elements of the forward pass.
pub(super) fn forward_scratch(size: &Size) -> usize {
    (size.pairs() * size.blocks()).min(TASKS) * forward_task(size).iter().sum::<usize>()
}

/// Scratch elements of a task: keys, values, scores, results.
fn forward_task(size: &Size) -> [usize; 4] {
    let Size { d, keys, .. } = *size;
    [panel_elements(d, keys), panel_elements(keys, d), BLOCK * size.row(), BLOCK * size.head_row()]
}

pub(super) fn forward(size: &Size, [q, k, v]: [&[f32]; 3], writes: [&mut [f32]; 2], scratch: &mut [f32]) {
    let [y, lse] = writes.map(Shared::new);
    let (row, head_row, c) = (size.row(), size.head_row(), size.channels());
    // A task takes some of all blocks, in the order of their pairs of sample and head.
    let (all, each) = (size.pairs() * size.blocks(), forward_task(size));
    let per_task = all.div_ceil(TASKS);
    scratch.par_chunks_mut(each.iter().sum()).enumerate().for_each(|(task, scratch)| {
        let [kt_memory, v_memory, scores, out] = split(scratch, each);
        let blocks = task * per_task..all.min((task + 1) * per_task);
        for pair in blocks.start / size.blocks()..blocks.end.div_ceil(size.blocks()) {
            let kt = size.pack(k, pair, true, kt_memory);
            let values = size.pack(v, pair, false, v_memory);
            let of_pair = pair * size.blocks();
            for block in blocks.start.max(of_pair)..blocks.end.min(of_pair + size.blocks()) {
                let first = (block - of_pair) * BLOCK;
                let count = BLOCK.min(size.queries - first);
                let at = size.at(pair, size.queries, first);
                multiply_into(scores, row, false, Rows::matrix(&q[at..], [count, size.d], [c, 1]), kt);
                // SAFETY: every block has queries of its own.
                let lse = unsafe { lse.part(pair * size.queries + first, count) };
                let mut sums = [0.0; BLOCK];
                vectorized(
                    #[inline(always)]
                    || {
                        let rows = scores.chunks_exact_mut(row).zip(&mut sums).zip(lse);
                        for (query, ((scores, sum), lse)) in (first..).zip(rows) {
                            (*sum, *lse) = softmax(scores, size.seen_by(query), size.scale());
                        }
                    },
                );
                let weights = Rows::matrix(scores, [count, size.keys], [row, 1]);
                multiply_into(out, head_row, false, weights, values);
                for (i, (out, sum)) in out.chunks_exact(head_row).zip(&sums[..count]).enumerate() {
                    // SAFETY: every block has queries, or channels, of its own.
                    let y = unsafe { y.part(at + i * c, size.d) };
                    for (y, out) in y.iter_mut().zip(out) {
                        *y = out / sum;
                    }
                }
            }
        }
    });
}

/// Scratch elements of the backward pass.
pub(super) fn backward_scratch(size: &Size) -> usize {
    size.pairs().min(TASKS) * backward_task(size).iter().sum::<usize>()
}

/// Scratch elements of a task: keys and values transposed, keys, weights, gradients of scores, dq, and dk and
/// dv transposed.
fn backward_task(size: &Size) -> [usize; 8] {
    let Size { d, keys, .. } = *size;
    let (transposed, plain) = (panel_elements(d, keys), panel_elements(keys, d));
    let (scores, keys_gradient) = (BLOCK * size.row(), d * size.row());
    [transposed, transposed, plain, scores, scores, BLOCK * size.head_row(), keys_gradient, keys_gradient]
}

pub(super) fn backward(
    size: &Size,
    [q, k, v, lse, dy]: [&[f32]; 5],
    [dq, dk, dv]: [&mut [f32]; 3],
    scratch: &mut [f32],
) {
    let [dq, dk, dv] = [dq, dk, dv].map(Shared::new);
    let (row, head_row, d, keys, c) = (size.row(), size.head_row(), size.d, size.keys, size.channels());
    let (per_task, each) = (size.pairs().div_ceil(TASKS), backward_task(size));
    scratch.par_chunks_mut(each.iter().sum()).enumerate().for_each(|(task, scratch)| {
        let [kt_memory, vt_memory, k_memory, p, ds, out, dkt, dvt] = split(scratch, each);
        for pair in task * per_task..size.pairs().min((task + 1) * per_task) {
            let kt = size.pack(k, pair, true, kt_memory);
            let vt = size.pack(v, pair, true, vt_memory);
            let plain_k = size.pack(k, pair, false, k_memory);
            for first in (0..size.queries).step_by(BLOCK) {
                let count = BLOCK.min(size.queries - first);
                let at = size.at(pair, size.queries, first);
                let (q, dy) = (&q[at..], &dy[at..]);
                multiply_into(p, row, false, Rows::matrix(q, [count, d], [c, 1]), kt);
                multiply_into(ds, row, false, Rows::matrix(dy, [count, d], [c, 1]), vt);
                let lse = &lse[pair * size.queries + first..][..count];
                vectorized(
                    #[inline(always)]
                    || {
                        let rows = p.chunks_exact_mut(row).zip(ds.chunks_exact_mut(row));
                        for (query, ((p, ds), lse)) in (first..).zip(rows.zip(lse)) {
                            weights_and_derivatives(p, ds, size.seen_by(query), size.scale(), *lse);
                        }
                    },
                );
                multiply_into(out, head_row, false, Rows::matrix(ds, [count, keys], [row, 1]), plain_k);
                for (i, out) in out.chunks_exact(head_row).take(count).enumerate() {
                    // SAFETY: every task has samples, or channels, of its own.
                    let dq = unsafe { dq.part(at + i * c, d) };
                    for (dq, out) in dq.iter_mut().zip(out) {
                        *dq = size.scale() * out;
                    }
                }
                let [p, ds] = [&*p, &*ds].map(|x| Panels::unpacked(x, count, keys, row));
                multiply_into(dkt, row, first > 0, Rows::matrix(q, [d, count], [1, c]), ds);
                multiply_into(dvt, row, first > 0, Rows::matrix(dy, [d, count], [1, c]), p);
            }
            for key in 0..keys {
                // SAFETY: as above.
                let [dk, dv] = [&dk, &dv].map(|x| unsafe { x.part(size.at(pair, keys, key), d) });
                for (i, (dk, dv)) in dk.iter_mut().zip(dv).enumerate() {
                    *dk = size.scale() * dkt[i * row + key];
                    *dv = dvt[i * row + key];
                }
            }
        }
    });
}

/// Turns a query's products with the keys into exponentials `e^(scale (s - top))`, zeros behind them. Gives
/// their sum, and the logarithm of the sum of `e^(scale s)`.
#[inline(always)]
fn softmax(scores: &mut [f32], keys: usize, scale: f32) -> (f32, f32) {
    scores[keys..].fill(f32::MIN);
    // Not `f32::max`, which takes three instructions to step over NaN; one makes itself known below.
    let larger = |a: f32, b: f32| if a > b { a } else { b };
    let lanes = lanes_of(scores, f32::MIN, larger);
    let half: [f32; 8] = std::array::from_fn(|i| larger(lanes[i], lanes[i + 8]));
    let top = half.into_iter().fold(f32::MIN, larger);
    scores[keys..].fill(0.0);
    let mut lanes = [0.0; LANES];
    let (blocks, rest) = scores[..keys].as_chunks_mut::<LANES>();
    for block in blocks {
        for (s, lane) in block.iter_mut().zip(&mut lanes) {
            *s = exp_within((*s - top) * scale);
            *lane += *s;
        }
    }
    for (s, lane) in rest.iter_mut().zip(&mut lanes) {
        *s = exp_within((*s - top) * scale);
        *lane += *s;
    }
    let sum = sum_of(lanes);
    (sum, top * scale + sum.ln())
}

/// Turns one query's products `p` with the keys into weights, and the gradients `ds` of these into those of
/// the scaled scores; zeros behind both.
#[inline(always)]
fn weights_and_derivatives(p: &mut [f32], ds: &mut [f32], keys: usize, scale: f32, lse: f32) {
    for p in p.iter_mut() {
        *p = exp_within(p.mul_add(scale, -lse));
    }
    p[keys..].fill(0.0);
    ds[keys..].fill(0.0);
    // Divided by their sum once more, because the logarithm of a sum is rounded, the more the larger the
    // scores. With the whole row at hand, delta = dy.y is the mean of the gradients, from which those of a
    // single key cancel exactly.
    let total = sum_of(lanes_of(p, 0.0, |a, b| a + b));
    for (p, ds) in p.iter_mut().zip(ds.iter_mut()) {
        *p /= total;
        *ds *= *p;
    }
    let delta = sum_of(lanes_of(ds, 0.0, |a, b| a + b));
    for (p, ds) in p.iter().zip(ds) {
        *ds -= p * delta;
    }
}

/// Folds a row in interleaved lanes, so that the loop vectorises.
#[inline(always)]
fn lanes_of(x: &[f32], start: f32, f: impl Fn(f32, f32) -> f32) -> [f32; LANES] {
    let mut lanes = [start; LANES];
    let (blocks, rest) = x.as_chunks::<LANES>();
    assert!(rest.is_empty(), "a row of whole lanes");
    for block in blocks {
        for (lane, x) in lanes.iter_mut().zip(block) {
            *lane = f(*lane, *x);
        }
    }
    lanes
}

/// The sum of the lanes, by halves, which are few instructions; in f64, so that no order matters.
#[inline(always)]
fn sum_of(lanes: [f32; LANES]) -> f32 {
    let x: [f64; 8] = std::array::from_fn(|i| f64::from(lanes[i]) + f64::from(lanes[i + 8]));
    let x: [f64; 4] = std::array::from_fn(|i| x[i] + x[i + 4]);
    ((x[0] + x[2]) + (x[1] + x[3])) as f32
}
