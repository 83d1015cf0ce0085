//! The launches that a recording will run, and the lifetimes of their tensors.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use super::memory::Lifetime;
use super::recompute::{Needed, Order};
use crate::device::Device;
use crate::device::gpu::adapters::Traits;
use crate::launch::{Cost, Dispatch, LaunchInfo, Recorded, Tuning};
use crate::tape::{Entry, Home, Recording, Tape, Tensor};
use crate::tensor::{DType, Id};

pub(super) struct Step {
    pub(super) recorded: Recorded,
    pub(super) reads: Vec<Id>,
    pub(super) writes: Vec<Id>,
    pub(super) label: Rc<str>,
    /// Numbers of its scratch blocks among the lifetimes: its own, then one for each read of 16 bits.
    pub(super) scratch: Vec<usize>,
    /// The stored weights that its first scratch block, or all its results, are made from and kept from run
    /// to run, where the program does not write them.
    pub(super) kept_from: Option<Id>,
    /// It computes a second time what an earlier step did.
    pub(super) again: bool,
}

impl Step {
    pub(super) fn name(&self) -> &'static str {
        self.recorded.launch().name()
    }

    /// Whether it runs again only when other programs or the host have written [`Step::kept_from`].
    pub(super) fn keeps_results(&self) -> bool {
        self.kept_from.is_some() && self.recorded.info().keeps_results
    }

    pub(super) fn tuning(&self) -> &Tuning {
        &self.recorded.info().tuning
    }

    /// The dispatches on a GPU, as the variant of this index.
    pub(super) fn dispatches(&self, variant: usize) -> Vec<Dispatch> {
        self.recorded.dispatches(variant)
    }

    /// The variant on an adapter that nothing was tuned for.
    pub(super) fn untuned(&self, adapter: &Traits) -> usize {
        self.tuning().variants(adapter).first().map_or(0, |variant| variant.index)
    }
}

#[derive(Clone)]
pub(super) enum Spot {
    /// Number among the lifetimes.
    Temporary(usize),
    Stored {
        store: Rc<str>,
        /// First byte.
        offset: usize,
    },
    /// No launch of this program touches it.
    Unused,
}

/// Bytes of packed weights that a program of the CPU device keeps from run to run at most, and packs the rest
/// anew: those of a large model take up to 3.6 times its memory, and packing is a small part of such a run.
const MOST_PACKED: usize = 1 << 30;

/// The launches that a recording will run and the memory that they take; nothing is allocated yet.
pub struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) spots: Vec<(Spot, usize)>,
    pub(super) dtypes: Vec<DType>,
    pub(super) lifetimes: Vec<Lifetime>,
    pub(super) stores: BTreeMap<String, usize>,
    /// Of these, those that a run writes.
    pub(super) written: BTreeSet<Rc<str>>,
    /// The adapter that it is for; `None` for the CPU device.
    pub(super) adapter: Option<Traits>,
}

impl Plan {
    /// Plans what `tape` recorded for the kind of device that `device` is. Launches that update stores are
    /// kept, and those that these and `outputs` depend on; the others are dropped. Where that lowers the
    /// memory, the backward pass runs cheap launches once more, and the blocks of
    /// [`Tape::checkpoint`], instead of having their results kept; the results are the same to the bit.
    pub fn new(tape: &Tape, outputs: &[&Tensor], device: &Device) -> Plan {
        Plan::of(tape, outputs, adapter_of(device), true)
    }

    /// As [`Plan::new`], for a GPU of such properties, which need not be here.
    pub(crate) fn for_adapter(tape: &Tape, outputs: &[&Tensor], adapter: Traits) -> Plan {
        Plan::of(tape, outputs, Some(adapter), true)
    }

    /// As [`Plan::new`], with no launch run twice.
    pub fn keeping_all(tape: &Tape, outputs: &[&Tensor], device: &Device) -> Plan {
        Plan::of(tape, outputs, adapter_of(device), false)
    }

    fn of(tape: &Tape, outputs: &[&Tensor], adapter: Option<Traits>, recompute: bool) -> Plan {
        tape.recorded(|recording| {
            let needed = needed(&recording, outputs, adapter.as_ref());
            Plan::in_order(&needed, &needed.order(recompute), adapter)
        })
    }

