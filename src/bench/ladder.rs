//! The ladder of `kernels/README.md`: a product in each of its schedules on a GPU, checked and timed.

use std::fmt;
use std::sync::Arc;

use serde::Serialize;

use super::measure::{below, numbers};
use super::{Ceilings, Effort, time};
use crate::device::cpu::Cpu;
use crate::device::{Device, Precision};
use crate::error::{Error, Result};
use crate::ops::conv2d::{Epilogue, Padding, conv2d};
use crate::ops::matmul::{Transpose, matmul};
use crate::product::gpu::Schedule;
use crate::program::{Plan, Program};
use crate::tape::{Tape, Tensor};

/// Largest difference from the CPU device, as a fraction of the largest number.
const TOLERANCE: f32 = 1e-5;

/// With factors rounded to f16.
const HALF_TOLERANCE: f32 = 2e-3;

/// A schedule and its time.
#[derive(Clone, Debug, Serialize)]
pub struct Rung {
    /// The file in `kernels/product` that has its inner loop or transforms.
    pub kernel: &'static str,
    /// The schedule's name: its tile, for example.
    pub schedule: String,
    /// Median of the timed runs in milliseconds.
    pub median_ms: f64,
    /// Multiplications and additions in 1e9 a second.
    pub gflops: f64,
}

/// All rungs, the naive one first, then by kernel, the slowest schedule of each first; its JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct Ladder {
    /// The GPU.
    pub device: String,
    /// Its driver.
    pub driver: String,
    /// The op and its shapes.
    pub op: String,
    /// The device's measured rate of multiplications and additions.
    pub ceiling_gflops: f64,
    /// One line each.
    pub rungs: Vec<Rung>,
}

impl fmt::Display for Ladder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} ({})\n{}", self.device, self.driver, self.op)?;
        writeln!(
            f,
            "{:24}{:48}{:>11}{:>10}{:>10}{:>9}{:>11}",
            "kernel", "schedule", "median ms", "GFLOP/s", "x before", "x naive", "% of peak"
        )?;
        let mut before = self.rungs[0].gflops;
        for Rung { kernel, schedule, median_ms, gflops } in &self.rungs {
            let [step, gain] = [before, self.rungs[0].gflops].map(|slower| gflops / slower);
            let percent = gflops / self.ceiling_gflops * 100.0;
            write!(f, "{kernel:24}{schedule:48}{median_ms:>11.3}{gflops:>10.2}")?;
            writeln!(f, "{step:>10.2}{gain:>9.1}{percent:>11.1}")?;
            before = *gflops;
        }
        writeln!(f, "peak: {:.1} GFLOP/s, multiplications and additions alone", self.ceiling_gflops)
    }
}

/// Times `op`, `conv2d` or `matmul`, in each schedule. `progress` receives the name of each.
///
/// # Errors
/// When there is no such op, the device is no GPU, or a schedule gives another result than the CPU device.
pub fn ladder(
    op: &str,
    device: &Device,
    [warmup, steps]: [usize; 2],
    progress: &mut dyn FnMut(&str),
) -> Result<Ladder> {
    let Device::Gpu(gpu) = device else {
        return Err(Error::usage("the CPU device has one schedule").hint("take a GPU: --device gpu"));
    };
    let small = gpu.is_software();
    let (shapes, record): (Vec<Vec<usize>>, fn(&[Tensor]) -> Tensor) = match op {
        "conv2d" => {
            let image = if small { [1, 32, 32, 64] } else { [64, 32, 32, 128] };
            let kernel = [3, 3, image[3], image[3]];
            (vec![image.to_vec(), kernel.to_vec()], |x| {
                conv2d(&x[0], &x[1], 1, Padding::same(1), Epilogue::default())
            })
        }
        "matmul" => {
            let side = if small { 256 } else { 2048 };
            (vec![vec![side; 2]; 2], |x| matmul(&x[0], &x[1], Transpose::NONE, None))
        }
        _ => return Err(Error::usage(format!("no ladder for {op:?}")).hint("choose conv2d or matmul")),
    };
    let tape = Tape::new();
    let inputs = ["a", "b"].into_iter().zip(&shapes);
    let x: Vec<Tensor> = inputs.map(|(name, shape)| tape.stored(name, 0, shape.as_slice())).collect();
    let y = record(&x);
    let run = |program: &mut Program| -> Result<Vec<f32>> {
        for (salt, (name, x)) in ["a", "b"].into_iter().zip(&x).enumerate() {
            program.write(name, &numbers(salt as u32, x.elements()))?;
        }
        program.run()?;
        program.read(&y)
    };
    progress("cpu");
    let cpu = Device::Cpu(Arc::new(Cpu::open(None)?));
    let wanted = run(&mut Program::compile_variant(&Plan::new(&tape, &[&y], &cpu), &cpu, 0)?)?;
    let scale = wanted.iter().fold(0.0_f32, |top, v| top.max(v.abs()));
    let plan = Plan::new(&tape, &[&y], device);
    let flops = plan.cost().flops as f64;
    let mut rungs = Vec::new();
    for number in 0..Program::variants_of(&plan) {
        let mut program = Program::compile_variant(&plan, device, number)?;
        let picked = program.compiled()[0].picked.as_ref().map(|picked| picked.variant.clone());
        let variant = picked.ok_or_else(|| Error::new(format!("{op} has no schedules")))?;
        progress(&variant.name);
        let off = run(&mut program)?.iter().zip(&wanted).fold(0.0_f32, |top, (a, b)| top.max((a - b).abs()));
        let schedule = Schedule::of(variant.index);
        let tolerance = if program.factors() == Precision::F32 { TOLERANCE } else { HALF_TOLERANCE };
        if !below(f64::from(off), f64::from(tolerance * scale)) {
            return Err(Error::new(format!("{}: off by {off:.1e} of {scale:.1e}", variant.name)));
        }
        let times = time(warmup, steps, &mut || (), || program.run().and_then(|()| device.wait()))?;
        let median_ms = times.median();
        let (rank, kernel) = schedule.kernel();
        let gflops = flops / median_ms * 1e-6;
        rungs.push((rank, Rung { kernel, schedule: variant.name, median_ms, gflops }));
    }
    rungs.sort_by(|(rank, a), (other, b)| rank.cmp(other).then(b.median_ms.total_cmp(&a.median_ms)));
    progress("multiply-add");
    let ceilings = Ceilings::measure(device, Effort::Short, progress)?;
    let shape = |t: &Tensor| t.shape().to_string();
    Ok(Ladder {
        device: device.describe(),
        driver: device.driver(),
        op: format!("{op} {} by {}", shape(&x[0]), shape(&x[1])),
        ceiling_gflops: ceilings.f32_gflops,
        rungs: rungs.into_iter().map(|(_, rung)| rung).collect(),
    })
}
