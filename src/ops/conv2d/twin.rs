//! The CPU twins of conv2d: tiles of the image, unrolled (im2col), times the weights as a matrix.

use rayon::prelude::*;

use super::{Geometry, Image};
use crate::launch::with_tile;
use crate::matrix::{Matrix, MatrixMut};
use crate::simd::vectorized;

/// Elements of an unrolled tile: half a megabyte, which stays in a core's second-level cache.
const TILE: usize = 1 << 17;

/// Pixels of a tile whose unrolled rows have `row` elements. Depends on the shape alone, as every partition
/// here: results must not depend on the number of threads.
fn tile_pixels(row: usize, pixels: usize) -> usize {
    (TILE / row.max(1)).clamp(32, 512).next_multiple_of(16).min(pixels.max(1))
}

/// Where the taps of an output pixel lie: rows `oh * stride + kh - top`, for `kh` in a range; columns
/// alike, all of them.
struct Window {
    h: usize,
    w: usize,
    c: usize,
    kh: std::ops::Range<usize>,
    kw: usize,
    oh: usize,
    ow: usize,
    stride: usize,
    top: isize,
    left: isize,
}

impl Window {
    fn row(&self) -> usize {
        self.kh.len() * self.kw * self.c
    }

    /// Writes one row per output pixel from number `first` on: its taps, zero outside the image.
    fn unroll(&self, src: &[f32], first: usize, tile: &mut [f32]) {
        let span = self.kw * self.c;
        for (i, row) in tile.chunks_exact_mut(self.row()).enumerate() {
            let index = first + i;
            let (n, oh, ow) = (index / (self.oh * self.ow), index / self.ow % self.oh, index % self.ow);
            let left = (ow * self.stride) as isize - self.left;
            // Taps kw in from..to have their column inside.
            let from = (-left).clamp(0, self.kw as isize) as usize;
            let to = (self.w as isize - left).clamp(from as isize, self.kw as isize) as usize;
            for (kh, taps) in self.kh.clone().zip(row.chunks_exact_mut(span)) {
                let h = (oh * self.stride + kh) as isize - self.top;
                if h < 0 || h >= self.h as isize || from == to {
                    taps.fill(0.0);
                    continue;
                }
                let start =
                    (((n * self.h) as isize + h) * self.w as isize + left + from as isize) as usize * self.c;
                taps[..from * self.c].fill(0.0);
                taps[from * self.c..to * self.c].copy_from_slice(&src[start..start + (to - from) * self.c]);
                taps[to * self.c..].fill(0.0);
            }
        }
    }

    /// A 1x1 convolution of stride 1 needs no unrolling: its rows are the pixels.
    fn is_plain(&self) -> bool {
        self.kh == (0..1) && self.kw == 1 && self.stride == 1 && self.top == 0 && self.left == 0
    }
}

/// `finish` gets the number of a tile's first pixel and the tile, for what is added to the products.
pub fn forward(g: &Geometry, x: &[f32], w: &[f32], y: &mut [f32], finish: impl Fn(usize, &mut [f32]) + Sync) {
    let window = Window {
        h: g.h,
        w: g.w,
        c: g.cin,
        kh: 0..g.kh,
        kw: g.kw,
        oh: g.oh,
        ow: g.ow,
        stride: g.stride,
        top: g.top as isize,
        left: g.left as isize,
    };
    convolve(&window, g.cout, x, w, y, finish);
}

/// Output tiles in parallel; `weights` is `[row, cout]`.
fn convolve(
    window: &Window,
    cout: usize,
    src: &[f32],
    weights: &[f32],
    dst: &mut [f32],
    finish: impl Fn(usize, &mut [f32]) + Sync,
) {
    let row = window.row();
    let pixels = tile_pixels(row, dst.len() / cout);
    dst.par_chunks_mut(pixels * cout).enumerate().for_each(|(tile, dst)| {
        let (first, m) = (tile * pixels, dst.len() / cout);
        let weights = Matrix::new(weights, row, cout, cout);
        let mut out = MatrixMut::new(dst, m, cout, cout);
        if window.is_plain() {
            out.set_product(1.0, Matrix::new(&src[first * row..], m, row, row), weights);
        } else {
            with_tile(m * row, |unrolled| {
                window.unroll(src, first, unrolled);
                out.set_product(1.0, Matrix::new(unrolled, m, row, row), weights);
            });
        }
        finish(first, dst);
    });
}

