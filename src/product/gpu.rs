//! The schedules in which a product can run on a GPU, and the dispatches of each. `kernels/README.md` introduces them.

mod winograd;

use super::{Geometry, Loader, Product};
use crate::device::gpu::adapters::Traits;
use crate::device::gpu::shader::{Kernel, Knob};
use crate::kernel;
use crate::launch::{Dispatch, Dispatches, Slot, Variant};

/// One thread for each element of y.
pub static NAIVE: Kernel = kernel!("product/naive", [[LOADERS[0]], [LOADERS[1]], [LOADERS[2]]]);
/// Tiles that threads share.
pub static TILED: Kernel = kernel!("product/tiled", &KNOB_SETS);
pub static PARTIALS: Kernel = kernel!("product/partials");
pub static ADJOINT_WEIGHTS: Kernel = kernel!("product/adjoint_weights");
pub use winograd::WINOGRAD;

/// Threads of a workgroup of the kernels that have a thread for each element.
const WG: usize = 64;

const LOADERS: [Knob; 3] = [
    ("LOADER", "product/load_dense.wgsl"),
    ("LOADER", "product/load_conv.wgsl"),
    ("LOADER", "product/load_conv_weights.wgsl"),
];
const ACCESS: [Knob; 2] = [("ACCESS", "product/quads.wgsl"), ("ACCESS", "product/ragged.wgsl")];
const WORKGROUP: Knob = ("SHARE", "product/through_workgroup.wgsl");
const SUBGROUP: Knob = ("SHARE", "product/through_subgroup.wgsl");

/// A workgroup's tile: `tx * ty` threads of `tm` rows and `tn` columns each.
#[derive(Debug)]
struct Tile {
    rows: usize,
    cols: usize,
    tm: usize,
    tn: usize,
    share: Knob,
    knobs: [Knob; 5],
}

macro_rules! tile {
    ($tx:literal x $ty:literal threads of $tm:literal x $tn:literal, depth $depth:literal, $share:expr) => {
        Tile {
            rows: $ty * $tm,
            cols: $tx * $tn,
            tm: $tm,
            tn: $tn,
            share: $share,
            knobs: [
                ("TX", concat!($tx, "u")),
                ("TY", concat!($ty, "u")),
                ("TM", concat!($tm, "u")),
                ("TN", concat!($tn, "u")),
                ("DEPTH", concat!($depth, "u")),
            ],
        }
    };
}

/// The tiles that `tiled` is compiled for; number 4 is for few columns.
static TILES: [Tile; 7] = [
    tile!(16 x 8 threads of 8 x 8, depth 16, WORKGROUP),
    tile!(8 x 8 threads of 8 x 8, depth 16, WORKGROUP),
    tile!(16 x 8 threads of 8 x 4, depth 16, WORKGROUP),
    tile!(8 x 8 threads of 4 x 4, depth 16, WORKGROUP),
    tile!(4 x 16 threads of 4 x 4, depth 16, WORKGROUP),
    tile!(8 x 1 threads of 64 x 8, depth 4, SUBGROUP),
    tile!(8 x 1 threads of 64 x 4, depth 4, SUBGROUP),
];

/// Number of the first of the tiles that need a subgroup of eight lanes.
const THROUGH_SUBGROUP: usize = 5;

/// For each tile and each loader quads, then likewise ragged, but not through a subgroup: the drivers that like it need
/// too long to compile so many loads.
static SETS: [[Knob; 8]; 3 * (TILES.len() + THROUGH_SUBGROUP)] = {
    let mut sets = [[LOADERS[0]; 8]; 3 * (TILES.len() + THROUGH_SUBGROUP)];
    let mut i = 0;
    while i < sets.len() {
        let ragged = i / 3 / TILES.len();
        let Tile { share, knobs: [tx, ty, tm, tn, depth], .. } = TILES[i / 3 % TILES.len()];
        sets[i] = [LOADERS[i % 3], ACCESS[ragged], share, tx, ty, tm, tn, depth];
        i += 1;
    }
    sets
};

static KNOB_SETS: [&[Knob]; SETS.len()] = {
    let mut sets: [&[Knob]; SETS.len()] = [&[]; SETS.len()];
    let mut i = 0;
    while i < sets.len() {
        sets[i] = &SETS[i];
        i += 1;
    }
    sets
};

/// How a product runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Schedule {
    Naive,
    /// In tiles of that number.
    Tiled(usize),
    /// By Winograd's minimal filtering, around products in tiles of that number.
    Winograd(usize),
}

