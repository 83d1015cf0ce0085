//! The CPU twins of the convolution of an image of twice the size: those of the convolution `g` whose adjoint it
//! is, with the sums of its weights.

use std::ops::Range;

use rayon::prelude::*;

use super::super::{Geometry, twin};
use crate::launch::Prepacked;
use crate::micro::panels::{Panels, WIDEST, copy_turned, panel_elements};
use crate::simd::vectorized;

/// Along an axis, where `g` has so many taps: which of the taps that are given make tap `k` of `g`.
fn summed(k: usize, taps: usize) -> Range<usize> {
    let last = taps - 1 - k;
    last.saturating_sub(1)..(last + 1).min(taps - 1)
}

/// Numbers of the given taps whose sum is that tap of `g`.
fn met(g: &Geometry, [kh, kw]: [usize; 2]) -> impl Iterator<Item = usize> {
    let across = g.kw - 1;
    let columns = summed(kw, g.kw);
    summed(kh, g.kh).flat_map(move |kh| columns.clone().map(move |kw| kh * across + kw))
}

/// Elements of the room that [`forward`] needs for its weights.
pub fn forward_weights(g: &Geometry) -> usize {
    twin::adjoint_weights(g)
}

/// `more`: bias, time embedding and residual.
pub fn forward(
    g: &Geometry,
    x: &[f32],
    w: &[f32],
    y: &mut [f32],
    panels: Prepacked,
    more: [Option<&[f32]>; 3],
) {
    let (cin, cout) = (g.cout, g.cin);
    if !panels.done {
        twin::fill_classes(g, panels.memory, |tap, first, cols, out, width| {
            for (ci, out) in out.chunks_exact_mut(width).enumerate() {
                let out = &mut out[..cols];
                out.fill(0.0);
                for tap in met(g, tap) {
                    let w = &w[(tap * cin + ci) * cout + first..][..cols];
                    out.iter_mut().zip(w).for_each(|(out, w)| *out += w);
                }
            }
        });
    }
    twin::spread_back(g, x, panels.memory, y, |first, y| twin::epilogue(g.image(), first, y, more));
}

/// Elements of the room that [`backward_x`] needs for its weights.
pub fn backward_x_weights(g: &Geometry) -> usize {
    panel_elements(g.kh * g.kw * g.cin, g.cout)
}

pub fn backward_x(g: &Geometry, dy: &[f32], w: &[f32], dx: &mut [f32], panels: Prepacked) {
    let (cin, cout, taps) = (g.cout, g.cin, g.kh * g.kw);
    if !panels.done {
        Panels::fill(panels.memory, taps * cout, cin, taps, |tap, first, cols, out, width| {
            // The sums are made as the weights lie, a column of the widest panel after the other.
            const ROWS: usize = 16;
            for (block, out) in out.chunks_mut(ROWS * width).enumerate() {
                let mut sums = [[0.0; ROWS]; WIDEST];
                let rows = out.len() / width;
                for tap in met(g, [tap / g.kw, tap % g.kw]) {
                    for (ci, sums) in sums[..cols].iter_mut().enumerate() {
                        let w = &w[(tap * cin + first + ci) * cout + block * ROWS..][..rows];
                        sums.iter_mut().zip(w).for_each(|(sum, w)| *sum += w);
                    }
                }
                copy_turned(sums.as_flattened(), ROWS, cols, out, width);
            }
        });
    }
    twin::convolve(g, dy, panels.memory, dx, |_, _| ());
}

/// Elements of the rooms that [`backward_w`] needs: for its parts, and for the gradient of `g`'s weights.
pub fn weight_room(g: &Geometry) -> [usize; 2] {
    [twin::weight_room(g), g.weights()]
}

pub fn backward_w(g: &Geometry, dy: &[f32], x: &[f32], dw: &mut [f32], [room, wide]: [&mut [f32]; 2]) {
    /// Input channels of a task: a row of the gradient of `g` holds as many side by side in a cache line.
    const CHANNELS: usize = 16;
    twin::backward_w(g, dy, x, wide, room);
    let (cin, cout, across) = (g.cout, g.cin, g.kw - 1);
    let wide = &*wide;
    dw.par_chunks_mut(cin * cout).enumerate().for_each(|(tap, dw)| {
        dw.par_chunks_mut(CHANNELS * cout).enumerate().for_each(|(block, dw)| {
            vectorized(
                #[inline(always)]
                || {
                    // The lesser of the two taps of `g` that have this one, along either axis.
                    let (kh, kw) = (g.kh - 2 - tap / across, g.kw - 2 - tap % across);
                    let channels = dw.len() / cout;
                    let plane = |kh: usize, kw: usize| &wide[(kh * g.kw + kw) * cin * cout..][..cin * cout];
                    let planes = [plane(kh, kw), plane(kh, kw + 1), plane(kh + 1, kw), plane(kh + 1, kw + 1)];
                    for co in 0..cout {
                        let [a, b, c, d] = planes.map(|p| &p[co * cin + block * CHANNELS..][..channels]);
                        for ci in 0..channels {
                            dw[ci * cout + co] = (a[ci] + b[ci]) + (c[ci] + d[ci]);
                        }
                    }
                },
            );
        });
    });
}
