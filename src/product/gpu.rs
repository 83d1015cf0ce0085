//! The schedules in which a product can run on a GPU, and the dispatches of each. `kernels/README.md`
//! introduces them.

mod tiles;
mod winograd;

#[cfg(test)]
mod tests;

use self::tiles::{LOADERS, TILES, Tile};
pub use self::winograd::WINOGRAD;
use super::{Geometry, Loader, Product, View};
use crate::device::gpu::adapters::Traits;
use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatch, Dispatches, Slot, Variant};

pub static NAIVE: Kernel = kernel!("product/naive", [[LOADERS[0]], [LOADERS[1]], [LOADERS[2]]]);
pub static TILED: Kernel = kernel!("product/tiled", &tiles::KNOB_SETS);
pub static PARTIALS: Kernel = kernel!("product/partials");
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
            let share = match tiles::side_of_matrices(number) {
                Some(side) => format!("in matrices of {side} x {side}"),
                None => format!("{tm} x {tn} a thread"),
            };
            format!("tiles of {rows} x {cols}, {share}")
        };
        let (name, index) = match self {
            Schedule::Naive => ("naive".to_owned(), 0),
            Schedule::Tiled(number) => (tile(number), 1 + number),
            Schedule::Winograd(number) => (format!("Winograd, {}", tile(number)), 1 + TILES.len() + number),
        };
        let rounds = matches!(self, Schedule::Tiled(number) if tiles::side_of_matrices(number).is_some());
        Variant { name, index, rounds }
    }

    /// Of the index of a variant.
    pub fn of(index: usize) -> Schedule {
        match index.checked_sub(1) {
            None => Schedule::Naive,
            Some(number) if number < TILES.len() => Schedule::Tiled(number),
            Some(number) => Schedule::Winograd(number - TILES.len()),
        }
    }

    /// The file in `kernels/product` that has its inner loop or transforms, and its place among those of the
    /// ladder in `kernels/README.md`.
    pub fn kernel(self) -> (usize, &'static str) {
        match self {
            Schedule::Naive => (0, "naive"),
            Schedule::Tiled(number) => match tiles::side_of_matrices(number) {
                Some(_) => (3, "through_matrices"),
                None if tiles::is_for_gpus(number) => (1, "through_workgroup"),
                None => (2, "through_subgroup"),
            },
            Schedule::Winograd(_) => (4, "winograd"),
        }
    }

    /// Its threads exchange numbers through workgroup memory.
    pub fn uses_workgroup_memory(self) -> bool {
        matches!(self, Schedule::Tiled(number) if tiles::is_for_gpus(number))
    }
}

/// The tensors of A and B, bias, shift and residual, and the result. Column sums are write 1.
#[derive(Clone, Copy, Debug)]
pub struct Slots {
    pub a: Slot,
    pub b: Slot,
    pub extra: [Option<Slot>; 3],
    pub y: Slot,
}

/// The schedules of a product, the one to take untuned first.
pub fn variants(product: &Product, adapter: &Traits) -> Vec<Variant> {
    let (view, wide) = (product.view(), is_wide(product));
    let tiled = tiles::best(adapter, [view.blocks * view.rows, product.cols], wide);
    let mut all: Vec<Schedule> = tiled.into_iter().map(Schedule::Tiled).collect();
    all.extend(tiles::of_matrices(adapter, wide).map(Schedule::Tiled));
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
    let View { g, adjoint, .. } = product.view();
    let reordered = adjoint.then(|| g.weights());
    reordered.into_iter().chain(partial).chain(winograd::scratch(product)).collect()
}

/// The dispatches of a product, with the blocks of [`scratch`].
pub fn dispatch(product: &Product, schedule: Schedule, plan: &mut Dispatches, slots: Slots) {
    let View { g, adjoint, .. } = product.view();
    let next = usize::from(adjoint);
    if let Schedule::Winograd(tile) = schedule {
        return winograd::dispatch(product, tile, plan, next, slots);
    }
    if !adjoint {
        return multiply(product, schedule, plan, next, slots);
    }
    let weights = plan.add(&ADJOINT_WEIGHTS, "adjoint_weights").bind("weights", slots.b).scratch("made", 0);
    weights.params([("kh", g.kh), ("kw", g.kw), ("rows", g.cin), ("cols", g.cout), ("step", g.stride)]);
    weights.cover(g.weights(), WG);
    multiply(product, schedule, plan, next, Slots { b: Slot::Scratch(0), ..slots });
}