/// Workgroups that keep a large GPU busy.
const BUSY: usize = 256;

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

    /// Other threads are near: a row may be shared by many.
    pub fn suits_gpus(self) -> bool {
        matches!(self, Schedule::Tiled(number) if number < THROUGH_SUBGROUP)
    }

    /// Tiles for a matrix of `rows` x `cols`, the best first.
    ///
    /// A GPU gets tiles as large as they can be while they keep it busy: each number that is fetched is used as
    /// often as the tile is wide.
    fn tiles(adapter: &Traits, [rows, cols]: [usize; 2]) -> Vec<usize> {
        let mut tiles: Vec<usize> = (0..THROUGH_SUBGROUP).collect();
        tiles.sort_by_key(|&number| {
            let tile = &TILES[number];
            let groups = rows.div_ceil(tile.rows) * cols.div_ceil(tile.cols);
            let wasted = 2 * cols.next_multiple_of(tile.cols) >= 3 * cols.next_multiple_of(16);
            let narrow = tile.cols < 32 && cols >= 32;
            (wasted, narrow, groups < BUSY, if groups < BUSY { tile.rows * tile.cols } else { number })
        });
        if adapter.broadcasts {
            let narrow = 2 * cols.next_multiple_of(64) >= 3 * cols.next_multiple_of(32);
            let lanes = [THROUGH_SUBGROUP + usize::from(narrow), THROUGH_SUBGROUP + usize::from(!narrow)];
            // Drivers that compute on the CPU get little from workgroup memory, others little from eight threads.
            if adapter.software {
                tiles.splice(..0, lanes);
            } else {
                tiles.push(lanes[0]);
            }
        }
        tiles
    }
}

/// What a product reads and writes.
#[derive(Clone, Copy, Debug)]
pub struct Slots {
    pub a: Slot,
    pub b: Slot,
    /// Bias, shift and residual.
    pub extra: [Option<Slot>; 3],
    pub y: Slot,
    /// Where the column sums go, if the product has any.
    pub column_sums: Slot,
}

/// The schedules of a product, the one to take untuned first.
pub fn variants(product: &Product, adapter: &Traits) -> Vec<Variant> {
    let view = View::of(product);
    let adapter = &Traits { broadcasts: adapter.broadcasts && view.is_wide(product), ..*adapter };
    let tiles = Schedule::tiles(adapter, [view.blocks * view.rows, product.cols]);
    let mut all: Vec<Schedule> = tiles.into_iter().map(Schedule::Tiled).collect();
    all.extend(winograd::schedules(product, adapter));
    all.push(Schedule::Naive);
    all.into_iter().map(Schedule::variant).collect()
}

/// Which products run fastest in one schedule.
pub fn shape_class(product: &Product) -> String {
    let Product { batch, rows, cols, depth, a, b, .. } = product;
    match a {
        Loader::Dense | Loader::Transposed { .. } => {
            let transposed = |of: &Loader| if *of == Loader::Dense { "" } else { ", transposed" };
            format!("{batch} x {rows} x {depth}{} by {depth} x {cols}{}", transposed(a), transposed(b))
        }
        Loader::Conv(g) | Loader::ConvAdjoint(g) | Loader::ConvWeights(g) => {
            let Geometry { n, h, w, cin, kh, kw, cout, stride, .. } = g;
            format!("{n} x {h} x {w} x {cin} to {cout} channels, {kh} x {kw}, stride {stride}")
        }
    }
}

/// Elements of working memory, one number a block, enough for each variant: the adjoint's weights or the partial
/// sums, then those of Winograd's filtering.
pub fn scratch(product: &Product) -> Vec<usize> {
    let mut blocks = Vec::new();
    if reorders(product).is_some() {
        blocks.push(product.depth * product.cols);
    }
    if product.split_k || product.column_sums {
        let schedules = (0..TILES.len()).map(Schedule::Tiled).chain([Schedule::Naive]);
        let parts = schedules.map(|schedule| split(product, schedule)[0]).max().unwrap_or(1);
        if parts > 1 || product.column_sums {
            blocks.push(parts * part_elements(product));
        }
    }
    blocks.extend(winograd::scratch(product));
    blocks
}

