//! Losses of a prediction against a target, weighted by sample: squared error, absolute error, cross
//! entropy.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatch, Dispatches, Io, Launch, LaunchInfo, Recorded};
use crate::ops::CHUNK;
use crate::ops::reduce::{add_total, slice_size, sum_in_f64};
use crate::ops::shared::derivative;
use crate::simd::{exp, vectorized};
use crate::tape::Tensor;

#[cfg(test)]
mod tests;

/// One set of knobs for each `Form`, in its order.
pub static KERNEL: Kernel = kernel!("loss", [[("FORM", "0u")], [("FORM", "1u")], [("FORM", "2u")]]);

/// The mean over all elements of `w[n] * (prediction - target)^2` (Ho et al. 2020, equation 14), a tensor
/// of `[1]`. `prediction` and `target` of `[N, ..]`; `weight` of `[N]`, 1 if there is none.
///
/// Differentiable in `prediction` only: target and weight are data.
#[track_caller]
pub fn mse(prediction: &Tensor, target: &Tensor, weight: Option<&Tensor>) -> Tensor {
    loss(Form::Squared, prediction, target, weight)
}

/// The mean over all elements of `w[n] * |prediction - target|`. Shapes and gradients as in [`mse`]; where
/// prediction and target are equal the derivative is taken to be 0.
#[track_caller]
pub fn l1(prediction: &Tensor, target: &Tensor, weight: Option<&Tensor>) -> Tensor {
    loss(Form::Absolute, prediction, target, weight)
}

/// The mean over all elements of `w[n]` times the cross entropy, in nats, between a Bernoulli variable of
/// probability `target` and one of probability `sigmoid(logits)`:
/// `-target ln(sigmoid(logits)) - (1 - target) ln(1 - sigmoid(logits))`. Finite for logits of any size.
///
/// Shapes and gradients as in [`mse`]; `target` in `[0, 1]`, which nothing checks, since it is only known
/// while the program runs. Source: the Bernoulli decoder of Kingma & Welling 2014 (arXiv:1312.6114,
/// appendix C.1).
#[track_caller]
pub fn bce_with_logits(logits: &Tensor, target: &Tensor, weight: Option<&Tensor>) -> Tensor {
    loss(Form::CrossEntropy, logits, target, weight)
}

/// The loss of one element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Form {
    Squared = 0,
    Absolute = 1,
    CrossEntropy = 2,
}

impl Form {
    fn name(self) -> &'static str {
        ["mse", "l1", "bce_with_logits"][self as usize]
    }

    /// The sum of the loss over two slices, in f64. For use inside `vectorized`, as are those below.
    #[inline(always)]
    fn sum(self, prediction: &[f32], target: &[f32]) -> f64 {
        match self {
            Form::Squared => sum_in_f64(prediction, target, |p, t| p - t, |_, d| d * d),
            Form::Absolute => sum_in_f64(prediction, target, |p, t| p - t, |_, d| d.abs()),
            Form::CrossEntropy => sum_in_f64(prediction, target, cross_entropy, |_, loss| loss),
        }
    }

    /// `dp[i] = scale * f'(p[i], t[i])`.
    #[inline(always)]
    fn derivatives(self, dp: &mut [f32], p: &[f32], t: &[f32], scale: f32) {
        match self {
            Form::Squared => derivatives_of(dp, p, t, scale, |p, t| 2.0 * (p - t)),
            Form::Absolute => derivatives_of(dp, p, t, scale, sign_of_difference),
            Form::CrossEntropy => derivatives_of(dp, p, t, scale, cross_entropy_derivative),
        }
    }
}

#[track_caller]
fn loss(form: Form, prediction: &Tensor, target: &Tensor, weight: Option<&Tensor>) -> Tensor {
    let samples = prediction.dims().first().copied().unwrap_or(1);
    assert!(
        prediction.shape() == target.shape() && weight.is_none_or(|w| w.elements() == samples),
        "{}: expected prediction and target of one shape [N, ..] and a weight of [N], got {}, {} and {:?}",
        form.name(),
        prediction.shape(),
        target.shape(),
        weight.map(Tensor::shape)
    );
    let all = prediction.elements();
    let spec = Spec { form, samples, size: all / samples, all, weighted: weight.is_some() };
    let mut reads = vec![prediction, target];
    reads.extend(weight);
    let info = LaunchInfo {
        cpu_scratch: vec![samples * spec.size.div_ceil(CHUNK)],
        gpu_scratch: vec![samples * spec.gpu_slices().0],
        ..LaunchInfo::default()
    };
    let [y] = prediction.tape().launch(Recorded::new(Forward(spec), info), &reads, [[1].into()]);
    let saved: Vec<Tensor> = reads.into_iter().cloned().collect();
    derivative(&[prediction], &y, move |dy| {
        let mut reads = vec![&saved[0], &saved[1], dy];
        reads.extend(saved.get(2));
        dy.tape().launch(BackwardPrediction(spec), &reads, [saved[0].shape().clone()]).into()
    });
    y
}

#[derive(Clone, Copy, Debug)]
struct Spec {
    form: Form,
    samples: usize,
    /// Elements of a sample.
    size: usize,
    /// Elements that the mean is of.
    all: usize,
    weighted: bool,
}

impl Spec {
    /// What the sum is multiplied by.
    fn scale(self) -> f64 {
        1.0 / self.all as f64
    }

    /// Slices of a sample on the GPU, and their elements.
    fn gpu_slices(self) -> (usize, usize) {
        let slice_size = slice_size(self.size, 1024 / self.samples);
        (self.size.div_ceil(slice_size), slice_size)
    }

