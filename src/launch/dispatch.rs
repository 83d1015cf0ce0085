//! The dispatches of a launch on a GPU, as the launch describes them.

use crate::device::gpu::shader::{Kernel, Knob};

/// A parameter's word in `Params`: `u32`, `i32` and `f32` all take four bytes.
pub trait Word {
    /// The word's bits.
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
    /// A read, by its number.
    Read(usize),
    /// A write, by its number.
    Write(usize),
    /// A block of scratch, by its number.
    Scratch(usize),
}

/// A binding of a dispatch: a tensor, or a range of it.
#[derive(Clone, Debug)]
pub(crate) struct Bind {
    pub name: &'static str,
    pub slot: Slot,
    /// First element and number of elements; `None`: the whole tensor.
    pub range: Option<(usize, usize)>,
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
    /// The kernel's `Params` has `first_group`, so that it may run as several sub-dispatches.
    pub(crate) divisible: bool,
}

/// The dispatches of one launch, in order.
pub struct Dispatches {
    pub(crate) list: Vec<Dispatch>,
    variant: usize,
}

impl Dispatches {
    /// None yet, of a launch that runs as the variant of this index.
    pub(crate) fn new(variant: usize) -> Dispatches {
        Dispatches { list: Vec::new(), variant }
    }

    /// Index of the [`Variant`](super::Variant) to run; 0 for launches that have none.
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
            divisible: false,
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

    /// Gives fields of `Params` that are numbers of things.
    #[track_caller]
    pub fn params<const N: usize>(&mut self, fields: [(&'static str, usize); N]) -> &mut Self {
        self.params.extend(fields.map(|(name, value)| (name, value.word())));
        self
    }

    /// Binds a tensor or scratch to the kernel's variable `name`.
    pub fn bind(&mut self, name: &'static str, slot: Slot) -> &mut Self {
        self.binds.push(Bind { name, slot, range: None });
        self
    }

    /// Binds read number `index` to the kernel's variable `name`.
    pub fn read(&mut self, name: &'static str, index: usize) -> &mut Self {
        self.bind(name, Slot::Read(index))
    }

    /// Binds write number `index` to the kernel's variable `name`.
    pub fn write(&mut self, name: &'static str, index: usize) -> &mut Self {
        self.bind(name, Slot::Write(index))
    }

    /// Binds block number `index` of scratch to the kernel's variable `name`.
    pub fn scratch(&mut self, name: &'static str, index: usize) -> &mut Self {
        self.bind(name, Slot::Scratch(index))
    }

    /// Binds `count` elements of a tensor from `first` on; `first` must be a multiple of 64.
    pub fn range(&mut self, name: &'static str, slot: Slot, first: usize, count: usize) -> &mut Self {
        self.binds.push(Bind { name, slot, range: Some((first, count)) });
        self
    }

    /// As many workgroups as needed for `items` at `per_group` each, folded into two dimensions because one
    /// allows 65,535. The kernel gets its number from `lib/grid.wgsl` and must ignore those past its
    /// own end.
    pub fn cover(&mut self, items: usize, per_group: usize) -> &mut Self {
        self.groups = items.div_ceil(per_group).max(1);
        self
    }

    /// As [`Dispatch::cover`], for kernels that may be much work and whose `Params` has `first_group`: where
    /// a GPU would be busy with it for long, it runs as several dispatches, each of some of the groups.
    pub fn cover_in_sub_dispatches(&mut self, items: usize, per_group: usize) -> &mut Self {
        self.divisible = true;
        self.cover(items, per_group)
    }
}
