//! A GPU's ceilings, by kernels of its own: `kernels/roofline.wgsl`, `kernels/roofline_f16.wgsl`.

use super::{Ceilings, Effort, check, shortest};
use crate::device::gpu::shader::Kernel;
use crate::device::gpu::{Bound, Gpu, Range};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::kernel;

static ROOFLINE: Kernel = kernel!("roofline");
static ROOFLINE_F16: Kernel = kernel!("roofline_f16");

/// Kernels of the benchmark, for the tests that compile them all.
pub static KERNELS: &[&Kernel] = &[&ROOFLINE, &ROOFLINE_F16];

/// Threads of a workgroup, as in the kernels.
const WG: usize = 256;
/// Operations of a thread in one round: eight chains of four lanes, a multiplication and an addition each.
const ROUND: usize = 8 * 4 * 2;
/// Dispatches that take less are measured no better than the clock and the queue allow.
const LONG_ENOUGH: f64 = 4e-3;

/// Two arrays on the device.
struct Arrays<'a> {
    gpu: &'a Gpu,
    device: &'a Device,
    src: Buffer,
    dst: Buffer,
    bytes: usize,
}

impl Arrays<'_> {
    /// A dispatch over the first `lanes` elements of four numbers.
    fn bind(&self, kernel: &'static Kernel, entry: &'static str, lanes: usize, rounds: u32) -> Result<Bound> {
        let (Buffer::Gpu(src), Buffer::Gpu(dst)) = (&self.src, &self.dst) else {
            unreachable!("a GPU allocates GPU memory")
        };
        let range = |buffer| Range { buffer, offset: 0, bytes: self.bytes, half: false };
        let groups = lanes.div_ceil(WG);
        let x = groups.min(65_535);
        let groups = [x as u32, groups.div_ceil(x) as u32, 1];
        let params = [("n", lanes as u32), ("rounds", rounds)];
        self.gpu.bind(kernel, entry, &[], &params, &[("src", range(src)), ("dst", range(dst))], groups)
    }

    /// Seconds of a dispatch, the mean of `again` in a row, on the device's clock where it has one.
    fn seconds(&self, dispatch: &Bound, again: usize) -> Result<f64> {
        Ok(self.gpu.time(std::slice::from_ref(dispatch), again)?.as_secs_f64())
    }

    /// An error if number `at` of the target is not `wanted`.
    fn check(&self, what: &str, at: usize, wanted: f32, tolerance: f64) -> Result<()> {
        let mut number = [0.0_f32];
        self.device.read(&self.dst, 4 * at, bytemuck::cast_slice_mut(&mut number))?;
        check(what, f64::from(number[0] - wanted).abs(), tolerance)
    }

    /// GFLOP/s of the chains of a kernel.
    fn multiply_add(&self, kernel: &'static Kernel, effort: Effort) -> Result<f64> {
        // Enough to fill a large GPU; a software driver gets less.
        let lanes = (if self.gpu.is_software() { 1 << 14 } else { 1 << 20 }).min(self.bytes / 16);
        let mut rounds = 64;
        loop {
            let dispatch = self.bind(kernel, "multiply_add", lanes, rounds)?;
            if self.seconds(&dispatch, 1)? < LONG_ENOUGH && rounds < 1 << 20 {
                rounds *= 2;
                continue;
            }
            let seconds = shortest(effort, || self.seconds(&dispatch, 1))?;
            // c = c / 2 + 1 / 4 comes to 1 / 2 in each of eight chains.
            self.check("a chain of multiplications and additions", 0, 4.0, 1e-2)?;
            return Ok((lanes * ROUND) as f64 * f64::from(rounds) / seconds * 1e-9);
        }
    }
}

pub(super) fn measure(
    gpu: &Gpu,
    device: &Device,
    effort: Effort,
    progress: &mut dyn FnMut(&str),
) -> Result<Ceilings> {
    progress("multiply-add");
    // Several times the caches of large GPUs; a software driver has those of the processor.
    let wanted = if gpu.is_software() { 64 << 20 } else { 512 << 20 };
    let bytes = wanted.min(gpu.max_binding() as usize) / 4096 * 4096;
    device.check_memory(2 * bytes as u64)?;
    let (src, dst) = (device.alloc("source", bytes)?, device.alloc("target", bytes)?);
    let arrays = Arrays { gpu, device, src, dst, bytes };
    device.write(&arrays.src, 0, bytemuck::cast_slice(&vec![0.5_f32; bytes / 4]))?;
    let f32_gflops = arrays.multiply_add(&ROOFLINE, effort)?;
    let has_f16 = gpu.has_f16() && effort == Effort::Full;
    let f16_gflops = has_f16.then(|| arrays.multiply_add(&ROOFLINE_F16, effort)).transpose()?;
    progress("memory");
    let lanes = bytes / 16;
    let dispatch = arrays.bind(&ROOFLINE, "copy", lanes, 0)?;
    let again = (LONG_ENOUGH / arrays.seconds(&dispatch, 1)?.max(1e-6)).ceil().clamp(1.0, 64.0) as usize;
    let seconds = shortest(effort, || arrays.seconds(&dispatch, again))?;
    arrays.check("copying memory", bytes / 4 - 1, 0.5, 0.0)?;
    Ok(Ceilings {
        f32_gflops,
        f16_gflops,
        copy_gb_s: 2.0 * bytes as f64 / seconds * 1e-9,
        array_bytes: bytes as u64,
        ..Ceilings::default()
    })
}
