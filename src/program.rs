//! A recording, compiled once for a device and replayed every step.
//!
//! Compiling drops what no result depends on, gives every tensor a place in memory, and builds whatever the
//! device needs to run the launches again without allocating, looking up or deciding anything. Its phases are
//! files: `recompute` and `plan` choose and order the launches, `memory` shares memory between tensors and
//! `fit` counts it, `tune` picks variants, `place` allocates, `cpu` and `gpu` make code; `described` writes a
//! program down for a GPU that is elsewhere.

mod access;
mod cpu;
mod described;
mod fit;
mod gpu;
mod memory;
mod place;
mod plan;
mod recompute;
mod timed;
mod tune;

use std::sync::Arc;

pub(crate) use described::Description;
pub use memory::Sharing;
pub use plan::Plan;
pub(crate) use plan::halves;
pub use timed::Span;
pub use tune::Picked;

use cpu::CpuCode;
use memory::GUARD;
use place::Placement;

use crate::device::cpu::Cpu;
use crate::device::gpu::{Bound, Gpu};
use crate::device::{Buffer, Device, Precision};
use crate::error::{Error, Result};
use crate::launch::Cost;
use crate::tensor::Id;

enum Code {
    Cpu(Arc<Cpu>, CpuCode),
    Gpu(Arc<Gpu>, Vec<Bound>),
}

/// A launch of a program, as reports show it.
#[derive(Clone, Debug)]
pub struct CompiledLaunch {
    /// The op and the entry: `conv2d backward_x`.
    pub name: &'static str,
    /// The part of the model that recorded it: `down_blocks.0.resnets.1.conv1`; may be empty.
    pub label: String,
    /// Work of a run.
    pub cost: Cost,
    /// On a GPU how many dispatches it takes; 1 on the CPU device.
    pub dispatches: usize,
    /// The variant that it runs as, of those on a GPU that have several.
    pub picked: Option<Picked>,
    writes: Vec<Id>,
}

/// A compiled recording.
///
/// ```
/// use denoir::device::Device;
/// use denoir::ops::arithmetic::mul;
/// use denoir::program::{Plan, Program, Sharing};
/// use denoir::tape::Tape;
/// # fn main() -> denoir::error::Result<()> {
/// let tape = Tape::new();
/// let x = tape.stored("x", 0, [3]);
/// let square = mul(&x, &x);
///
/// let device = Device::open("cpu")?;
/// let plan = Plan::new(&tape, &[&square], &device);
/// let mut program = Program::compile(&plan, &device, &[], Sharing::Shared)?;
/// for x in [[1.0_f32, 2.0, 3.0], [4.0, 5.0, 6.0]] {
///     program.write("x", &x)?;
///     program.run()?;
///     assert_eq!(program.read(&square)?, x.map(|x| x * x));
/// }
/// # Ok(())
/// # }
/// ```
pub struct Program {
    device: Device,
    sharing: Sharing,
    placement: Placement,
    /// In the order in which they run.
    launches: Vec<CompiledLaunch>,
    code: Code,
}

impl Program {
    /// Allocates and builds everything that running the plan needs. `bound`: memory for stores by name; the
    /// others are allocated (zeroed) and can be reached through [`Program::store`].
    ///
    /// # Errors
    /// When a tensor is larger than the device can bind, memory is too small, or the driver cannot build a
    /// kernel.
    ///
    /// # Panics
    /// When the memory of a bound store is too small.
    #[track_caller]
    pub fn compile(
        plan: &Plan,
        device: &Device,
        bound: &[(&str, &Buffer)],
        sharing: Sharing,
    ) -> Result<Program> {
        plan.check_bindings(device)?;
        let layout = plan.layout_of(sharing, &plan.untuned());
        device.check_memory(Placement::bytes(plan, &layout, bound))?;
        // Before the program takes its memory: candidates need some too.
        let picked = match device {
            Device::Cpu(_) => vec![None; plan.steps.len()],
            Device::Gpu(gpu) => tune::pick(gpu, plan)?,
        };
        Program::with_variants(plan, device, bound, sharing, picked)
    }

    /// `picked`: the variant of each launch.
    #[track_caller]
    fn with_variants(
        plan: &Plan,
        device: &Device,
        bound: &[(&str, &Buffer)],
        sharing: Sharing,
        picked: Vec<Option<Picked>>,
    ) -> Result<Program> {
        let index = |picked: &Option<Picked>| picked.as_ref().map_or(0, |picked| picked.variant.index);
        let variants: Vec<usize> = picked.iter().map(index).collect();
        let layout = plan.layout_of(sharing, &variants);
        device.check_memory(Placement::bytes(plan, &layout, bound))?;
        let placement = Placement::allocate(plan, &layout, device, bound)?;
        let mut code = match device {
            Device::Cpu(cpu) => Code::Cpu(Arc::clone(cpu), CpuCode::new(plan, &placement, sharing)),
            Device::Gpu(gpu) => Code::Gpu(Arc::clone(gpu), Vec::new()),
        };
        let mut launches = Vec::with_capacity(plan.steps.len());
        for (step, picked) in plan.steps.iter().zip(picked) {
            let (cost, mut dispatches) = (plan.cost_of(step), 1);
            if let Code::Gpu(gpu, all) = &mut code {
                let (variant, ms) = picked.as_ref().map_or((0, None), Picked::variant_and_ms);
                let bound = gpu::bind(gpu, step, cost, variant, ms, &placement.operands(step))?;
                dispatches = bound.len();
                all.extend(bound);
            }
            let (name, label, writes) = (step.name(), step.label.to_string(), step.writes.clone());
            launches.push(CompiledLaunch { name, label, cost, dispatches, picked, writes });
        }
        Ok(Program { device: device.clone(), sharing, placement, launches, code })
    }

