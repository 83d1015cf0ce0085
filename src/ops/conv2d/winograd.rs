//! Convolutions of 3 x 3 taps by Winograd's minimal filtering, F(2x2, 3x3): 16 multiplications for four pixels
//! instead of 36 (Lavin & Gray 2015, arXiv:1509.09308).
//!
//! `y = A^T [(G g G^T) . (B^T d B)] A` for each tile d of 4 x 4 source pixels, which gives 2 x 2 pixels; summed
//! over the channels, the product in the middle is one matrix product for each of the 16 places.

mod transforms;

use std::cell::RefCell;

use pulp::Arch;
use rayon::prelude::*;

use super::Geometry;
use crate::launch::Prepacked;
use crate::matrix::Tiles;
use crate::micro::dense::{Left, Right, product};
use crate::micro::panels::{Panels, WIDEST, copy_turned, panel, panel_elements};
use crate::simd::vectorized;

use transforms::{TransformInput, TransformOutput, TransformSlope, TransformWeights};

/// Places of a tile.
const PLACES: usize = 16;

/// Tiles of a task: whole tiles of the products of any machine.
const TASK: usize = 24;

/// True for the shapes that it is used for. The answer must not depend on the batch, because a sample must
/// not; and channels come in whole vectors of any machine.
pub fn suits(g: &Geometry) -> bool {
    let whole = |channels: usize| channels >= 32 && channels.is_multiple_of(16);
    (g.kh, g.kw, g.stride) == (3, 3, 1) && whole(g.cin) && whole(g.cout)
}

/// Elements of the room for the transformed weights.
pub fn room(c: usize, dst_c: usize) -> usize {
    PLACES * panel_elements(c, dst_c)
}

/// A convolution of 3 x 3 taps and stride 1: of an image `[n, h, w, c]` to one of `[n, h, w, c]`, source rows
/// `row + kh - top`, columns alike.
pub struct Correlation {
    pub n: usize,
    pub src: [usize; 3],
    pub dst: [usize; 3],
    pub top: isize,
    pub left: isize,
}

impl Correlation {
    /// `finish(pixel, y)` gets whole pixels, each once, the first of them number `pixel`.
    pub fn run(
        &self,
        src: &[f32],
        weights: Weights,
        dst: &mut [f32],
        room: Prepacked,
        finish: impl Fn(usize, &mut [f32]) + Sync,
    ) {
        let (c, dst_c) = (self.src[2], self.dst[2]);
        if !room.done {
            transform_weights(c, dst_c, weights, room.memory);
        }
        let (down, across) = (self.dst[0].div_ceil(2), self.dst[1].div_ceil(2));
        let (count, row) = (self.n * down * across, panel_elements(1, dst_c));
        let room = &*room.memory;
        let dst = Tiles::new(dst);
        (0..count.div_ceil(TASK)).into_par_iter().for_each(|task| {
            let tiles = task * TASK..count.min((task + 1) * TASK);
            let at = |tile: usize| (tile / (down * across), tile / across % down * 2, tile % across * 2);
            with_memory([PLACES * TASK * c, PLACES * TASK * row, c], |[input, output, zeros]| {
                zeros.fill(0.0);
                let zeros = &*zeros;
                for (i, tile) in tiles.clone().enumerate() {
                    let places = self.places(src, zeros, at(tile));
                    Arch::new().dispatch(TransformInput {
                        places,
                        c,
                        out: &mut input[i * c..],
                        step: TASK * c,
                    });
                }
                let places = input.chunks_exact(TASK * c).zip(output.chunks_exact_mut(TASK * row));
                for (place, (input, output)) in places.enumerate() {
                    let weights = &room[place * panel_elements(c, dst_c)..][..panel_elements(c, dst_c)];
                    let weights = Right::packed(Panels::new(weights, c, dst_c));
                    product([tiles.len(), c, dst_c], Left::new(input, c, 1), weights, output, row, false);
                }
                for (i, tile) in tiles.enumerate() {
                    let (n, h, w) = at(tile);
                    let pixels = 2.min(self.dst[1] - w);
                    for r in 0..2.min(self.dst[0] - h) {
                        let first = (n * self.dst[0] + h + r) * self.dst[1] + w;
                        // SAFETY: every tile has pixels of its own, and `pointer` checks that they are there.
                        let y = unsafe {
                            let y = dst.pointer(first * dst_c, pixels * dst_c);
                            std::slice::from_raw_parts_mut(y, pixels * dst_c)
                        };
                        let places = &output[i * row..];
                        Arch::new().dispatch(TransformOutput {
                            places,
                            step: TASK * row,
                            c: dst_c,
                            r,
                            out: &mut *y,
                        });
                        finish(first, y);
                    }
                }
            });
        });
    }

