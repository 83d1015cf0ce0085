//! Attention as matrix products with a softmax between them, which keep all scores in memory: more to move,
//! and each number that is read used as often as products can.

use super::{PRODUCTS, Size};
use crate::device::gpu::adapters::Traits;
use crate::launch::{Dispatch, Dispatches, Slot, Variant};
pub(super) use crate::product::gpu::Schedule;
use crate::product::gpu::{self, Slots};
use crate::product::{Epilogue, Loader, Product};

/// The most scores of a launch: 64 MiB, which every adapter can bind, twice in the backward pass.
const MOST_SCORES: usize = 1 << 24;

/// The fewest scores of a head that a tile of a product is worth.
const LEAST: usize = 32;

/// Index of the variant whose products run in way 0: after those of the other kernel.
const FIRST: usize = super::KERNEL.knob_sets.len();

/// Threads of a workgroup, as in the kernel.
const GROUP: usize = 64;

/// The way of a variant's products; `None` for the variants of the other kernel.
pub(super) fn way_of(variant: usize) -> Option<Schedule> {
    variant.checked_sub(FIRST).map(Schedule::of)
}

/// Set of knobs and threads a row: one where workgroup memory is dear.
fn lanes_of(way: Schedule) -> (usize, usize) {
    if way.uses_workgroup_memory() { (1, 32) } else { (0, 1) }
}

impl Size {
    fn scores(&self) -> usize {
        self.pairs() * self.queries * self.keys
    }

    /// The scores are few enough to be kept, and enough for products.
    pub(super) fn suits_products(&self) -> bool {
        self.scores() <= MOST_SCORES && self.queries * self.keys >= LEAST
    }

    /// The three ways that suit the products best: on a software driver they end with tiles.
    pub(super) fn product_variants(&self, adapter: &Traits) -> Vec<Variant> {
        if !self.suits_products() {
            return Vec::new();
        }
        let product = self.of_scores([self.queries, self.keys, self.d], Loader::Dense, TRANSPOSED);
        let ways = gpu::variants(&product, adapter);
        let named =
            |way: Variant| Variant { name: format!("products, {}", way.name), index: FIRST + way.index };
        ways.into_iter().take(3).map(named).collect()
    }

    /// Scratch that [`forward`] and [`backward`] need besides the copies of what the heads share: so many
    /// blocks.
    pub(super) fn score_scratch(&self, blocks: usize) -> Vec<usize> {
        vec![self.scores(); if self.suits_products() { blocks } else { 0 }]
    }

    fn of_scores(&self, [rows, cols, depth]: [usize; 3], a: Loader, b: Loader) -> Product {
        let epilogue = Epilogue::default();
        let batch = self.pairs();
        Product {
            name: "attention",
            batch,
            rows,
            cols,
            depth,
            a,
            b,
            epilogue,
            split_k: false,
            column_sums: false,
        }
    }

    fn multiply(
        &self,
        plan: &mut Dispatches,
        way: Schedule,
        sizes: [usize; 3],
        loaders: [Loader; 2],
        [a, b, y]: [Slot; 3],
    ) {
        let slots = Slots { a, b, extra: [None; 3], y, column_sums: y };
        gpu::dispatch(&self.of_scores(sizes, loaders[0], loaders[1]), way, plan, slots);
    }

    /// A dispatch of the kernel beside the products; `side`: rows of a sample of what it takes apart.
    fn beside<'a>(&self, plan: &'a mut Dispatches, entry: &'static str, side: usize) -> &'a mut Dispatch {
        plan.add(&PRODUCTS, entry)
            .param("rows", self.pairs() * self.queries)
            .param("keys", self.keys)
            .param("heads", self.heads)
            .param("side", side)
            .param("d", self.d)
            .param("count", self.pairs() * side * self.d)
            .param("scale", self.scale())
    }

