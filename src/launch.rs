//! What an op gives to the engine: its CPU twin and its dispatches on a GPU.

pub mod cut;
pub mod pack;

use std::cell::Cell;
use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::Arc;

pub use self::cut::Cut;
use crate::device::gpu::adapters::Traits;
use crate::device::gpu::shader::{Kernel, Knob};

/// Work that a launch cannot avoid, counted from its shapes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// Two for each multiplication and addition of a matrix product or a convolution, zeros around images
    /// included, as PyTorch counts them. Element-wise work is not counted.
    pub flops: u64,
    /// Bytes of the tensors that are read and written, each once, whatever a kernel makes of it.
    pub bytes: u64,
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), |a, b| Cost { flops: a.flops + b.flops, bytes: a.bytes + b.bytes })
    }
}

/// One recorded step of a program: reads some tensors, writes others, and knows how to do that on either
/// device.
///
/// Tensors are named by their position among the reads and the writes that it was recorded with. A tensor
/// that is updated in place stands among the writes.
pub trait Launch: Debug + Send + Sync {
    /// The op and the entry, as the field calls it: `conv2d`, `group_norm backward_x`.
    fn name(&self) -> &'static str;

    /// What a run of it costs. `bytes`: of all its reads and writes, each once, which is what it moves unless
    /// it says otherwise.
    fn cost(&self, bytes: u64) -> Cost {
        Cost { flops: 0, bytes }
    }

    /// The CPU twin.
    fn cpu(&self, io: &Io);

    /// The dispatches of the WGSL kernel, in order.
    fn gpu(&self, plan: &mut Dispatches);

    /// The ways in which its dispatches can run on an adapter, of which tuning picks the fastest. The first is
    /// the safe one, which runs untuned and which the others' results are held against; with none there is
    /// no choice.
    fn variants(&self, _adapter: &Traits) -> Vec<Variant> {
        Vec::new()
    }

    /// What decides which variant is fastest: of launches with one name and one class, the first that a program
    /// has is timed for all. They must have the same variants and kernels.
    fn shape_class(&self) -> String {
        String::new()
    }

    /// Elements of working memory that the CPU twin needs, one number a block. Its contents are undefined.
    fn cpu_scratch(&self) -> Vec<usize> {
        Vec::new()
    }

    /// The read that the first block of the CPU twin's working memory is made from, and from nothing else, by
    /// [`Io::made`]: weights in the order of the inner loop. A program that never writes that read keeps the
    /// block from run to run.
    fn cpu_made_from(&self) -> Option<usize> {
        None
    }

    /// Elements of working memory that the GPU dispatches need, one number a block: enough for each variant.
    fn gpu_scratch(&self) -> Vec<usize> {
        Vec::new()
    }

    /// The dimensions along which it can be cut where an adapter binds no tensor as large as one of its own: one
    /// for each tensor that grows with the batch, or alone may be large.
    fn cuts(&self) -> Vec<Cut> {
        Vec::new()
    }

    /// The same launch with one read more, after its others, which it adds to write number `_write`; `None` where
    /// that would take a pass of its own.
    fn adding(&self, _write: usize) -> Option<Arc<dyn Launch>> {
        None
    }

    /// How the backward pass may have the first result without it being kept since the forward pass.
    fn again(&self) -> Again {
        Again::Dear
    }
}

/// One of several ways in which a launch can run on a GPU: another tile, another split of the work. Their
/// results differ in the rounding of sums alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// For people, and in the tuning file: `16 lanes`. A launch has no two of one name.
    pub name: String,
    /// What [`Dispatches::variant`] gives to [`Launch::gpu`].
    pub index: usize,
}

/// How to make the first result of a launch once more.
#[derive(Clone, Debug)]
pub enum Again {
    /// By much work: a matrix product or the like.
    Dear,
    /// By the same launch, which moves little more than its result and writes nothing else.
    Same,
    /// By another, whose reads are those of this launch and then what it writes but the first.
    By(Arc<dyn Launch>),
}

/// A piece of CPU memory, resolved when the program is compiled.
#[derive(Clone, Copy)]
pub(crate) struct Raw {
    pub start: *mut u8,
    pub elements: usize,
}

