//! Losses of a prediction against a target, weighted by sample: squared error, absolute error, Huber's, cross
//! entropy.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{CHUNK, Dispatch, Dispatches, LaunchInfo, Recorded, launch_of};
use crate::ops::reduce::{add_total, slice_size, sum_in_f64};
use crate::ops::shared::{Chunk, Size, derivative};
use crate::simd::{exp, vectorized};
use crate::tape::Tensor;

#[cfg(test)]
mod tests;

/// One set of knobs for each [`Form`], by its number.
pub(crate) static KERNEL: Kernel =
    kernel!("loss", [[("FORM", "0u")], [("FORM", "1u")], [("FORM", "2u")], [("FORM", "3u")]]);

/// The mean over all elements of `w[n] * (prediction - target)^2` (Ho et al. 2020, equation 14), a tensor
/// of `[1]`. `prediction` and `target` of `[N, ..]`; `weight` of `[N]`, 1 if there is none.
///
/// Differentiable in `prediction` only: target and weight are data.
#[track_caller]
pub fn mse(prediction: &Tensor, target: &Tensor, weight: Option<&Tensor>) -> Tensor {
    loss(Form::Squared, prediction, target, weight, false).0
}

/// The mean over all elements of `w[n] * |prediction - target|`. Shapes and gradients as in [`mse`]; where
/// prediction and target are equal the derivative is taken to be 0.
#[track_caller]
pub fn l1(prediction: &Tensor, target: &Tensor, weight: Option<&Tensor>) -> Tensor {
    loss(Form::Absolute, prediction, target, weight, false).0
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
    loss(Form::CrossEntropy, logits, target, weight, false).0
}

/// A loss of a batch.
pub struct Losses {
    /// The weighted mean over all elements, `[1]`.
    pub mean: Tensor,
    /// Each sample's mean without its weight, `[N]`; no gradient comes through it.
    pub each: Tensor,
}

/// As [`mse`], with the losses of the samples, for any form.
#[track_caller]
pub fn losses(form: Form, prediction: &Tensor, target: &Tensor, weight: Option<&Tensor>) -> Losses {
    let (mean, each) = loss(form, prediction, target, weight, true);
    Losses { mean, each: each.expect("it was asked for") }
}

/// The loss of one element.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Form {
    /// The square of the difference.
    Squared,
    /// Its absolute value.
    Absolute,
    /// Between Bernoulli variables, of logits: [`bce_with_logits`].
    CrossEntropy,
    /// Half the square of the difference up to this distance, from there on the line that goes on (Huber
    /// 1964); as `huber_loss` in PyTorch.
    Huber(f32),
}

impl Form {
    fn number(self) -> usize {
        match self {
            Form::Squared => 0,
            Form::Absolute => 1,
            Form::CrossEntropy => 2,
            Form::Huber(_) => 3,
        }
    }

    fn name(self) -> &'static str {
        ["mse", "l1", "bce_with_logits", "huber"][self.number()]
    }

    fn delta(self) -> f32 {
        if let Form::Huber(delta) = self { delta } else { 0.0 }
    }

    /// The sum of the loss over two slices, in f64. For use inside `vectorized`, as are those below.
    #[inline(always)]
    fn sum(self, prediction: &[f32], target: &[f32]) -> f64 {
        match self {
            Form::Squared => sum_in_f64(prediction, target, |p, t| p - t, |_, d| d * d),
            Form::Absolute => sum_in_f64(prediction, target, |p, t| p - t, |_, d| d.abs()),
            Form::CrossEntropy => sum_in_f64(prediction, target, cross_entropy, |_, loss| loss),
            Form::Huber(delta) => sum_in_f64(
                prediction,
                target,
                |p, t| {
                    let inner = within(p - t, delta);
                    inner * (p - t - 0.5 * inner)
                },
                |_, loss| loss,
            ),
        }
    }

    /// `dp[i] = scale * f'(p[i], t[i])`.
    #[inline(always)]
    fn derivatives(self, dp: &mut [f32], p: &[f32], t: &[f32], scale: f32) {
        match self {
            Form::Squared => derivatives_of(dp, p, t, scale, |p, t| 2.0 * (p - t)),
            Form::Absolute => derivatives_of(dp, p, t, scale, sign_of_difference),
            Form::CrossEntropy => derivatives_of(dp, p, t, scale, cross_entropy_derivative),
            Form::Huber(delta) => derivatives_of(dp, p, t, scale, |p, t| within(p - t, delta)),
        }
    }
}