    fn dispatch<'a>(
        self,
        plan: &'a mut Dispatches,
        entry: &'static str,
        slices: usize,
        slice_size: usize,
        scale: f32,
    ) -> &'a mut Dispatch {
        plan.add(&KERNEL, entry)
            .knobs(self.form as usize)
            .params([("samples", self.samples), ("size", self.size)])
            .params([("slices", slices), ("slice_size", slice_size)])
            .param("weighted", self.weighted)
            .param("scale", scale)
            .read("prediction", 0)
            .read("target_values", 1)
    }
}

/// Reads prediction, target and perhaps weight.
#[derive(Debug)]
struct Forward(Spec);

impl Launch for Forward {
    fn name(&self) -> &'static str {
        self.0.form.name()
    }

    fn cpu(&self, io: &Io) {
        let Spec { form, size, .. } = self.0;
        let (prediction, target) = (io.read(0), io.read(1));
        let weight = io.has_read(2).then(|| io.read(2));
        let slices = size.div_ceil(CHUNK); // of a sample
        let partial = io.scratch(0);
        partial.par_iter_mut().enumerate().for_each(|(i, partial)| {
            let (sample, begin) = (i / slices, i % slices * CHUNK);
            let range = sample * size + begin..sample * size + size.min(begin + CHUNK);
            let sum = vectorized(
                #[inline(always)]
                || form.sum(&prediction[range.clone()], &target[range]),
            );
            *partial = (f64::from(weight.map_or(1.0, |w| w[sample])) * sum) as f32;
        });
        let sum: f64 = partial.iter().map(|&v| f64::from(v)).sum();
        io.write(0)[0] = (self.0.scale() * sum) as f32;
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let Spec { samples, weighted, .. } = self.0;
        let (slices, slice_size) = self.0.gpu_slices();
        self.0
            .dispatch(plan, "forward", slices, slice_size, 1.0)
            .read("weight", if weighted { 2 } else { 0 })
            .scratch("out", 0)
            .cover(samples * slices, 1);
        add_total(plan, samples * slices, self.0.scale() as f32);
    }
}

/// Reads prediction, target, dy and perhaps weight.
#[derive(Debug)]
struct BackwardPrediction(Spec);

impl Launch for BackwardPrediction {
    fn name(&self) -> &'static str {
        ["mse backward_prediction", "l1 backward_prediction", "bce_with_logits backward_logits"]
            [self.0.form as usize]
    }

    fn cpu(&self, io: &Io) {
        let Spec { form, size, .. } = self.0;
        let (prediction, target, dy) = (io.read(0), io.read(1), io.read(2)[0]);
        let weight = io.has_read(3).then(|| io.read(3));
        let scale = self.0.scale() as f32 * dy;
        let samples = prediction.par_chunks(size).zip(target.par_chunks(size));
        io.write(0).par_chunks_mut(size).zip(samples).enumerate().for_each(|(sample, (dp, (p, t)))| {
            let scale = scale * weight.map_or(1.0, |w| w[sample]);
            let chunks = dp.par_chunks_mut(CHUNK).zip(p.par_chunks(CHUNK)).zip(t.par_chunks(CHUNK));
            chunks.for_each(|((dp, p), t)| {
                vectorized(
                    #[inline(always)]
                    || form.derivatives(dp, p, t, scale),
                );
            });
        });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let Spec { samples, size, weighted, .. } = self.0;
        self.0
            .dispatch(plan, "backward_prediction", 1, size, self.0.scale() as f32)
            .read("dy", 2)
            .read("weight", if weighted { 3 } else { 0 })
            .write("dp", 0)
            .cover(samples * size, 256);
    }
}

#[inline(always)]
fn derivatives_of(dp: &mut [f32], p: &[f32], t: &[f32], scale: f32, f: impl Fn(f32, f32) -> f32) {
    for ((dp, p), t) in dp.iter_mut().zip(p).zip(t) {
        *dp = scale * f(*p, *t);
    }
}

/// -1, 0 or 1; NaN for NaN.
#[inline(always)]
fn sign_of_difference(p: f32, t: f32) -> f32 {
    let d = p - t;
    let not_above = if d < 0.0 { -1.0 } else { d };
    if d > 0.0 { 1.0 } else { not_above }
}

/// The part of `target` that the sign of the logit speaks against.
#[inline(always)]
fn against(logit: f32, target: f32) -> f32 {
    if logit > 0.0 { 1.0 - target } else { target }
}

/// `max(x, 0) - x t + ln(1 + e^-|x|)`, whose first two terms are `|x|` times 1 - t or t: a sum of what is
/// not negative, so that nothing cancels.
#[inline(always)]
fn cross_entropy(logit: f32, target: f32) -> f32 {
    logit.abs() * against(logit, target) + ln_1p(exp(-logit.abs()))
}

/// `sigmoid(x) - t`. From above, `(1 - t) - sigmoid(-x)`: a sigmoid next to 1 would lose what is left.
#[inline(always)]
fn cross_entropy_derivative(logit: f32, target: f32) -> f32 {
    let e = exp(-logit.abs());
    let derivative = against(logit, target) - e / (1.0 + e);
    if logit > 0.0 { derivative } else { -derivative }
}

/// `ln(1 + x)` for x from 0 to 1, relatively exact to 2e-7 however small x is: `2 artanh(x / (2 + x))` by
/// its series, whose first term left out is below 2e-8.
#[inline(always)]
fn ln_1p(x: f32) -> f32 {
    let s = x / (2.0 + x);
    let z = s * s; // at most 1/9
    let p = z * (1.0 / 13.0) + 1.0 / 11.0;
    let p = z * p + 1.0 / 9.0;
    let p = z * p + 1.0 / 7.0;
    let p = z * p + 1.0 / 5.0;
    let p = z * p + 1.0 / 3.0;
    2.0 * (s + s * (z * p))
}
