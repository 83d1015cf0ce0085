//! The CPU's ceilings: multiplications with additions in registers, and arrays larger than its caches.

use std::hint::black_box;
use std::time::Instant;

use pulp::{Simd, WithSimd};
use rayon::prelude::*;

use super::{Ceilings, Effort, check, shortest};
use crate::device::cpu::Cpu;
use crate::device::{Device, Precision, available_memory};
use crate::error::Result;
use crate::simd::vectorized;

/// Independent chains of multiply-adds: two a cycle, each of four or five cycles, are hidden by ten; and with
/// their two factors they fit the sixteen registers of AVX2.
const CHAINS: usize = 12;
/// Multiply-adds of each chain between two looks at the clock: some milliseconds.
const ROUNDS: usize = 1 << 20;

/// Runs the chains on one thread: the operations that it took, and the sum of what they came to.
struct Chains {
    /// Each chain begins with another number, so that none can stand for another.
    starts: [f32; CHAINS],
    factor: f32,
    summand: f32,
}

impl WithSimd for Chains {
    type Output = (u64, f32);

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> (u64, f32) {
        let (a, b) = (simd.splat_f32s(self.factor), simd.splat_f32s(self.summand));
        let mut chains = self.starts.map(|start| simd.splat_f32s(start));
        for _ in 0..ROUNDS {
            for chain in &mut chains {
                *chain = simd.mul_add_f32s(*chain, a, b);
            }
        }
        let sum = chains.into_iter().fold(simd.splat_f32s(0.0), |sum, c| simd.add_f32s(sum, c));
        ((2 * CHAINS * ROUNDS * S::F32_LANES) as u64, simd.reduce_sum_f32s(sum) / S::F32_LANES as f32)
    }
}

/// The chains on one thread. `c = c / 2 + 1` comes to 2, whatever it began with.
fn chains() -> Result<u64> {
    let starts = std::array::from_fn(|i| i as f32);
    let (factor, summand) = (0.5, 1.0);
    let (flops, sum) = pulp::Arch::new().dispatch(black_box(Chains { starts, factor, summand }));
    check("a chain of multiplications and additions", f64::from(sum - 2.0 * CHAINS as f32).abs(), 1e-3)?;
    Ok(flops)
}

/// Chains of bf16 products on one thread: the operations that they took. `c = c + 2^-20 + 2^-20`, as often as
/// that makes 2, exact for each start.
#[cfg(target_arch = "x86_64")]
fn bf16_chains() -> Result<u64> {
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn run([a, b]: [f32; 2]) -> f32 {
        let pairs = |x: f32| _mm512_cvtne2ps_pbh(_mm512_set1_ps(x), _mm512_set1_ps(x));
        let (a, b) = (pairs(a), pairs(b));
        let mut chains: [__m512; CHAINS] = std::array::from_fn(|i| _mm512_set1_ps(i as f32));
        for _ in 0..ROUNDS {
            for chain in &mut chains {
                *chain = _mm512_dpbf16_ps(*chain, a, b);
            }
        }
        chains.into_iter().map(|chain| _mm512_reduce_add_ps(chain)).sum()
    }

    // SAFETY: a device of this precision is on a processor that has them.
    let sum = unsafe { run(black_box([2.0_f32.powi(-10); 2])) } / 16.0;
    let wanted = (CHAINS * (CHAINS - 1) / 2 + 2 * CHAINS) as f32;
    check("a chain of bf16 products", f64::from(sum - wanted).abs(), 1e-3)?;
    Ok((4 * 16 * CHAINS * ROUNDS) as u64)
}

/// Sum of a range of an array, in as many partial sums as hide the latency of an addition.
struct Sum<'a>(&'a [f32]);

impl WithSimd for Sum<'_> {
    type Output = f32;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> f32 {
        let (vectors, rest) = S::as_simd_f32s(self.0);
        let mut sums = [simd.splat_f32s(0.0); 8];
        let mut eights = vectors.chunks_exact(8);
        for eight in eights.by_ref() {
            for (sum, x) in sums.iter_mut().zip(eight) {
                *sum = simd.add_f32s(*sum, *x);
            }
        }
        for x in eights.remainder() {
            sums[0] = simd.add_f32s(sums[0], *x);
        }
        let sum = sums.into_iter().fold(simd.splat_f32s(0.0), |a, b| simd.add_f32s(a, b));
        simd.reduce_sum_f32s(sum) + rest.iter().sum::<f32>()
    }
}

/// Elements of each array: many times the largest cache, part of which would stay from one pass to the next.
fn array_elements() -> usize {
    let cache = std::fs::read_to_string("/sys/devices/system/cpu/cpu0/cache/index3/size")
        .ok()
        .and_then(|text| text.trim().strip_suffix('K')?.parse::<usize>().ok())
        .map_or(32 << 20, |kib| kib << 10);
    let wanted = (8 * cache).clamp(64 << 20, 512 << 20);
    let room = available_memory().map_or(wanted, |bytes| (bytes / 8) as usize);
    wanted.min(room.max(4 << 20)) / 4
}

