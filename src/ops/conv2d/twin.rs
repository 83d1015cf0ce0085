//! The CPU twins of conv2d: pixels gathered in place, without an unrolled copy of the image, times the
//! weights in panels.

mod weights;

use rayon::prelude::*;

use super::winograd::{self, Correlation, Weights};
use super::{Geometry, Image};
use crate::launch::Prepacked;
use crate::micro::gather::{Gather, gathered};
use crate::micro::panels::{Panels, copy_short, copy_turned, panel_elements};
use crate::simd::vectorized;

pub use weights::{backward_w, weight_room};

/// Pixels that a task takes, of `pixels` in all: few enough for the cache and to have work for many cores,
/// enough to read the weights not too often. A multiple of all tiles' heights. Depends on the shape alone,
/// as every partition here: results must not depend on the number of threads.
fn task_pixels(pixels: usize) -> usize {
    match pixels {
        0..768 => 24,
        768..3072 => 48,
        _ => 96,
    }
}

/// Elements of the room that [`forward`] needs for its weights.
pub fn forward_weights(g: &Geometry) -> usize {
    if winograd::suits(g) {
        return winograd::room(g.cin, g.cout);
    }
    panel_elements(g.kh * g.kw * g.cin, g.cout)
}

/// `finish` gets the number of a task's first pixel and its pixels, for what is added to the products.
/// `panels`: room for the weights.
pub fn forward(
    g: &Geometry,
    x: &[f32],
    w: &[f32],
    y: &mut [f32],
    panels: Prepacked,
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    if winograd::suits(g) {
        let of = Correlation {
            n: g.n,
            src: [g.h, g.w, g.cin],
            dst: [g.oh, g.ow, g.cout],
            top: g.top as isize,
            left: g.left as isize,
        };
        return of.run(x, Weights::Forward(w), y, panels, finish);
    }
    if !panels.done {
        let taps = g.kh * g.kw;
        Panels::fill(panels.memory, taps * g.cin, g.cout, taps, |tap, first, cols, out, width| {
            let w = &w[tap * g.cin * g.cout..][..g.cin * g.cout];
            for (out, w) in out.chunks_exact_mut(width).zip(w.chunks_exact(g.cout)) {
                copy_short(&mut out[..cols], &w[first..first + cols]);
            }
        });
    }
    convolve(g, x, panels.memory, y, finish);
}

/// As [`forward`], with the weights as the rows of panels, `(kh, kw, ci)`.
pub fn convolve(
    g: &Geometry,
    x: &[f32],
    panels: &[f32],
    y: &mut [f32],
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    let panels = Panels::new(panels, g.kh * g.kw * g.cin, g.cout);
    let window = Window { g, by: g.stride, top: g.top as isize, left: g.left as isize };
    window.convolve([g.h, g.w, g.cin], [g.oh, g.ow, g.cout], x, panels, y, finish);
}

/// Where the taps of an output pixel lie: rows `oh * by + kh - top`, columns alike.
struct Window<'a> {
    g: &'a Geometry,
    by: usize,
    top: isize,
    left: isize,
}

impl Window<'_> {
    fn convolve(
        &self,
        [src_h, src_w, c]: [usize; 3],
        [dst_h, dst_w, dst_c]: [usize; 3],
        src: &[f32],
        panels: Panels,
        dst: &mut [f32],
        finish: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let (kw, taps) = (self.g.kw, self.g.kh * self.g.kw);
        let pixels = task_pixels(dst.len() / dst_c);
        dst.par_chunks_mut(pixels * dst_c).enumerate().for_each(|(task, dst)| {
            let first = task * pixels;
            let place = |row: usize| {
                let index = first + row;
                let (n, oh, ow) = (index / (dst_h * dst_w), index / dst_w % dst_h, index % dst_w);
                (n * src_h, oh * self.by, ow * self.by)
            };
            let start = |(image, h, w): (usize, usize, usize), tap: usize| {
                // What lies before the image becomes a number past its end.
                let h = ((h + tap / kw) as isize - self.top) as usize;
                let w = ((w + tap % kw) as isize - self.left) as usize;
                (h < src_h && w < src_w).then(|| ((image + h) * src_w + w) * c)
            };
            let rows = dst.len() / dst_c;
            gathered(Gather { src, c, taps }, place, start, panels, rows, dst, |row| row * dst_c);
            finish(first, dst);
        });
    }
}