    /// The 4 x 4 source pixels of a tile, zeros outside the image.
    fn places<'a>(
        &self,
        src: &'a [f32],
        zeros: &'a [f32],
        (n, h, w): (usize, usize, usize),
    ) -> [&'a [f32]; PLACES] {
        let [src_h, src_w, c] = self.src;
        std::array::from_fn(|place| {
            // What lies before the image becomes a number past its end.
            let h = ((h + place / 4) as isize - self.top) as usize;
            let w = ((w + place % 4) as isize - self.left) as usize;
            if h < src_h && w < src_w { &src[((n * src_h + h) * src_w + w) * c..][..c] } else { &zeros[..c] }
        })
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
        let mut rest = &mut memory[..all];
        let parts = elements.map(|elements| {
            let (part, others) = std::mem::take(&mut rest).split_at_mut(elements);
            rest = others;
            part
        });
        work(parts);
    });
}

/// The weights of a [`Correlation`], from `c` channels to others.
#[derive(Clone, Copy)]
pub enum Weights<'a> {
    /// `[3, 3, c, dst_c]`.
    Forward(&'a [f32]),
    /// `[3, 3, dst_c, c]`, those of the convolution whose adjoint this is: taps in reverse order.
    Adjoint(&'a [f32]),
}

/// `G g G^T` for all channels, into panels, one matrix after the other for each place.
fn transform_weights(c: usize, dst_c: usize, weights: Weights, room: &mut [f32]) {
    /// Rows of a task: a run of the adjoint's weights that fills whole lines of the cache.
    const ROWS: usize = 16;
    let (width, elements) = (panel(dst_c), panel_elements(c, dst_c));
    assert!(width <= WIDEST, "a panel of {width} columns");
    let room = Tiles::new(room);
    let (panels, pieces) = (dst_c.div_ceil(width), c.div_ceil(ROWS));
    (0..panels * pieces).into_par_iter().for_each(|task| {
        let (panel, piece) = (task / pieces, task % pieces);
        let (first, cols) = (panel * width, width.min(dst_c - panel * width));
        let rows = piece * ROWS..c.min((piece + 1) * ROWS);
        let mut turned = [[0.0; ROWS * WIDEST]; 9];
        if let Weights::Adjoint(w) = weights {
            for (tap, out) in turned.iter_mut().enumerate() {
                let w = &w[((8 - tap) * dst_c + first) * c + rows.start..];
                copy_turned(w, c, cols, &mut out[..rows.len() * width], width);
            }
        }
        for (i, k) in rows.enumerate() {
            let taps = std::array::from_fn(|tap| match weights {
                Weights::Forward(w) => &w[(tap * c + k) * dst_c + first..][..cols],
                Weights::Adjoint(_) => &turned[tap][i * width..][..cols],
            });
            // The task's own rows.
            let out =
                std::array::from_fn(|place| room.pointer(place * elements + (panel * c + k) * width, width));
            Arch::new().dispatch(TransformWeights { taps, width, out });
        }
    });
}

/// Channels on either side of a task of the gradient of the weights: what it adds to stays in the second-level
/// cache.
const CHANNELS: usize = 64;

/// Tiles whose products are added up in one chain.
const CHAIN: usize = 48;

/// Tasks that keep many cores busy.
const WANTED: usize = 24;

/// How the gradient of the weights is dealt out: parts over the tiles, blocks of channels. Depends on the shape
/// alone, since the order of the sums depends on it.
struct Deal {
    parts: usize,
    down: usize,
    across: usize,
    chains: usize,
}

impl Deal {
    fn of(g: &Geometry) -> Self {
        let (down, across) = (g.cin.div_ceil(CHANNELS), g.cout.div_ceil(CHANNELS));
        let chains = (g.n * g.oh.div_ceil(2) * g.ow.div_ceil(2)).div_ceil(CHAIN);
        Deal { parts: WANTED.div_ceil(down * across).min(chains), down, across, chains }
    }

    /// Elements of a task's sums: for each place, rows of as many input channels, each a whole number of panels.
    fn task_elements() -> usize {
        PLACES * CHANNELS * CHANNELS
    }
}

/// Elements of the room that [`backward_w`] needs for its sums.
pub fn weight_room(g: &Geometry) -> usize {
    let Deal { parts, down, across, .. } = Deal::of(g);
    parts * down * across * Deal::task_elements()
}

/// `dw = G^T [sum over the tiles of (B^T d B) . (A dy A^T)] G`: the derivative of the formula above.
pub fn backward_w(g: &Geometry, x: &[f32], dy: &[f32], dw: &mut [f32], room: &mut [f32]) {
    let deal = Deal::of(g);
    let (tiles_down, tiles_across) = (g.oh.div_ceil(2), g.ow.div_ceil(2));
    let count = g.n * tiles_down * tiles_across;
    let image = Correlation {
        n: g.n,
        src: [g.h, g.w, g.cin],
        dst: [g.oh, g.ow, g.cout],
        top: g.top as isize,
        left: g.left as isize,
    };
    // What belongs to the output lies at its own rows and columns.
    let slopes = Correlation { n: g.n, src: [g.oh, g.ow, g.cout], dst: [0; 3], top: 0, left: 0 };
    let blocks = deal.down * deal.across;
    room.par_chunks_mut(Deal::task_elements()).enumerate().for_each(|(task, sums)| {
        let (part, block) = (task / blocks, task % blocks);
        let (ci, co) = (block / deal.across * CHANNELS, block % deal.across * CHANNELS);
        let (rows, cols) = (CHANNELS.min(g.cin - ci), CHANNELS.min(g.cout - co));
        let (first, end) = (part * deal.chains / deal.parts, (part + 1) * deal.chains / deal.parts);
        with_memory(
            [PLACES * CHAIN * rows, PLACES * CHAIN * CHANNELS, g.cin.max(g.cout)],
            |[input, slope, zeros]| {
                zeros.fill(0.0);
                for chain in first..end {
                    let tiles = chain * CHAIN..count.min((chain + 1) * CHAIN);
                    for (i, tile) in tiles.clone().enumerate() {
                        let at = (
                            tile / (tiles_down * tiles_across),
                            tile / tiles_across % tiles_down * 2,
                            tile % tiles_across * 2,
                        );
                        let places = image.places(x, zeros, at).map(|pixel| &pixel[ci..ci + rows]);
                        let out = &mut input[i * rows..];
                        Arch::new().dispatch(TransformInput { places, c: rows, out, step: CHAIN * rows });
                        let places = slopes.places(dy, zeros, at);
                        let places = [0, 1, 4, 5].map(|p| &places[p][co..co + cols]);
                        let out = &mut slope[i * CHANNELS..];
                        Arch::new().dispatch(TransformSlope { places, c: cols, out, step: CHAIN * CHANNELS });
                    }
                    let places = input.chunks_exact(CHAIN * rows).zip(slope.chunks_exact(CHAIN * CHANNELS));
                    for ((input, slope), sums) in places.zip(sums.chunks_exact_mut(CHANNELS * CHANNELS)) {
                        let left = Left::new(input, 1, rows);
                        let right = Right::rows(slope, CHANNELS, cols);
                        product([rows, tiles.len(), cols], left, right, sums, CHANNELS, chain > first);
                    }
                }
            },
        );
    });
    let (room, dw) = (&*room, Tiles::new(dw));
    (0..g.cin * deal.across).into_par_iter().for_each(|task| {
        let (ci, block) = (task / deal.across, task % deal.across);
        let cols = CHANNELS.min(g.cout - block * CHANNELS);
        vectorized(
            #[inline(always)]
            || {
                let mut totals = [[0.0; CHANNELS]; PLACES];
                for part in 0..deal.parts {
                    let task = (part * deal.down + ci / CHANNELS) * deal.across + block;
                    let sums = &room[task * Deal::task_elements()..][..Deal::task_elements()];
                    for (place, totals) in totals.iter_mut().enumerate() {
                        let sums = &sums[(place * CHANNELS + ci % CHANNELS) * CHANNELS..][..cols];
                        for (total, sum) in totals.iter_mut().zip(sums) {
                            *total += sum;
                        }
                    }
                }
                for tap in 0..9 {
                    let at = (tap * g.cin + ci) * g.cout + block * CHANNELS;
                    // SAFETY: every task has channels of its own.
                    let dw = unsafe { std::slice::from_raw_parts_mut(dw.pointer(at, cols), cols) };
                    dw.fill(0.0);
                    for (place, totals) in totals.iter().enumerate() {
                        let factor = WEIGHTS[place / 4][tap / 3] * WEIGHTS[place % 4][tap % 3];
                        if factor != 0.0 {
                            dw.iter_mut().zip(totals).for_each(|(dw, total)| *dw += factor * total);
                        }
                    }
                }
            },
        );
    });
}

/// G.
const WEIGHTS: [[f32; 3]; 4] = [[1.0, 0.0, 0.0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0.0, 0.0, 1.0]];
