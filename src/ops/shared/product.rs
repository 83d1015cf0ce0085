//! Matrix products on a GPU, for the rooms that are made of them: the kernels, and the dispatch of one in each way.

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::ways::{self, TILE_KNOBS, TILES, Tile, Way};
use crate::launch::{Dispatch, Dispatches, Slot};

/// Every thread alone.
pub static KERNEL: Kernel = kernel!("matmul");

/// Shared through workgroup memory.
pub static TILED: Kernel = kernel!("matmul_tiled", TILE_KNOBS);

/// Shared through the lanes of a subgroup.
pub static SPREAD: Kernel = kernel!("matmul_spread");

/// Rows and columns of a workgroup of [`KERNEL`]: 4 for each of 16 threads, as there.
pub(crate) const TILE: usize = 64;

/// Which factors of a product are given with rows and columns exchanged.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Transpose {
    pub a: bool,
    pub b: bool,
}

impl Transpose {
    pub const NONE: Transpose = Transpose { a: false, b: false };
}

/// `batch` products of `[m, k]` by `[k, n]`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sizes {
    pub batch: usize,
    pub m: usize,
    pub n: usize,
    pub k: usize,
    pub transpose: Transpose,
}

/// What a product reads and writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Slots {
    pub a: Slot,
    pub b: Slot,
    pub bias: Option<Slot>,
    pub y: Slot,
}

impl Sizes {
    /// The parameters that all entries of the three kernels share, and the bias. `parts`: how many of K, and the
    /// length of each.
    pub fn params(
        &self,
        dispatch: &mut Dispatch,
        [parts, depth]: [usize; 2],
        bias: Option<Slot>,
        unread: Slot,
    ) {
        let Sizes { batch, m, n, k, transpose } = *self;
        dispatch.param("batch", batch).param("m", m).param("n", n).param("k", k);
        dispatch.param("parts", parts).param("depth", depth).param("has_bias", bias.is_some());
        dispatch.param("a_transposed", transpose.a).param("b_transposed", transpose.b);
        // Every binding needs a tensor; without a bias it is one that stays unread.
        dispatch.bind("bias", bias.unwrap_or(unread));
    }

    /// One dispatch that writes y, or with several parts y of each part.
    pub fn dispatch(&self, plan: &mut Dispatches, way: Way, parts: [usize; 2], slots: Slots) {
        let Sizes { batch, m, n, k, transpose } = *self;
        let groups = |rows: usize, cols: usize| parts[0] * batch * m.div_ceil(rows) * n.div_ceil(cols);
        let quads = ["a4", "b4", "y4"];
        let ones = ["a", "b", "y"];
        let (product, [a, b, y]) = match way {
            Way::Direct | Way::Square | Way::Tall => {
                let wide = k % 4 == 0 && n % 4 == 0 && (m % 4 == 0 || !transpose.a);
                let (entry, names) = if wide { ("product", quads) } else { ("product_ragged", ones) };
                (plan.add(&KERNEL, entry).cover_in_sub_dispatches(groups(TILE, TILE), 1), names)
            }
            Way::Broad => {
                let [rows, cols] = ways::BROAD;
                (plan.add(&SPREAD, "product_broad").cover_in_sub_dispatches(groups(rows, cols), 1), quads)
            }
            Way::Spread => (
                plan.add(&SPREAD, "product")
                    .cover_in_sub_dispatches(groups(ways::SPREAD[0], ways::SPREAD[1]), 1),
                ones,
            ),
            Way::Tiled(tile) => {
                let Tile { rows, cols, .. } = TILES[tile];
                let along_a = if transpose.a { m } else { k };
                let wide = n % 4 == 0 && along_a % 4 == 0 && (k % 4 == 0 || !transpose.b);
                let (entry, names) = if wide { ("product", quads) } else { ("product_ragged", ones) };
                (plan.add(&TILED, entry).knobs(tile).cover_in_sub_dispatches(groups(rows, cols), 1), names)
            }
        };
        self.params(product, parts, slots.bias, slots.b);
        product.bind(a, slots.a).bind(b, slots.b).bind(y, slots.y);
    }
}
