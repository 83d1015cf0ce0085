//! The sizes of a group norm, and how both devices cut it up.

use std::ops::Range;

use super::KERNEL;
use crate::launch::{Dispatch, Dispatches, Variant};
use crate::ops::activation::Activation;

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

    /// Pixels that a workgroup takes for the moments of one group, by variant: at least 2048 elements, eight
    /// a thread; fewer, which fills a GPU with small batches; or more, which leaves less to put together.
    pub fn gpu_rows(self) -> [usize; 3] {
        [2048_usize, 512, 8192].map(|elements| self.at_most_64_chunks(elements.div_ceil(self.width())))
    }

    /// Pixels that a workgroup takes for the sums of the gradients, by variant.
    pub fn gpu_sum_rows(self) -> [usize; 3] {
        [64, 16, 256].map(|rows| self.at_most_64_chunks(rows))
    }

    /// A single thread puts the chunks together.
    fn at_most_64_chunks(self, rows: usize) -> usize {
        self.p.div_ceil(64).max(rows)
    }

    /// Those ways to cut a sample that differ.
    pub fn variants(self, rows: [usize; 3]) -> Vec<Variant> {
        let mut variants: Vec<Variant> = Vec::new();
        for (index, rows) in rows.into_iter().enumerate() {
            let name = format!("chunks of {} pixels", rows.min(self.p));
            if variants.iter().all(|other| other.name != name) {
                variants.push(Variant { name, index });
            }
        }
        variants
    }

    /// The most chunks of a sample that a variant makes.
    pub fn most_chunks(self, rows: [usize; 3]) -> usize {
        rows.into_iter().map(|rows| self.p.div_ceil(rows)).max().unwrap_or(1)
    }

    pub fn shape_class(self) -> String {
        let Size { n, p, c, groups, left } = self;
        let of = if left < c { format!("{left} and {}", c - left) } else { c.to_string() };
        format!("{p} pixels of {of} channels, {groups} groups, up to {} samples", n.next_power_of_two())
    }

    /// Workgroups of the elementwise entries, whose 256 threads take 4 rows of a channel each and do not cross samples.
    pub fn blocks(self, part: Part) -> usize {
        self.n * (self.p.div_ceil(4) * part.width).div_ceil(256)
    }

    pub fn add<'a>(
        self,
        plan: &'a mut Dispatches,
        entry: &'static str,
        part: Part,
        chunk_rows: usize,
        kind: Activation,
        eps: f32,
    ) -> &'a mut Dispatch {
        plan.add(&KERNEL, entry)
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
            .param("kind", kind as u32)
            .param("eps", eps)
    }
}
