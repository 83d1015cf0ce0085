//! The mean squared error, weighted by sample: the loss of diffusion models.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatches, Io, Launch};
use crate::ops::{CHUNK, reduce};
use crate::simd::vectorized;
use crate::tape::Tensor;

pub static KERNEL: Kernel = kernel!("mse");

/// The mean over all elements of `w[n] * (prediction - target)^2` (Ho et al. 2020, equation 14), a tensor
/// of `[1]`. `prediction` and `target` of `[N, ..]`; `weight` of `[N]`, 1 if there is none.
///
/// Differentiable in `prediction` only: target and weight are data.
#[track_caller]
pub fn mse(prediction: &Tensor, target: &Tensor, weight: Option<&Tensor>) -> Tensor {
    let samples = prediction.dims().first().copied().unwrap_or(1);
    assert!(
        prediction.shape() == target.shape() && weight.is_none_or(|w| w.elements() == samples),
        "mse: expected prediction and target of one shape [N, ..] and a weight of [N], got {}, {} and {:?}",
        prediction.shape(),
        target.shape(),
        weight.map(Tensor::shape)
    );
    let spec = Spec { samples, size: prediction.elements() / samples, weighted: weight.is_some() };
    let mut reads = vec![prediction, target];
    reads.extend(weight);
    let [y] = prediction.tape().launch(Forward(spec), &reads, [[1].into()]);
    let saved: Vec<Tensor> = reads.into_iter().cloned().collect();
    prediction.tape().derivative(&[prediction], &[&y], move |dy| {
        let Some(dy) = &dy[0] else { return vec![None] };
        let mut reads = vec![&saved[0], &saved[1], dy];
        reads.extend(saved.get(2));
        let [dp] = dy.tape().launch(BackwardPrediction(spec), &reads, [saved[0].shape().clone()]);
        vec![Some(dp)]
    });
    y
}

#[derive(Clone, Copy, Debug)]
struct Spec {
    samples: usize,
    /// Elements of a sample.
    size: usize,
    weighted: bool,
}

impl Spec {
    /// What the sum is multiplied by.
    fn scale(self) -> f64 {
        1.0 / (self.samples * self.size) as f64
    }

    /// Slices of a sample on the GPU, and their elements: as many as fill a large GPU if each thread still
    /// gets 16 elements.
    fn gpu_slices(self) -> (usize, usize) {
        let slices = self.size.div_ceil(16 * 256).min(1024 / self.samples).max(1);
        let slice_size = self.size.div_ceil(slices);
        (self.size.div_ceil(slice_size), slice_size)
    }
}

/// Reads prediction, target and perhaps weight.
#[derive(Debug)]
struct Forward(Spec);

impl Launch for Forward {
    fn name(&self) -> &'static str {
        "mse"
    }

    fn cpu_scratch(&self) -> Vec<usize> {
        vec![self.0.samples * self.0.size.div_ceil(CHUNK)]
    }

    fn cpu(&self, io: &Io) {
        let Spec { size, .. } = self.0;
        let (prediction, target) = (io.read(0), io.read(1));
        let weight = io.has_read(2).then(|| io.read(2));
        let slices = size.div_ceil(CHUNK); // of a sample
        let partial = io.scratch(0);
        partial.par_iter_mut().enumerate().for_each(|(i, partial)| {
            let (sample, begin) = (i / slices, i % slices * CHUNK);
            let range = sample * size + begin..sample * size + size.min(begin + CHUNK);
            let sum = vectorized(
                #[inline(always)]
                || squared_distance(&prediction[range.clone()], &target[range]),
            );
            *partial = (f64::from(weight.map_or(1.0, |w| w[sample])) * sum) as f32;
        });
        let sum: f64 = partial.iter().map(|&v| f64::from(v)).sum();
        io.write(0)[0] = (self.0.scale() * sum) as f32;
    }

    fn gpu_scratch(&self) -> Vec<usize> {
        vec![self.0.samples * self.0.gpu_slices().0]
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let Spec { samples, size, weighted } = self.0;
        let (slices, slice_size) = self.0.gpu_slices();
        plan.add(&KERNEL, "forward")
            .param("samples", samples)
            .param("size", size)
            .param("slices", slices)
            .param("slice_size", slice_size)
            .param("weighted", weighted)
            .param("scale", 1.0_f32)
            .read("prediction", 0)
            .read("target_values", 1)
            .read("weight", if weighted { 2 } else { 0 })
            .scratch("out", 0)
            .cover(samples * slices, 1);
        plan.add(&reduce::KERNEL, "sum")
            .param("outer", 1_u32)
            .param("rows", samples * slices)
            .param("columns", 1_u32)
            .param("slices", 1_u32)
            .param("slice_rows", samples * slices)
            .param("width", 1_u32)
            .param("scale", self.0.scale() as f32)
            .scratch("x", 0)
            .write("out", 0);
    }
}

