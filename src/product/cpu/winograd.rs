//! Convolutions of 3 x 3 taps and a stride of 1 by Winograd's minimal filtering, F(2x2, 3x3): 16
//! multiplications for four pixels instead of 36 (Lavin & Gray 2015, arXiv:1509.09308). Here on the CPU;
//! `gpu.rs` has the same algebra in WGSL.
//!
//! `y = A^T [(G g G^T) . (B^T d B)] A` for each tile d of 4 x 4 pixels, which gives 2 x 2; summed over the
//! channels, the product in the middle is one matrix product for each of the 16 places.

use std::cell::RefCell;
use std::marker::PhantomData;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::panels::{Panels, Source, Taps, WIDEST, panel, panel_elements};
use super::shared::Shared;
use super::tile::{Extra, multiply_dense};
use crate::launch::Prepacked;
use crate::product::{Geometry, Loader, Product};
use crate::simd::vectorized;

/// Places of a tile.
const PLACES: usize = 16;

/// Tiles of a task: whole register tiles of any machine.
const TASK: usize = 24;

/// True for the products that are computed so on the CPU. The answer must not depend on the batch, because a
/// sample must not; and channels come in whole vectors of any machine.
pub fn suits(p: &Product) -> bool {
    let whole = |channels: usize| channels >= 32 && channels.is_multiple_of(16);
    match p.a {
        Loader::Conv(g) | Loader::ConvAdjoint(g) | Loader::ConvWeights(g) => {
            (g.kh, g.kw, g.stride) == (3, 3, 1) && whole(g.cin) && whole(g.cout)
        }
        _ => false,
    }
}

/// The tiles of 2 x 2 pixels of images of this height and width.
#[derive(Clone, Copy)]
struct TileGrid {
    n: usize,
    size: [usize; 2],
}

impl TileGrid {
    fn count(&self) -> usize {
        self.n * self.size[0].div_ceil(2) * self.size[1].div_ceil(2)
    }

    /// Image, row and column of the first pixel of a tile.
    fn at(&self, tile: usize) -> [usize; 3] {
        let [down, across] = self.size.map(|size| size.div_ceil(2));
        [tile / (down * across), tile / across % down * 2, tile % across * 2]
    }
}

/// A batch of images `[n, h, w, c]`.
#[derive(Clone, Copy)]
struct Images<'a> {
    data: &'a [f32],
    size: [usize; 2],
    c: usize,
    zeros: &'a [f32],
}

impl Images<'_> {
    /// `N x N` pixels from row h and column w on, from channel `first` on; zeros outside the image.
    fn pixels<const N: usize>(&self, n: usize, [h, w]: [isize; 2], first: usize) -> [[*const f32; N]; N] {
        let [rows, cols] = self.size;
        std::array::from_fn(|r| {
            std::array::from_fn(|s| {
                // What lies before the image becomes a number past its end.
                let [h, w] = [(h + r as isize) as usize, (w + s as isize) as usize];
                let inside = h < rows && w < cols;
                let pixel =
                    if inside { &self.data[((n * rows + h) * cols + w) * self.c..] } else { self.zeros };
                pixel[..self.c][first..].as_ptr()
            })
        })
    }
}

impl Product {
    /// Elements of the transformed weights.
    pub(super) fn winograd_packed(&self) -> usize {
        PLACES * panel_elements(self.depth / 9, self.cols)
    }

