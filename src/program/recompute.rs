//! Rematerialisation: results that the backward pass computes a second time instead of having them kept since
//! the forward pass (Chen et al. 2016, arXiv:1604.06174).
//!
//! Two kinds of results can be recomputed: those of cheap launches, and everything inside a block that
//! [`Tape::checkpoint`](crate::tape::Tape::checkpoint) recorded. A result that is not kept is computed again
//! just before the first launch of the backward pass that reads it, and so are, before that, its own inputs
//! that were not kept either. The choice begins with nothing kept and then keeps, dearest and latest first,
//! all that does not raise the peak, the most bytes alive at one time; then it drops again, one by one, what
//! lowers the peak; so work is repeated only where that saves memory.

use std::collections::BTreeMap;
use std::ops::Range;

use super::memory::CPU_ALIGN;
use crate::launch::{Recompute, Recorded};
use crate::tape::{Entry, Home, Meta};
use crate::tensor::Id;

/// Tensors below this share of the peak are kept: a launch is not worth so little.
const SMALLEST: usize = 512;
/// The share of the peak that is given away for fewer launches.
const SLACK: usize = 100;

/// A launch of the final list.
pub(super) struct Run {
    /// Number of the entry that it runs, and whether for the second time.
    pub entry: usize,
    pub again: bool,
    reads: Range<usize>,
    writes: Range<usize>,
}

/// The launches in order, with the tensors that they touch. Numbers from that of the tape's tensors on are
/// second copies.
#[derive(Default)]
pub(super) struct Order {
    pub runs: Vec<Run>,
    ids: Vec<Id>,
    /// The tensors that the second copies are of.
    pub copies: Vec<Id>,
}

impl Order {
    pub fn reads(&self, run: &Run) -> &[Id] {
        &self.ids[run.reads.clone()]
    }

    pub fn writes(&self, run: &Run) -> &[Id] {
        &self.ids[run.writes.clone()]
    }

    fn push(&mut self, entry: usize, again: bool, reads: impl Iterator<Item = Id>, writes: &[Id]) {
        let start = self.ids.len();
        self.ids.extend(reads);
        let middle = self.ids.len();
        self.ids.extend(writes);
        self.runs.push(Run { entry, again, reads: start..middle, writes: middle..self.ids.len() });
    }
}

/// The recorded launches that are needed.
pub(super) struct Needed<'a> {
    pub metas: &'a [Meta],
    pub entries: Vec<&'a Entry>,
    /// Number of the first entry of the backward pass.
    pub backward: usize,
    /// Tensors that are read after the run.
    pub outputs: Vec<Id>,
    pub for_gpu: bool,
    /// Temporary tensors have 16 bits, but for those that [`Needed::is_half`] leaves out.
    pub halves: bool,
    /// Stored tensors of 16 bits stay so.
    pub keeps_halves: bool,
}

/// How a tensor that is not kept is computed again.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Remat {
    /// As [`LaunchInfo::recompute`](crate::launch::LaunchInfo::recompute) says.
    Cheap,
    /// With all that its launch writes, by the same launch.
    Whole,
}

/// Tensors that are kept together or not at all.
type Unit = Vec<(Id, Remat)>;

impl Needed<'_> {
    /// Whether a tensor has 16 bits in memory where its launches see 32.
    pub fn is_half(&self, id: Id) -> bool {
        let meta = &self.metas[id.0];
        self.halves && meta.may_be_half() && meta.home == Home::Temporary && !self.outputs.contains(&id)
    }

    fn bytes(&self, id: Id) -> usize {
        self.metas[id.0].bytes() / if self.is_half(id) { 2 } else { 1 }
    }

    fn scratch(&self, recorded: &Recorded) -> usize {
        let info = recorded.info();
        let blocks = if self.for_gpu { &info.gpu_scratch } else { &info.cpu_scratch };
        blocks.iter().map(|&elements| (elements.max(1) * 4).next_multiple_of(CPU_ALIGN)).sum()
    }

    /// The launch of a run.
    pub fn launch(&self, run: &Run) -> &Recorded {
        let recorded = &self.entries[run.entry].recorded;
        match &recorded.info().recompute {
            Recompute::With(other) if run.again => other,
            _ => recorded,
        }
    }

    /// The launches as recorded; with `recompute`, some of them run again in the backward pass.
    pub fn order(&self, recompute: bool) -> Order {
        let planner = Planner::new(self);
        let plain = planner.order(&[], &[]);
        if !recompute || self.backward == self.entries.len() {
            return plain;
        }
        let most = planner.peak(&plain);
        let units = planner.units(most / SMALLEST);
        let mut choice = Choice { planner: &planner, units: &units, dropped: vec![true; units.len()] };
        let (mut before, mut best) = (usize::MAX, choice.peak());
        // Each change may make another worth it.
        while best != before {
            before = best;
            best = choice.change(false, best, |peak, best| peak <= best);
            best = choice.change(true, best, |peak, best| peak < best);
        }
        let limit = best + best / SLACK;
        choice.change(false, limit, |peak, _| peak <= limit);
        let chosen = planner.order(&units, &choice.dropped);
        if planner.peak(&chosen) + most / SLACK < most { chosen } else { plain }
    }
}

