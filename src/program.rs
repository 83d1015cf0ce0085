//! A recording, compiled once for a device and replayed every step.
//!
//! Compiling drops what no result depends on, gives every tensor a place in memory, and builds whatever the
//! device needs to run the launches again without allocating, looking up or deciding anything.

mod planned;
mod portions;
mod recompute;
mod timed;
mod tune;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use planned::Plan;
use planned::{Spot, Step};
pub(crate) use portions::KERNEL;
pub use timed::Span;
pub use tune::Picked;

use crate::device::cpu::{Hold, Memory};
use crate::device::gpu::{Bound, Gpu, Grid, Range};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::launch::{Bind, Cost, Dispatch, Io, Launch, Raw, Slot};
use crate::plan::Lifetime;
use crate::tape::Tensor;
use crate::tensor::Id;

/// How a plan gives out memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// Tensors that are never alive together share memory.
    Shared,
    /// Every tensor has its own, so that all can be read after a run.
    Separate,
    /// As `Separate`, between guard words, and everything is filled with NaN before each run. For tests.
    Guarded,
}

/// Bytes around each tensor of a guarded program, filled with `GUARD`.
const GUARD_BYTES: usize = 256;
const GUARD: u32 = 0x7fc0_dead; // a NaN that no arithmetic makes
const CPU_ALIGN: usize = 64;

/// A tensor's place in memory.
#[derive(Clone)]
struct Place {
    buffer: Buffer,
    offset: usize,
    bytes: usize,
}

struct Call {
    launch: Arc<dyn Launch>,
    reads: Vec<Raw>,
    writes: Vec<Raw>,
    scratch: Vec<Raw>,
    made: Option<MadeFrom>,
}

/// What the first block of scratch of a call was made from.
struct MadeFrom {
    memory: Arc<Memory>,
    /// Its version when that was done; `None` before.
    seen: Option<u64>,
}

impl Call {
    fn run(&mut self) {
        let mut done = false;
        if let Some(MadeFrom { memory, seen }) = &mut self.made {
            done = seen.replace(memory.version()) == Some(memory.version());
        }
        self.launch.cpu(&Io::new(&self.reads, &self.writes, &self.scratch, done));
    }
}

/// What a CPU program touches.
struct Touched {
    /// Every block of memory, once.
    all: Vec<Arc<Memory>>,
    /// Those of its stores that it writes.
    written: Vec<Arc<Memory>>,
}

impl Touched {
    /// Holds all, for a run.
    fn hold(&self) -> Hold<'_> {
        let hold = Hold::new(&self.all);
        self.written.iter().for_each(|memory| memory.bump_version());
        hold
    }
}

enum Code {
    Cpu(Vec<Call>, Touched),
    Gpu(Vec<Bound>),
}

/// A launch of a program, as people look at it.
#[derive(Clone, Debug)]
pub struct Part {
    /// The op and the entry: `conv2d backward_x`.
    pub name: &'static str,
    /// The part of the model that recorded it: `down_blocks.0.resnets.1.conv1`; may be empty.
    pub label: String,
    pub cost: Cost,
    /// On a GPU how many dispatches it takes; 1 on the CPU device.
    pub dispatches: usize,
    /// The variant that it runs as, of those on a GPU that have several.
    pub picked: Option<Picked>,
    writes: Vec<Id>,
}

/// A compiled recording.
pub struct Program {
    device: Device,
    sharing: Sharing,
    places: Vec<Option<Place>>,
    stores: BTreeMap<String, Buffer>,
    blocks: Vec<Buffer>,
    lifetimes: Vec<Lifetime>,
    /// One for each launch, in order.
    parts: Vec<Part>,
    code: Code,
}

impl Program {
    /// Allocates and builds everything that running the plan needs. `bound`: memory for stores by name; the
    /// others are allocated (zeroed) and can be reached through [`Program::store`].
    ///
    /// # Errors
    /// When memory is too small, or the driver cannot build a kernel.
    pub fn compile(
        plan: &Plan,
        device: &Device,
        bound: &[(&str, &Buffer)],
        sharing: Sharing,
    ) -> Result<Program> {
        Program::compile_by(plan, device, bound, sharing, |gpu| tune::pick(gpu, plan))
    }