    /// A convolution, or the adjoint of one, which is a convolution with taps in reverse order and channels
    /// exchanged.
    pub(super) fn winograd(&self, src: &[f32], w: &[f32], y: &mut [f32], extra: Extra, packed: Prepacked) {
        let (n, size, dst, pad) = match self.a {
            Loader::Conv(g) => (g.n, [g.h, g.w], [g.oh, g.ow], [g.top as isize, g.left as isize]),
            Loader::ConvAdjoint(g) => {
                (g.n, [g.oh, g.ow], [g.h, g.w], [2 - g.top as isize, 2 - g.left as isize])
            }
            loader => unreachable!("{loader:?}"),
        };
        let (c, dst_c) = (self.depth / 9, self.cols);
        if !packed.done {
            self.transform_weights(w, packed.memory);
        }
        let weights = &*packed.memory;
        let (grid, row, place_elements) =
            (TileGrid { n, size: dst }, panel_elements(1, dst_c), panel_elements(c, dst_c));
        let y = Shared::new(y);
        (0..grid.count().div_ceil(TASK)).into_par_iter().for_each(|task| {
            let tiles = task * TASK..grid.count().min((task + 1) * TASK);
            let sizes = [PLACES * TASK * c, PLACES * TASK * row, c, dst_c];
            with_memory(sizes, |[input, output, zeros, unused]| {
                zeros.fill(0.0);
                let images = Images { data: src, size, c, zeros };
                for (i, tile) in tiles.clone().enumerate() {
                    let [n, h, w] = grid.at(tile);
                    let from = images.pixels(n, [h as isize - pad[0], w as isize - pad[1]], 0);
                    Input::map(from, places(input, i * c, TASK * c, c), c);
                }
                for (place, output) in output.chunks_exact_mut(TASK * row).enumerate() {
                    let input = &input[place * TASK * c..];
                    let weights = &weights[place * place_elements..][..place_elements];
                    let weights = Panels::packed(weights, c, dst_c, panel(dst_c));
                    multiply_dense([tiles.len(), c], input, [c, 1], weights, output, row, false);
                }
                for (i, tile) in tiles.enumerate() {
                    let [n, h, w] = grid.at(tile);
                    let pixel = |r: usize, s: usize| {
                        (h + r < dst[0] && w + s < dst[1]).then_some((n * dst[0] + h + r) * dst[1] + w + s)
                    };
                    let to = std::array::from_fn(|r| {
                        std::array::from_fn(|s| match pixel(r, s) {
                            Some(pixel) => y.pointer(pixel * dst_c, dst_c),
                            None => unused.as_mut_ptr(),
                        })
                    });
                    Output::map(
                        places(output, i * row, TASK * row, dst_c).map(|p| p.map(|p| p.cast_const())),
                        to,
                        dst_c,
                    );
                    for pixel in [pixel(0, 0), pixel(0, 1), pixel(1, 0), pixel(1, 1)].into_iter().flatten() {
                        // SAFETY: every tile has pixels of its own.
                        let y = unsafe { y.part(pixel * dst_c, dst_c) };
                        vectorized(
                            #[inline(always)]
                            || extra.add(pixel, 0, y),
                        );
                    }
                }
            });
        });
    }

    /// `G g G^T` for all channels, into panels, one matrix after the other for each place.
    fn transform_weights(&self, w: &[f32], memory: &mut [f32]) {
        /// Rows of a task: a run of the adjoint's weights that fills whole lines of the cache.
        const ROWS: usize = 16;
        let (c, cols) = (self.depth / 9, self.cols);
        let transposed = self.b != Loader::Dense;
        let blocks = Taps { count: 9, width: 9, first: 0, down: 0, across: 1 };
        let stride = if transposed { c } else { cols };
        let source = Source { data: w, cols, stride, block: c, blocks, transposed };
        let (width, elements) = (panel(cols), panel_elements(c, cols));
        let memory = Shared::new(memory);
        let (panels, pieces) = (cols.div_ceil(width), c.div_ceil(ROWS));
        (0..panels * pieces).into_par_iter().for_each(|task| {
            let (panel, rows) = (task / pieces, task % pieces * ROWS..c.min((task % pieces + 1) * ROWS));
            let mut taps = [[0.0; ROWS * WIDEST]; 9];
            for (tap, out) in taps.iter_mut().enumerate() {
                let tap = if transposed { 8 - tap } else { tap };
                let first = panel * width;
                source.pack(
                    tap * c + rows.start,
                    first,
                    width.min(cols - first),
                    &mut out[..rows.len() * width],
                    width,
                );
            }
            for (i, k) in rows.enumerate() {
                let from = std::array::from_fn(|r| {
                    std::array::from_fn(|s| taps[r * 3 + s][i * width..][..width].as_ptr())
                });
                let at = |place: usize| memory.pointer(place * elements + (panel * c + k) * width, width);
                let to = std::array::from_fn(|r| std::array::from_fn(|s| at(r * 4 + s)));
                Weights::map(from, to, width);
            }
        });
    }
}

/// Channels on either side of a task of the gradient of the weights: what it adds to stays in the
/// second-level cache.
const CHANNELS: usize = 64;

/// Tiles whose products are added up in one chain.
const CHAIN: usize = 48;

