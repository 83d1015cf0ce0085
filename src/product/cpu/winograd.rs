//! Convolutions of 3 x 3 taps and a stride of 1 by Winograd's minimal filtering, F(2x2, 3x3): 16
//! multiplications for four pixels instead of 36 (Lavin & Gray 2015, arXiv:1509.09308).
//!
//! `y = A^T [(G g G^T) . (B^T d B)] A` for each tile d of 4 x 4 pixels, which gives 2 x 2; summed over the
//! channels, the product in the middle is one matrix product for each of the 16 places.

use std::marker::PhantomData;

use pulp::{Arch, Simd, WithSimd};
use rayon::prelude::*;

use super::gather::{CACHED, Runs};
use super::multiply::multiply_into;
use super::outer::{BLOCK, Deal};
use super::panels::{Panels, panel, panel_elements};
use super::rows::Rows;
use super::tile::Extra;
use super::with_memory;
use crate::launch::{self, Prepacked};
use crate::product::Product;
use crate::shared::Shared;
use crate::simd::vectorized;

/// Places of a tile.
pub const PLACES: usize = 16;

/// Tiles of a task: whole register tiles of any machine. More where the weights do not stay in the last cache
/// between two tasks, because each task reads all of them.
const TASK: usize = 24;
const MOST_OF_TASK: usize = 96;

/// Tiles of a task, of `count` in all, whose weights have so many elements; the last task is as long as the
/// others, or nearly. No sum depends on it.
fn tiles_of_task(count: usize, weights: usize) -> usize {
    if weights <= 4 * CACHED {
        return TASK;
    }
    let threads = rayon::current_num_threads();
    let each = count.div_ceil(threads * count.div_ceil(threads * MOST_OF_TASK));
    each.next_multiple_of(4).clamp(4, MOST_OF_TASK)
}

/// True for the products that are computed so on the CPU. The answer must not depend on the batch, because a
/// sample must not; and channels come in whole vectors of any machine.
pub fn suits(p: &Product) -> bool {
    let g = p.geometry();
    let whole = |channels: usize| channels >= 32 && channels.is_multiple_of(16);
    (g.kh, g.kw, g.stride) == (3, 3, 1) && whole(g.cin) && whole(g.cout)
}

/// `x[r][s]`.
#[inline(always)]
fn square<T, const N: usize>(x: impl Fn(usize, usize) -> T) -> [[T; N]; N] {
    std::array::from_fn(|r| std::array::from_fn(|s| x(r, s)))
}

impl Product {
    /// A convolution, or the adjoint of one, which is a convolution with taps in reverse order and channels
    /// exchanged.
    pub(super) fn winograd(
        &self,
        src: &[f32],
        w: launch::Weights,
        y: &mut [f32],
        extra: Extra,
        packed: Prepacked,
    ) {
        let class = self.class(0).tiles();
        let (count, c, dst_c, [dst_h, dst_w]) = (class.rows(), self.depth / 9, self.cols, class.view.dst);
        if !packed.done {
            self.transform_weights(w, packed.memory);
        }
        let (weights, elements, row) = (&*packed.memory, panel_elements(c, dst_c), panel_elements(1, dst_c));
        let (y, each) = (Shared::new(y), tiles_of_task(count, PLACES * elements));
        (0..count.div_ceil(each)).into_par_iter().for_each(|task| {
            let tiles = task * each..count.min((task + 1) * each);
            let Runs { starts, targets, .. } = &class.runs(src, tiles);
            let count = targets.len();
            with_memory([PLACES * each * c, PLACES * each * row, dst_c], |[input, output, unused]| {
                map_tiles::<Input, 4>(starts, 0, input, [each, c], c);
                for (place, output) in output.chunks_exact_mut(each * row).enumerate() {
                    let input = &input[place * each * c..];
                    let weights = &weights[place * elements..][..elements];
                    let weights = Panels::packed(weights, c, dst_c, panel(dst_c));
                    multiply_into(output, row, false, Rows::matrix(input, [count, c], [c, 1]), weights);
                }
                let unused = unused.as_mut_ptr();
                for (i, target) in targets.iter().enumerate() {
                    let (h, w) = (target / dst_w % dst_h, target % dst_w);
                    let inside = |r: usize, s: usize| h + r < dst_h && w + s < dst_w;
                    let pixel = |r: usize, s: usize| inside(r, s).then_some(target + r * dst_w + s);
                    let to = square(|r, s| pixel(r, s).map_or(unused, |at| y.pointer(at * dst_c, dst_c)));
                    let from = places(output, i * row, each * row, dst_c);
                    Output::map(from.map(|line| line.map(<*mut f32>::cast_const)), to, dst_c);
                    if !extra.any() {
                        continue;
                    }
                    for [r, s] in [[0, 0], [0, 1], [1, 0], [1, 1]] {
                        if let Some(pixel) = pixel(r, s) {
                            vectorized(
                                #[inline(always)]
                                // SAFETY: every tile has pixels of its own.
                                || extra.add(pixel, 0, unsafe { y.part(pixel * dst_c, dst_c) }),
                            );
                        }
                    }
                }
            });
        });
    }

