//! What a recording will run, and the memory that it takes.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;
use std::sync::Arc;

use super::portions::Portions;
use super::recompute::{Needed, Order};
use super::{CPU_ALIGN, GUARD_BYTES, Sharing};
use crate::device::Device;
use crate::device::gpu::adapters::Traits;
use crate::launch::{Cost, Dispatch, Launch, Slot};
use crate::plan::{self, Lifetime};
use crate::tape::{Entry, Home, Recording, Tape, Tensor};
use crate::tensor::{DType, Id};

pub(super) struct Step {
    pub(super) launch: Arc<dyn Launch>,
    pub(super) reads: Vec<Id>,
    pub(super) writes: Vec<Id>,
    pub(super) label: Rc<str>,
    /// Numbers of its scratch blocks among the lifetimes.
    pub(super) scratch: Vec<usize>,
    /// The read that its first scratch block is made from, where the program does not write that: the block
    /// is kept from run to run.
    pub(super) made_from: Option<Id>,
    /// It makes once more what it made before.
    pub(super) again: bool,
    /// `None` on the CPU device.
    portions: Option<Portions>,
}

impl Step {
    /// What runs on a GPU as the variant of this index.
    pub(super) fn dispatches(&self, variant: usize) -> Vec<Dispatch> {
        self.portions.as_ref().map(|portions| portions.dispatches(variant)).unwrap_or_default()
    }

    /// What runs on an adapter that nothing was tuned for.
    fn untuned(&self, adapter: &Traits) -> Vec<Dispatch> {
        self.dispatches(self.launch.variants(adapter).first().map_or(0, |variant| variant.index))
    }
}

#[derive(Clone)]
pub(super) enum Spot {
    /// Number among the lifetimes.
    Temporary(usize),
    Stored {
        store: Rc<str>,
        first: usize,
    },
    /// No launch of this program touches it.
    Unused,
}

/// What a recording will run and the memory that it takes; nothing is allocated yet.
pub struct Plan {
    pub(super) steps: Vec<Step>,
    pub(super) spots: Vec<(Spot, usize)>,
    pub(super) dtypes: Vec<DType>,
    pub(super) lifetimes: Vec<Lifetime>,
    pub(super) stores: BTreeMap<String, usize>,
    /// The adapter that it is for; `None` for the CPU device.
    pub(super) adapter: Option<Traits>,
}

impl Plan {
    /// Plans what `tape` recorded for the kind of device that `device` is. Launches that update stores are
    /// kept, and those that these and `outputs` depend on; the others are dropped. Where that lowers the
    /// memory, the backward pass runs cheap launches once more, and the blocks of
    /// [`Tape::checkpoint`], instead of having their results kept; the results are the same to the bit.
    pub fn new(tape: &Tape, outputs: &[&Tensor], device: &Device) -> Plan {
        Plan::of(tape, outputs, device, true)
    }

    /// As [`Plan::new`], with no launch run twice.
    pub fn keeping_all(tape: &Tape, outputs: &[&Tensor], device: &Device) -> Plan {
        Plan::of(tape, outputs, device, false)
    }

    fn of(tape: &Tape, outputs: &[&Tensor], device: &Device, recompute: bool) -> Plan {
        let limit = match device {
            Device::Cpu(_) => usize::MAX,
            Device::Gpu(gpu) => usize::try_from(gpu.cut_to() / 4).unwrap_or(usize::MAX),
        };
        Plan::within(tape, outputs, device, recompute, &|_, _| limit)
    }

    /// `limit`: how many elements a binding of a launch may have, whose tensors have those.
    fn within(
        tape: &Tape,
        outputs: &[&Tensor],
        device: &Device,
        recompute: bool,
        limit: &dyn Fn(&dyn Launch, [&[usize]; 2]) -> usize,
    ) -> Plan {
        tape.recorded(|recording| {
            let adapter = match device {
                Device::Cpu(_) => None,
                Device::Gpu(gpu) => Some(gpu.traits()),
            };
            let needed = needed(&recording, outputs, adapter.is_some());
            let order = if recompute { needed.recomputed() } else { needed.plain() };
            Plan::in_order(&needed, &order, adapter, limit)
        })
    }

