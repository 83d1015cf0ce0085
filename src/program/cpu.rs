//! A plan on the CPU device: the twins of its launches, one call each, on memory resolved beforehand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::memory::Sharing;
use super::place::{Operands, Place, Placement};
use super::plan::{Plan, Step};
use super::timed::Span;
use crate::device::Buffer;
use crate::device::cpu::{Cpu, Hold, Memory};
use crate::launch::{Io, Raw, Recorded};

/// All calls of a program, and the memory that they touch.
pub(super) struct CpuCode {
    calls: Vec<Call>,
    /// Every block of memory, once.
    memory: Vec<Arc<Memory>>,
    /// Of these, the stores that the program writes.
    written: Vec<Arc<Memory>>,
}

struct Call {
    recorded: Recorded,
    reads: Vec<Raw>,
    writes: Vec<Raw>,
    scratch: Vec<Raw>,
    kept_from: Option<KeptFrom>,
    /// Its results are kept, not its first block of scratch.
    keeps_results: bool,
}

/// The weights that a call makes from what it keeps from run to run.
struct KeptFrom {
    memory: Arc<Memory>,
    /// Its version then; `None` before the first run.
    version: Option<u64>,
}

fn memory_of(buffer: &Buffer) -> &Arc<Memory> {
    match buffer {
        Buffer::Cpu(memory) => memory,
        Buffer::Gpu(_) => unreachable!("a CPU program has CPU memory"),
    }
}

fn raw(place: &Place) -> Raw {
    Raw { start: memory_of(&place.buffer).range(place.offset, place.bytes), elements: place.bytes / 4 }
}

fn overlap(a: &Raw, b: &Raw) -> bool {
    let end = |raw: &Raw| raw.start.addr() + raw.elements * 4;
    a.start.addr() < end(b) && b.start.addr() < end(a)
}

impl Call {
    /// `keeps`: memory is as the last run left it.
    fn new(step: &Step, placement: &Placement, keeps: bool) -> Call {
        let Operands { reads, writes, scratch } = placement.operands(step);
        let kept_from = step.kept_from.filter(|_| keeps).and_then(|id| placement.place(id));
        let call = Call {
            recorded: step.recorded.clone(),
            reads: reads.iter().map(raw).collect(),
            writes: writes.iter().map(raw).collect(),
            scratch: scratch.iter().map(raw).collect(),
            kept_from: kept_from
                .map(|place| KeptFrom { memory: Arc::clone(memory_of(&place.buffer)), version: None }),
            keeps_results: step.keeps_results(),
        };
        // `Io` hands out slices on the strength of this.
        let mutable: Vec<&Raw> = call.writes.iter().chain(&call.scratch).collect();
        for (i, a) in mutable.iter().enumerate() {
            let apart = call.reads.iter().chain(mutable[..i].iter().copied()).all(|b| !overlap(a, b));
            assert!(apart, "{}: writes what it also uses otherwise", step.name());
        }
        call
    }

    fn run(&mut self) {
        let done = self.kept_from.as_mut().is_some_and(|KeptFrom { memory, version }| {
            version.replace(memory.version()) == Some(memory.version())
        });
        if !(done && self.keeps_results) {
            self.recorded.launch().cpu(&Io::new(&self.reads, &self.writes, &self.scratch, done));
        }
    }
}

impl CpuCode {
    pub fn new(plan: &Plan, placement: &Placement, sharing: Sharing) -> CpuCode {
        // A guarded program finds its working memory filled with NaN.
        let keeps = sharing != Sharing::Guarded;
        let stores = placement.stores.values().map(|store| &store.buffer);
        let written = plan.written.iter().map(|store| &placement.stores[&**store].buffer);
        CpuCode {
            calls: plan.steps.iter().map(|step| Call::new(step, placement, keeps)).collect(),
            memory: distinct(placement.blocks.iter().chain(stores)),
            written: distinct(written),
        }
    }

    /// `spans`: gets the times of the calls.
    pub fn run(&mut self, cpu: &Cpu, mut spans: Option<&mut Vec<Span>>) {
        let _held = Hold::new(&self.memory);
        self.written.iter().for_each(|memory| memory.bump_version());
        cpu.run(|| {
            let began = Instant::now();
            let mut start = Duration::ZERO;
            for call in &mut self.calls {
                call.run();
                if let Some(spans) = &mut spans {
                    let end = began.elapsed();
                    spans.push(Span { start, time: end - start });
                    start = end;
                }
            }
        });
    }
}

/// The memory of `buffers`, each block once.
fn distinct<'a>(buffers: impl Iterator<Item = &'a Buffer>) -> Vec<Arc<Memory>> {
    let mut all: Vec<Arc<Memory>> = Vec::new();
    for memory in buffers.map(memory_of) {
        if !all.iter().any(|known| Arc::ptr_eq(known, memory)) {
            all.push(Arc::clone(memory));
        }
    }
    all
}