// SAFETY: plain memory; the plan of a program keeps accesses apart.
unsafe impl Send for Raw {}
// SAFETY: as above.
unsafe impl Sync for Raw {}

/// Working memory that one read of a launch is put into in another order, once for all runs that find it
/// unchanged.
pub struct Made<'a> {
    pub memory: &'a mut [f32],
    /// It holds what the read gives.
    pub done: bool,
}

/// The data of one launch on the CPU device.
pub struct Io<'a> {
    reads: &'a [Raw],
    writes: &'a [Raw],
    scratch: &'a [Raw],
    /// Which writes and scratch blocks were handed out: each only once, so that no two `&mut` overlap.
    taken: Cell<u64>,
    made: bool,
    lifetime: PhantomData<&'a mut f32>,
}

impl<'a> Io<'a> {
    /// `made`: the first block of scratch holds what the last run made of a read that is the same now.
    pub(crate) fn new(reads: &'a [Raw], writes: &'a [Raw], scratch: &'a [Raw], made: bool) -> Self {
        assert!(writes.len() + scratch.len() <= 64, "a launch writes at most 64 tensors");
        Io { reads, writes, scratch, taken: Cell::new(0), made, lifetime: PhantomData }
    }

    /// True if a tensor was given at this position; optional ones come last.
    pub fn has_read(&self, index: usize) -> bool {
        index < self.reads.len()
    }

    pub fn read(&self, index: usize) -> &'a [f32] {
        let raw = self.reads[index];
        // SAFETY: the compiled plan gives a launch reads that no write of it overlaps, inside blocks that
        // outlive it.
        unsafe { std::slice::from_raw_parts(raw.start.cast::<f32>(), raw.elements) }
    }

    pub fn read_u32(&self, index: usize) -> &'a [u32] {
        bytemuck::cast_slice(self.read(index))
    }

    /// # Panics
    /// When the same one is asked for twice.
    #[allow(clippy::mut_from_ref, reason = "each index is handed out once, which is checked")]
    pub fn write(&self, index: usize) -> &'a mut [f32] {
        self.take(index, self.writes[index])
    }

    /// # Panics
    /// When the same one is asked for twice.
    #[allow(clippy::mut_from_ref, reason = "each index is handed out once, which is checked")]
    pub fn scratch(&self, index: usize) -> &'a mut [f32] {
        self.take(self.writes.len() + index, self.scratch[index])
    }

    /// The first block of scratch, which [`Launch::cpu_made_from`] tells the read of.
    ///
    /// # Panics
    /// When it is asked for twice.
    pub fn made(&self) -> Made<'a> {
        Made { memory: self.scratch(0), done: self.made }
    }

    #[allow(clippy::mut_from_ref, reason = "each bit is handed out once, which is checked")]
    fn take(&self, bit: usize, raw: Raw) -> &'a mut [f32] {
        let mask = 1_u64 << bit;
        assert!(self.taken.get() & mask == 0, "a write is handed out once");
        self.taken.set(self.taken.get() | mask);
        // SAFETY: handed out once, and disjoint from every other tensor of the launch by the compiled plan.
        unsafe { std::slice::from_raw_parts_mut(raw.start.cast::<f32>(), raw.elements) }
    }
}

/// A parameter's word in `Params`: `u32`, `i32` and `f32` all take four bytes.
pub trait Word {
    fn word(self) -> u32;
}

impl Word for u32 {
    fn word(self) -> u32 {
        self
    }
}

impl Word for i32 {
    fn word(self) -> u32 {
        self as u32
    }
}

impl Word for f32 {
    fn word(self) -> u32 {
        self.to_bits()
    }
}

impl Word for bool {
    fn word(self) -> u32 {
        self.into()
    }
}

impl Word for usize {
    #[track_caller]
    fn word(self) -> u32 {
        u32::try_from(self).unwrap_or_else(|_| panic!("{self} elements do not fit a kernel's 32-bit index"))
    }
}

/// Which tensor of the launch a binding sees.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    Read(usize),
    Write(usize),
    Scratch(usize),
}

