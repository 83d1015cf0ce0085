//! The sizes of a group norm, and its one chunking: on either device the moments (backward, the sums) of each
//! channel over a chunk of rows are computed first, then merged for each (sample, group), then elements are
//! read again.

use std::ops::Range;

use super::KERNEL;
use crate::launch::{Dispatch, Dispatches};
use crate::ops::activation::Activation;

/// Channels of a tile of the kernel (COLUMNS there), and its rows (HELD * LINES) with either set of knobs.
pub(super) const TILE_CHANNELS: usize = 32;
const TILE_ROWS: [usize; 2] = [64, 256];

/// Sizes and options of a group norm.
#[derive(Clone, Copy, Debug)]
pub(super) struct Norm {
    /// Samples.
    pub n: usize,
    /// Pixels of a sample: its rows.
    pub p: usize,
    /// Channels.
    pub c: usize,
    pub groups: usize,
    /// Channels of the first input; all where there is no second.
    pub left: usize,
    pub eps: f32,
    pub activation: Activation,
}

/// A tensor that holds `width` channels of x, from `first` on.
#[derive(Clone, Copy, Debug)]
pub(super) struct Input {
    pub index: usize,
    pub first: usize,
    pub width: usize,
}

impl Input {
    pub fn channels(self) -> Range<usize> {
        self.first..self.first + self.width
    }
}

impl Norm {
    /// The tensors whose concatenation is x.
    pub fn inputs(self) -> impl ExactSizeIterator<Item = Input> {
        let count = if self.left < self.c { 2 } else { 1 };
        (0..count).map(move |index| match index {
            0 => Input { index, first: 0, width: self.left },
            _ => Input { index, first: self.left, width: self.c - self.left },
        })
    }

    /// Channels of a group.
    pub fn width(self) -> usize {
        self.c / self.groups
    }

    /// Rows of a chunk of the CPU twin: some 32 KiB, so that a single sample is work for many cores, and at
    /// most 256, which bounds the rounding of the sums.
    pub fn cpu_rows(self) -> usize {
        (8192 / self.c).clamp(1, 256)
    }

    pub fn cpu_chunks(self) -> usize {
        self.p.div_ceil(self.cpu_rows())
    }

    fn gpu_rows(self) -> usize {
        if self.p <= TILE_ROWS[0] { TILE_ROWS[0] } else { TILE_ROWS[1] }
    }

    pub fn gpu_chunks(self) -> usize {
        self.p.div_ceil(self.gpu_rows())
    }

    /// A tile of the kernel has all rows of its groups: a single chunk, and no group in two tiles.
    pub fn is_one_tile(self) -> bool {
        let aligned = self.left == self.c || self.left.is_multiple_of(TILE_CHANNELS);
        self.gpu_chunks() == 1 && aligned && TILE_CHANNELS.is_multiple_of(self.width())
    }

    /// All channels of x, as an input.
    pub fn all(self) -> Input {
        Input { index: 0, first: 0, width: self.c }
    }

    /// A dispatch with a workgroup for each tile of an input.
    pub fn add<'a>(
        self,
        plan: &'a mut Dispatches,
        entry: &'static str,
        input: Input,
        accumulate: bool,
    ) -> &'a mut Dispatch {
        plan.add(&KERNEL, entry)
            .knobs(2 * self.activation as usize + usize::from(self.gpu_rows() == TILE_ROWS[1]))
            .params([("samples", self.n), ("rows", self.p), ("channels", self.c), ("width", self.width())])
            .params([("first", input.first), ("own", input.width)])
            .params([("chunk_rows", self.gpu_rows()), ("chunks", self.gpu_chunks())])
            .param("eps", self.eps)
            .param("accumulate", accumulate)
            .cover(self.n * self.gpu_chunks() * input.width.div_ceil(TILE_CHANNELS), 1)
    }
}