/// The dispatches of a product; its scratch begins with block `first`.
pub fn dispatch(product: &Product, schedule: Schedule, plan: &mut Dispatches, first: usize, slots: Slots) {
    if let Schedule::Winograd(tile) = schedule {
        return winograd::dispatch(
            product,
            tile,
            plan,
            first + usize::from(reorders(product).is_some()),
            slots,
        );
    }
    let Some(g) = reorders(product) else { return multiply(product, schedule, plan, first, slots) };
    plan.add(&ADJOINT_WEIGHTS, "adjoint_weights")
        .param("kh", g.kh)
        .param("kw", g.kw)
        .param("rows", g.cin)
        .param("cols", g.cout)
        .param("step", g.stride)
        .bind("weights", slots.b)
        .scratch("made", first)
        .cover(g.weights(), WG);
    multiply(product, schedule, plan, first + 1, Slots { b: Slot::Scratch(first), ..slots });
}

/// The convolution whose weights are to be put into the order in which its adjoint reads them.
fn reorders(product: &Product) -> Option<&Geometry> {
    match &product.a {
        Loader::ConvAdjoint(g) => Some(g),
        _ => None,
    }
}

/// As [`dispatch`], for weights of an adjoint that lie in the order of `kernels/product/load_conv.wgsl`.
fn multiply(product: &Product, schedule: Schedule, plan: &mut Dispatches, first: usize, slots: Slots) {
    let view = View::of(product);
    let [parts, part_depth] = split(product, schedule);
    let partial = parts > 1 || product.column_sums;
    let rows = view.rows + usize::from(product.column_sums);
    let (main, groups, per_group) = match schedule {
        Schedule::Naive => {
            let items = parts * view.blocks * rows * product.cols;
            (plan.add(&NAIVE, "product").knobs(view.loader), items, WG)
        }
        Schedule::Tiled(number) | Schedule::Winograd(number) => {
            let ragged = usize::from(!view.is_wide(product));
            let set = 3 * (number + ragged * TILES.len()) + view.loader;
            let tile = &TILES[number];
            let tiles = view.rows.div_ceil(tile.rows) * product.cols.div_ceil(tile.cols);
            (plan.add(&TILED, "product").knobs(set), parts * view.blocks * tiles, 1)
        }
    };
    let extra = if partial { [None; 3] } else { slots.extra };
    view.fill(product, main.cover_in_sub_dispatches(groups, per_group), [parts, part_depth], extra, slots.b);
    main.bind("a", slots.a).bind("b", slots.b);
    main.bind("y", if partial { Slot::Scratch(first) } else { slots.y });
    if partial {
        let entry = if product.column_sums { "sum_with_columns" } else { "sum_partials" };
        let sum = plan.add(&PARTIALS, entry).cover_in_sub_dispatches(part_elements(product), WG);
        view.fill(product, sum, [parts, part_depth], slots.extra, slots.b);
        sum.range("a", Slot::Scratch(first), 0, parts * part_elements(product)).bind("y", slots.y);
        if product.column_sums {
            sum.bind("column_sums", slots.column_sums);
        }
    }
}

/// Elements of a part of the sums.
fn part_elements(product: &Product) -> usize {
    product.outputs() + if product.column_sums { product.cols } else { 0 }
}

/// Terms of a part: rounding grows with their number, and llvmpipe leaves any loop after 65,535 turns.
const LONGEST_SUM: usize = 1 << 14;
/// Terms that are worth writing a part of y.
const SHORTEST_SUM: usize = 128;

/// Parts of the sum, and the length of each. Depends on the shapes and the schedule alone; takes not more memory than
/// a few copies of y or 64 MiB, nor than the 128 MiB that every adapter binds.
fn split(product: &Product, schedule: Schedule) -> [usize; 2] {
    let Product { batch, rows, cols, depth, .. } = *product;
    if !product.split_k {
        return [1, depth.next_multiple_of(4)];
    }
    let wanted = match schedule {
        // A thread has one element: enough threads to fill a large GPU.
        Schedule::Naive => (1_usize << 17) / product.outputs(),
        Schedule::Tiled(number) | Schedule::Winograd(number) => {
            let groups = batch * rows.div_ceil(TILES[number].rows) * cols.div_ceil(TILES[number].cols);
            // More for a GPU than for the threads of a CPU.
            (if number >= THROUGH_SUBGROUP { 16 } else { 2 * BUSY }) / groups
        }
    };
    let elements = part_elements(product);
    let most = ((16 << 20) / elements).max(4).min((32 << 20) / elements).min(depth / SHORTEST_SUM);
    let parts = wanted.min(most).max(depth.div_ceil(LONGEST_SUM)).max(1);
    let part_depth = depth.div_ceil(parts).next_multiple_of(16);
    [depth.div_ceil(part_depth), part_depth]
}