/// Adds bias, time embedding and residual to the pixels of a result of these sizes from number `first` on.
pub fn epilogue(of: Image, first: usize, y: &mut [f32], [bias, shift, residual]: [Option<&[f32]>; 3]) {
    let c = of.channels;
    vectorized(
        #[inline(always)]
        || {
            let pixels = if bias.is_some() || shift.is_some() { &mut *y } else { &mut [] };
            for (i, pixel) in pixels.chunks_exact_mut(c).enumerate() {
                if let Some(bias) = bias {
                    for (y, b) in pixel.iter_mut().zip(&bias[..c]) {
                        *y += b;
                    }
                }
                if let Some(shift) = shift {
                    let n = (first + i) / of.pixels;
                    for (y, s) in pixel.iter_mut().zip(&shift[n * c..(n + 1) * c]) {
                        *y += s;
                    }
                }
            }
            if let Some(residual) = residual {
                for (y, r) in y.iter_mut().zip(&residual[first * c..]) {
                    *y += r;
                }
            }
        },
    );
}

/// Elements of the room that [`adjoint`] needs for its weights.
pub fn adjoint_weights(g: &Geometry) -> usize {
    if winograd::suits(g) {
        return winograd::room(g.cout, g.cin);
    }
    classes(g).map(|class| class.room(g)).sum()
}

/// Input pixels whose rows and columns have the same remainders by the stride. They meet every `stride`-th
/// tap in either direction, `down` times `across` in all, from tap (`kh`, `kw`) on.
struct Class {
    rh: usize,
    rw: usize,
    kh: usize,
    kw: usize,
    down: usize,
    across: usize,
}

impl Class {
    fn taps(&self) -> usize {
        self.down * self.across
    }

    /// Elements of its weights in panels.
    fn room(&self, g: &Geometry) -> usize {
        panel_elements(self.taps() * g.cout, g.cin)
    }
}

fn classes(g: &Geometry) -> impl Iterator<Item = Class> {
    let Geometry { kh: all_kh, kw: all_kw, stride, .. } = *g;
    let Geometry { h, w, top, left, .. } = *g;
    (0..stride.min(h)).flat_map(move |rh| {
        (0..stride.min(w)).map(move |rw| {
            let (kh, kw) = ((rh + top) % stride, (rw + left) % stride);
            let met = |first: usize, all: usize| all.saturating_sub(first).div_ceil(stride);
            Class { rh, rw, kh, kw, down: met(kh, all_kh), across: met(kw, all_kw) }
        })
    })
}

/// `dx` as products of `dy`'s pixels with transposed weights: for a stride above 1 one product for each
/// class of input pixels, because only every `stride`-th tap meets it. `panels`: room for the weights.
/// `finish` gets whole pixels, each once, and the number of their first, for what is added to the products.
pub fn adjoint(
    g: &Geometry,
    dy: &[f32],
    w: &[f32],
    dx: &mut [f32],
    panels: Prepacked,
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    if winograd::suits(g) {
        // The same with taps in reverse order and channels exchanged.
        let of = Correlation {
            n: g.n,
            src: [g.oh, g.ow, g.cout],
            dst: [g.h, g.w, g.cin],
            top: 2 - g.top as isize,
            left: 2 - g.left as isize,
        };
        return of.run(dy, Weights::Adjoint(w), dx, panels, finish);
    }
    if !panels.done {
        fill_classes(g, panels.memory, |[kh, kw], first, cols, out, width| {
            let w = &w[(kh * g.kw + kw) * g.cin * g.cout..][..g.cin * g.cout];
            copy_turned(&w[first * g.cout..], g.cout, cols, out, width);
        });
    }
    spread_back(g, dy, panels.memory, dx, finish);
}