    /// `pick`: the variant of each launch.
    fn compile_by(
        plan: &Plan,
        device: &Device,
        bound: &[(&str, &Buffer)],
        sharing: Sharing,
        pick: impl FnOnce(&Gpu) -> Result<Vec<Option<Picked>>>,
    ) -> Result<Program> {
        let (where_of, sizes) = plan.place(sharing);
        let is_bound = |name: &str| bound.iter().any(|(n, _)| *n == name);
        let own = plan.stores().filter(|(name, _)| !is_bound(name));
        device.check_memory(
            sizes.iter().map(|&b| b as u64).sum::<u64>() + own.map(|(_, bytes)| bytes as u64).sum::<u64>(),
        )?;
        let picked = match device {
            Device::Cpu(_) => Vec::new(),
            // Before the program takes its memory: candidates need some too.
            Device::Gpu(gpu) => pick(gpu)?,
        };
        let blocks =
            sizes.iter().map(|&bytes| device.alloc("activations", bytes)).collect::<Result<Vec<_>>>()?;
        let mut stores = BTreeMap::new();
        for (name, bytes) in plan.stores() {
            let buffer = match bound.iter().find(|(n, _)| *n == name) {
                Some((_, buffer)) => (*buffer).clone(),
                None => device.alloc(name, bytes)?,
            };
            assert!(buffer.bytes() >= bytes, "store {name}: {} bytes, {bytes} are used", buffer.bytes());
            stores.insert(name.to_owned(), buffer);
        }
        let temporary = |n: usize, bytes: usize| {
            let (block, offset) = where_of[n];
            Place { buffer: blocks[block].clone(), offset, bytes }
        };
        let places: Vec<Option<Place>> = plan
            .spots
            .iter()
            .map(|(spot, bytes)| match spot {
                Spot::Temporary(n) => Some(temporary(*n, *bytes)),
                Spot::Stored { store, first } => {
                    Some(Place { buffer: stores[&**store].clone(), offset: first * 4, bytes: *bytes })
                }
                Spot::Unused => None,
            })
            .collect();
        let scratch = |step: &Step| -> Vec<Place> {
            step.scratch.iter().map(|&n| temporary(n, plan.lifetimes[n].bytes)).collect()
        };
        let part = |step: &Step| Part {
            name: step.launch.name(),
            label: step.label.to_string(),
            cost: plan.cost_of(step),
            dispatches: 1,
            picked: None,
            writes: step.writes.clone(),
        };
        let mut parts: Vec<Part> = plan.steps.iter().map(part).collect();
        let code = match device {
            Device::Cpu(_) => {
                let memories = |buffers: &mut dyn Iterator<Item = &Buffer>| {
                    let mut memories: Vec<Arc<Memory>> = Vec::new();
                    for buffer in buffers {
                        match buffer {
                            Buffer::Cpu(memory) if !memories.iter().any(|m| Arc::ptr_eq(m, memory)) => {
                                memories.push(Arc::clone(memory));
                            }
                            _ => {}
                        }
                    }
                    memories
                };
                let written = plan.written();
                let touched = Touched {
                    all: memories(&mut blocks.iter().chain(stores.values())),
                    written: memories(&mut written.iter().map(|store| &stores[&**store])),
                };
                // A guarded program finds its working memory filled with NaN.
                let keeps = sharing != Sharing::Guarded;
                Code::Cpu(plan.steps.iter().map(|s| call(s, &places, &scratch(s), keeps)).collect(), touched)
            }
            Device::Gpu(gpu) => {
                let mut all = Vec::new();
                for ((step, part), picked) in plan.steps.iter().zip(&mut parts).zip(picked) {
                    let scratch = scratch(step);
                    let variant = picked.as_ref().map_or(0, |picked| picked.variant.index);
                    let dispatches = step.dispatches(variant);
                    part.picked = picked;
                    // Bytes cost a slow GPU some sixteen operations each.
                    let work = (part.cost.flops + 16 * part.cost.bytes) / dispatches.len().max(1) as u64;
                    let measured = part.picked.as_ref().and_then(|picked| picked.choice.as_ref());
                    let pieces = gpu.sub_dispatches(work, measured.map(|choice| choice.ms));
                    let before = all.len();
                    for dispatch in &dispatches {
                        let bound = bind(gpu, step, dispatch, &places, &scratch, pieces)?;
                        let each = work / bound.len() as u64;
                        all.extend(bound.into_iter().map(|bound| bound.of_work(each)));
                    }
                    part.dispatches = all.len() - before;
                }
                Code::Gpu(all)
            }
        };
        Ok(Program {
            device: device.clone(),
            sharing,
            places,
            stores,
            blocks,
            lifetimes: plan.lifetimes.clone(),
            parts,
            code,
        })
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Runs all launches in order. On a GPU this returns when they are submitted; reading waits for them.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn run(&mut self) -> Result<()> {
        if self.sharing == Sharing::Guarded {
            self.poison()?;
        }
        match (&mut self.code, &self.device) {
            (Code::Cpu(calls, touched), Device::Cpu(cpu)) => {
                let _held = touched.hold();
                cpu.run(|| calls.iter_mut().for_each(Call::run));
                Ok(())
            }
            (Code::Gpu(dispatches), Device::Gpu(gpu)) => gpu.replay(&*dispatches),
            _ => unreachable!("code is built for the program's device"),
        }
    }

    /// Memory of a store that this program uses.
    ///
    /// # Panics
    /// When it uses none of that name.
    #[track_caller]
    pub fn store(&self, name: &str) -> &Buffer {
        self.stores.get(name).unwrap_or_else(|| panic!("the program has no store called {name}"))
    }

    /// Writes a store from its beginning.
    ///
    /// # Errors
    /// When the driver reports an error.
    #[track_caller]
    pub fn write<T: bytemuck::Pod>(&self, store: &str, data: &[T]) -> Result<()> {
        self.device.write(self.store(store), 0, bytemuck::cast_slice(data))
    }

    /// Reads a tensor: a stored one, an output, or any of an unshared program.
    ///
    /// # Errors
    /// When the driver reports an error.
    ///
    /// # Panics
    /// When no launch touches the tensor.
    #[track_caller]
    pub fn read(&self, tensor: &Tensor) -> Result<Vec<f32>> {
        let mut out = vec![0.0; tensor.elements()];
        self.read_into(tensor, &mut out)?;
        Ok(out)
    }

    /// As [`Program::read`], into memory of the caller.
    ///
    /// # Errors
    /// When the driver reports an error.
    #[track_caller]
    pub fn read_into(&self, tensor: &Tensor, out: &mut [f32]) -> Result<()> {
        let Some(place) = &self.places[tensor.id().0] else {
            panic!("nothing in the program touches {tensor:?}")
        };
        assert_eq!(place.bytes, out.len() * 4, "read: {tensor:?}");
        self.device.read(&place.buffer, place.offset, bytemuck::cast_slice_mut(out))
    }

    /// After a run of an unshared program: the name of the first launch that wrote a number that is not
    /// finite.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn first_bad(&self) -> Result<Option<String>> {
        assert!(self.sharing != Sharing::Shared, "tensors of a shared program are gone after a run");
        for Part { name, label, writes, .. } in &self.parts {
            for place in writes.iter().filter_map(|id| self.places[id.0].as_ref()) {
                let mut values = vec![0.0_f32; place.bytes / 4];
                self.device.read(&place.buffer, place.offset, bytemuck::cast_slice_mut(&mut values))?;
                if values.iter().any(|v| !v.is_finite()) {
                    let name =
                        if label.is_empty() { (*name).to_owned() } else { format!("{label} ({name})") };
                    return Ok(Some(name));
                }
            }
        }
        Ok(None)
    }