/// As [`dispatch`], with the weights of an adjoint in the order of `kernels/product/load_conv.wgsl`; the
/// partial sums are scratch block `first`.
fn multiply(product: &Product, schedule: Schedule, plan: &mut Dispatches, first: usize, slots: Slots) {
    let view = product.view();
    let splits = split(product, schedule);
    let partial = splits[0] > 1 || product.column_sums;
    let (main, groups, per_group) = match schedule {
        Schedule::Naive => {
            let rows = view.rows + usize::from(product.column_sums);
            let items = splits[0] * view.blocks * rows * product.cols;
            (plan.add(&NAIVE, "product").knobs(loader(product)), items, WG)
        }
        Schedule::Tiled(number) | Schedule::Winograd(number) => {
            let set = tiles::set(number, loader(product), is_wide(product));
            let tiles = view.blocks * TILES[number].groups([view.rows, product.cols]);
            (plan.add(&TILED, "product").knobs(set), splits[0] * tiles, 1)
        }
    };
    let sums = if partial { Slots { extra: [None; 3], y: Slot::Scratch(first), ..slots } } else { slots };
    fill(product, main.cover_in_sub_dispatches(groups, per_group), splits, sums);
    main.bind("a", slots.a).bind("b", slots.b);
    if partial {
        let entry = if product.column_sums { "sum_with_columns" } else { "sum_partials" };
        let elements = split_elements(product);
        let sum = plan.add(&PARTIALS, entry).cover_in_sub_dispatches(elements, WG);
        fill(product, sum, splits, slots);
        sum.range("a", Slot::Scratch(first), 0, splits[0] * elements);
        if product.column_sums {
            sum.write("column_sums", 1);
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

/// Number of the loader in [`LOADERS`].
fn loader(product: &Product) -> usize {
    match product.a {
        Loader::Dense | Loader::Transposed => 0,
        Loader::Conv(_) | Loader::ConvAdjoint(_) => 1,
        Loader::ConvWeights(_) => 2,
    }
}

/// B as the kernels read it; the weights of an adjoint are put into order before.
fn is_transposed(product: &Product) -> bool {
    product.b != Loader::Dense && loader(product) == 0
}

/// All that lies along memory comes in quads.
fn is_wide(product: &Product) -> bool {
    let along_b = if is_transposed(product) { product.depth } else { product.cols };
    [product.view().src[2], along_b, product.cols].iter().all(|size| size.is_multiple_of(4))
}

/// The parameters, what the epilogue reads, and y.
fn fill(product: &Product, to: &mut Dispatch, [splits, split_depth]: [usize; 2], slots: Slots) {
    let View { g, blocks, rows, src: [src_h, src_w, src_c], dst: [dst_h, dst_w], .. } = product.view();
    let View { stride, spacing, pad: [pad_h, pad_w], .. } = product.view();
    let split_rows = product.batch * product.rows + usize::from(product.column_sums);
    to.params([("blocks", blocks), ("rows", rows), ("cols", product.cols), ("depth", product.depth)]);
    to.params([("splits", splits), ("split_depth", split_depth), ("split_rows", split_rows)]);
    to.param("a_transposed", matches!(product.a, Loader::Transposed));
    to.param("b_transposed", is_transposed(product));
    to.params([("src_n", g.n), ("src_h", src_h), ("src_w", src_w), ("src_c", src_c)]);
    to.params([("dst_h", dst_h), ("dst_w", dst_w), ("kh", g.kh), ("kw", g.kw)]);
    to.params([("stride", stride), ("step", spacing), ("pixels", product.epilogue.pixels)]);
    to.param("pad_h", pad_h).param("pad_w", pad_w).param("column_sums", product.column_sums);
    for ((has, name), given) in EXTRA.into_iter().zip(slots.extra) {
        // Every binding needs a tensor, and of a quad at least; what is absent is never read.
        to.param(has, given.is_some()).bind(name, given.unwrap_or(slots.b));
    }
    to.bind("y", slots.y);
}

const EXTRA: [(&str, &str); 3] = [("has_bias", "bias"), ("has_shift", "shift"), ("has_residual", "residual")];