    /// As [`Plan::new`], with each launch cut as if no third of a tensor could be bound that it can be cut along.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn cut_up(tape: &Tape, outputs: &[&Tensor], device: &Device) -> Plan {
        let third = |launch: &dyn Launch, [reads, writes]: [&[usize]; 2]| {
            let cuts = launch.cuts();
            let slices = cuts.iter().filter(|cut| cut.items > 1).flat_map(crate::launch::Cut::slices);
            let elements = slices.map(|(slot, _)| match slot {
                Slot::Read(i) => reads[i],
                Slot::Write(i) => writes[i],
                Slot::Scratch(_) => 0,
            });
            elements.max().map_or(usize::MAX, |elements| (elements / 3).max(1))
        };
        let plan = Plan::within(tape, outputs, device, true, &third);
        for step in &plan.steps {
            let (name, cuts) = (step.launch.name(), step.launch.cuts());
            let is_cut = step.portions.as_ref().is_some_and(|portions| portions.count() > 1);
            let could = cuts.iter().any(|cut| cut.items > 1 && cut.slices().next().is_some());
            assert!(could == is_cut, "{name}: could be cut: {could}, is: {is_cut}");
            // Those that bind parts of themselves need none.
            let dispatches = step.dispatches(0);
            let own = dispatches.iter().flat_map(|dispatch| &dispatch.binds).any(|bind| bind.part.is_some());
            assert!(own || !cuts.is_empty(), "{name} does not say how to cut it");
        }
        plan
    }

    /// Launches that only give summands of what they write.
    #[cfg(any(test, feature = "testing"))]
    pub(crate) fn adds(&self) -> bool {
        self.steps.iter().any(|step| step.portions.as_ref().is_some_and(Portions::adds))
    }

    fn in_order(
        needed: &Needed,
        order: &Order,
        adapter: Option<Traits>,
        limit: &dyn Fn(&dyn Launch, [&[usize]; 2]) -> usize,
    ) -> Plan {
        let metas = needed.metas;
        // Second copies are temporary tensors as those that they are copies of.
        let meta_of =
            |id: Id| &metas[if id.0 < metas.len() { id.0 } else { order.copies[id.0 - metas.len()].0 }];
        let all = (0..metas.len() + order.copies.len()).map(Id);
        let dtypes = all.clone().map(|id| meta_of(id).dtype).collect();
        let mut spots: Vec<(Spot, usize)> = all.map(|id| (Spot::Unused, meta_of(id).bytes())).collect();
        let mut plan = Plan {
            steps: Vec::new(),
            spots: Vec::new(),
            dtypes,
            lifetimes: Vec::new(),
            stores: BTreeMap::new(),
            adapter,
        };
        let stores_of = |ids: &[Id]| -> Vec<Rc<str>> {
            let stores = ids.iter().filter_map(|id| match &meta_of(*id).home {
                Home::Stored { store, .. } => Some(store.clone()),
                Home::Temporary => None,
            });
            stores.collect()
        };
        let written: BTreeSet<Rc<str>> =
            order.runs.iter().flat_map(|run| stores_of(order.writes(run))).collect();
        for (time, run) in order.runs.iter().enumerate() {
            let (reads, writes, launch) = (order.reads(run), order.writes(run), needed.launch(run));
            for id in reads.iter().chain(writes) {
                let (spot, bytes) = &mut spots[id.0];
                match &meta_of(*id).home {
                    Home::Stored { store, first } => {
                        let end = first * 4 + *bytes;
                        let size = plan.stores.entry(store.to_string()).or_default();
                        *size = end.max(*size);
                        *spot = Spot::Stored { store: store.clone(), first: *first };
                    }
                    Home::Temporary => match spot {
                        Spot::Temporary(n) => plan.lifetimes[*n].last = time,
                        _ => {
                            assert!(
                                writes.contains(id),
                                "{}: reads a tensor that nothing wrote",
                                launch.name()
                            );
                            *spot = Spot::Temporary(plan.lifetimes.len());
                            plan.lifetimes.push(Lifetime { first: time, last: time, bytes: *bytes });
                        }
                    },
                }
            }
            let portions = plan.adapter.as_ref().map(|adapter| {
                let elements = |ids: &[Id]| ids.iter().map(|id| spots[id.0].1 / 4).collect::<Vec<_>>();
                let (reads, writes) = (elements(reads), elements(writes));
                Portions::of(&launch, &reads, &writes, adapter, limit(&*launch, [&reads, &writes]))
            });
            let blocks = portions.as_ref().map_or_else(|| launch.cpu_scratch(), Portions::scratch);
            let made_from = launch
                .cpu_made_from()
                .filter(|_| !needed.for_gpu)
                .map(|i| reads[i])
                .filter(|id| stores_of(&[*id]).first().is_some_and(|store| !written.contains(store)));
            let scratch = blocks.into_iter().enumerate().map(|(i, elements)| {
                let kept = i == 0 && made_from.is_some();
                let (first, last) = if kept { (0, order.runs.len()) } else { (time, time) };
                plan.lifetimes.push(Lifetime { first, last, bytes: elements.max(1) * 4 });
                plan.lifetimes.len() - 1
            });
            plan.steps.push(Step {
                scratch: scratch.collect(),
                made_from,
                launch,
                reads: reads.to_vec(),
                writes: writes.to_vec(),
                label: needed.entries[run.entry].label.clone(),
                again: run.again,
                portions,
            });
        }
        for output in &needed.outputs {
            if let (Spot::Temporary(n), _) = spots[output.0] {
                plan.lifetimes[n].last = order.runs.len();
            }
        }
        plan.spots = spots;
        plan
    }

    /// How many of [`Plan::launches`] only make once more what was not kept.
    pub fn repeated(&self) -> usize {
        self.count(|step| step.again)
    }

    /// What a launch costs: its tensors are read or written once each, however often it names them.
    pub(super) fn cost_of(&self, step: &Step) -> Cost {
        let mut touched: Vec<Id> = step.reads.iter().chain(&step.writes).copied().collect();
        touched.sort_unstable();
        touched.dedup();
        step.launch.cost(touched.iter().map(|id| self.spots[id.0].1 as u64).sum())
    }

    /// What a run costs.
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
            Some(adapter) => step.untuned(adapter).len(),
        };
        self.steps.iter().filter(|step| which(step)).map(launches).sum()
    }

    /// Bytes of temporary tensors if each had its own memory.
    pub fn separate_bytes(&self) -> u64 {
        self.lifetimes.iter().map(|l| l.bytes as u64).sum()
    }

    /// Bytes of temporary tensors with memory shared.
    pub fn shared_bytes(&self) -> u64 {
        self.share().1.iter().map(|&b| b as u64).sum()
    }

    /// The largest range that a dispatch binds untuned, in bytes; on the CPU device the largest tensor that a
    /// launch touches.
    pub fn largest_binding(&self) -> u64 {
        let Some(adapter) = &self.adapter else {
            let used = self.spots.iter().filter(|(spot, _)| !matches!(spot, Spot::Unused));
            return used.map(|(_, bytes)| *bytes as u64).max().unwrap_or(0);
        };
        let mut largest = 0;
        for step in &self.steps {
            for bind in step.untuned(adapter).iter().flat_map(|dispatch| &dispatch.binds) {
                let whole = match bind.slot {
                    Slot::Read(i) => self.spots[step.reads[i].0].1,
                    Slot::Write(i) => self.spots[step.writes[i].0].1,
                    Slot::Scratch(i) => self.lifetimes[step.scratch[i]].bytes,
                };
                largest = largest.max(bind.part.map_or(whole, |(_, count)| count * 4) as u64);
            }
        }
        largest
    }

    /// Names of the stores that a run writes.
    pub(super) fn written(&self) -> BTreeSet<&str> {
        let writes = self.steps.iter().flat_map(|step| &step.writes);
        let stores = writes.filter_map(|id| match &self.spots[id.0].0 {
            Spot::Stored { store, .. } => Some(&**store),
            _ => None,
        });
        stores.collect()
    }

    /// Sizes of the stores that the program uses, in bytes.
    pub fn stores(&self) -> impl Iterator<Item = (&str, usize)> {
        self.stores.iter().map(|(name, bytes)| (name.as_str(), *bytes))
    }

    /// For each lifetime its block and offset; and the blocks' sizes.
    fn share(&self) -> (Vec<(usize, usize)>, Vec<usize>) {
        if self.adapter.is_some() {
            let (slot_of, sizes) = plan::slots(&self.lifetimes);
            (slot_of.into_iter().map(|slot| (slot, 0)).collect(), sizes)
        } else {
            let (offsets, total) = plan::arena(&self.lifetimes, CPU_ALIGN);
            (offsets.into_iter().map(|offset| (0, offset)).collect(), vec![total])
        }
    }

    pub(super) fn place(&self, sharing: Sharing) -> (Vec<(usize, usize)>, Vec<usize>) {
        match sharing {
            Sharing::Shared => self.share(),
            Sharing::Separate => (
                (0..self.lifetimes.len()).map(|i| (i, 0)).collect(),
                self.lifetimes.iter().map(|l| l.bytes).collect(),
            ),
            Sharing::Guarded => (
                (0..self.lifetimes.len()).map(|i| (i, GUARD_BYTES)).collect(),
                self.lifetimes.iter().map(|l| l.bytes + 2 * GUARD_BYTES).collect(),
            ),
        }
    }
}

/// What the outputs and the updates of stores depend on.
fn needed<'a>(recording: &Recording<'a>, outputs: &[&Tensor], for_gpu: bool) -> Needed<'a> {
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
    Needed { metas, backward: kept.len() - of_backward, entries: kept, outputs, for_gpu }
}
