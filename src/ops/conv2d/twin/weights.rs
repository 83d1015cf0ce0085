//! The CPU twin of the gradient of a convolution's weights: sums of outer products of pixels, read in place.

use std::cell::RefCell;
use std::ops::Range;

use rayon::prelude::*;

use super::super::{Geometry, winograd};
use crate::matrix::Tiles;
use crate::micro::outer::{Products, Run, Side, outer};
use crate::simd::vectorized;

/// Input and output channels that a task of the gradient of the weights takes at most: what it adds to stays
/// in the second-level cache.
const CHANNELS: usize = 64;

/// Tasks that keep many cores busy.
const WANTED: usize = 24;

/// Tasks that the weights are dealt to.
fn weight_tasks(g: &Geometry) -> usize {
    g.cin.div_ceil(CHANNELS) * g.cout.div_ceil(CHANNELS)
}

/// Rows of output pixels whose products are added up in one chain: some 128 pixels.
fn chain_rows(g: &Geometry) -> usize {
    (128 / g.ow).clamp(1, g.n * g.oh)
}

/// Into how many parts the pixels are dealt for the gradient of the weights, where these are too few for
/// many tasks.
fn weight_parts(g: &Geometry) -> usize {
    WANTED.div_ceil(weight_tasks(g)).min((g.n * g.oh).div_ceil(chain_rows(g)))
}

/// Elements of the room that [`backward_w`] needs for its parts.
pub fn weight_room(g: &Geometry) -> usize {
    if winograd::suits(g) {
        return winograd::weight_room(g);
    }
    match weight_parts(g) {
        1 => 0,
        parts => parts * g.weights(),
    }
}

/// `dw[kh,kw,ci,co] = sum over the pixels of x[.., ci] * dy[.., co]`, those pixels where the tap lies in the
/// image; in parts over the pixels that are added up in order. `room`: for the parts.
pub fn backward_w(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32], room: &mut [f32]) {
    if winograd::suits(g) {
        return winograd::backward_w(g, x, dy, dw, room);
    }
    let (parts, tasks, across) = (weight_parts(g), weight_tasks(g), g.cout.div_ceil(CHANNELS));
    let chains = (g.n * g.oh).div_ceil(chain_rows(g));
    let out = if parts == 1 { Tiles::new(dw) } else { Tiles::new(room) };
    (0..parts * tasks).into_par_iter().for_each(|task| {
        let (part, task) = (task / tasks, task % tasks);
        let (ci, co) = (task / across * CHANNELS, task % across * CHANNELS);
        let a = Side { data: x, stride: g.cin, first: ci, cols: CHANNELS.min(g.cin - ci) };
        let b = Side { data: dy, stride: g.cout, first: co, cols: CHANNELS.min(g.cout - co) };
        let first = part * chains / parts;
        for chain in first..(part + 1) * chains / parts {
            with_runs(|runs, taps| {
                let rows = chain * chain_rows(g)..((chain + 1) * chain_rows(g)).min(g.n * g.oh);
                for tap in 0..g.kh * g.kw {
                    let before = runs.len();
                    for run in rows.clone().filter_map(|row| run_of(g, row, tap / g.kw, tap % g.kw)) {
                        match runs[before..].last_mut() {
                            Some(last) if follows(last, &run, g.stride) => last.count += run.count,
                            _ => runs.push(run),
                        }
                    }
                    taps.push(before..runs.len());
                }
                let first_a = runs.iter().map(|run| run.a).min().unwrap_or(0);
                let last_a = runs.iter().map(|run| run.a + (run.count - 1) * g.stride + 1).max().unwrap_or(0);
                let what = Products {
                    a,
                    b,
                    a_rows: first_a..last_a,
                    b_rows: rows.start * g.ow..rows.end * g.ow,
                    step: g.stride,
                    runs,
                    taps,
                };
                let last_row = (g.kh * g.kw - 1) * g.cin + a.cols - 1;
                let dw = out.pointer(part * g.weights() + ci * g.cout + co, last_row * g.cout + b.cols);
                // SAFETY: every task has channels, or a part, of its own, and `pointer` checked the last row.
                unsafe { outer(&what, chain > first, dw, g.cin * g.cout, g.cout) };
            });
        }
    });
    if parts == 1 {
        return;
    }
    let room = &*room;
    dw.par_chunks_mut(4096).enumerate().for_each(|(i, dw)| {
        vectorized(
            #[inline(always)]
            || {
                dw.copy_from_slice(&room[i * 4096..][..dw.len()]);
                for part in 1..parts {
                    for (d, p) in dw.iter_mut().zip(&room[part * g.weights() + i * 4096..]) {
                        *d += p;
                    }
                }
            },
        );
    });
}

/// True if the pixels of `next` lie right behind those of `run` on both sides.
fn follows(run: &Run, next: &Run, step: usize) -> bool {
    run.a + run.count * step == next.a && run.b + run.count == next.b
}

/// The pixels of row `row` (of all samples) of the output that have tap (kh, kw) in the image.
fn run_of(g: &Geometry, row: usize, kh: usize, kw: usize) -> Option<Run> {
    let (n, oh) = (row / g.oh, row % g.oh);
    let h = (oh * g.stride + kh).checked_sub(g.top).filter(|&h| h < g.h)?;
    // Columns from..to have 0 <= ow * stride + kw - left < w.
    let from = g.left.saturating_sub(kw).div_ceil(g.stride);
    let to = (g.w + g.left).saturating_sub(kw).div_ceil(g.stride).min(g.ow);
    let count = to.checked_sub(from).filter(|&count| count > 0)?;
    let column = from * g.stride + kw - g.left;
    Some(Run { a: (n * g.h + h) * g.w + column, b: (n * g.oh + oh) * g.ow + from, count })
}

/// Empty lists, of memory that each thread keeps from one use to the next.
fn with_runs(work: impl FnOnce(&mut Vec<Run>, &mut Vec<Range<usize>>)) {
    thread_local! {
        static LISTS: RefCell<(Vec<Run>, Vec<Range<usize>>)> = RefCell::default();
    }
    LISTS.with_borrow_mut(|(runs, taps)| {
        runs.clear();
        taps.clear();
        work(runs, taps);
    });
}
