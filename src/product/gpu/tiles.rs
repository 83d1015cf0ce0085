//! The tiles that `kernels/product/tiled.wgsl` is compiled for.

use crate::device::gpu::adapters::Traits;
use crate::device::gpu::shader::Knob;

/// Which elements A has, by [`loader`](super::loader).
pub const LOADERS: [Knob; 3] = [
    ("LOADER", "product/load_dense.wgsl"),
    ("LOADER", "product/load_conv.wgsl"),
    ("LOADER", "product/load_conv_weights.wgsl"),
];
const ACCESS: [Knob; 2] = [("ACCESS", "product/quads.wgsl"), ("ACCESS", "product/ragged.wgsl")];
const WORKGROUP: Knob = ("SHARE", "product/through_workgroup.wgsl");
const SUBGROUP: Knob = ("SHARE", "product/through_subgroup.wgsl");
const MATRICES_8: Knob = ("SHARE", "product/matrices_8.wgsl");
const MATRICES_16: Knob = ("SHARE", "product/matrices_16.wgsl");

/// A workgroup's tile of y, and what a thread has of it.
#[derive(Debug)]
pub struct Tile {
    pub rows: usize,
    pub cols: usize,
    pub tm: usize,
    pub tn: usize,
    knobs: [Knob; 6],
}

impl Tile {
    /// Workgroups for a matrix of `rows` x `cols`.
    pub fn groups(&self, [rows, cols]: [usize; 2]) -> usize {
        rows.div_ceil(self.rows) * cols.div_ceil(self.cols)
    }
}

macro_rules! tile {
    ($tx:literal x $ty:literal threads of $tm:literal x $tn:literal, depth $depth:literal, $share:expr) => {
        Tile {
            rows: $ty * $tm,
            cols: $tx * $tn,
            tm: $tm,
            tn: $tn,
            knobs: [
                ("TX", concat!($tx, "u")),
                ("TY", concat!($ty, "u")),
                ("TM", concat!($tm, "u")),
                ("TN", concat!($tn, "u")),
                ("DEPTH", concat!($depth, "u")),
                $share,
            ],
        }
    };
}

/// Number 4 is for few columns.
pub static TILES: [Tile; 10] = [
    tile!(16 x 8 threads of 8 x 8, depth 16, WORKGROUP),
    tile!(8 x 8 threads of 8 x 8, depth 16, WORKGROUP),
    tile!(16 x 8 threads of 8 x 4, depth 16, WORKGROUP),
    tile!(8 x 8 threads of 4 x 4, depth 16, WORKGROUP),
    tile!(4 x 16 threads of 4 x 4, depth 16, WORKGROUP),
    tile!(8 x 1 threads of 64 x 8, depth 4, SUBGROUP),
    tile!(8 x 1 threads of 64 x 4, depth 4, SUBGROUP),
    tile!(8 x 4 threads of 8 x 4, depth 16, MATRICES_8),
    tile!(16 x 8 threads of 8 x 4, depth 16, MATRICES_16),
    tile!(16 x 16 threads of 4 x 8, depth 16, MATRICES_16),
];

/// Number of the first of the tiles that need a subgroup of eight lanes.
const THROUGH_SUBGROUP: usize = 5;

/// And of those that need cooperative matrices.
const THROUGH_MATRICES: usize = 7;

/// Quads for each tile and each loader, then ragged likewise, but not through a subgroup: the drivers that
/// like it need too long to compile so many loads; nor through matrices, which are for many channels.
const SETS: usize = 3 * (TILES.len() + THROUGH_SUBGROUP);

static KNOBS: [[Knob; 8]; SETS] = {
    let mut sets = [[LOADERS[0]; 8]; SETS];
    let mut i = 0;
    while i < SETS {
        let [tx, ty, tm, tn, depth, share] = TILES[i / 3 % TILES.len()].knobs;
        sets[i] = [LOADERS[i % 3], ACCESS[i / 3 / TILES.len()], share, tx, ty, tm, tn, depth];
        i += 1;
    }
    sets
};

pub static KNOB_SETS: [&[Knob]; SETS] = {
    let mut sets: [&[Knob]; SETS] = [&[]; SETS];
    let mut i = 0;
    while i < SETS {
        sets[i] = &KNOBS[i];
        i += 1;
    }
    sets
};

/// Number of a set of [`KNOB_SETS`].
pub fn set(tile: usize, loader: usize, wide: bool) -> usize {
    3 * (tile + if wide { 0 } else { TILES.len() }) + loader
}

/// Threads exchange what they fetch through workgroup memory, as GPUs like it.
pub fn is_for_gpus(tile: usize) -> bool {
    !(THROUGH_SUBGROUP..THROUGH_MATRICES).contains(&tile)
}

/// Rows and columns of the cooperative matrices of a tile, if it is made of such.
pub fn side_of_matrices(tile: usize) -> Option<u32> {
    tile.checked_sub(THROUGH_MATRICES).map(|number| if number == 0 { 8 } else { 16 })
}

/// Tiles whose factors, weights of 32 bits included, are rounded to f16: for tuning to try where most tensors
/// have 16 bits. The first use of one on an adapter is held against the schedule that runs untuned.
pub fn of_matrices(adapter: &Traits, wide: bool) -> impl Iterator<Item = usize> {
    let side = adapter.matrices.filter(|_| adapter.halves && wide);
    (THROUGH_MATRICES..TILES.len()).filter(move |&tile| side.is_some() && side_of_matrices(tile) == side)
}

/// Workgroups that keep a large GPU busy.
pub const BUSY: usize = 256;

/// Tiles for a matrix of `rows` x `cols`, the best first. `wide`: it comes in quads.
///
/// A GPU gets tiles as large as they can be while they keep it busy: each number that is fetched is used as
/// often as the tile is wide.
pub fn best(adapter: &Traits, size @ [_, cols]: [usize; 2], wide: bool) -> Vec<usize> {
    let mut tiles: Vec<usize> = (0..THROUGH_SUBGROUP).collect();
    tiles.sort_by_key(|&number| {
        let tile = &TILES[number];
        let groups = tile.groups(size);
        let wasted = 2 * cols.next_multiple_of(tile.cols) >= 3 * cols.next_multiple_of(16);
        let narrow = tile.cols < 32 && cols >= 32;
        (wasted, narrow, groups < BUSY, if groups < BUSY { tile.rows * tile.cols } else { number })
    });
    if adapter.broadcasts && wide {
        let narrow = usize::from(cols.next_multiple_of(64) > cols.next_multiple_of(32));
        let lanes = [THROUGH_SUBGROUP + narrow, THROUGH_SUBGROUP + 1 - narrow];
        // Drivers that compute on the CPU get little from workgroup memory, others little from eight threads.
        if adapter.software {
            tiles.splice(..0, lanes);
        } else {
            tiles.push(lanes[0]);
        }
    }
    tiles
}
