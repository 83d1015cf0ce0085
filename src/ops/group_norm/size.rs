//! The sizes of a group norm, and how both devices cut it up.

use std::ops::Range;

use super::{KERNEL, TILE};
use crate::launch::{Dispatch, Dispatches, Tuning, Variant};
use crate::ops::activation::Activation;

/// Index of the way that the kernel of tiles goes, after those that differ in the chunks they cut.
pub(super) const TILES: usize = 3;

/// Channels of a tile, and its rows with either set of knobs.
const TILE_CHANNELS: usize = 32;
const TILE_ROWS: [usize; 2] = [64, 256];

/// Samples, pixels of a sample, channels, groups.
#[derive(Clone, Copy, Debug)]
pub(super) struct Size {
    pub n: usize,
    pub p: usize,
    pub c: usize,
    pub groups: usize,
    /// Channels of the first part of x; all where there is no second.
    pub left: usize,
}

/// The kernel of tiles has that activation.
fn tiles_know(kind: Activation) -> bool {
    matches!(kind, Activation::Identity | Activation::Silu | Activation::Relu)
}

/// What a dispatch is to do besides.
#[derive(Clone, Copy, Debug)]
pub(super) struct How {
    pub kind: Activation,
    pub eps: f32,
    /// Adds another gradient to that of x.
    pub adds: bool,
}

impl How {
    pub fn of(kind: Activation) -> How {
        How { kind, eps: 0.0, adds: false }
    }
}

/// Channels of x, which a tensor of its own holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Part {
    pub index: usize,
    /// Its first channel.
    pub first: usize,
    pub width: usize,
}

impl Part {
    pub fn channels(self) -> Range<usize> {
        self.first..self.first + self.width
    }
}

impl Size {
    /// The tensors that x is made of.
    pub fn parts(self) -> impl Iterator<Item = Part> {
        let right = Part { index: 1, first: self.left, width: self.c - self.left };
        [Part { index: 0, first: 0, width: self.left }, right].into_iter().filter(|part| part.width > 0)
    }

    /// All channels, for what does not read x.
    pub fn all(self) -> Part {
        Part { index: 0, first: 0, width: self.c }
    }

    /// How many groups have channels of that part.
    pub fn groups_of(self, part: Part) -> usize {
        part.channels().end.div_ceil(self.width()) - part.first / self.width()
    }

    /// Channels of a group.
    pub fn width(self) -> usize {
        self.c / self.groups
    }

    /// Elements of a sample.
    pub fn sample(self) -> usize {
        self.p * self.c
    }

    /// Pixels that one task of the CPU twin takes: some 32 KiB, so that a single sample is work for many
    /// cores, and at most 256, which bounds the rounding of the sums.
    pub fn rows(self) -> usize {
        (8192 / self.c).clamp(1, 256)
    }

    pub fn chunks(self) -> usize {
        self.p.div_ceil(self.rows())
    }

    /// Pixels that a workgroup takes for the moments of one group, by way: at least 2048 elements, eight
    /// a thread; fewer, which fills a GPU with small batches; or more, which leaves less to put together.
    pub fn gpu_rows(self) -> [usize; 4] {
        let chunks =
            [2048_usize, 512, 8192].map(|elements| self.at_most_64_chunks(elements.div_ceil(self.width())));
        [chunks[0], chunks[1], chunks[2], self.tile_rows()]
    }

    /// Pixels that a workgroup takes for the sums of the gradients, by way.
    pub fn gpu_sum_rows(self) -> [usize; 4] {
        let [some, few, many] = [64, 16, 256].map(|rows| self.at_most_64_chunks(rows));
        [some, few, many, self.tile_rows()]
    }

    /// A single thread puts the chunks together.
    fn at_most_64_chunks(self, rows: usize) -> usize {
        self.p.div_ceil(64).max(rows)
    }

    /// Number of the set of knobs of the kernel of tiles: of those with few rows a thread where they hold a sample.
    fn tile_set(self) -> usize {
        usize::from(self.p > TILE_ROWS[0])
    }