/// A binding of a dispatch: a tensor, or `(first, count)` elements of it.
#[derive(Clone, Debug)]
pub(crate) struct Bind {
    pub name: &'static str,
    pub slot: Slot,
    pub part: Option<(usize, usize)>,
}

/// One dispatch of an entry point, under construction by a launch.
#[derive(Clone, Debug)]
pub struct Dispatch {
    pub(crate) kernel: &'static Kernel,
    pub(crate) entry: &'static str,
    pub(crate) knobs: &'static [Knob],
    pub(crate) params: Vec<(&'static str, u32)>,
    pub(crate) binds: Vec<Bind>,
    /// Workgroups, in one dimension.
    pub(crate) groups: usize,
    /// The kernel's `Params` has `first_group`, so that it may run in pieces.
    pub(crate) in_pieces: bool,
}

/// The dispatches of one launch.
pub struct Dispatches {
    pub(crate) list: Vec<Dispatch>,
    variant: usize,
}

impl Dispatches {
    pub(crate) fn none() -> Dispatches {
        Dispatches { list: Vec::new(), variant: 0 }
    }

    /// Those of `launch` as the variant of this index.
    pub(crate) fn of(launch: &dyn Launch, variant: usize) -> Dispatches {
        let mut dispatches = Dispatches { variant, ..Dispatches::none() };
        launch.gpu(&mut dispatches);
        dispatches
    }

    /// Index of the [`Variant`] to run; 0 for launches that have none.
    pub fn variant(&self) -> usize {
        self.variant
    }

    /// Adds a dispatch of `entry` with the kernel's first set of knobs.
    pub fn add(&mut self, kernel: &'static Kernel, entry: &'static str) -> &mut Dispatch {
        self.list.push(Dispatch {
            kernel,
            entry,
            knobs: kernel.knob_sets.first().copied().unwrap_or_default(),
            params: Vec::new(),
            binds: Vec::new(),
            groups: 1,
            in_pieces: false,
        });
        let last = self.list.len() - 1;
        &mut self.list[last]
    }
}

impl Dispatch {
    /// Takes the kernel's set of knobs number `index` instead of the first.
    pub fn knobs(&mut self, index: usize) -> &mut Self {
        self.knobs = self.kernel.knob_sets[index];
        self
    }

    /// Gives a field of `Params`.
    #[track_caller]
    pub fn param(&mut self, name: &'static str, value: impl Word) -> &mut Self {
        self.params.push((name, value.word()));
        self
    }

    /// Binds whatever `slot` is, for launches that choose between a tensor and scratch.
    pub fn bind(&mut self, name: &'static str, slot: Slot) -> &mut Self {
        self.binds.push(Bind { name, slot, part: None });
        self
    }

    pub fn read(&mut self, name: &'static str, index: usize) -> &mut Self {
        self.bind(name, Slot::Read(index))
    }

    pub fn write(&mut self, name: &'static str, index: usize) -> &mut Self {
        self.binds.push(Bind { name, slot: Slot::Write(index), part: None });
        self
    }

    pub fn scratch(&mut self, name: &'static str, index: usize) -> &mut Self {
        self.binds.push(Bind { name, slot: Slot::Scratch(index), part: None });
        self
    }

    /// Binds `count` elements from `first` on; `first` must be a multiple of 64.
    pub fn part(&mut self, name: &'static str, slot: Slot, first: usize, count: usize) -> &mut Self {
        self.binds.push(Bind { name, slot, part: Some((first, count)) });
        self
    }

    /// As many workgroups as needed for `items` at `per_group` each, folded into two dimensions because one
    /// allows 65,535. The kernel gets its number from `lib/grid.wgsl` and must ignore those past its
    /// own end.
    pub fn cover(&mut self, items: usize, per_group: usize) -> &mut Self {
        self.groups = items.div_ceil(per_group).max(1);
        self
    }

    /// As [`Dispatch::cover`], for kernels that may be much work and whose `Params` has `first_group`: where a
    /// GPU would be busy with it for long, it runs as several dispatches, each of some of the groups.
    pub fn cover_in_pieces(&mut self, items: usize, per_group: usize) -> &mut Self {
        self.in_pieces = true;
        self.cover(items, per_group)
    }
}
