//! The ways in which a matrix product, or what amounts to one, can run on a GPU.

use super::Variant;
use crate::device::gpu::adapters::Traits;
use crate::device::gpu::shader::Knob;

/// One way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Every thread alone.
    Direct,
    /// 64 rows a subgroup, whose lanes share what they read.
    Spread,
    /// As `Spread`, with a square of 8 x 8 pixels.
    Square,
    /// As `Square`, 16 high.
    Tall,
    /// As `Spread`, with 128 rows and as many columns.
    Broad,
    /// In tiles of workgroup memory: one of [`TILES`].
    Tiled(usize),
}

/// A workgroup's tile, and what a thread has of it: rows and columns.
#[derive(Clone, Copy, Debug)]
pub struct Tile {
    pub rows: usize,
    pub cols: usize,
    pub high: usize,
    pub broad: usize,
}

const fn tile(rows: usize, cols: usize, high: usize, broad: usize) -> Tile {
    Tile { rows, cols, high, broad }
}

/// The tiles that kernels with `lib/tile.wgsl` are compiled for. The last is for few columns.
pub const TILES: [Tile; 5] =
    [tile(64, 128, 8, 8), tile(64, 64, 8, 8), tile(64, 64, 8, 4), tile(32, 32, 4, 4), tile(64, 16, 4, 4)];

/// The kernels' knobs for each of [`TILES`].
pub const TILE_KNOBS: &[&[Knob]] = &[
    &[("TX", "16u"), ("TY", "8u"), ("HIGH", "8u"), ("BROAD", "8u")],
    &[("TX", "8u"), ("TY", "8u"), ("HIGH", "8u"), ("BROAD", "8u")],
    &[("TX", "16u"), ("TY", "8u"), ("HIGH", "8u"), ("BROAD", "4u")],
    &[("TX", "8u"), ("TY", "8u"), ("HIGH", "4u"), ("BROAD", "4u")],
    &[("TX", "4u"), ("TY", "16u"), ("HIGH", "4u"), ("BROAD", "4u")],
];

/// Rows and columns of a workgroup of eight threads that spread what they read.
pub const SPREAD: [usize; 2] = [64, 32];

/// Likewise in the broad way.
pub const BROAD: [usize; 2] = [128, 128];

/// Workgroups that keep a large GPU busy.
const BUSY: usize = 256;

impl Way {
    pub fn variant(self) -> Variant {
        let (name, index) = match self {
            Way::Direct => ("direct".to_owned(), 0),
            Way::Spread => ("spread".to_owned(), 1),
            Way::Square => ("spread over squares".to_owned(), 2),
            Way::Tall => ("spread over tall squares".to_owned(), 3),
            Way::Broad => ("spread broadly".to_owned(), 4),
            Way::Tiled(number) => {
                let Tile { rows, cols, high, broad } = TILES[number];
                (format!("tiles of {rows} x {cols}, {high} x {broad} a thread"), 5 + number)
            }
        };
        Variant { name, index }
    }

    /// Of the index of a variant.
    pub fn of(index: usize) -> Way {
        match index {
            0 => Way::Direct,
            1 => Way::Spread,
            2 => Way::Square,
            3 => Way::Tall,
            4 => Way::Broad,
            number => Way::Tiled(number - 5),
        }
    }

    /// The ways to make a matrix of `rows` x `cols`, the one to take untuned first. `spread`: those for drivers
    /// that compute on the CPU, which get little from workgroup memory; best first.
    ///
    /// A GPU gets tiles as large as they can be while they keep it busy: each number that is fetched is used as
    /// often as the tile is wide.
    pub fn variants(adapter: &Traits, [rows, cols]: [usize; 2], spread: &[Way]) -> Vec<Variant> {
        let mut tiles: Vec<usize> = (0..TILES.len()).collect();
        tiles.sort_by_key(|&number| {
            let tile = TILES[number];
            let groups = rows.div_ceil(tile.rows) * cols.div_ceil(tile.cols);
            let wasted = 2 * cols.next_multiple_of(tile.cols) >= 3 * cols.next_multiple_of(16);
            let narrow = tile.cols < 32 && cols >= 32;
            (wasted, narrow, groups < BUSY, if groups < BUSY { tile.rows * tile.cols } else { number })
        });
        let tiles = tiles.into_iter().map(Way::Tiled);
        let ways: Vec<Way> = if adapter.software {
            spread.iter().copied().chain([Way::Direct]).chain(tiles).collect()
        } else {
            tiles.chain([Way::Direct]).collect()
        };
        ways.into_iter().map(Way::variant).collect()
    }

    /// Into how many parts to cut the sums of a matrix of `rows` x `cols`, so that there is work for all: more
    /// for a GPU than for the threads of a CPU.
    ///
    /// # Panics
    /// For `Direct`, whose work is not divided so.
    pub fn parts(self, [rows, cols]: [usize; 2]) -> usize {
        let ([high, broad], wanted) = match self {
            Way::Tiled(number) => ([TILES[number].rows, TILES[number].cols], 2 * BUSY),
            Way::Spread => (SPREAD, 16),
            Way::Broad => (BROAD, 16),
            Way::Direct | Way::Square | Way::Tall => unreachable!("{self:?} has no tiles"),
        };
        (wanted / (rows.div_ceil(high) * cols.div_ceil(broad))).max(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knobs_and_tiles_agree() {
        assert_eq!(TILES.len(), TILE_KNOBS.len());
        for (tile, knobs) in TILES.iter().zip(TILE_KNOBS) {
            let [tx, ty, high, broad] =
                [0, 1, 2, 3].map(|i| knobs[i].1.trim_end_matches('u').parse::<usize>().unwrap());
            assert_eq!([tile.rows, tile.cols, tile.high, tile.broad], [ty * high, tx * broad, high, broad]);
        }
    }

    #[test]
    fn an_index_is_its_way() {
        let all = (0..TILES.len()).map(Way::Tiled).chain([
            Way::Direct,
            Way::Spread,
            Way::Square,
            Way::Tall,
            Way::Broad,
        ]);
        for way in all {
            assert_eq!(Way::of(way.variant().index), way);
        }
    }

    #[test]
    fn the_first_fits_the_adapter_and_the_size() {
        let software = Traits { software: true, broadcasts: true };
        let gpu = Traits { software: false, broadcasts: true };
        let first =
            |adapter: &Traits, size, spread: &[Way]| Way::of(Way::variants(adapter, size, spread)[0].index);
        assert_eq!(first(&software, [4096, 64], &[Way::Spread]), Way::Spread);
        assert_eq!(first(&software, [4096, 64], &[]), Way::Direct);
        assert_eq!(first(&gpu, [65_536, 128], &[Way::Spread]), Way::Tiled(0));
        assert_eq!(first(&gpu, [65_536, 64], &[]), Way::Tiled(1));
        assert_eq!(first(&gpu, [65_536, 3], &[]), Way::Tiled(4));
        assert_eq!(first(&gpu, [128, 256], &[]), Way::Tiled(3));
    }
}