    fn tile_rows(self) -> usize {
        TILE_ROWS[self.tile_set()]
    }

    /// A tile holds all of a sample's rows.
    pub fn fits_tile(self) -> bool {
        self.p <= self.tile_rows()
    }

    /// The kernel of tiles computes it.
    fn suits_tiles(self, kind: Activation) -> bool {
        let whole = self.left == self.c || self.left.is_multiple_of(TILE_CHANNELS);
        tiles_know(kind) && whole && self.c.is_multiple_of(4) && TILE_CHANNELS.is_multiple_of(self.width())
    }

    /// The ways that differ, by the rows that they cut a sample into; tiles, if they can, first.
    pub fn variants(self, rows: [usize; 4], kind: Activation) -> Vec<Variant> {
        let mut variants: Vec<Variant> = Vec::new();
        for (index, rows) in rows[..TILES].iter().enumerate() {
            let name = format!("chunks of {} pixels", self.p.min(*rows));
            if variants.iter().all(|other| other.name != name) {
                variants.push(Variant { name, index });
            }
        }
        if self.suits_tiles(kind) {
            let name = format!("tiles of {} pixels", self.p.min(rows[TILES]));
            variants.insert(0, Variant { name, index: TILES });
        }
        variants
    }

    /// The most chunks of a sample that a way makes.
    pub fn most_chunks(self, rows: [usize; 4]) -> usize {
        rows.into_iter().map(|rows| self.p.div_ceil(rows)).max().unwrap_or(1)
    }

    pub fn tuning(self, rows: [usize; 4], kind: Activation) -> Tuning {
        Tuning::new(self.shape_class(kind), move |_| self.variants(rows, kind))
    }

    pub fn shape_class(self, kind: Activation) -> String {
        let Size { n, p, c, groups, left } = self;
        let of = if left < c { format!("{left} and {}", c - left) } else { c.to_string() };
        let other = if tiles_know(kind) { "" } else { ", other activation" };
        format!(
            "{p} pixels of {of} channels, {groups} groups, up to {} samples{other}",
            n.next_power_of_two()
        )
    }

    /// Workgroups of the elementwise entries, whose 256 threads take 4 rows of a channel each and do not cross samples.
    pub fn blocks(self, part: Part) -> usize {
        self.n * (self.p.div_ceil(4) * part.width).div_ceil(256)
    }

    /// Workgroups of the kernel of tiles.
    pub fn tiles(self, part: Part) -> usize {
        self.n * self.p.div_ceil(self.tile_rows()) * part.width.div_ceil(TILE_CHANNELS)
    }

    pub fn add<'a>(
        self,
        plan: &'a mut Dispatches,
        entry: &'static str,
        part: Part,
        chunk_rows: usize,
        how: How,
    ) -> &'a mut Dispatch {
        self.fill(plan.add(&KERNEL, entry), part, chunk_rows, how)
    }

    /// A dispatch of the kernel of tiles.
    pub fn add_tiles<'a>(
        self,
        plan: &'a mut Dispatches,
        entry: &'static str,
        part: Part,
        how: How,
    ) -> &'a mut Dispatch {
        let dispatch = plan.add(&TILE, entry).knobs(self.tile_set());
        self.fill(dispatch, part, self.tile_rows(), how).cover(self.tiles(part), 1)
    }

    fn fill(self, dispatch: &mut Dispatch, part: Part, chunk_rows: usize, how: How) -> &mut Dispatch {
        dispatch
            .param("samples", self.n)
            .param("rows", self.p)
            .param("channels", self.c)
            .param("channel_groups", self.groups)
            .param("width", self.width())
            .param("chunk_rows", chunk_rows)
            .param("chunks", self.p.div_ceil(chunk_rows))
            .param("left", self.left)
            .param("first", part.first)
            .param("own", part.width)
            .param("kind", how.kind as u32)
            .param("eps", how.eps)
            .param("adds", how.adds)
    }
}