    fn in_order(needed: &Needed, order: &Order, adapter: Option<Traits>) -> Plan {
        let metas = needed.metas;
        // Second copies are temporary tensors as those that they are copies of.
        let original = |id: Id| if id.0 < metas.len() { id } else { order.copies[id.0 - metas.len()] };
        let meta_of = |id: Id| &metas[original(id).0];
        let all = || (0..metas.len() + order.copies.len()).map(Id);
        let store_of = |id: &Id| match &meta_of(*id).home {
            Home::Stored { store, .. } => Some(store.clone()),
            Home::Temporary => None,
        };
        // What the host reads of a program has 32 bits.
        let is_half = |id: Id| needed.is_half(original(id));
        let dtype_of = |id: Id| match meta_of(id).dtype {
            DType::F32 if is_half(id) => DType::F16,
            DType::F16 if needed.for_gpu && !needed.keeps_halves => DType::F32,
            dtype => dtype,
        };
        let bytes_of = |id: Id| {
            let bytes = meta_of(id).shape.elements() * dtype_of(id).bytes();
            if needed.for_gpu { bytes.next_multiple_of(4) } else { bytes }
        };
        let mut plan = Plan {
            steps: Vec::new(),
            spots: all().map(|id| (Spot::Unused, bytes_of(id))).collect(),
            dtypes: all().map(dtype_of).collect(),
            lifetimes: Vec::new(),
            stores: BTreeMap::new(),
            written: order.runs.iter().flat_map(|run| order.writes(run)).filter_map(store_of).collect(),
            adapter,
        };
        // Tensors that no run changes, and the stored one that each is made from. What is made of halves
        // would take the memory that they save.
        let unwritten = |id: &Id| {
            meta_of(*id).dtype != DType::F16
                && store_of(id).is_some_and(|store| !plan.written.contains(&store))
        };
        let mut unwritten: BTreeMap<Id, Id> = all().filter(unwritten).map(|id| (id, id)).collect();
        for (time, run) in order.runs.iter().enumerate() {
            let (reads, writes, recorded) = (order.reads(run), order.writes(run), needed.launch(run));
            for id in reads.iter().chain(writes) {
                let is_new = plan.touch(*id, &meta_of(*id).home, time);
                let name = recorded.launch().name();
                assert!(!is_new || writes.contains(id), "{name}: reads a tensor that nothing wrote");
            }
            let LaunchInfo { cpu_scratch, gpu_scratch, prepacked_from, keeps_results, .. } = recorded.info();
            let blocks = if needed.for_gpu { gpu_scratch } else { cpu_scratch };
            let made_from = if *keeps_results { Some(0) } else { *prepacked_from };
            let kept_from = made_from
                .filter(|_| !needed.for_gpu)
                .and_then(|read| unwritten.get(&reads[read]).copied())
                .filter(|_| !keeps_results || !writes.iter().any(|id| store_of(id).is_some()));
            if let Some(source) = kept_from.filter(|_| *keeps_results) {
                unwritten.extend(writes.iter().map(|id| (*id, source)));
            }
            let is_narrow = |id: Id| !needed.for_gpu && dtype_of(id) == DType::F16;
            let narrow =
                reads.iter().enumerate().filter(|(i, id)| is_narrow(**id) && *prepacked_from != Some(*i));
            let widened: Vec<usize> = narrow.map(|(_, id)| meta_of(*id).shape.elements()).collect();
            let scratch = blocks.iter().chain(&widened).enumerate().map(|(i, &elements)| {
                let kept = i == 0 && kept_from.is_some();
                let (first, last) = if kept { (0, order.runs.len()) } else { (time, time) };
                plan.lifetimes.push(Lifetime { first, last, bytes: elements.max(1) * 4 });
                plan.lifetimes.len() - 1
            });
            plan.steps.push(Step {
                scratch: scratch.collect(),
                kept_from,
                recorded: recorded.clone(),
                reads: reads.to_vec(),
                writes: writes.to_vec(),
                label: needed.entries[run.entry].label.clone(),
                again: run.again,
            });
        }
        plan.keep_no_more_packed(MOST_PACKED);
        for id in unwritten.keys().chain(&needed.outputs) {
            if let (Spot::Temporary(n), _) = plan.spots[id.0] {
                plan.lifetimes[n].last = order.runs.len();
                if unwritten.contains_key(id) {
                    plan.lifetimes[n].first = 0;
                }
            }
        }
        plan
    }

    /// Has weights packed in each run where they would take more than `most` bytes, with those before them.
    fn keep_no_more_packed(&mut self, most: usize) {
        let mut kept = 0;
        for (time, step) in self.steps.iter_mut().enumerate() {
            if step.kept_from.is_none() || step.keeps_results() {
                continue;
            }
            let block = &mut self.lifetimes[step.scratch[0]];
            if kept + block.bytes <= most {
                kept += block.bytes;
            } else {
                (block.first, block.last, step.kept_from) = (time, time, None);
            }
        }
    }

