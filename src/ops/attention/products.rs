//! Attention as matrix products with a softmax between them, which keep all scores in memory: more to move,
//! and each number that is read used as often as products can.

use super::{GROUP, KERNEL, PRODUCTS, Run, Size};
use crate::device::gpu::adapters::Traits;
use crate::launch::{Dispatch, Slot, Variant};
use crate::product::gpu::{self, Schedule, Slots};
use crate::product::{Loader, Product};

/// The most scores of a launch: 64 MiB, which every adapter can bind, twice in the backward pass.
const MOST_SCORES: usize = 1 << 24;

/// The fewest scores of a head that a tile of a product is worth.
const LEAST: usize = 32;

/// Index of the variant whose products run in schedule 0: after the variants of the online kernel.
const FIRST: usize = KERNEL.knob_sets.len();

const PLAIN: [Loader; 2] = [Loader::Dense; 2];
const TRANSPOSED_A: [Loader; 2] = [Loader::Transposed, Loader::Dense];
const TRANSPOSED_B: [Loader; 2] = [Loader::Dense, Loader::Transposed];

/// The schedule of a variant's products; `None` for the variants of the online kernel.
pub(super) fn schedule_of(variant: usize) -> Option<Schedule> {
    variant.checked_sub(FIRST).map(Schedule::of)
}

impl Size {
    /// Elements of the scores; 0 where no variant stores them, because they are many or a handful.
    pub(super) fn stored_scores(&self) -> usize {
        let scores = self.pairs() * self.queries * self.keys;
        if scores <= MOST_SCORES && self.queries * self.keys >= LEAST { scores } else { 0 }
    }

    /// The three schedules that suit the products best, which on a software driver end with tiles, and those
    /// with matrices.
    pub(super) fn product_variants(&self, adapter: &Traits) -> Vec<Variant> {
        if self.stored_scores() == 0 {
            return Vec::new();
        }
        let of = self.copied();
        let schedules = gpu::variants(&of.of_heads([of.queries, of.keys, of.d], TRANSPOSED_B), adapter);
        let named =
            |of: Variant| Variant { name: format!("products, {}", of.name), index: FIRST + of.index, ..of };
        let is_taken = |(i, of): &(usize, Variant)| *i < 3 || of.rounds;
        schedules.into_iter().enumerate().filter(is_taken).map(|(_, of)| named(of)).collect()
    }

    /// A product of the matrices of each head.
    fn of_heads(&self, [rows, cols, depth]: [usize; 3], loaders: [Loader; 2]) -> Product {
        Product::new("attention", [self.pairs(), rows, cols, depth], loaders)
    }
}

impl Run<'_> {
    /// `y = a b` for each head.
    fn multiply(
        &mut self,
        schedule: Schedule,
        sizes: [usize; 3],
        loaders: [Loader; 2],
        [a, b, y]: [Slot; 3],
    ) {
        let slots = Slots { a, b, extra: [None; 3], y };
        gpu::dispatch(&self.size.of_heads(sizes, loaders), schedule, self.plan, slots);
    }

    /// A dispatch over the rows of scores; one thread a row where workgroup memory is dear.
    fn softmax(&mut self, entry: &'static str, schedule: Schedule) -> &mut Dispatch {
        let (set, lanes) = if schedule.uses_workgroup_memory() { (1, 32) } else { (0, 1) };
        let rows = self.size.pairs() * self.size.queries;
        let softmax = self.plan.add(&PRODUCTS, entry).knobs(set).param("scale", self.given.scale());
        softmax.params([("rows", rows), ("keys", self.size.keys)]).param("causal", self.size.causal);
        softmax.cover_in_sub_dispatches(rows, GROUP / lanes)
    }

    /// Scratch: the scores.
    pub(super) fn forward_products(&mut self, schedule: Schedule, [q, k, v, y]: [Slot; 4]) {
        let Size { d, queries, keys, .. } = self.size;
        let weights = Slot::Scratch(0);
        self.multiply(schedule, [queries, keys, d], TRANSPOSED_B, [q, k, weights]);
        self.softmax("softmax", schedule).bind("weights", weights).write("lse", 1);
        self.multiply(schedule, [queries, d, keys], PLAIN, [weights, v, y]);
    }

    /// Scratch: a block unused, then two of the size of the scores.
    pub(super) fn backward_products(
        &mut self,
        schedule: Schedule,
        [q, k, v, dy]: [Slot; 4],
        [dq, dk, dv]: [Slot; 3],
    ) {
        let Size { d, queries, keys, .. } = self.size;
        let [weights, dscores] = [1, 2].map(Slot::Scratch);
        self.multiply(schedule, [queries, keys, d], TRANSPOSED_B, [q, k, weights]);
        self.multiply(schedule, [queries, keys, d], TRANSPOSED_B, [dy, v, dscores]);
        let softmax = self.softmax("softmax_backward", schedule).read("saved_lse", 4);
        softmax.bind("weights", weights).bind("dscores", dscores);
        self.multiply(schedule, [queries, d, keys], PLAIN, [dscores, k, dq]);
        self.multiply(schedule, [keys, d, queries], TRANSPOSED_A, [dscores, q, dk]);
        self.multiply(schedule, [keys, d, queries], TRANSPOSED_A, [weights, dy, dv]);
    }
}