/// The units that are not kept so far.
struct Choice<'a> {
    planner: &'a Planner<'a>,
    units: &'a [Unit],
    dropped: Vec<bool>,
}

impl Choice<'_> {
    fn peak(&self) -> usize {
        self.planner.peak(&self.planner.order(self.units, &self.dropped))
    }

    /// Drops (or keeps) each unit where `accepts(peak, best)` what the peak becomes, and gives the new best.
    fn change(&mut self, drops: bool, mut best: usize, accepts: impl Fn(usize, usize) -> bool) -> usize {
        for i in 0..self.units.len() {
            if self.dropped[i] != drops {
                self.dropped[i] = drops;
                let peak = self.peak();
                if accepts(peak, best) {
                    best = best.min(peak);
                } else {
                    self.dropped[i] = !drops;
                }
            }
        }
        best
    }
}

struct Planner<'a> {
    needed: &'a Needed<'a>,
    /// The entry of the forward pass that writes each temporary tensor.
    producer: Vec<Option<usize>>,
    /// The first entry that writes a store that an entry reads: after that it would give other values.
    stale: Vec<usize>,
    recompute: Vec<&'a Recompute>,
    /// Bytes of scratch of each entry, and when it runs again cheaply.
    scratch: Vec<[usize; 2]>,
}

impl<'a> Planner<'a> {
    fn new(needed: &'a Needed) -> Self {
        let mut producer = vec![None; needed.metas.len()];
        let mut stores: BTreeMap<&str, Vec<usize>> = BTreeMap::new();
        for (i, entry) in needed.entries.iter().enumerate() {
            for id in &entry.writes {
                match &needed.metas[id.0].home {
                    Home::Stored { store, .. } => stores.entry(store).or_default().push(i),
                    Home::Temporary if i < needed.backward => producer[id.0] = Some(i),
                    Home::Temporary => {}
                }
            }
        }
        needed.outputs.iter().for_each(|id| producer[id.0] = None);
        let changed_after = |(i, entry): (usize, &&Entry)| {
            let changes = entry.reads.iter().filter_map(|id| match &needed.metas[id.0].home {
                Home::Stored { store, .. } => stores.get(&**store)?.iter().copied().find(|&at| at > i),
                Home::Temporary => None,
            });
            changes.min().unwrap_or(usize::MAX)
        };
        let recompute: Vec<&Recompute> =
            needed.entries.iter().map(|e| &e.recorded.info().recompute).collect();
        let scratch = needed.entries.iter().zip(&recompute).map(|(entry, recompute)| {
            let whole = needed.scratch(&entry.recorded);
            [whole, if let Recompute::With(other) = recompute { needed.scratch(other) } else { whole }]
        });
        Planner {
            needed,
            producer,
            stale: needed.entries.iter().enumerate().map(changed_after).collect(),
            scratch: scratch.collect(),
            recompute,
        }
    }

    /// The units that may be dropped, dearest and latest first; single tensors from `smallest` bytes on.
    fn units(&self, smallest: usize) -> Vec<Unit> {
        let Needed { entries, backward, .. } = self.needed;
        let temporary = |id: &&Id| self.producer[id.0].is_some();
        let mut blocks: BTreeMap<usize, Unit> = BTreeMap::new();
        let mut single = Vec::new();
        // What the forward pass reads outside its block is an output of that block.
        let mut leaves = vec![false; self.needed.metas.len()];
        for entry in &entries[..*backward] {
            for id in entry.reads.iter().filter(temporary) {
                let made_in = self.producer[id.0].and_then(|p| entries[p].block);
                leaves[id.0] |= made_in != entry.block;
            }
        }
        for (i, entry) in entries[..*backward].iter().enumerate() {
            let cheap = !matches!(self.recompute[i], Recompute::Never);
            let large = |id: &Id| self.needed.bytes(*id) >= smallest.max(1);
            if cheap && let Some(id) = entry.writes.first().filter(temporary).filter(|id| large(id)) {
                single.push(vec![(*id, Remat::Cheap)]);
            }
            if let Some(block) = entry.block {
                let inner = entry.writes.iter().filter(temporary).filter(|id| !leaves[id.0]);
                let remat = if cheap { Remat::Cheap } else { Remat::Whole };
                let inner = inner.filter(|id| !cheap || entry.writes[0] == **id);
                blocks.entry(block).or_default().extend(inner.map(|id| (*id, remat)));
            }
        }
        blocks.into_values().rev().chain(single.into_iter().rev()).collect()
    }