/// Tasks that keep many cores busy.
const WANTED: usize = 24;

/// Elements of the sums of a task: for each place, rows of as many input channels, each a whole number of
/// panels.
const SUMS: usize = PLACES * CHANNELS * CHANNELS;

/// Blocks of channels on either side, and partial sums over the tiles. Depends on the shape alone, since the
/// order of the sums depends on it.
fn deal(g: &Geometry) -> ([usize; 2], usize) {
    let blocks = [g.cin, g.cout].map(|channels| channels.div_ceil(CHANNELS));
    let chains = TileGrid { n: g.n, size: [g.oh, g.ow] }.count().div_ceil(CHAIN);
    (blocks, WANTED.div_ceil(blocks[0] * blocks[1]).min(chains))
}

/// Elements of the working memory of [`backward_w`].
pub fn backward_w_scratch(g: &Geometry) -> usize {
    let ([down, across], partials) = deal(g);
    partials * down * across * SUMS
}

/// `dw = G^T [sum over the tiles of (B^T d B) . (A dy A^T)] G`: the derivative of the formula above.
pub fn backward_w(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32], scratch: &mut [f32]) {
    let ([down, across], partials) = deal(g);
    let grid = TileGrid { n: g.n, size: [g.oh, g.ow] };
    let (count, chains) = (grid.count(), grid.count().div_ceil(CHAIN));
    scratch.par_chunks_mut(SUMS).enumerate().for_each(|(task, sums)| {
        let (partial, block) = (task / (down * across), task % (down * across));
        let (ci, co) = (block / across * CHANNELS, block % across * CHANNELS);
        let (rows, cols) = (CHANNELS.min(g.cin - ci), CHANNELS.min(g.cout - co));
        let first = partial * chains / partials;
        let sizes = [PLACES * CHAIN * rows, PLACES * CHAIN * CHANNELS, g.cin.max(g.cout)];
        with_memory(sizes, |[input, derivative, zeros]| {
            zeros.fill(0.0);
            let x = Images { data: x, size: [g.h, g.w], c: g.cin, zeros };
            let dy = Images { data: dy, size: [g.oh, g.ow], c: g.cout, zeros };
            for chain in first..(partial + 1) * chains / partials {
                let tiles = chain * CHAIN..count.min((chain + 1) * CHAIN);
                for (i, tile) in tiles.clone().enumerate() {
                    let [n, h, w] = grid.at(tile);
                    let at = [h as isize - g.top as isize, w as isize - g.left as isize];
                    Input::map(x.pixels(n, at, ci), places(input, i * rows, CHAIN * rows, rows), rows);
                    let from = dy.pixels(n, [h as isize, w as isize], co);
                    Derivative::map(from, places(derivative, i * CHANNELS, CHAIN * CHANNELS, cols), cols);
                }
                let both = input.chunks_exact(CHAIN * rows).zip(derivative.chunks_exact(CHAIN * CHANNELS));
                for ((input, derivative), sums) in both.zip(sums.chunks_exact_mut(CHANNELS * CHANNELS)) {
                    let b = Panels::unpacked(derivative, tiles.len(), cols, CHANNELS);
                    multiply_dense([rows, tiles.len()], input, [1, rows], b, sums, CHANNELS, chain > first);
                }
            }
        });
    });
    let (sums, dw) = (&*scratch, Shared::new(dw));
    (0..g.cin * across).into_par_iter().for_each(|task| {
        let (ci, block) = (task / across, task % across);
        let cols = CHANNELS.min(g.cout - block * CHANNELS);
        vectorized(
            #[inline(always)]
            || {
                let mut totals = [[0.0; CHANNELS]; PLACES];
                for partial in 0..partials {
                    let task = (partial * down + ci / CHANNELS) * across + block;
                    for (place, totals) in totals.iter_mut().enumerate() {
                        let row = task * SUMS + (place * CHANNELS + ci % CHANNELS) * CHANNELS;
                        totals.iter_mut().zip(&sums[row..][..cols]).for_each(|(total, sum)| *total += sum);
                    }
                }
                for tap in 0..9 {
                    // SAFETY: every task has channels of its own.
                    let dw = unsafe { dw.part((tap * g.cin + ci) * g.cout + block * CHANNELS, cols) };
                    dw.fill(0.0);
                    for (place, totals) in totals.iter().enumerate() {
                        let factor = G[place / 4][tap / 3] * G[place % 4][tap % 3];
                        if factor != 0.0 {
                            dw.iter_mut().zip(totals).for_each(|(dw, total)| *dw += factor * total);
                        }
                    }
                }
            },
        );
    });
}

