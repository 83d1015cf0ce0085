//! The contract between an op and the engine: how it runs on either device, and what a plan may know of it.

mod dispatch;
mod io;
pub(crate) mod pack;

use std::fmt;
use std::fmt::Debug;
use std::sync::Arc;

pub(crate) use self::dispatch::Bind;
pub use self::dispatch::{Dispatch, Dispatches, Slot, Word};
pub(crate) use self::io::{CHUNK, Raw};
pub use self::io::{Io, Prepacked, Weights};
use crate::device::gpu::adapters::Traits;

/// One recorded step of a program: reads some tensors, writes others, and knows how to do that on either
/// device.
///
/// Tensors are named by their position among the reads and the writes that it was recorded with. A tensor
/// that is updated in place stands among the writes.
pub trait Launch: Debug + Send + Sync {
    /// The op and the entry, as the field calls it: `conv2d`, `group_norm backward_x`.
    fn name(&self) -> &'static str;

    /// The CPU twin.
    fn cpu(&self, io: &Io);

    /// The dispatches of the WGSL kernel, in order.
    fn gpu(&self, plan: &mut Dispatches);
}

struct Closures<C, G> {
    name: &'static str,
    cpu: C,
    gpu: G,
}

impl<C, G> Debug for Closures<C, G> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

impl<C, G> Launch for Closures<C, G>
where
    C: Fn(&Io) + Send + Sync,
    G: Fn(&mut Dispatches) + Send + Sync,
{
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu(&self, io: &Io) {
        (self.cpu)(io);
    }

    fn gpu(&self, plan: &mut Dispatches) {
        (self.gpu)(plan);
    }
}

/// The launch whose methods are these closures.
pub(crate) fn launch_of(
    name: &'static str,
    cpu: impl Fn(&Io) + Send + Sync + 'static,
    gpu: impl Fn(&mut Dispatches) + Send + Sync + 'static,
) -> impl Launch + 'static {
    Closures { name, cpu, gpu }
}

/// The properties of a launch that a plan needs. The default holds for element-wise work without
/// working memory.
#[derive(Debug, Default)]
pub struct LaunchInfo {
    /// Two for each multiplication and addition of a matrix product or a convolution, zeros around images
    /// included, as PyTorch counts them. Element-wise work is not counted.
    pub flops: u64,
    /// Bytes moved beyond one pass over each tensor that is read or written; negative where only part of a
    /// tensor is read.
    pub extra_bytes: i64,
    /// Elements of working memory that the CPU twin needs, one number a block. Its contents are undefined.
    pub cpu_scratch: Vec<usize>,
    /// Elements of working memory that the GPU dispatches need, one number a block: enough for each variant.
    pub gpu_scratch: Vec<usize>,
    /// The read that the first block of `cpu_scratch` is made from, and from nothing else, by
    /// [`Io::prepacked`]: weights in the order of the inner loop. The read is taken by [`Io::weights`] alone,
    /// because it may have 16 bits. A program that never writes it keeps the block from run to run.
    pub prepacked_from: Option<usize>,
    /// Its only read is weights, and its results are worth their memory: a program on the CPU device that
    /// never writes that read keeps them from run to run, and runs it again when something else has.
    pub keeps_results: bool,
    /// How the backward pass may have the first result without it being kept since the forward pass.
    pub recompute: Recompute,
    /// How the launch can add another gradient to one that it writes.
    pub accumulate: Accumulate,
    /// The variants of its dispatches.
    pub tuning: Tuning,
}

/// A launch with its info, as a tape records it: `tape.launch(op, ..)` takes the op alone, or
/// `Recorded::new(op, LaunchInfo { .. })`. Clones are the same launch.
#[derive(Clone, Debug)]
pub struct Recorded(Arc<(Box<dyn Launch>, LaunchInfo)>);

impl Recorded {
    /// A launch with all that a plan needs to know of it.
    pub fn new(launch: impl Launch + 'static, info: LaunchInfo) -> Recorded {
        Recorded(Arc::new((Box::new(launch), info)))
    }

    /// How it runs.
    pub fn launch(&self) -> &dyn Launch {
        &*self.0.0
    }