#[track_caller]
fn loss(
    form: Form,
    prediction: &Tensor,
    target: &Tensor,
    weight: Option<&Tensor>,
    with_each: bool,
) -> (Tensor, Option<Tensor>) {
    let samples = prediction.dims().first().copied().unwrap_or(1);
    assert!(
        prediction.shape() == target.shape() && weight.is_none_or(|w| w.elements() == samples),
        "{}: expected prediction and target of one shape [N, ..] and a weight of [N], got {}, {} and {:?}",
        form.name(),
        prediction.shape(),
        target.shape(),
        weight.map(Tensor::shape)
    );
    let size = Size { samples, elements: prediction.elements() / samples };
    let weighted = weight.is_some();
    let scale = 1.0 / prediction.elements() as f64;
    let slices = size.elements.div_ceil(CHUNK); // of a sample
    // On the GPU.
    let slice_size = slice_size(size.elements, 1024 / samples);
    let gpu_slices = size.elements.div_ceil(slice_size);
    let forward = launch_of(
        form.name(),
        move |io| {
            let (prediction, target) = (io.read(0), io.read(1));
            let weight = weighted.then(|| io.read(2));
            let sums = io.scratch(0);
            sums.par_iter_mut().enumerate().for_each(|(i, sum)| {
                let (sample, begin) = (i / slices, i % slices * CHUNK);
                let first = sample * size.elements;
                let range = first + begin..first + size.elements.min(begin + CHUNK);
                *sum = vectorized(
                    #[inline(always)]
                    || form.sum(&prediction[range.clone()], &target[range]),
                ) as f32;
            });
            let of_sample = |sums: &[f32]| sums.iter().map(|&sum| f64::from(sum)).sum::<f64>();
            let weighted_sums = sums.chunks(slices).enumerate();
            let sum: f64 = weighted_sums
                .map(|(n, sums)| f64::from(weight.map_or(1.0, |w| w[n])) * of_sample(sums))
                .sum();
            io.write(0)[0] = (scale * sum) as f32;
            if with_each {
                for (each, sums) in io.write(1).iter_mut().zip(sums.chunks(slices)) {
                    *each = (of_sample(sums) / size.elements as f64) as f32;
                }
            }
        },
        move |plan| {
            dispatch(plan, "forward", form, size, [gpu_slices, slice_size], 1.0)
                .param("weighted", weighted)
                .read("weight", if weighted { 2 } else { 0 })
                .scratch("out", 0)
                .scratch("raw", 1)
                .cover(samples * gpu_slices, 1);
            add_total(plan, samples * gpu_slices, scale as f32);
            if with_each {
                let scale = (1.0 / size.elements as f64) as f32;
                let each = plan.add(&KERNEL, "each_sample").knobs(form.number()).param("scale", scale);
                each.params([("samples", samples), ("size", size.elements), ("slices", gpu_slices)]);
                each.params([("slice_size", slice_size), ("weighted", 0)]).param("delta", 0.0_f32);
                each.scratch("raw", 1).write("each", 1).cover(samples, 256);
            }
        },
    );
    let info = LaunchInfo {
        cpu_scratch: vec![samples * slices],
        gpu_scratch: vec![samples * gpu_slices; 2],
        ..LaunchInfo::default()
    };
    let reads: Vec<&Tensor> = [prediction, target].into_iter().chain(weight).collect();
    let forward = Recorded::new(forward, info);
    let (y, each) = if with_each {
        let [y, each] = prediction.tape().launch(forward, &reads, [[1].into(), [samples].into()]);
        (y, Some(each))
    } else {
        let [y] = prediction.tape().launch(forward, &reads, [[1].into()]);
        (y, None)
    };
    let saved: Vec<Tensor> = reads.into_iter().cloned().collect();
    derivative(&[prediction], &y, move |dy| {
        let backward = launch_of(
            [
                "mse backward_prediction",
                "l1 backward_prediction",
                "bce_with_logits backward_logits",
                "huber backward_prediction",
            ][form.number()],
            move |io| {
                let (p, t, scale) = (io.read(0), io.read(1), scale as f32 * io.read(2)[0]);
                let weight = weighted.then(|| io.read(3));
                size.chunks(io.write(0)).for_each(|Chunk { sample, range, y: dp, .. }| {
                    let scale = scale * weight.map_or(1.0, |w| w[sample]);
                    vectorized(
                        #[inline(always)]
                        || form.derivatives(dp, &p[range.clone()], &t[range], scale),
                    );
                });
            },
            move |plan| {
                dispatch(plan, "backward_prediction", form, size, [1, size.elements], scale as f32)
                    .param("weighted", weighted)
                    .read("dy", 2)
                    .read("weight", if weighted { 3 } else { 0 })
                    .write("dp", 0)
                    .cover(samples * size.elements, 256);
            },
        );
        let reads: Vec<&Tensor> = saved[..2].iter().chain([dy]).chain(saved.get(2)).collect();
        dy.tape().launch(backward, &reads, [saved[0].shape().clone()]).into()
    });
    (y, each)
}

fn dispatch<'a>(
    plan: &'a mut Dispatches,
    entry: &'static str,
    form: Form,
    Size { samples, elements }: Size,
    [slices, slice_size]: [usize; 2],
    scale: f32,
) -> &'a mut Dispatch {
    plan.add(&KERNEL, entry)
        .knobs(form.number())
        .params([("samples", samples), ("size", elements), ("slices", slices), ("slice_size", slice_size)])
        .param("scale", scale)
        .param("delta", form.delta())
        .read("prediction", 0)
        .read("target_values", 1)
}

#[inline(always)]
fn derivatives_of(dp: &mut [f32], p: &[f32], t: &[f32], scale: f32, f: impl Fn(f32, f32) -> f32) {
    for ((dp, p), t) in dp.iter_mut().zip(p).zip(t) {
        *dp = scale * f(*p, *t);
    }
}

/// `d` in `[-limit, limit]`; NaN for NaN.
#[inline(always)]
fn within(d: f32, limit: f32) -> f32 {
    let below = if d > limit { limit } else { d };
    if below < -limit { -limit } else { below }
}

/// -1, 0 or 1; NaN for NaN.
#[inline(always)]
fn sign_of_difference(p: f32, t: f32) -> f32 {
    let d = p - t;
    let not_above = if d < 0.0 { -1.0 } else { d };
    if d > 0.0 { 1.0 } else { not_above }
}

/// The probability of the class that the sign of the logit speaks against.
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