const G: [[f32; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];

/// Where `c` channels of each place of a tile stand: from `first` on, `step` elements apart.
fn places(data: &mut [f32], first: usize, step: usize, c: usize) -> [[*mut f32; 4]; 4] {
    let all = &mut data[first..first + (PLACES - 1) * step + c];
    std::array::from_fn(|r| std::array::from_fn(|s| all.as_mut_ptr().wrapping_add((r * 4 + s) * step)))
}

/// A linear map of `N` numbers to `M`, applied to the columns and then to the rows of a tile, for whole
/// vectors of channels at a time.
trait Transform<const N: usize, const M: usize>: Sized {
    fn line<S: Simd>(simd: S, x: [S::f32s; N]) -> [S::f32s; M];

    /// The pointers are to `c` channels each, whole vectors of any machine.
    fn map(from: [[*const f32; N]; N], to: [[*mut f32; M]; M], c: usize) {
        Arch::new().dispatch(Map::<Self, N, M> { from, to, c, transform: PhantomData });
    }
}

struct Map<T, const N: usize, const M: usize> {
    from: [[*const f32; N]; N],
    to: [[*mut f32; M]; M],
    c: usize,
    transform: PhantomData<T>,
}

impl<T: Transform<N, M>, const N: usize, const M: usize> WithSimd for Map<T, N, M> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        assert!(self.c.is_multiple_of(S::F32_LANES), "{} channels in whole vectors", self.c);
        for first in (0..self.c).step_by(S::F32_LANES) {
            let mut half = [[simd.splat_f32s(0.0); N]; M];
            for s in 0..N {
                // SAFETY: `first` and a vector lie inside `c`.
                let read =
                    |r: usize| unsafe { self.from[r][s].add(first).cast::<S::f32s>().read_unaligned() };
                let column = T::line(simd, std::array::from_fn(read));
                (0..M).for_each(|r| half[r][s] = column[r]);
            }
            for r in 0..M {
                let row = T::line(simd, half[r]);
                for s in 0..M {
                    // SAFETY: as above.
                    unsafe { self.to[r][s].add(first).cast::<S::f32s>().write_unaligned(row[s]) };
                }
            }
        }
    }
}

/// `B^T d`.
struct Input;

impl Transform<4, 4> for Input {
    #[inline(always)]
    fn line<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 4] {
        [simd.sub_f32s(a, c), simd.add_f32s(b, c), simd.sub_f32s(c, b), simd.sub_f32s(b, d)]
    }
}

/// `A^T m`.
struct Output;

impl Transform<4, 2> for Output {
    #[inline(always)]
    fn line<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 2] {
        [simd.add_f32s(simd.add_f32s(b, c), a), simd.sub_f32s(simd.sub_f32s(b, c), d)]
    }
}

/// `A dy`.
struct Derivative;

impl Transform<2, 4> for Derivative {
    #[inline(always)]
    fn line<S: Simd>(simd: S, [a, b]: [S::f32s; 2]) -> [S::f32s; 4] {
        [a, simd.add_f32s(a, b), simd.sub_f32s(a, b), simd.neg_f32s(b)]
    }
}

/// `G g`.
struct Weights;

impl Transform<3, 4> for Weights {
    #[inline(always)]
    fn line<S: Simd>(simd: S, [a, b, c]: [S::f32s; 3]) -> [S::f32s; 4] {
        let half = simd.splat_f32s(0.5);
        let (outer, middle) = (simd.mul_f32s(half, simd.add_f32s(a, c)), simd.mul_f32s(half, b));
        [a, simd.add_f32s(outer, middle), simd.sub_f32s(outer, middle), c]
    }
}

/// Working memory of a task, kept by its thread.
fn with_memory<const N: usize>(elements: [usize; N], work: impl FnOnce([&mut [f32]; N])) {
    thread_local! {
        static MEMORY: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    }
    MEMORY.with_borrow_mut(|memory| {
        let all = elements.iter().sum();
        if memory.len() < all {
            memory.resize(all, 0.0);
        }
        work(super::split(&mut memory[..all], elements));
    });
}
