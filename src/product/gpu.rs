//! The schedules in which a product can run on a GPU, and the dispatches of each. `kernels/README.md`
//! introduces them.

mod tiles;
mod winograd;

#[cfg(test)]
mod tests;

use self::tiles::{LOADERS, TILES, Tile};
pub use self::winograd::WINOGRAD;
use super::{Geometry, Loader, Product};
use crate::device::gpu::adapters::Traits;
use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatch, Dispatches, Slot, Variant};

/// One thread for each element of y.
pub static NAIVE: Kernel = kernel!("product/naive", [[LOADERS[0]], [LOADERS[1]], [LOADERS[2]]]);
/// Tiles that threads share.
pub static TILED: Kernel = kernel!("product/tiled", &tiles::KNOB_SETS);
/// Adds up partial sums.
pub static PARTIALS: Kernel = kernel!("product/partials");
/// Puts weights into the order in which an adjoint reads them.
pub static ADJOINT_WEIGHTS: Kernel = kernel!("product/adjoint_weights");

/// Threads of a workgroup of the kernels that have a thread for each element.
const WG: usize = 64;

/// How a product runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    /// One thread for each element of y.
    Naive,
    /// In tiles of that number.
    Tiled(usize),
    /// By Winograd's minimal filtering, around products in tiles of that number.
    Winograd(usize),
}

impl Schedule {
    fn variant(self) -> Variant {
        let tile = |number: usize| {
            let Tile { rows, cols, tm, tn, .. } = TILES[number];
            format!("tiles of {rows} x {cols}, {tm} x {tn} a thread")
        };
        let (name, index) = match self {
            Schedule::Naive => ("naive".to_owned(), 0),
            Schedule::Tiled(number) => (tile(number), 1 + number),
            Schedule::Winograd(number) => (format!("Winograd, {}", tile(number)), 1 + TILES.len() + number),
        };
        Variant { name, index }
    }

    /// Of the index of a variant.
    pub fn of(index: usize) -> Schedule {
        match index.checked_sub(1) {
            None => Schedule::Naive,
            Some(number) if number < TILES.len() => Schedule::Tiled(number),
            Some(number) => Schedule::Winograd(number - TILES.len()),
        }
    }

    /// Its threads exchange numbers through workgroup memory.
    pub fn uses_workgroup_memory(self) -> bool {
        matches!(self, Schedule::Tiled(number) if tiles::is_for_gpus(number))
    }
}

/// The tensors that a product reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Slots {
    /// Tensor of A.
    pub a: Slot,
    /// Tensor of B.
    pub b: Slot,
    /// Bias, shift and residual.
    pub extra: [Option<Slot>; 3],
    /// The result.
    pub y: Slot,
    /// Unused without column sums.
    pub column_sums: Slot,
}

/// The schedules of a product, the one to take untuned first.
pub fn variants(product: &Product, adapter: &Traits) -> Vec<Variant> {
    let view = View::of(product);
    let wide = view.is_wide(product);
    let tiled = tiles::best(adapter, [view.blocks * view.rows, product.cols], wide);
    let mut all: Vec<Schedule> = tiled.into_iter().map(Schedule::Tiled).collect();
    all.extend(winograd::schedules(product, adapter));
    // Where barriers are dear, a tile of which most columns are past the end costs more than it shares.
    let naive_is_best = adapter.software && !wide && product.cols < 32;
    all.insert(if naive_is_best { 0 } else { all.len() }, Schedule::Naive);
    all.into_iter().map(Schedule::variant).collect()
}

/// Products of one class run fastest in one schedule.
pub fn shape_class(product: &Product) -> String {
    let Product { batch, rows, cols, depth, a, b, .. } = product;
    if let Loader::Conv(g) | Loader::ConvAdjoint(g) | Loader::ConvWeights(g) = a {
        let Geometry { n, h, w, cin, kh, kw, cout, stride, .. } = g;
        return format!("{n} x {h} x {w} x {cin} to {cout} channels, {kh} x {kw}, stride {stride}");
    }
    let transposed = |of: &Loader| if *of == Loader::Dense { "" } else { ", transposed" };
    format!("{batch} x {rows} x {depth}{} by {depth} x {cols}{}", transposed(a), transposed(b))
}

/// Elements of working memory, one number a block, enough for each schedule: the adjoint's weights or the
/// partial sums, then those of Winograd's filtering.
pub fn scratch(product: &Product) -> Vec<usize> {
    let schedules = (0..TILES.len()).map(Schedule::Tiled).chain([Schedule::Naive]);
    let splits = schedules.map(|schedule| split(product, schedule)[0]).max().unwrap_or(1);
    let partial = (splits > 1 || product.column_sums).then_some(splits * split_elements(product));
    let reordered = reordered(product).map(Geometry::weights);
    reordered.into_iter().chain(partial).chain(winograd::scratch(product)).collect()
}