    /// Fills temporary memory with NaN, guard words included.
    fn poison(&self) -> Result<()> {
        for block in &self.blocks {
            self.device.write(block, 0, bytemuck::cast_slice(&vec![GUARD; block.bytes() / 4]))?;
        }
        Ok(())
    }

    /// After a run of a guarded program: true if every word around every tensor is as it was.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn guards_intact(&self) -> Result<bool> {
        assert_eq!(self.sharing, Sharing::Guarded, "only a guarded program has guard words");
        for (block, lifetime) in self.blocks.iter().zip(&self.lifetimes) {
            let mut words = vec![0_u32; (lifetime.bytes + 2 * GUARD_BYTES) / 4];
            self.device.read(block, 0, bytemuck::cast_slice_mut(&mut words))?;
            let (before, after) = (GUARD_BYTES / 4, (GUARD_BYTES + lifetime.bytes) / 4);
            if words[..before].iter().chain(&words[after..]).any(|&w| w != GUARD) {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

/// `keeps`: working memory is as the last run left it.
fn call(step: &Step, places: &[Option<Place>], scratch: &[Place], keeps: bool) -> Call {
    let raw = |place: &Place| match &place.buffer {
        Buffer::Cpu(memory) => {
            Raw { start: memory.range(place.offset, place.bytes), elements: place.bytes / 4 }
        }
        Buffer::Gpu(_) => unreachable!("a CPU program has CPU memory"),
    };
    let of =
        |ids: &[Id]| -> Vec<Raw> { ids.iter().filter_map(|id| places[id.0].as_ref()).map(raw).collect() };
    let made_from = step.made_from.filter(|_| keeps).and_then(|id| places[id.0].as_ref());
    let call = Call {
        made: made_from.and_then(|place| match &place.buffer {
            Buffer::Cpu(memory) => Some(MadeFrom { memory: Arc::clone(memory), seen: None }),
            Buffer::Gpu(_) => None,
        }),
        launch: Arc::clone(&step.launch),
        reads: of(&step.reads),
        writes: of(&step.writes),
        scratch: scratch.iter().map(raw).collect(),
    };
    // `Io` hands out slices on the strength of this.
    let mutable: Vec<Raw> = call.writes.iter().chain(&call.scratch).copied().collect();
    for (i, a) in mutable.iter().enumerate() {
        for b in call.reads.iter().chain(&mutable[..i]) {
            let (a0, b0) = (a.start as usize, b.start as usize);
            let apart = a0 + a.elements * 4 <= b0 || b0 + b.elements * 4 <= a0;
            assert!(apart, "{}: writes what it also uses otherwise", step.launch.name());
        }
    }
    call
}

/// What runs a dispatch, in `pieces` where its kernel can.
fn bind(
    gpu: &Gpu,
    step: &Step,
    dispatch: &Dispatch,
    places: &[Option<Place>],
    scratch: &[Place],
    pieces: usize,
) -> Result<Vec<Bound>> {
    let place_of = |slot: Slot| -> &Place {
        let of = |id: Id| places[id.0].as_ref().unwrap_or_else(|| panic!("{}: unplaced", step.launch.name()));
        match slot {
            Slot::Read(i) => of(step.reads[i]),
            Slot::Write(i) => of(step.writes[i]),
            Slot::Scratch(i) => &scratch[i],
        }
    };
    let range = |bind: &Bind| {
        let place = place_of(bind.slot);
        let Buffer::Gpu(buffer) = &place.buffer else { unreachable!("a GPU program has GPU memory") };
        let (first, count) = bind.part.unwrap_or((0, place.bytes / 4));
        assert!((first + count) * 4 <= place.bytes, "{}: part outside the tensor", step.launch.name());
        (bind.name, Range { buffer, offset: place.offset + first * 4, bytes: count * 4 })
    };
    let ranges: Vec<(&str, Range)> = dispatch.binds.iter().map(range).collect();
    let Dispatch { kernel, entry, knobs, in_pieces, .. } = *dispatch;
    let grid = if in_pieces { gpu.grid() } else { Grid { sub_dispatches: 1, ..gpu.grid() } };
    let mut params = dispatch.params.clone();
    let layout = grid.layout(dispatch.groups, if in_pieces { pieces } else { 1 });
    let bound = layout.into_iter().map(|(first, groups)| {
        params.truncate(dispatch.params.len());
        params.extend(in_pieces.then_some(("first_group", first)));
        gpu.bind(kernel, entry, knobs, &params, &ranges, groups)
    });
    bound.collect()
}