/// `sum of (a - b)^2`, in f64.
#[inline(always)]
fn squared_distance(a: &[f32], b: &[f32]) -> f64 {
    const LANES: usize = 16; // sums side by side, so that they vectorise
    let mut sums = [0.0_f64; LANES];
    for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
        for ((sum, a), b) in sums.iter_mut().zip(a).zip(b) {
            let difference = f64::from(a - b);
            *sum += difference * difference;
        }
    }
    sums.iter().sum()
}

/// Reads prediction, target, dy and perhaps weight.
#[derive(Debug)]
struct BackwardPrediction(Spec);

impl Launch for BackwardPrediction {
    fn name(&self) -> &'static str {
        "mse backward_prediction"
    }

    fn cpu(&self, io: &Io) {
        let Spec { size, .. } = self.0;
        let (prediction, target, dy) = (io.read(0), io.read(1), io.read(2)[0]);
        let weight = io.has_read(3).then(|| io.read(3));
        let scale = 2.0 * self.0.scale() as f32 * dy;
        let samples = prediction.par_chunks(size).zip(target.par_chunks(size));
        io.write(0).par_chunks_mut(size).zip(samples).enumerate().for_each(|(sample, (dp, (p, t)))| {
            let scale = scale * weight.map_or(1.0, |w| w[sample]);
            let chunks = dp.par_chunks_mut(CHUNK).zip(p.par_chunks(CHUNK)).zip(t.par_chunks(CHUNK));
            chunks.for_each(|((dp, p), t)| {
                vectorized(
                    #[inline(always)]
                    || {
                        for ((dp, p), t) in dp.iter_mut().zip(p).zip(t) {
                            *dp = scale * (p - t);
                        }
                    },
                );
            });
        });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let Spec { samples, size, weighted } = self.0;
        plan.add(&KERNEL, "backward_prediction")
            .param("samples", samples)
            .param("size", size)
            .param("slices", 1_u32)
            .param("slice_size", size)
            .param("weighted", weighted)
            .param("scale", self.0.scale() as f32)
            .read("prediction", 0)
            .read("target_values", 1)
            .read("dy", 2)
            .read("weight", if weighted { 3 } else { 0 })
            .write("dp", 0)
            .cover(samples * size, 256);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, random};

    fn reference(prediction: &[f64], target: &[f64], weight: Option<&[f64]>, samples: usize) -> f64 {
        let size = prediction.len() / samples;
        let mut sum = 0.0;
        for n in 0..samples {
            for i in n * size..(n + 1) * size {
                sum += weight.map_or(1.0, |w| w[n]) * (prediction[i] - target[i]).powi(2);
            }
        }
        sum / prediction.len() as f64
    }

    fn check(shape: &[usize], probes: usize) {
        Check::new("mse")
            .probes(probes)
            .input(shape)
            .fixed(shape, random(50, shape.iter().product()))
            .run(|x| mse(&x[0], &x[1], None), |x| vec![reference(&x[0], &x[1], None, shape[0])]);
    }

    fn check_weighted(shape: &[usize], probes: usize) {
        Check::new("weighted mse")
            .probes(probes)
            .input(shape)
            .fixed(shape, random(50, shape.iter().product()))
            .fixed(&[shape[0]], random(51, shape[0]).into_iter().map(|w| w + 1.1).collect())
            .run(
                |x| mse(&x[0], &x[1], Some(&x[2])),
                |x| vec![reference(&x[0], &x[1], Some(&x[2]), shape[0])],
            );
    }

    #[test]
    fn shapes() {
        let shapes: [&[usize]; 8] =
            [&[1], &[7], &[257, 2], &[3, 5, 7, 3], &[2, 257], &[3, 4099], &[2, CHUNK + 1], &[1, 300, 301, 3]];
        for shape in shapes {
            check(shape, 6);
            check_weighted(shape, 6);
        }
    }

    #[test]
    fn past_65535_workgroups() {
        check_weighted(&[65_539, 3], 2); // forward: one for each sample
        check(&[7, 65_536 * 256 / 7 + 1], 2); // backward: one for 256 elements
    }

    #[test]
    #[should_panic(expected = "mse: expected prediction and target of one shape")]
    fn wrong_shapes() {
        let tape = crate::tape::Tape::new();
        mse(&tape.stored("a", 0, [3, 4]), &tape.stored("b", 0, [4, 3]), None);
    }
}
