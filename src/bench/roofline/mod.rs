//! A machine's ceilings, measured: what no kernel on it can exceed.
//!
//! Williams, Waterman & Patterson 2009, "Roofline: an insightful visual performance model". A kernel of `f`
//! operations on `b` bytes takes at least the longer of `f / multiply-add rate` and `b / bandwidth`.

mod cpu;
mod gpu;

use std::time::Instant;

use serde::Serialize;

pub use gpu::KERNELS;

use super::measure::{Setting, numbers};
use crate::device::{Device, Precision};
use crate::error::{Error, Result};
use crate::launch::Cost;
use crate::ops::matmul::{Transpose, matmul};
use crate::program::{Plan, Program, Sharing};
use crate::tape::Tape;

/// How long to look for the best.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// A fraction of a second: before a profile.
    Short,
    /// A few seconds.
    Full,
}

/// The ceilings of a device, the best of several readings each; its JSON object. One GFLOP/s is a billion
/// operations a second, where a multiplication with an addition is two; one GB/s a billion bytes.
#[derive(Clone, Debug, Default, Serialize)]
pub struct Ceilings {
    #[serde(flatten)]
    pub setting: Setting,
    /// Multiplications and additions of f32 in registers, by the whole device.
    pub f32_gflops: f64,
    /// By one thread of the CPU device.
    pub f32_one_thread_gflops: Option<f64>,
    /// Of f16, on a GPU whose kernels have them.
    pub f16_gflops: Option<f64>,
    /// Of factors in bf16, on a CPU device of that precision.
    pub bf16_gflops: Option<f64>,
    /// The highest of the following rates, over arrays that no cache holds.
    pub memory_gb_s: f64,
    /// `a = b`, two arrays; a cache line that the processor reads before it writes is not counted.
    pub copy_gb_s: f64,
    /// Sum of an array, on the CPU device.
    pub read_gb_s: Option<f64>,
    /// `a = b + s c`, three arrays, on the CPU device (McCalpin's STREAM).
    pub triad_gb_s: Option<f64>,
    /// The highest of the three by one thread of the CPU device.
    pub memory_one_thread_gb_s: Option<f64>,
    /// Bytes of each array that was moved.
    pub array_bytes: u64,
    /// Rate of this program's own product of two square matrices, and their side.
    pub matmul_gflops: Option<f64>,
    pub matmul_side: Option<usize>,
}

/// Which ceiling a kernel meets first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Bound {
    Compute,
    Memory,
}

impl Ceilings {
    /// Measures `device`. `progress` receives each activity.
    pub fn measure(device: &Device, effort: Effort, progress: &mut dyn FnMut(&str)) -> Result<Ceilings> {
        let mut matmul = None;
        if effort == Effort::Full {
            progress("matrix product");
            matmul = Some(product(device, effort)?);
        }
        let found = match device {
            Device::Cpu(cpu) => cpu::measure(cpu, device, effort, progress)?,
            Device::Gpu(gpu) => gpu::measure(gpu, device, effort, progress)?,
        };
        let memory = [Some(found.copy_gb_s), found.read_gb_s, found.triad_gb_s];
        // A ceiling that the program's own product exceeds would be none.
        let with_product = |rate: f64, of: Precision| match matmul {
            Some((product, _, factors)) if factors == of => rate.max(product),
            _ => rate,
        };
        Ok(Ceilings {
            setting: Setting::of(device),
            f32_gflops: with_product(found.f32_gflops, Precision::F32),
            bf16_gflops: found.bf16_gflops.map(|rate| with_product(rate, Precision::Bf16)),
            memory_gb_s: memory.into_iter().flatten().fold(0.0, f64::max),
            matmul_gflops: matmul.map(|(rate, ..)| rate),
            matmul_side: matmul.map(|(_, side, _)| side),
            ..found
        })
    }

    /// GFLOP/s of the device's products.
    pub fn compute_gflops(&self) -> f64 {
        self.bf16_gflops.unwrap_or(self.f32_gflops)
    }

    /// The least seconds that this costs, and what decides it; memory where nothing is multiplied.
    pub fn least_seconds(&self, cost: Cost) -> (f64, Bound) {
        let compute = cost.flops as f64 / (self.compute_gflops() * 1e9);
        let memory = cost.bytes as f64 / (self.memory_gb_s * 1e9);
        if compute > memory { (compute, Bound::Compute) } else { (memory, Bound::Memory) }
    }
}

/// The shortest of several readings of `run`, which gives seconds; the first one is to warm up.
fn shortest(effort: Effort, mut run: impl FnMut() -> Result<f64>) -> Result<f64> {
    // At most so many, in at most so many seconds.
    let (readings, seconds) = if effort == Effort::Short { (6, 0.25) } else { (60, 2.0) };
    run()?;
    let (began, mut best) = (Instant::now(), f64::INFINITY);
    for number in 0..readings {
        best = best.min(run()?);
        if number >= 2 && began.elapsed().as_secs_f64() > seconds {
            break;
        }
    }
    Ok(best)
}

/// GFLOP/s of the program's own matrix product, the side of the matrices, large enough that one takes about a
/// hundredth of a second, and the precision of their factors.
fn product(device: &Device, effort: Effort) -> Result<(f64, usize, Precision)> {
    let mut side = 512;
    loop {
        let tape = Tape::new();
        let [a, b] = ["a", "b"].map(|store| tape.stored(store, 0, [side, side]));
        let y = matmul(&a, &b, Transpose::default(), None);
        let plan = Plan::new(&tape, &[&y], device);
        let mut program = Program::compile(&plan, device, &[], Sharing::Shared)?;
        let (left, right) = (numbers(1, side * side), numbers(2, side * side));
        program.write("a", &left)?;
        program.write("b", &right)?;
        let best = shortest(effort, || {
            let began = Instant::now();
            program.run()?;
            device.wait()?;
            Ok(began.elapsed().as_secs_f64())
        })?;
        let wanted: f64 =
            (0..side).map(|k| f64::from(left[(side - 1) * side + k]) * f64::from(right[k * side])).sum();
        let got = f64::from(program.read(&y)?[(side - 1) * side]);
        let size = (side as f64).sqrt();
        let tolerance = match program.factors() {
            Precision::F32 => 1e-4,
            Precision::F16 => 2e-3,
            Precision::Bf16 => 2e-2,
        };
        check("the matrix product", (got - wanted).abs() / size, tolerance)?;
        if best > 5e-3 || side >= 8192 {
            return Ok((program.cost().flops as f64 / best * 1e-9, side, program.factors()));
        }
        side *= 2;
    }
}

/// An error of more than the tolerance, or NaN, is one.
fn check(what: &str, err: f64, tolerance: f64) -> Result<()> {
    if err <= tolerance {
        return Ok(());
    }
    Err(Error::new(format!("{what} is wrong: off by {err:.1e}"))
        .hint("nothing can be measured on this device; please report it with `denoir devices`"))
}