    /// Notes that launch number `time` uses a tensor. True for the first use of a temporary one.
    fn touch(&mut self, id: Id, home: &Home, time: usize) -> bool {
        let (spot, bytes) = &mut self.spots[id.0];
        match (home, &spot) {
            (Home::Stored { store, first }, _) => {
                let size = self.stores.entry(store.to_string()).or_default();
                let offset = first * self.dtypes[id.0].bytes();
                *size = (offset + *bytes).max(*size);
                *spot = Spot::Stored { store: store.clone(), offset };
                false
            }
            (Home::Temporary, Spot::Temporary(n)) => {
                self.lifetimes[*n].last = time;
                false
            }
            (Home::Temporary, _) => {
                let bytes = *bytes;
                *spot = Spot::Temporary(self.lifetimes.len());
                self.lifetimes.push(Lifetime { first: time, last: time, bytes });
                true
            }
        }
    }

    /// How many of [`Plan::launches`] only compute again what was not kept.
    pub fn repeated(&self) -> usize {
        self.count(|step| step.again)
    }

    /// Work of a launch: its tensors are read or written once each, however often it names them.
    pub(super) fn cost_of(&self, step: &Step) -> Cost {
        let mut touched: Vec<Id> = step.reads.iter().chain(&step.writes).copied().collect();
        touched.sort_unstable();
        touched.dedup();
        step.recorded.cost(touched.iter().map(|id| self.spots[id.0].1 as u64).sum())
    }

    /// Work of a run.
    pub fn cost(&self) -> Cost {
        self.steps.iter().map(|step| self.cost_of(step)).sum()
    }

    /// Launches per run: twins on the CPU device, dispatches on a GPU that nothing was tuned for.
    pub fn launches(&self) -> usize {
        self.count(|_| true)
    }

    fn count(&self, which: impl Fn(&Step) -> bool) -> usize {
        let launches = |step: &Step| match &self.adapter {
            None => 1,
            Some(adapter) => step.dispatches(step.untuned(adapter)).len(),
        };
        self.steps.iter().filter(|step| which(step)).map(launches).sum()
    }

    /// Sizes of the stores that the program uses, in bytes.
    pub fn stores(&self) -> impl Iterator<Item = (&str, usize)> {
        self.stores.iter().map(|(name, bytes)| (name.as_str(), *bytes))
    }
}

fn adapter_of(device: &Device) -> Option<Traits> {
    match device {
        Device::Cpu(_) => None,
        Device::Gpu(gpu) => Some(gpu.traits()),
    }
}

/// Sizes of batches to try: `most`, half of it, and so on to 1.
pub(crate) fn halves(most: usize) -> impl Iterator<Item = usize> {
    std::iter::successors(Some(most), |batch| (*batch > 1).then(|| batch / 2))
}

/// The launches that the outputs and the updates of stores depend on.
fn needed<'a>(recording: &Recording<'a>, outputs: &[&Tensor], adapter: Option<&Traits>) -> Needed<'a> {
    let Recording { metas, entries, backward } = *recording;
    let mut wanted = vec![false; metas.len()];
    outputs.iter().for_each(|t| wanted[t.id().0] = true);
    let stored = |id: &Id| metas[id.0].home != Home::Temporary;
    let mut kept: Vec<&Entry> = Vec::new();
    let mut of_backward = 0;
    for (i, entry) in entries.iter().enumerate().rev() {
        if entry.writes.iter().any(|id| stored(id) || wanted[id.0]) {
            entry.reads.iter().for_each(|id| wanted[id.0] = true);
            kept.push(entry);
            of_backward += usize::from(i >= backward);
        }
    }
    kept.reverse();
    let outputs = outputs.iter().map(|t| t.id()).collect();
    let (for_gpu, halves) = (adapter.is_some(), adapter.is_some_and(|adapter| adapter.halves));
    let keeps_halves = adapter.is_some_and(|adapter| adapter.keeps_halves);
    Needed {
        metas,
        backward: kept.len() - of_backward,
        entries: kept,
        outputs,
        for_gpu,
        halves,
        keeps_halves,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ops::matmul::linear;

    #[test]
    fn packed_weights_are_kept_up_to_a_limit() {
        let tape = Tape::new();
        let [x, w] = ["x", "w"].map(|store| tape.stored(store, 0, [64, 64]));
        let y = linear(&linear(&x, &w, None), &w, None);
        let mut plan = Plan::new(&tape, &[&y], &Device::open("cpu").unwrap());
        let kept = |plan: &Plan| plan.steps.iter().filter(|step| step.kept_from.is_some()).count();
        let bytes = plan.lifetimes[plan.steps[0].scratch[0]].bytes;
        for (most, wanted) in [(2 * bytes, 2), (2 * bytes - 1, 1), (bytes - 1, 0)] {
            plan.keep_no_more_packed(most);
            assert_eq!(kept(&plan), wanted, "of {most} bytes");
        }
    }
}