/// A product as the kernels see it: items of a batch, or residues of an adjoint, and an image.
struct View {
    loader: usize,
    blocks: usize,
    /// Of the largest block.
    rows: usize,
    /// Height, width and channels.
    src: [usize; 3],
    g: Geometry,
    dst: [usize; 2],
    stride: usize,
    /// The stride of the convolution whose adjoint it is.
    step: usize,
    pad: [i32; 2],
}

impl View {
    fn of(product: &Product) -> View {
        let Product { batch, rows, a, .. } = *product;
        // Of a matrix: an image of one pixel.
        let pixel = Geometry {
            n: 1,
            h: 1,
            w: 1,
            cin: 1,
            kh: 1,
            kw: 1,
            cout: 1,
            oh: 1,
            ow: 1,
            stride: 1,
            top: 0,
            left: 0,
        };
        let matrix = View {
            loader: 0,
            blocks: batch,
            rows,
            src: [1; 3],
            g: pixel,
            dst: [1; 2],
            stride: 1,
            step: 1,
            pad: [0; 2],
        };
        match a {
            Loader::Dense | Loader::Transposed { .. } => matrix,
            Loader::Conv(g) | Loader::ConvWeights(g) => View {
                loader: if matches!(a, Loader::Conv(_)) { 1 } else { 2 },
                src: [g.h, g.w, g.cin],
                g,
                dst: [g.oh, g.ow],
                stride: g.stride,
                // That of the adjoint.
                pad: [g.kh as i32 - 1 - g.top as i32, g.kw as i32 - 1 - g.left as i32],
                ..matrix
            },
            Loader::ConvAdjoint(g) => View {
                loader: 1,
                blocks: g.stride.min(g.h) * g.stride.min(g.w),
                rows: g.n * g.h.div_ceil(g.stride) * g.w.div_ceil(g.stride),
                src: [g.oh, g.ow, g.cout],
                g,
                dst: [g.h, g.w],
                step: g.stride,
                pad: [g.top as i32, g.left as i32],
                ..matrix
            },
        }
    }

    /// All that lies along memory comes in vec4s.
    fn is_wide(&self, product: &Product) -> bool {
        let Product { rows, cols, depth, a, b, .. } = *product;
        let along_a = match a {
            Loader::Dense => depth,
            Loader::Transposed { .. } => rows,
            _ => self.src[2],
        };
        let transposed = self.loader == 0 && b != Loader::Dense;
        [along_a, cols, if transposed { depth } else { cols }].iter().all(|size| size.is_multiple_of(4))
    }

    /// The parameters, and what the epilogue reads; `unread`: any tensor as large as a vec4.
    fn fill(
        &self,
        product: &Product,
        dispatch: &mut Dispatch,
        [parts, part_depth]: [usize; 2],
        extra: [Option<Slot>; 3],
        unread: Slot,
    ) {
        let transposed = |of: Loader| self.loader == 0 && of != Loader::Dense;
        dispatch
            .param("blocks", self.blocks)
            .param("rows", self.rows)
            .param("cols", product.cols)
            .param("depth", product.depth)
            .param("parts", parts)
            .param("part_depth", part_depth)
            .param("part_rows", product.batch * product.rows + usize::from(product.column_sums))
            .param("a_transposed", transposed(product.a))
            .param("b_transposed", transposed(product.b))
            .param("src_n", self.g.n)
            .param("src_h", self.src[0])
            .param("src_w", self.src[1])
            .param("src_c", self.src[2])
            .param("dst_h", self.dst[0])
            .param("dst_w", self.dst[1])
            .param("kh", self.g.kh)
            .param("kw", self.g.kw)
            .param("stride", self.stride)
            .param("step", self.step)
            .param("pad_h", self.pad[0])
            .param("pad_w", self.pad[1])
            .param("has_bias", extra[0].is_some())
            .param("has_shift", extra[1].is_some())
            .param("has_residual", extra[2].is_some())
            .param("pixels", product.epilogue.pixels)
            .param("column_sums", product.column_sums);
        // Every binding needs a tensor; what is absent is never read.
        for (name, given) in ["bias", "shift", "residual"].into_iter().zip(extra) {
            dispatch.bind(name, given.unwrap_or(unread));
        }
    }
}