/// The convolution whose weights are put into the order in which its adjoint reads them.
fn reordered(product: &Product) -> Option<&Geometry> {
    if let Loader::ConvAdjoint(g) = &product.a { Some(g) } else { None }
}

/// The dispatches of a product, with the blocks of [`scratch`].
pub fn dispatch(product: &Product, schedule: Schedule, plan: &mut Dispatches, slots: Slots) {
    let next = usize::from(reordered(product).is_some());
    if let Schedule::Winograd(tile) = schedule {
        return winograd::dispatch(product, tile, plan, next, slots);
    }
    let Some(g) = reordered(product) else { return multiply(product, schedule, plan, next, slots) };
    let weights = plan.add(&ADJOINT_WEIGHTS, "adjoint_weights").bind("weights", slots.b).scratch("made", 0);
    weights.params([("kh", g.kh), ("kw", g.kw), ("rows", g.cin), ("cols", g.cout), ("step", g.stride)]);
    weights.cover(g.weights(), WG);
    multiply(product, schedule, plan, next, Slots { b: Slot::Scratch(0), ..slots });
}

/// As [`dispatch`], with the weights of an adjoint in the order of `kernels/product/load_conv.wgsl`; the
/// partial sums are scratch block `first`.
fn multiply(product: &Product, schedule: Schedule, plan: &mut Dispatches, first: usize, slots: Slots) {
    let view = View::of(product);
    let splits = split(product, schedule);
    let partial = splits[0] > 1 || product.column_sums;
    let (main, groups, per_group) = match schedule {
        Schedule::Naive => {
            let rows = view.rows + usize::from(product.column_sums);
            let items = splits[0] * view.blocks * rows * product.cols;
            (plan.add(&NAIVE, "product").knobs(view.loader), items, WG)
        }
        Schedule::Tiled(number) | Schedule::Winograd(number) => {
            let set = tiles::set(number, view.loader, view.is_wide(product));
            let tiles = view.blocks * TILES[number].groups([view.rows, product.cols]);
            (plan.add(&TILED, "product").knobs(set), splits[0] * tiles, 1)
        }
    };
    let (extra, y) = if partial { ([None; 3], Slot::Scratch(first)) } else { (slots.extra, slots.y) };
    view.fill(product, main.cover_in_sub_dispatches(groups, per_group), splits, extra, slots.b);
    main.bind("a", slots.a).bind("b", slots.b).bind("y", y);
    if partial {
        let entry = if product.column_sums { "sum_with_columns" } else { "sum_partials" };
        let elements = split_elements(product);
        let sum = plan.add(&PARTIALS, entry).cover_in_sub_dispatches(elements, WG);
        view.fill(product, sum, splits, slots.extra, slots.b);
        sum.range("a", Slot::Scratch(first), 0, splits[0] * elements).bind("y", slots.y);
        if product.column_sums {
            sum.bind("column_sums", slots.column_sums);
        }
    }
}

/// Elements of the partial sums of a split.
fn split_elements(product: &Product) -> usize {
    product.outputs() + if product.column_sums { product.cols } else { 0 }
}

/// Terms of a split: rounding grows with their number, and llvmpipe leaves any loop after 65,535 turns.
const LONGEST_SUM: usize = 1 << 14;
/// Terms that are worth writing a partial sum.
const SHORTEST_SUM: usize = 128;

/// Parts of the sum, and the length of each. Depends on the shapes and the schedule alone; takes not more
/// memory than a few copies of y or 64 MiB, nor than the 128 MiB that every adapter binds.
fn split(product: &Product, schedule: Schedule) -> [usize; 2] {
    let Product { batch, rows, cols, depth, split_k, .. } = *product;
    if !split_k {
        return [1, depth.next_multiple_of(4)];
    }
    let wanted = match schedule {
        // A thread has one element: enough threads to fill a large GPU, but no long sums of partial sums.
        Schedule::Naive => ((1_usize << 17) / product.outputs()).min(1 << 10),
        Schedule::Tiled(number) | Schedule::Winograd(number) => {
            let groups = batch * TILES[number].groups([rows, cols]);
            // More for a GPU than for the threads of a CPU.
            (if tiles::is_for_gpus(number) { 2 * tiles::BUSY } else { 16 }) / groups
        }
    };
    let elements = split_elements(product);
    let most = ((16 << 20) / elements).max(4).min((32 << 20) / elements).min(depth / SHORTEST_SUM);
    let splits = wanted.min(most).max(depth.div_ceil(LONGEST_SUM)).max(1);
    let split_depth = depth.div_ceil(splits).next_multiple_of(16);
    [depth.div_ceil(split_depth), split_depth]
}