    fn order(&self, units: &[Unit], dropped: &[bool]) -> Order {
        let count = self.needed.metas.len();
        let mut remat = vec![None; count];
        for (unit, _) in units.iter().zip(dropped).filter(|(_, dropped)| **dropped) {
            unit.iter().for_each(|(id, r)| remat[id.0] = Some(*r));
        }
        let mut builder =
            OrderBuilder { planner: self, remat, now: (0..count).map(Id).collect(), order: Order::default() };
        for (i, entry) in self.needed.entries.iter().enumerate() {
            if i >= self.needed.backward {
                entry.reads.iter().for_each(|id| builder.recompute(*id, i));
            }
            let reads = entry.reads.iter().map(|id| builder.now[id.0]);
            builder.order.push(i, false, reads, &entry.writes);
        }
        builder.order
    }

    /// The most bytes alive at one time.
    fn peak(&self, order: &Order) -> usize {
        let count = self.needed.metas.len();
        let original = |id: Id| if id.0 < count { id } else { order.copies[id.0 - count] };
        let mut last = vec![usize::MAX; count + order.copies.len()];
        self.needed.outputs.iter().for_each(|id| last[id.0] = order.runs.len());
        // Backwards, the first to touch a tensor is its last user.
        let mut born = vec![0; order.runs.len()];
        let mut dies = vec![0; order.runs.len() + 1];
        for (time, run) in order.runs.iter().enumerate().rev() {
            for id in order.reads(run).iter().chain(order.writes(run)) {
                if last[id.0] == usize::MAX {
                    last[id.0] = time;
                }
            }
            for id in order.writes(run) {
                if self.needed.metas[original(*id).0].home == Home::Temporary {
                    let bytes = self.needed.bytes(original(*id)).next_multiple_of(CPU_ALIGN);
                    born[time] += bytes;
                    dies[last[id.0]] += bytes;
                }
            }
        }
        let (mut alive, mut peak) = (0, 0);
        for (time, run) in order.runs.iter().enumerate() {
            alive += born[time];
            let cheap = run.again && !matches!(self.recompute[run.entry], Recompute::Never);
            peak = peak.max(alive + self.scratch[run.entry][usize::from(cheap)]);
            alive -= dies[time];
        }
        peak
    }
}

/// An order under construction.
struct OrderBuilder<'a> {
    planner: &'a Planner<'a>,
    /// How each tensor that is not kept is computed again.
    remat: Vec<Option<Remat>>,
    /// The tensor or second copy that holds the values now.
    now: Vec<Id>,
    order: Order,
}

impl OrderBuilder<'_> {
    /// Computes a tensor again, if it was not kept and is not there yet, for the entry number `at`.
    fn recompute(&mut self, id: Id, at: usize) {
        let (Some(remat), Some(from)) = (self.remat[id.0], self.planner.producer[id.0]) else { return };
        if self.now[id.0] != id || self.planner.stale[from] < at {
            return;
        }
        let entry = self.planner.needed.entries[from];
        let (made, others) = match remat {
            Remat::Cheap => entry.writes.split_at(1),
            Remat::Whole => (&entry.writes[..], &[][..]),
        };
        let others = match self.planner.recompute[from] {
            Recompute::With(_) if remat == Remat::Cheap => others,
            _ => &[],
        };
        entry.reads.iter().chain(others).for_each(|id| self.recompute(*id, at));
        let reads: Vec<Id> = entry.reads.iter().chain(others).map(|id| self.now[id.0]).collect();
        for id in made {
            self.now[id.0] = Id(self.now.len() + self.order.copies.len());
            self.order.copies.push(*id);
        }
        let writes: Vec<Id> = made.iter().map(|id| self.now[id.0]).collect();
        self.order.push(from, true, reads.into_iter(), &writes);
    }
}