    /// `G g G^T` for all channels, into panels, one matrix after the other for each place.
    fn transform_weights(&self, w: launch::Weights, memory: &mut [f32]) {
        let (c, cols, width) = (self.depth / 9, self.cols, panel(self.cols));
        let class = self.class(0);
        let source = self.source(&class, w, 0);
        let memory = Shared::new(memory);
        (0..cols.div_ceil(width)).into_par_iter().for_each(|panel| {
            let first = panel * width;
            with_memory([9 * c * width], |[taps]| {
                source.columns(first, width.min(cols - first), width, taps);
                let tap = |r: usize, s: usize| if class.view.adjoint { 8 - r * 3 - s } else { r * 3 + s };
                let from = square(|r, s| taps[tap(r, s) * c * width..][..c * width].as_ptr());
                let place = |r: usize, s: usize| (r * 4 + s) * panel_elements(c, cols);
                let to = square(|r, s| memory.pointer(place(r, s) + first * c, c * width));
                Weights::map(from, to, c * width);
            });
        });
    }
}

/// Tiles whose products are added up in one chain.
const CHAIN: usize = 48;

/// Channels of a row of the working memory.
const CHANNELS: usize = BLOCK[1];

impl Product {
    /// The sums over the tiles for each place.
    fn winograd_deal(&self) -> Deal {
        let g = self.geometry();
        let chains = self.class(0).tiles().rows().div_ceil(CHAIN);
        Deal::new(1, PLACES, [g.cin, g.cout], chains, chains)
    }

    /// Elements of the working memory of [`Product::winograd_weights`].
    pub(super) fn winograd_weights_scratch(&self) -> usize {
        let g = self.geometry();
        PLACES * g.cin * g.cout + self.winograd_deal().scratch()
    }

    /// `dw = G^T [sum over the tiles of (B^T d B) . (A dy A^T)] G`: the derivative of the formula above.
    pub(super) fn winograd_weights(&self, x: &[f32], dy: &[f32], dw: &mut [f32], scratch: &mut [f32]) {
        let g = self.geometry();
        let (x_tiles, dy_tiles) = (self.class(0).tiles(), self.class(0).tiles().results(g.cout));
        let (sums, others) = scratch.split_at_mut(PLACES * g.cin * g.cout);
        self.winograd_deal().run(sums, others, |_, chain, [rows, cols], add| {
            let tiles = chain * CHAIN..x_tiles.rows().min((chain + 1) * CHAIN);
            let (c, count) = (rows.len(), tiles.len());
            with_memory([PLACES * CHAIN * c, PLACES * CHAIN * CHANNELS], |[input, derivative]| {
                let (x_runs, dy_runs) = (x_tiles.runs(x, tiles.clone()), dy_tiles.runs(dy, tiles));
                map_tiles::<Input, 4>(&x_runs.starts, rows.start, input, [CHAIN, c], c);
                let room = [CHAIN, CHANNELS];
                map_tiles::<Derivative, 2>(&dy_runs.starts, cols.start, derivative, room, cols.len());
                for place in 0..PLACES {
                    let a = Rows::matrix(&input[place * CHAIN * c..], [c, count], [1, c]);
                    let b = &derivative[place * CHAIN * CHANNELS..];
                    add(place, a, Panels::unpacked(b, count, cols.len(), CHANNELS));
                }
            });
        });
        let (sums, dw) = (&*sums, Shared::new(dw));
        (0..g.cin).into_par_iter().for_each(|ci| {
            let from = square(|r, s| sums[((r * 4 + s) * g.cin + ci) * g.cout..][..g.cout].as_ptr());
            let to = square(|r, s| dw.pointer(((r * 3 + s) * g.cin + ci) * g.cout, g.cout));
            WeightsDerivative::map(from, to, g.cout);
        });
    }
}

/// Where `c` channels of each place of a tile stand: from `first` on, `step` elements apart.
fn places(data: &mut [f32], first: usize, step: usize, c: usize) -> [[*mut f32; 4]; 4] {
    let all = &mut data[first..first + (PLACES - 1) * step + c];
    let start = all.as_mut_ptr();
    square(|r, s| start.wrapping_add((r * 4 + s) * step))
}

/// Maps `c` channels of each tile's pixels, from `first` on, to the places of `out`, each with room for so
/// many tiles of so many channels.
fn map_tiles<T: Transform<N, 4>, const N: usize>(
    starts: &[*const f32],
    first: usize,
    out: &mut [f32],
    [tiles, channels]: [usize; 2],
    c: usize,
) {
    let count = starts.len() / (N * N);
    for i in 0..count {
        let from = square(|r, s| starts[(r * N + s) * count + i].wrapping_add(first));
        T::map(from, places(out, i * channels, tiles * channels, c), c);
    }
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

/// `G^T m`.
struct WeightsDerivative;

impl Transform<4, 3> for WeightsDerivative {
    #[inline(always)]
    fn line<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 3] {
        let half = simd.splat_f32s(0.5);
        let [sum, difference] = [simd.add_f32s(b, c), simd.sub_f32s(b, c)].map(|x| simd.mul_f32s(half, x));
        [simd.add_f32s(a, sum), difference, simd.add_f32s(sum, d)]
    }
}