/// A product as the kernels see it: in blocks, the items of a batch or the residues of an adjoint, and over
/// an image.
struct View {
    /// Number of the loader in [`LOADERS`].
    loader: usize,
    blocks: usize,
    /// Of the largest block.
    rows: usize,
    /// Height, width and channels.
    src: [usize; 3],
    dst: [usize; 2],
    n: usize,
    taps: [usize; 2],
    stride: usize,
    /// The stride of the convolution whose adjoint it is.
    step: usize,
    pad: [i32; 2],
}

impl View {
    fn of(product: &Product) -> View {
        let Product { batch: blocks, rows, a, .. } = *product;
        let (Loader::Conv(g) | Loader::ConvWeights(g) | Loader::ConvAdjoint(g)) = a else {
            // An image of one pixel.
            let (src, dst, taps, pad) = ([1; 3], [1; 2], [1; 2], [0; 2]);
            return View { loader: 0, blocks, rows, src, dst, n: 1, taps, stride: 1, step: 1, pad };
        };
        let (n, taps, pad) = (g.n, [g.kh, g.kw], [g.top as i32, g.left as i32]);
        if let Loader::ConvAdjoint(_) = a {
            let blocks = g.stride.min(g.h) * g.stride.min(g.w);
            let rows = g.n * g.h.div_ceil(g.stride) * g.w.div_ceil(g.stride);
            let (src, dst) = ([g.oh, g.ow, g.cout], [g.h, g.w]);
            return View { loader: 1, blocks, rows, src, dst, n, taps, stride: 1, step: g.stride, pad };
        }
        let loader = if let Loader::Conv(_) = a { 1 } else { 2 };
        let (src, dst) = ([g.h, g.w, g.cin], [g.oh, g.ow]);
        // The kernels take the padding of the adjoint.
        let pad = [g.kh as i32 - 1 - pad[0], g.kw as i32 - 1 - pad[1]];
        View { loader, blocks, rows, src, dst, n, taps, stride: g.stride, step: 1, pad }
    }

    fn transposed(&self, of: Loader) -> bool {
        self.loader == 0 && of != Loader::Dense
    }

    /// All that lies along memory comes in quads.
    fn is_wide(&self, product: &Product) -> bool {
        let Product { rows, cols, depth, a, b, .. } = *product;
        let along_a = match a {
            Loader::Dense => depth,
            Loader::Transposed { .. } => rows,
            _ => self.src[2],
        };
        let along_b = if self.transposed(b) { depth } else { cols };
        [along_a, along_b, cols].iter().all(|size| size.is_multiple_of(4))
    }

    /// The parameters, and what the epilogue reads; `unread`: any tensor as large as a quad.
    fn fill(
        &self,
        product: &Product,
        to: &mut Dispatch,
        [splits, split_depth]: [usize; 2],
        extra: [Option<Slot>; 3],
        unread: Slot,
    ) {
        let split_rows = product.batch * product.rows + usize::from(product.column_sums);
        let View { blocks, rows, src: [src_h, src_w, src_c], dst: [dst_h, dst_w], taps: [kh, kw], .. } =
            *self;
        to.params([("blocks", blocks), ("rows", rows), ("cols", product.cols), ("depth", product.depth)]);
        to.params([("splits", splits), ("split_depth", split_depth), ("split_rows", split_rows)]);
        to.param("a_transposed", self.transposed(product.a));
        to.param("b_transposed", self.transposed(product.b));
        to.params([("src_n", self.n), ("src_h", src_h), ("src_w", src_w), ("src_c", src_c)]);
        to.params([("dst_h", dst_h), ("dst_w", dst_w), ("kh", kh), ("kw", kw)]);
        to.params([("stride", self.stride), ("step", self.step), ("pixels", product.epilogue.pixels)]);
        to.param("pad_h", self.pad[0]).param("pad_w", self.pad[1]).param("column_sums", product.column_sums);
        for ((has, name), given) in EXTRA.into_iter().zip(extra) {
            // Every binding needs a tensor; what is absent is never read.
            to.param(has, given.is_some()).bind(name, given.unwrap_or(unread));
        }
    }
}

const EXTRA: [(&str, &str); 3] = [("has_bias", "bias"), ("has_shift", "shift"), ("has_residual", "residual")];