    /// Its properties.
    pub fn info(&self) -> &LaunchInfo {
        &self.0.1
    }

    /// The dispatches on a GPU, as the variant of this index.
    pub(crate) fn dispatches(&self, variant: usize) -> Vec<Dispatch> {
        let mut dispatches = Dispatches::new(variant);
        self.launch().gpu(&mut dispatches);
        dispatches.list
    }

    /// Work of a run. `bytes`: of all its reads and writes, each once.
    pub fn cost(&self, bytes: u64) -> Cost {
        let LaunchInfo { flops, extra_bytes, .. } = *self.info();
        Cost { flops, bytes: bytes.saturating_add_signed(extra_bytes) }
    }
}

impl<L: Launch + 'static> From<L> for Recorded {
    fn from(launch: L) -> Recorded {
        Recorded::new(launch, LaunchInfo::default())
    }
}

/// Work that a launch cannot avoid, counted from its shapes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Cost {
    /// As [`LaunchInfo::flops`].
    pub flops: u64,
    /// Bytes of the tensors that are read and written, each once, with [`LaunchInfo::extra_bytes`].
    pub bytes: u64,
}

impl std::iter::Sum for Cost {
    fn sum<I: Iterator<Item = Cost>>(costs: I) -> Cost {
        costs.fold(Cost::default(), |a, b| Cost { flops: a.flops + b.flops, bytes: a.bytes + b.bytes })
    }
}

/// How to compute the first result of a launch a second time.
#[derive(Clone, Debug, Default)]
pub enum Recompute {
    /// Too much work: a matrix product or the like.
    #[default]
    Never,
    /// The same launch again, which moves little more than its result and writes nothing else.
    Replay,
    /// Another launch, whose reads are those of this one and then what this one writes after its first
    /// result.
    With(Recorded),
}

type Fused = dyn Fn(usize) -> Option<Recorded> + Send + Sync;

/// Makes the same launch with one read more, after its others, which it adds to one of its writes. The
/// default has none.
#[derive(Default)]
pub struct Accumulate(Option<Box<Fused>>);

impl Accumulate {
    /// `fused`: that launch by the number of the write; `None` where it would take a pass of its own.
    pub fn by(fused: impl Fn(usize) -> Option<Recorded> + Send + Sync + 'static) -> Accumulate {
        Accumulate(Some(Box::new(fused)))
    }

    pub(crate) fn of_write(&self, write: usize) -> Option<Recorded> {
        self.0.as_ref().and_then(|fused| fused(write))
    }
}

impl Debug for Accumulate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "fused" } else { "separate" })
    }
}

type Variants = dyn Fn(&Traits) -> Vec<Variant> + Send + Sync;

/// The variants of a launch, of which tuning picks the fastest. The default has none: there is no choice.
#[derive(Default)]
pub struct Tuning {
    class: String,
    variants: Option<Box<Variants>>,
}

impl Tuning {
    /// `class` decides which variant is fastest: of launches with one name and one class, the first of a
    /// program is timed for all. They must have the same variants and kernels. `variants`: those for an
    /// adapter. The first is the safe one, which runs untuned and which the others' results are held against.
    pub fn new(class: String, variants: impl Fn(&Traits) -> Vec<Variant> + Send + Sync + 'static) -> Tuning {
        Tuning { class, variants: Some(Box::new(variants)) }
    }

    /// The class that launches with the same fastest variant have in common.
    pub fn class(&self) -> &str {
        &self.class
    }

    /// The variants for an adapter.
    pub fn variants(&self, adapter: &Traits) -> Vec<Variant> {
        self.variants.as_ref().map_or_else(Vec::new, |variants| variants(adapter))
    }
}

impl Debug for Tuning {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tuning").field("class", &self.class).finish_non_exhaustive()
    }
}

/// One of several forms of a launch on a GPU: another tile, another split of the work. Their results differ
/// in the rounding of sums alone, or of factors.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Variant {
    /// For people, and in the tuning file: `16 lanes`. A launch has no two of one name.
    pub name: String,
    /// The value of [`Dispatches::variant`] in [`Launch::gpu`].
    pub index: usize,
    /// The factors of its products are rounded to f16.
    pub rounds: bool,
}
