//! A plan on the CPU device: the twins of its launches, one call each, on memory resolved beforehand.

use std::sync::Arc;
use std::time::{Duration, Instant};

use half::f16;
use rayon::prelude::*;

use super::memory::Sharing;
use super::place::{Operands, Place, Placement};
use super::plan::{Plan, Step};
use super::timed::Span;
use crate::device::Buffer;
use crate::device::cpu::{Cpu, Hold, Memory};
use crate::launch::{CHUNK, Io, Raw, Recorded};
use crate::simd::{vectorized, widen};
use crate::tensor::DType;

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
    /// Reads of 16 bits, which are widened before it runs.
    halves: Vec<Halves>,
    kept_from: Option<KeptFrom>,
    /// Its results are kept, not its first block of scratch.
    keeps_results: bool,
}

/// A read of 16-bit floats, and the working memory where the call finds it as `f32`.
struct Halves {
    stored: *const f16,
    widened: Raw,
}

// SAFETY: plain memory, as that of `Raw`.
unsafe impl Send for Halves {}

impl Halves {
    fn widen(&self) {
        let elements = self.widened.elements;
        // SAFETY: the plan gave both so many elements, in blocks that the program holds, and the working
        // memory is this call's own, which is not running yet.
        let (from, to) = unsafe {
            let to = std::slice::from_raw_parts_mut(self.widened.start.cast::<f32>(), elements);
            (std::slice::from_raw_parts(self.stored, elements), to)
        };
        to.par_chunks_mut(CHUNK).zip(from.par_chunks(CHUNK)).for_each(|(to, from)| {
            vectorized(
                #[inline(always)]
                || widen(to, from),
            );
        });
    }
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
    let start = memory_of(&place.buffer).range(place.offset, place.bytes);
    Raw { start, elements: place.bytes / if place.half { 2 } else { 4 }, half: place.half }
}

fn overlap(a: &Raw, b: &Raw) -> bool {
    let end = |raw: &Raw| raw.start.addr() + raw.elements * if raw.half { 2 } else { 4 };
    a.start.addr() < end(b) && b.start.addr() < end(a)
}

impl Call {
    /// `keeps`: memory is as the last run left it.
    fn new(plan: &Plan, step: &Step, placement: &Placement, keeps: bool) -> Call {
        let Operands { reads, writes, scratch } = placement.operands(step);
        let (mut reads, mut scratch): (Vec<Raw>, Vec<Raw>) =
            (reads.iter().map(raw).collect(), scratch.iter().map(raw).collect());
        let mut halves = Vec::new();
        // The last block is that of the last such read.
        for (index, (read, id)) in reads.iter_mut().zip(&step.reads).enumerate().rev() {
            let widens = step.recorded.info().prepacked_from == Some(index);
            if plan.dtypes[id.0] == DType::F16 && !widens {
                let widened = scratch.pop().expect("a block for each read of 16 bits");
                let stored = std::mem::replace(read, widened).start.cast::<f16>();
                halves.push(Halves { stored, widened });
            }
        }
        let kept_from = step.kept_from.filter(|_| keeps).and_then(|id| placement.place(id));
        let call = Call {
            recorded: step.recorded.clone(),
            reads,
            writes: writes.iter().map(raw).collect(),
            scratch,
            halves,
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
            self.halves.iter().for_each(Halves::widen);
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
            calls: plan.steps.iter().map(|step| Call::new(plan, step, placement, keeps)).collect(),
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