/// Adds bias, time embedding and residual to the pixels from number `first` on.
pub fn epilogue(
    g: &Geometry,
    first: usize,
    y: &mut [f32],
    bias: Option<&[f32]>,
    shift: Option<&[f32]>,
    residual: Option<&[f32]>,
) {
    let c = g.cout;
    vectorized(
        #[inline(always)]
        || {
            for (i, pixel) in y.chunks_exact_mut(c).enumerate() {
                if let Some(bias) = bias {
                    for (y, b) in pixel.iter_mut().zip(&bias[..c]) {
                        *y += b;
                    }
                }
                if let Some(shift) = shift {
                    let n = (first + i) / (g.oh * g.ow);
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

/// Adds a bias to pixels of as many channels.
pub fn add_bias(bias: &[f32], pixels: &mut [f32]) {
    vectorized(
        #[inline(always)]
        || {
            for pixel in pixels.chunks_exact_mut(bias.len()) {
                for (y, b) in pixel.iter_mut().zip(bias) {
                    *y += b;
                }
            }
        },
    );
}

/// `dx` as a convolution of `dy` with flipped weights; for a stride above 1, one for each residue of the
/// input pixel, because only every `stride`-th tap meets it. `flipped`: room for the weights. `finish` gets
/// whole pixels, each once, for what is added to the products.
pub fn adjoint(
    g: &Geometry,
    dy: &[f32],
    w: &[f32],
    dx: &mut [f32],
    flipped: &mut [f32],
    finish: impl Fn(&mut [f32]) + Sync,
) {
    if g.stride == 1 {
        let per_tap = g.cin * g.cout;
        flipped.par_chunks_mut(per_tap).enumerate().for_each(|(tap, out)| {
            transpose(&w[(g.kh * g.kw - 1 - tap) * per_tap..][..per_tap], g.cin, g.cout, out);
        });
        let window = Window {
            h: g.oh,
            w: g.ow,
            c: g.cout,
            kh: 0..g.kh,
            kw: g.kw,
            oh: g.h,
            ow: g.w,
            stride: 1,
            top: g.kh as isize - 1 - g.top as isize,
            left: g.kw as isize - 1 - g.left as isize,
        };
        convolve(&window, g.cin, dy, flipped, dx, |_, pixels| finish(pixels));
    } else {
        adjoint_strided(g, dy, w, dx, flipped, finish);
    }
}

/// `out [cols, rows]` is the transpose of `matrix [rows, cols]`.
fn transpose(matrix: &[f32], rows: usize, cols: usize, out: &mut [f32]) {
    for (col, out) in out.chunks_exact_mut(rows).enumerate() {
        for (row, out) in out.iter_mut().enumerate() {
            *out = matrix[row * cols + col];
        }
    }
}

/// The taps below `k` that a position with residue `r` meets: those equal to `r + before` modulo the
/// stride.
fn taps(k: usize, stride: usize, r: usize, before: usize) -> impl ExactSizeIterator<Item = usize> {
    ((r + before) % stride..k).step_by(stride)
}

/// The adjoint where the stride is above 1, in bands of image rows.
fn adjoint_strided(
    g: &Geometry,
    dy: &[f32],
    w: &[f32],
    dx: &mut [f32],
    flipped: &mut [f32],
    finish: impl Fn(&mut [f32]) + Sync,
) {
    let per_tap = g.cin * g.cout;
    // The weights of each residue class stand together, transposed, in the order in which its pixels are
    // unrolled.
    let (across, down) = (g.stride.min(g.w), g.stride.min(g.h));
    let classes = || (0..down * across).map(|class| (class / across, class % across));
    let order: Vec<usize> = classes()
        .flat_map(|(rh, rw)| {
            taps(g.kh, g.stride, rh, g.top)
                .flat_map(move |kh| taps(g.kw, g.stride, rw, g.left).map(move |kw| kh * g.kw + kw))
        })
        .collect();
    flipped.par_chunks_mut(per_tap).zip(&order).for_each(|(out, tap)| {
        transpose(&w[tap * per_tap..][..per_tap], g.cin, g.cout, out);
    });
    let flipped = &*flipped;
    let row_of =
        |rh, rw| taps(g.kh, g.stride, rh, g.top).len() * taps(g.kw, g.stride, rw, g.left).len() * g.cout;
    // Rows of a band, a multiple of the stride: its largest class fills a tile.
    let largest = classes().map(|(rh, rw)| row_of(rh, rw)).max().unwrap_or(0);
    let cols = g.w.div_ceil(g.stride);
    let band = (tile_pixels(largest, usize::MAX) / cols).clamp(1, g.h.div_ceil(g.stride)) * g.stride;
    dx.par_chunks_mut(g.h * g.w * g.cin).enumerate().for_each(|(n, image)| {
        image.par_chunks_mut(band * g.w * g.cin).enumerate().for_each(|(b, rows)| {
            let mut first_weight = 0;
            for (rh, rw) in classes() {
                let row = row_of(rh, rw);
                let weights = &flipped[first_weight..first_weight + row * g.cin];
                first_weight += row * g.cin;
                let heights = (rows.len() / (g.w * g.cin)).saturating_sub(rh).div_ceil(g.stride);
                let widths = g.w.saturating_sub(rw).div_ceil(g.stride);
                let m = heights * widths;
                if m == 0 {
                    continue;
                }
                with_tile(m * (row + g.cin), |tile| {
                    let (unrolled, out) = tile.split_at_mut(m * row);
                    for (i, taps_row) in unrolled.chunks_exact_mut(row.max(1)).enumerate() {
                        let h = b * band + rh + i / widths * g.stride;
                        gather_strided(g, dy, n, h, rw + i % widths * g.stride, taps_row);
                    }
                    if row == 0 {
                        out.fill(0.0);
                    } else {
                        let weights = Matrix::new(weights, row, g.cin, g.cin);
                        MatrixMut::new(out, m, g.cin, g.cin).set_product(
                            1.0,
                            Matrix::new(unrolled, m, row, row),
                            weights,
                        );
                    }
                    finish(out);
                    for (i, pixel) in out.chunks_exact(g.cin).enumerate() {
                        let (h, w) = (rh + i / widths * g.stride, rw + i % widths * g.stride);
                        rows[(h * g.w + w) * g.cin..][..g.cin].copy_from_slice(pixel);
                    }
                });
            }
        });
    });
}

/// The pixels of `dy` that the input pixel (n, h, w) went into, in the order of their taps; zero where
/// there is none.
fn gather_strided(g: &Geometry, dy: &[f32], n: usize, h: usize, w: usize, out: &mut [f32]) {
    let outside = usize::MAX;
    let from = |at: usize, before: usize, k: usize, len: usize| match (at + before).checked_sub(k) {
        Some(d) if d / g.stride < len => d / g.stride,
        _ => outside,
    };
    let mut parts = out.chunks_exact_mut(g.cout);
    for kh in taps(g.kh, g.stride, h % g.stride, g.top) {
        let oh = from(h, g.top, kh, g.oh);
        for kw in taps(g.kw, g.stride, w % g.stride, g.left) {
            let ow = from(w, g.left, kw, g.ow);
            let Some(part) = parts.next() else { return };
            if oh == outside || ow == outside {
                part.fill(0.0);
            } else {
                part.copy_from_slice(&dy[((n * g.oh + oh) * g.ow + ow) * g.cout..][..g.cout]);
            }
        }
    }
}

/// Into how many parts the pixels are dealt for the gradient of the weights: enough to keep many cores
/// busy, few enough that the parts take no more than 16 MiB, or two copies of the weights.
pub fn weight_parts(g: &Geometry) -> usize {
    let tiles = g.out_pixels().div_ceil(tile_pixels(tap_rows(g).1 * g.kw * g.cin, g.out_pixels()));
    ((4 << 20) / g.weights()).clamp(2, 16).min(tiles)
}

/// Tasks over rows of the kernel, and rows each: large weights are split there instead of into parts.
fn tap_rows(g: &Geometry) -> (usize, usize) {
    if g.weights() > 1 << 18 { (g.kh, 1) } else { (1, g.kh) }
}

/// `dw = unrolled(x)^T * dy`, in parts over the pixels that are added up in order. `parts`: room for them.
pub fn backward_w(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32], parts: &mut [f32]) {
    let (tasks, kh_each) = tap_rows(g);
    let slice = kh_each * g.kw * g.cin * g.cout;
    let total = g.out_pixels();
    let pixels = tile_pixels(kh_each * g.kw * g.cin, total);
    let count = parts.len() / g.weights();
    let tiles = total.div_ceil(pixels);
    parts.par_chunks_mut(slice).enumerate().for_each(|(task, out)| {
        let (part, kh) = (task / tasks, task % tasks * kh_each);
        let window = Window {
            h: g.h,
            w: g.w,
            c: g.cin,
            kh: kh..kh + kh_each,
            kw: g.kw,
            oh: g.oh,
            ow: g.ow,
            stride: g.stride,
            top: g.top as isize,
            left: g.left as isize,
        };
        let row = window.row();
        let range = part * tiles / count..(part + 1) * tiles / count;
        for (i, tile) in range.enumerate() {
            let first = tile * pixels;
            let m = pixels.min(total - first);
            let dy = Matrix::new(&dy[first * g.cout..], m, g.cout, g.cout);
            let mut out = MatrixMut::new(out, row, g.cout, g.cout);
            let mut add = |x: &[f32]| {
                let x = Matrix::new(x, m, row, row).transposed();
                if i == 0 { out.set_product(1.0, x, dy) } else { out.add_product(1.0, x, dy) }
            };
            if window.is_plain() {
                add(&x[first * row..]);
            } else {
                with_tile(m * row, |unrolled| {
                    window.unroll(x, first, unrolled);
                    add(unrolled);
                });
            }
        }
    });
    let parts = &*parts;
    dw.par_chunks_mut(4096).enumerate().for_each(|(i, dw)| {
        vectorized(
            #[inline(always)]
            || {
                dw.copy_from_slice(&parts[i * 4096..][..dw.len()]);
                for part in 1..count {
                    for (d, p) in dw.iter_mut().zip(&parts[part * g.weights() + i * 4096..]) {
                        *d += p;
                    }
                }
            },
        );
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
