//! Convolutions of 3 x 3 taps on a GPU by Winograd's minimal filtering, F(2x2, 3x3): transforms around 16 matrix
//! products.
//!
//! A direct kernel multiplies 2.25 times as much; but the transforms move each pixel of the source and of the result
//! some nine times. It pays where channels are many. How many depends on the adapter, so these are ways for tuning
//! to try; none runs untuned.

use super::gpu::{Gather, Origin};
use crate::device::gpu::adapters::Traits;
use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::ways::Way;
use crate::launch::{Dispatch, Dispatches, Slot, Variant};
use crate::ops::shared::product::{Sizes, Slots, Transpose};

/// The transforms.
pub static WINOGRAD: Kernel = kernel!("conv2d_winograd");

/// Threads of a workgroup of [`WINOGRAD`].
const WG: usize = 64;

/// Places of a tile.
const PLACES: usize = 16;

/// Multiplications that must be saved for each number that is moved between the dispatches; where it is fewer, no
/// GPU's memory gives so many numbers that it could pay.
const LEAST: usize = 32;

/// Elements of the transformed source and of the products of a slab, together: 32 MiB, which the second-level
/// caches of large GPUs hold, and which gives the products a thousand workgroups. Few in tests, which meet several
/// slabs so.
const SLAB: usize = if cfg!(test) { 45_000 } else { 8 << 20 };

/// Index of the variant whose products run as [`Way`] number 0.
const FIRST: usize = 64;

/// The convolutions that it computes: with 3 x 3 taps, a stride of 1, whole vec4s and, so that it may pay, many
/// channels. For each channel a tile of 4 pixels is moved as 4 numbers and, once written and once read, as 16.
fn suits(of: &Gather) -> bool {
    let ([_, _, c], [_, _, d]) = (of.src, of.dst);
    let (saved, moved) = ((36 - PLACES) * c * d, (4 + 2 * PLACES) * (c + d));
    let wide = c.is_multiple_of(4) && d.is_multiple_of(4);
    (of.taps, of.stride, of.step) == ([3, 3], 1, 1) && wide && saved >= LEAST * moved
}

/// Tiles of a batch.
fn tiles(of: &Gather) -> usize {
    of.n * of.dst[0].div_ceil(2) * of.dst[1].div_ceil(2)
}

/// Tiles of a slab.
fn slab(of: &Gather) -> usize {
    (SLAB / (PLACES * (of.src[2] + of.dst[2]))).clamp(1, tiles(of))
}

/// Ways to try beside the direct ones: products in the tiles that fit best, and spread where that is how a driver
/// likes them.
pub fn variants(of: &Gather, adapter: &Traits) -> Vec<Variant> {
    if !suits(of) {
        return Vec::new();
    }
    let broad = (adapter.software && adapter.broadcasts).then(|| Way::Broad.variant());
    let tiled = Way::variants(adapter, [PLACES * slab(of), of.dst[2]], &[]).into_iter();
    let tiled = tiled.filter(|way| matches!(Way::of(way.index), Way::Tiled(_)));
    let best = tiled.take(if adapter.software { 1 } else { 2 });
    let named = |Variant { name, index }| Variant { name: format!("Winograd, {name}"), index: FIRST + index };
    broad.into_iter().chain(best).map(named).collect()
}

/// How the products run in the variant of that index, if it is one of [`variants`].
pub fn product_of(index: usize) -> Option<Way> {
    index.checked_sub(FIRST).map(Way::of)
}

/// Elements of the working memory: transformed weights and source, products.
pub fn scratch(of: &Gather) -> Vec<usize> {
    if !suits(of) {
        return Vec::new();
    }
    let ([_, _, c], [_, _, d]) = (of.src, of.dst);
    [c * d, slab(of) * c, slab(of) * d].map(|elements| PLACES * elements).to_vec()
}

/// `first`: number of the first of the blocks of [`scratch`].
pub fn dispatch(of: &Gather, first: usize, product: Way, plan: &mut Dispatches) {
    let [u, v, m] = [0, 1, 2].map(|block| Slot::Scratch(first + block));
    let ([_, _, c], [_, _, d]) = (of.src, of.dst);
    let weights_in = plan.add(&WINOGRAD, "transform_weights");
    params(of, weights_in, (0, 0));
    weights_in.read("w", 1).read("w4", 1).bind("u4", u).cover(c * d / 4, WG);
    let all = tiles(of);
    for begin in (0..all).step_by(slab(of)) {
        let count = slab(of).min(all - begin);
        let src = plan.add(&WINOGRAD, "transform_src");
        params(of, src, (begin, count));
        src.read("src4", 0).bind("v4", v).cover(count * c / 4, WG);
        // m [16, tiles, D] = v [16, tiles, C] u [16, C, D]
        let sizes = Sizes { batch: PLACES, m: count, n: d, k: c, transpose: Transpose::NONE };
        sizes.dispatch(plan, product, [1, c], Slots { a: v, b: u, bias: None, y: m });
        let dst = plan.add(&WINOGRAD, "transform_dst");
        params(of, dst, (begin, count));
        dst.bind("m4", m).write("dst4", 0);
        for (name, given) in ["bias4", "shift4", "residual4"].into_iter().zip(of.extra) {
            // What is absent is never looked at, but a binding must see something, as large as a lane.
            dst.read(name, given.unwrap_or(1));
        }
        dst.cover(count * d / 4, WG);
    }
}

fn params(of: &Gather, dispatch: &mut Dispatch, (first_tile, tiles): (usize, usize)) {
    dispatch
        .param("dst_h", of.dst[0])
        .param("dst_w", of.dst[1])
        .param("dst_c", of.dst[2])
        .param("src_h", of.src[0])
        .param("src_w", of.src[1])
        .param("src_c", of.src[2])
        // `pad` is that of the adjoint.
        .param("top", 2 - of.pad[0])
        .param("left", 2 - of.pad[1])
        .param("first_tile", first_tile)
        .param("tiles", tiles)
        .param("adjoint", of.weights == Origin::Adjoint)
        .param("has_bias", of.extra[0].is_some())
        .param("has_shift", of.extra[1].is_some())
        .param("has_residual", of.extra[2].is_some());
}