    fn beside_rows<'a>(
        &self,
        plan: &'a mut Dispatches,
        entry: &'static str,
        way: Schedule,
    ) -> &'a mut Dispatch {
        let (set, lanes) = lanes_of(way);
        let rows = self.pairs() * self.queries;
        self.beside(plan, entry, self.queries).knobs(set).cover_in_sub_dispatches(rows, GROUP / lanes)
    }

    /// Where the matrices of the heads of `given` lie: in it, or in scratch, to where this copies them.
    fn take(&self, plan: &mut Dispatches, side: usize, given: Slot, scratch: usize) -> Slot {
        if self.heads == 1 {
            return given;
        }
        let take = self.beside(plan, "take_heads", side).bind("whole", given).scratch("parts", scratch);
        take.cover_in_sub_dispatches(self.pairs() * side * self.d, GROUP);
        Slot::Scratch(scratch)
    }

    /// Where to write the matrices of the heads of `given`, until [`Size::give`].
    fn room(&self, given: Slot, scratch: usize) -> Slot {
        if self.heads == 1 { given } else { Slot::Scratch(scratch) }
    }

    fn give(&self, plan: &mut Dispatches, side: usize, given: Slot, scratch: usize) {
        if self.heads > 1 {
            let give = self.beside(plan, "give_heads", side).scratch("saved_parts", scratch);
            give.bind("whole_out", given).cover_in_sub_dispatches(self.pairs() * side * self.d, GROUP);
        }
    }
}

const TRANSPOSED: Loader = Loader::Transposed { block: 0 };
/// Slots as those of the launch. Scratch: copies of q, k, v and y where there are any, then the scores.
pub(super) fn forward(size: &Size, plan: &mut Dispatches, way: Schedule) {
    let Size { d, queries, keys, .. } = *size;
    let q = size.take(plan, queries, Slot::Read(0), 0);
    let k = size.take(plan, keys, Slot::Read(1), 1);
    let v = size.take(plan, keys, Slot::Read(2), 2);
    let y = size.room(Slot::Write(0), 3);
    let weights = Slot::Scratch(if size.copies() { 4 } else { 0 });
    size.multiply(plan, way, [queries, keys, d], [Loader::Dense, TRANSPOSED], [q, k, weights]);
    size.beside_rows(plan, "softmax", way).bind("weights", weights).write("lse", 1);
    size.multiply(plan, way, [queries, d, keys], [Loader::Dense; 2], [weights, v, y]);
    size.give(plan, queries, Slot::Write(0), 3);
}

/// Slots as those of the launch. Scratch: one block unused, copies of q, k, v, y, dy, dq, dk and dv where
/// there are any, then two of the size of the scores.
pub(super) fn backward(size: &Size, plan: &mut Dispatches, way: Schedule) {
    let Size { d, queries, keys, .. } = *size;
    let q = size.take(plan, queries, Slot::Read(0), 1);
    let k = size.take(plan, keys, Slot::Read(1), 2);
    let v = size.take(plan, keys, Slot::Read(2), 3);
    let dy = size.take(plan, queries, Slot::Read(5), 5);
    let [dq, dk, dv] = [0, 1, 2].map(|i| size.room(Slot::Write(i), 6 + i));
    let first = if size.copies() { 9 } else { 1 };
    let [weights, slopes] = [first, first + 1].map(Slot::Scratch);
    size.multiply(plan, way, [queries, keys, d], [Loader::Dense, TRANSPOSED], [q, k, weights]);
    size.multiply(plan, way, [queries, keys, d], [Loader::Dense, TRANSPOSED], [dy, v, slopes]);
    let both = size.beside_rows(plan, "slopes", way).read("saved_lse", 4);
    both.bind("weights", weights).bind("weights_slopes", slopes);
    size.multiply(plan, way, [queries, d, keys], [Loader::Dense; 2], [slopes, k, dq]);
    size.multiply(plan, way, [keys, d, queries], [TRANSPOSED, Loader::Dense], [slopes, q, dk]);
    size.multiply(plan, way, [keys, d, queries], [TRANSPOSED, Loader::Dense], [weights, dy, dv]);
    size.give(plan, queries, Slot::Write(0), 6);
    size.give(plan, keys, Slot::Write(1), 7);
    size.give(plan, keys, Slot::Write(2), 8);
}
