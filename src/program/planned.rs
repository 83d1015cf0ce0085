//! What a recording will run, and the memory that it takes.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;

use super::{CPU_ALIGN, GUARD_BYTES, Sharing};
use crate::device::Device;
use crate::launch::{Cost, Dispatches, Launch, Slot};
use crate::plan::{self, Lifetime};
use crate::tape::{Home, Tape, Tensor};
use crate::tensor::Id;

pub(super) struct Step {
    pub(super) launch: Arc<dyn Launch>,
    pub(super) reads: Vec<Id>,
    pub(super) writes: Vec<Id>,
    pub(super) label: Rc<str>,
    /// Numbers of its scratch blocks among the lifetimes.
    pub(super) scratch: Vec<usize>,
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
    pub(super) lifetimes: Vec<Lifetime>,
    pub(super) stores: BTreeMap<String, usize>,
    pub(super) for_gpu: bool,
}

impl Plan {
    /// Plans what `tape` recorded for the kind of device that `device` is. Launches that update stores are
    /// kept, and those that these and `outputs` depend on; the others are dropped.
    pub fn new(tape: &Tape, outputs: &[&Tensor], device: &Device) -> Plan {
        tape.recorded(|metas, entries| {
            let for_gpu = matches!(device, Device::Gpu(_));
            let mut needed = vec![false; metas.len()];
            outputs.iter().for_each(|t| needed[t.id().0] = true);
            let stored = |id: &Id| metas[id.0].home != Home::Temporary;
            let mut kept: Vec<&crate::tape::Entry> = Vec::new();
            for entry in entries.iter().rev() {
                if entry.writes.iter().any(|id| stored(id) || needed[id.0]) {
                    entry.reads.iter().for_each(|id| needed[id.0] = true);
                    kept.push(entry);
                }
            }
            kept.reverse();
            let mut spots: Vec<(Spot, usize)> =
                metas.iter().map(|m| (Spot::Unused, m.shape.elements() * m.dtype.bytes())).collect();
            let mut plan = Plan {
                steps: Vec::new(),
                spots: Vec::new(),
                lifetimes: Vec::new(),
                stores: BTreeMap::new(),
                for_gpu,
            };
            for (time, entry) in kept.iter().enumerate() {
                for id in entry.reads.iter().chain(&entry.writes) {
                    let (spot, bytes) = &mut spots[id.0];
                    match &metas[id.0].home {
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
                                    entry.writes.contains(id),
                                    "{}: reads a tensor that nothing wrote",
                                    entry.launch.name()
                                );
                                *spot = Spot::Temporary(plan.lifetimes.len());
                                plan.lifetimes.push(Lifetime { first: time, last: time, bytes: *bytes });
                            }
                        },
                    }
                }
                let blocks = if for_gpu { entry.launch.gpu_scratch() } else { entry.launch.cpu_scratch() };
                let scratch = blocks.into_iter().map(|elements| {
                    plan.lifetimes.push(Lifetime { first: time, last: time, bytes: elements.max(1) * 4 });
                    plan.lifetimes.len() - 1
                });
                plan.steps.push(Step {
                    scratch: scratch.collect(),
                    launch: Arc::clone(&entry.launch),
                    reads: entry.reads.clone(),
                    writes: entry.writes.clone(),
                    label: entry.label.clone(),
                });
            }
            for output in outputs {
                if let (Spot::Temporary(n), _) = spots[output.id().0] {
                    plan.lifetimes[n].last = kept.len();
                }
            }
            plan.spots = spots;
            plan
        })
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

    /// Launches per run: twins on the CPU device, dispatches on a GPU.
    pub fn launches(&self) -> usize {
        if !self.for_gpu {
            return self.steps.len();
        }
        let count = |step: &Step| {
            let mut dispatches = Dispatches::default();
            step.launch.gpu(&mut dispatches);
            dispatches.list.len()
        };
        self.steps.iter().map(count).sum()
    }

    /// Bytes of temporary tensors if each had its own memory.
    pub fn separate_bytes(&self) -> u64 {
        self.lifetimes.iter().map(|l| l.bytes as u64).sum()
    }

    /// Bytes of temporary tensors with memory shared.
    pub fn shared_bytes(&self) -> u64 {
        self.share().1.iter().map(|&b| b as u64).sum()
    }

    /// The largest range that a dispatch binds, in bytes; on the CPU device the largest tensor that a
    /// launch touches.
    pub fn largest_binding(&self) -> u64 {
        if !self.for_gpu {
            let used = self.spots.iter().filter(|(spot, _)| !matches!(spot, Spot::Unused));
            return used.map(|(_, bytes)| *bytes as u64).max().unwrap_or(0);
        }
        let mut largest = 0;
        for step in &self.steps {
            let mut dispatches = Dispatches::default();
            step.launch.gpu(&mut dispatches);
            for bind in dispatches.list.iter().flat_map(|d| &d.binds) {
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

    /// Sizes of the stores that the program uses, in bytes.
    pub fn stores(&self) -> impl Iterator<Item = (&str, usize)> {
        self.stores.iter().map(|(name, bytes)| (name.as_str(), *bytes))
    }

    /// For each lifetime its block and offset; and the blocks' sizes.
    fn share(&self) -> (Vec<(usize, usize)>, Vec<usize>) {
        if self.for_gpu {
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