    /// The device that it runs on.
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The precision that factors of products are rounded to: the device's, or that of a variant that was
    /// picked.
    pub fn factors(&self) -> Precision {
        let rounds = |launch: &CompiledLaunch| launch.picked.as_ref().is_some_and(|of| of.variant.rounds);
        match self.device.precision() {
            Precision::Bf16 => Precision::Bf16,
            _ if self.launches.iter().any(rounds) => Precision::F16,
            _ => Precision::F32,
        }
    }

    /// The launches of a run, in order.
    pub fn compiled(&self) -> &[CompiledLaunch] {
        &self.launches
    }

    /// Launches per run: twins on the CPU device, dispatches on a GPU.
    pub fn launches(&self) -> usize {
        self.launches.iter().map(|launch| launch.dispatches).sum()
    }

    /// Work of a run.
    pub fn cost(&self) -> Cost {
        self.launches.iter().map(|launch| launch.cost).sum()
    }

    /// Runs all launches in order. On a GPU this returns when they are submitted; reading waits for them.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn run(&mut self) -> Result<()> {
        self.poison()?;
        match &mut self.code {
            Code::Cpu(cpu, code) => code.run(cpu, None),
            Code::Gpu(gpu, dispatches) => gpu.replay(&*dispatches)?,
        }
        Ok(())
    }

    /// As [`Program::run`], and puts the times of the launches into `spans`, one for each of
    /// [`Program::compiled`]. The CPU device reads a clock between launches. A GPU puts a pair of timestamps
    /// around each dispatch, which keeps it from overlapping them, and is waited for.
    ///
    /// # Errors
    /// When the driver reports an error, or has no timestamps.
    pub fn run_timed(&mut self, spans: &mut Vec<Span>) -> Result<()> {
        self.poison()?;
        spans.clear();
        match &mut self.code {
            Code::Cpu(cpu, code) => code.run(cpu, Some(spans)),
            Code::Gpu(gpu, dispatches) => {
                let Some(times) = gpu.replay_timed(dispatches)? else {
                    return Err(Error::new(format!("{} cannot time its kernels", gpu.name()))
                        .hint("its driver has no timestamps: use another device"));
                };
                let mut times = times.into_iter();
                let counts = self.launches.iter().map(|launch| launch.dispatches);
                spans.extend(counts.map(|count| Span::of(times.by_ref().take(count))));
            }
        }
        Ok(())
    }

    /// After a run of an unshared program: the name of the first launch that wrote a number that is not
    /// finite.
    ///
    /// # Errors
    /// When the driver reports an error.
    ///
    /// # Panics
    /// When the program shares memory.
    #[track_caller]
    pub fn first_bad(&self) -> Result<Option<String>> {
        assert!(self.sharing != Sharing::Shared, "tensors of a shared program are gone after a run");
        for CompiledLaunch { name, label, writes, .. } in &self.launches {
            for place in writes.iter().filter_map(|id| self.placement.place(*id)) {
                if self.read_place(place)?.iter().any(|v| !v.is_finite()) {
                    let name =
                        if label.is_empty() { (*name).to_owned() } else { format!("{label} ({name})") };
                    return Ok(Some(name));
                }
            }
        }
        Ok(None)
    }

    /// Fills the temporary memory of a guarded program with NaN, guard words included.
    fn poison(&self) -> Result<()> {
        let blocks = self.placement.blocks.iter().filter(|_| self.sharing == Sharing::Guarded);
        for block in blocks {
            self.device.write(block, 0, bytemuck::cast_slice(&vec![GUARD; block.bytes() / 4]))?;
        }
        Ok(())
    }
}

/// For the check of ops and the ladder of benchmarks, which run every variant.
impl Program {
    /// After a run of a guarded program (it panics for others): true if every word around every tensor is as
    /// it was.
    #[track_caller]
    pub fn guards_intact(&self) -> Result<bool> {
        assert_eq!(self.sharing, Sharing::Guarded, "only a guarded program has guard words");
        self.placement.guards_intact(&self.device, GUARD)
    }

    /// The most variants that a launch of `plan` has.
    pub(crate) fn variants_of(plan: &Plan) -> usize {
        let of_step = |adapter| plan.steps.iter().map(move |step| step.tuning().variants(adapter).len());
        plan.adapter.iter().flat_map(of_step).max().unwrap_or(0).max(1)
    }

    /// Guarded, with variant number `number` of each launch, the last of those that have fewer.
    pub(crate) fn compile_variant(plan: &Plan, device: &Device, number: usize) -> Result<Program> {
        let pick = |step: &plan::Step| {
            let mut variants = step.tuning().variants(plan.adapter.as_ref()?);
            let of = variants.len();
            variants.truncate(number + 1);
            let shape_class = step.tuning().class().to_owned();
            variants.pop().map(|variant| Picked { variant, of, shape_class, choice: None })
        };
        let picked = plan.steps.iter().map(pick).collect();
        Program::with_variants(plan, device, &[], Sharing::Guarded, picked)
    }
}