/// Fills the panels of [`adjoint`]: `pack([kh, kw], first, cols, out, width)` writes the weights of a tap as
/// [`Panels::fill`] wants them, a row for each channel of `dy`.
pub fn fill_classes(
    g: &Geometry,
    mut panels: &mut [f32],
    pack: impl Fn([usize; 2], usize, usize, &mut [f32], usize) + Sync,
) {
    for class in classes(g) {
        let (room, others) = panels.split_at_mut(class.room(g));
        panels = others;
        let taps = class.taps();
        Panels::fill(room, taps * g.cout, g.cin, taps.max(1), |tap, first, cols, out, width| {
            let kh = class.kh + tap / class.across * g.stride;
            let kw = class.kw + tap % class.across * g.stride;
            pack([kh, kw], first, cols, out, width);
        });
    }
}

/// As [`adjoint`], with the weights in panels by [`fill_classes`].
pub fn spread_back(
    g: &Geometry,
    dy: &[f32],
    panels: &[f32],
    dx: &mut [f32],
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    // Bands of rows, so that what is written together lies together; a multiple of the stride.
    let (rows, cols) = (g.h.div_ceil(g.stride), g.w.div_ceil(g.stride));
    let band = (task_pixels(g.n * rows * cols) / cols).clamp(1, rows) * g.stride;
    dx.par_chunks_mut(g.h * g.w * g.cin).enumerate().for_each(|(n, image)| {
        image.par_chunks_mut(band * g.w * g.cin).enumerate().for_each(|(b, dx)| {
            let mut rest = panels;
            for class in classes(g) {
                let (weights, others) = rest.split_at(class.room(g));
                rest = others;
                let heights = (dx.len() / (g.w * g.cin)).saturating_sub(class.rh).div_ceil(g.stride);
                let widths = g.w.saturating_sub(class.rw).div_ceil(g.stride);
                let at =
                    |row: usize| (class.rh + row / widths * g.stride, class.rw + row % widths * g.stride);
                // Of the first tap, which is the furthest; later ones lie nearer by one each.
                let place = |row: usize| {
                    let (h, w) = at(row);
                    ((b * band + h + g.top) / g.stride, (w + g.left) / g.stride)
                };
                let start = |(oh, ow): (usize, usize), tap: usize| {
                    // What lies before the image becomes a number past its end.
                    let (oh, ow) = (oh.wrapping_sub(tap / class.across), ow.wrapping_sub(tap % class.across));
                    (oh < g.oh && ow < g.ow).then(|| ((n * g.oh + oh) * g.ow + ow) * g.cout)
                };
                let left = Gather { src: dy, c: g.cout, taps: class.taps() };
                let weights = Panels::new(weights, class.taps() * g.cout, g.cin);
                gathered(left, place, start, weights, heights * widths, dx, |row| {
                    let (h, w) = at(row);
                    (h * g.w + w) * g.cin
                });
            }
            finish((n * g.h + b * band) * g.w, dx);
        });
    });
}

/// Sums of `dy` over the pixels of each sample, and over all.
pub fn backward_shift(of: Image, dy: &[f32], dshift: &mut [f32], dbias: &mut [f32]) {
    let c = of.channels;
    // f64, because gradients of what a norm follows nearly cancel over the pixels.
    const BLOCK: usize = 32;
    dshift.par_chunks_mut(c).zip(dy.par_chunks(of.pixels * c)).for_each(|(sum, dy)| {
        vectorized(
            #[inline(always)]
            || {
                for (block, sum) in sum.chunks_mut(BLOCK).enumerate() {
                    let mut exact = [0.0_f64; BLOCK];
                    for pixel in dy.chunks_exact(c) {
                        let pixel = &pixel[block * BLOCK..][..sum.len()];
                        for (s, d) in exact.iter_mut().zip(pixel) {
                            *s += f64::from(*d);
                        }
                    }
                    for (sum, exact) in sum.iter_mut().zip(exact) {
                        *sum = exact as f32;
                    }
                }
            },
        );
    });
    for (co, out) in dbias.iter_mut().enumerate() {
        let exact: f64 = dshift.iter().skip(co).step_by(c).map(|&v| f64::from(v)).sum();
        *out = exact as f32;
    }
}
