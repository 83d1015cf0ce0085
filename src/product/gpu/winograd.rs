//! Convolutions of 3 x 3 taps on a GPU by Winograd's minimal filtering, F(2x2, 3x3): transforms around 16
//! dense products.
//!
//! A direct kernel multiplies 2.25 times as much; but the transforms move each pixel of the source and of the
//! result some nine times. It pays where channels are many. How many depends on the adapter, so these are
//! schedules for tuning to try; none runs untuned.

use super::{EXTRA, Schedule, Slots, WG, is_wide, multiply, tiles};
use crate::device::gpu::adapters::Traits;
use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatch, Dispatches, Slot};
use crate::product::{Loader, Product, View};

pub static WINOGRAD: Kernel = kernel!("product/winograd");

/// Places of a tile.
const PLACES: usize = 16;

/// Multiplications that must be saved for each number that is moved between the dispatches; where it is
/// fewer, no GPU's memory gives so many numbers that it could pay.
const LEAST: usize = 32;

/// Elements of the transformed source and of the products of a chunk, together: 32 MiB, which the
/// second-level caches of large GPUs hold, and which gives the products a thousand workgroups. Few in tests,
/// which meet several chunks so.
const CHUNK: usize = if cfg!(test) { 45_000 } else { 8 << 20 };

/// A convolution, or the adjoint of one, from c to d channels, with `chunk` of its `tiles` at a time.
struct Filter {
    view: View,
    extra: [bool; 3],
    c: usize,
    d: usize,
    tiles: usize,
    chunk: usize,
}

impl Filter {
    /// `None` unless there are 3 x 3 taps, a stride of 1, whole quads and, so that it may pay, many channels.
    /// For each channel a tile of 4 pixels is moved as 4 numbers and, once written and once read, as 16.
    fn of(product: &Product) -> Option<Filter> {
        let (Loader::Conv(g) | Loader::ConvAdjoint(g)) = product.a else { return None };
        let (view, extra) = (product.view(), product.epilogue.reads().map(|read| read.is_some()));
        let (c, d) = (view.src[2], product.cols);
        let (saved, moved) = ((36 - PLACES) * c * d, (4 + 2 * PLACES) * (c + d));
        let suits = [g.kh, g.kw, g.stride] == [3, 3, 1] && is_wide(product) && saved >= LEAST * moved;
        let tiles = g.n * view.dst[0].div_ceil(2) * view.dst[1].div_ceil(2);
        let chunk = (CHUNK / (PLACES * (c + d))).clamp(1, tiles.max(1));
        suits.then_some(Filter { view, extra, c, d, tiles, chunk })
    }

    /// A dispatch for some tiles: number of the first, and how many.
    fn add<'a>(&self, plan: &'a mut Dispatches, entry: &'static str, tiles: [usize; 2]) -> &'a mut Dispatch {
        let View { src, dst, adjoint, pad, .. } = self.view;
        let to = plan.add(&WINOGRAD, entry).param("adjoint", adjoint);
        to.params([("dst_h", dst[0]), ("dst_w", dst[1]), ("dst_c", self.d)]);
        to.params([("src_h", src[0]), ("src_w", src[1]), ("src_c", self.c)]);
        to.param("top", 2 - pad[0]).param("left", 2 - pad[1]);
        for ((has, _), given) in EXTRA.into_iter().zip(self.extra) {
            to.param(has, given);
        }
        to.param("first_tile", tiles[0]).param("tiles", tiles[1])
    }
}

/// Schedules to try: products in the tiles that fit best.
pub fn schedules(product: &Product, adapter: &Traits) -> Vec<Schedule> {
    let Some(filter) = Filter::of(product) else { return Vec::new() };
    let best = tiles::best(adapter, [PLACES * filter.chunk, filter.d], true);
    best.into_iter().take(2).map(Schedule::Winograd).collect()
}

/// Elements of the working memory: transformed weights and source, products.
pub fn scratch(product: &Product) -> Vec<usize> {
    let Some(Filter { c, d, chunk, .. }) = Filter::of(product) else { return Vec::new() };
    [c * d, chunk * c, chunk * d].map(|elements| PLACES * elements).to_vec()
}

/// `first`: number of the first of the blocks of [`scratch`].
pub fn dispatch(product: &Product, tile: usize, plan: &mut Dispatches, first: usize, slots: Slots) {
    let filter = Filter::of(product).expect("offered only where it suits");
    let [u, v, m] = [0, 1, 2].map(|block| Slot::Scratch(first + block));
    let Filter { c, d, tiles, chunk, .. } = filter;
    let weights = filter.add(plan, "transform_weights", [0, 0]);
    weights.bind("w", slots.b).bind("given", slots.b).bind("made", u).cover(c * d / 4, WG);
    for begin in (0..tiles).step_by(chunk) {
        let count = chunk.min(tiles - begin);
        let src = filter.add(plan, "transform_src", [begin, count]);
        src.bind("given", slots.a).bind("made", v).cover(count * c / 4, WG);
        // m [16, tiles, D] = v [16, tiles, C] u [16, C, D]
        let inner = Product::new(product.name, [PLACES, count, d, c], [Loader::Dense; 2]);
        let inner_slots = Slots { a: v, b: u, extra: [None; 3], y: m };
        // Neither split nor summed by columns: it takes no scratch.
        multiply(&inner, Schedule::Tiled(tile), plan, first, inner_slots);
        let dst = filter.add(plan, "transform_dst", [begin, count]);
        dst.bind("given", m).bind("made", slots.y).cover(count * d / 4, WG);
        for ((_, name), given) in EXTRA.into_iter().zip(slots.extra) {
            // What is absent is never read, but a binding must see a quad.
            dst.bind(name, given.unwrap_or(slots.b));
        }
    }
}