/// Arrays a, b and c, each cut into a range for each thread.
struct Arrays([Vec<f32>; 3]);

impl Arrays {
    /// Filled by the threads that will work on them, so that each finds its range in memory near it.
    fn new(cpu: &Cpu, elements: usize) -> Arrays {
        let filled = |value: f32| {
            let mut array = vec![0.0; elements];
            let part = elements.div_ceil(cpu.threads());
            cpu.run(|| array.par_chunks_mut(part).for_each(|part| part.fill(value)));
            array
        };
        Arrays([0.0, 1.0, 2.0].map(filled))
    }

    /// GB/s of copying, reading and the triad.
    fn rates(&mut self, cpu: &Cpu, effort: Effort) -> Result<[f64; 3]> {
        let Arrays([a, b, c]) = self;
        let bytes = 4.0 * a.len() as f64;
        let part = a.len().div_ceil(cpu.threads());
        let rate = |arrays: f64, work: &mut (dyn FnMut() + Send)| -> Result<f64> {
            let seconds = shortest(effort, || {
                let began = Instant::now();
                cpu.run(&mut *work);
                Ok(began.elapsed().as_secs_f64())
            })?;
            Ok(arrays * bytes / seconds * 1e-9)
        };
        let copy = rate(2.0, &mut || {
            a.par_chunks_mut(part).zip(b.par_chunks(part)).for_each(|(a, b)| a.copy_from_slice(b));
        })?;
        let mut total = 0.0_f64;
        let read = rate(1.0, &mut || {
            total = c.par_chunks(part).map(|c| f64::from(pulp::Arch::new().dispatch(Sum(c)))).sum();
        })?;
        let wanted = 2.0 * c.len() as f64;
        check("the sum of an array", (total - wanted).abs() / wanted, 1e-3)?;
        let scale = black_box(3.0_f32);
        let triad = rate(3.0, &mut || {
            let inputs = b.par_chunks(part).zip(c.par_chunks(part));
            a.par_chunks_mut(part).zip(inputs).for_each(|(a, (b, c))| {
                vectorized(
                    #[inline(always)]
                    || a.iter_mut().zip(b).zip(c).for_each(|((a, b), c)| *a = b + scale * c),
                );
            });
        })?;
        let wrong = a.iter().filter(|a| **a != 7.0).count();
        check("the sum of two arrays", wrong as f64, 0.0)?;
        Ok([copy, read, triad])
    }
}

/// GFLOP/s of `chains` on all threads of the device.
fn multiply_add(cpu: &Cpu, effort: Effort, chains: fn() -> Result<u64>) -> Result<f64> {
    let mut flops = 0;
    let seconds = shortest(effort, || {
        let began = Instant::now();
        let done = cpu.run(|| rayon::broadcast(|_| chains()));
        let took = began.elapsed().as_secs_f64();
        flops = done.into_iter().sum::<Result<u64>>()?;
        Ok(took)
    })?;
    Ok(flops as f64 / seconds * 1e-9)
}

pub(super) fn measure(
    cpu: &Cpu,
    device: &Device,
    effort: Effort,
    progress: &mut dyn FnMut(&str),
) -> Result<Ceilings> {
    let elements = array_elements();
    device.check_memory(3 * 4 * elements as u64)?;
    progress("multiply-add");
    let f32_gflops = multiply_add(cpu, effort, chains)?;
    #[cfg(target_arch = "x86_64")]
    let bf16_gflops = (device.precision() == Precision::Bf16)
        .then(|| multiply_add(cpu, effort, bf16_chains))
        .transpose()?;
    #[cfg(not(target_arch = "x86_64"))]
    let bf16_gflops = None;
    progress("memory");
    let mut arrays = Arrays::new(cpu, elements);
    let [copy, read, triad] = arrays.rates(cpu, effort)?;
    let (mut f32_one_thread_gflops, mut memory_one_thread_gb_s) = (None, None);
    if effort == Effort::Full {
        progress("one thread");
        let one = Cpu::open(Some(1))?;
        f32_one_thread_gflops = Some(multiply_add(&one, effort, chains)?);
        memory_one_thread_gb_s = arrays.rates(&one, effort)?.into_iter().reduce(f64::max);
    }
    Ok(Ceilings {
        f32_gflops,
        bf16_gflops,
        f32_one_thread_gflops,
        copy_gb_s: copy,
        read_gb_s: Some(read),
        triad_gb_s: Some(triad),
        memory_one_thread_gb_s,
        array_bytes: 4 * elements as u64,
        ..Ceilings::default()
    })
}
