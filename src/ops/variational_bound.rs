//! A term of the variational bound for a reverse step whose variance the model learns.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::launch_of;
use crate::ops::shared::derivative;
use crate::simd::{exp, vectorized};
use crate::tape::Tensor;

#[cfg(test)]
mod tests;

pub(crate) static KERNEL: Kernel = kernel!("variational_bound");

/// Each sample's term of the bound at its timestep `t [N]`, in nats, the mean over its elements: `[N]`. At
/// t > 0 the divergence of the posterior `q(x_{t-1} | x_t, x_0)` from the model's step, at t = 0 the negative
/// logarithm of the probability of the 8-bit value that `x0` is.
///
/// `output [N, .., 2C]`: C channels of what predicts `target [N, .., C]`, then C of the variance. `table [T,
/// 4]`: `B, l1, c, h`, where the posterior's mean is `B (target - output)` from the model's, its
/// variance `exp(l1)`, and the logarithm of the model's `c + h v` of a value `v`. `x0 [N, .., C]` in [-1, 1].
///
/// Differentiable in `output`; without `learns_mean` in the variance alone (the hybrid objective of Nichol &
/// Dhariwal 2021, arXiv:2102.09672, section 3.1).
#[track_caller]
pub fn variational_bound(
    output: &Tensor,
    [target, x0]: [&Tensor; 2],
    t: &Tensor,
    table: &Tensor,
    learns_mean: bool,
) -> Tensor {
    let size = Sizes::of(output, [target, x0], t, table);
    let Sizes { samples, rows, channels, steps } = size;
    let scale = (1.0 / (rows * channels) as f64) as f32;
    let forward = launch_of(
        "variational_bound",
        move |io| {
            let (reads, t) = (Reads { output: io.read(0), target: io.read(1), x0: io.read(2) }, io.read(3));
            let table = io.read(4);
            io.write(0).par_iter_mut().enumerate().for_each(|(n, each)| {
                let step = Step::named(table, t[n]);
                let mut terms = vec![Term::default(); rows * channels];
                size.terms(n, &reads, &step, &mut terms);
                let sum: f64 = terms.iter().map(|term| f64::from(term.value)).sum();
                *each = (sum / terms.len() as f64) as f32;
            });
        },
        move |plan| {
            let forward = plan.add(&KERNEL, "forward");
            forward.params([("samples", samples), ("rows", rows), ("channels", channels), ("steps", steps)]);
            forward.param("learns_mean", learns_mean).param("scale", scale);
            forward.read("output", 0).read("target_values", 1).read("x0", 2).read("t", 3).read("table", 4);
            forward.write("each", 0).cover(samples, 1);
        },
    );
    let reads = [output, target, x0, t, table];
    let [each] = output.tape().launch(forward, &reads, [[samples].into()]);
    let saved = reads.map(Tensor::clone);
    derivative(&[output], &each, move |dy| {
        let backward = launch_of(
            "variational_bound backward_output",
            move |io| {
                let reads = Reads { output: io.read(0), target: io.read(1), x0: io.read(2) };
                let (t, table, dy) = (io.read(3), io.read(4), io.read(5));
                let samples = io.write(0).par_chunks_mut(2 * rows * channels);
                samples.enumerate().for_each(|(n, doutput)| {
                    let step = Step::named(table, t[n]);
                    let mut terms = vec![Term::default(); rows * channels];
                    size.terms(n, &reads, &step, &mut terms);
                    let scale = scale * dy[n];
                    let of_mean = if learns_mean { -scale * step.factor } else { 0.0 };
                    let rows = doutput.chunks_exact_mut(2 * channels).zip(terms.chunks_exact(channels));
                    for (doutput, terms) in rows {
                        let (mean, variance) = doutput.split_at_mut(channels);
                        for ((mean, variance), term) in mean.iter_mut().zip(variance).zip(terms) {
                            *mean = if learns_mean { of_mean * term.dz } else { 0.0 };
                            *variance = scale * step.half * term.dl;
                        }
                    }
                });
            },
            move |plan| {
                let backward = plan.add(&KERNEL, "backward");
                backward.params([
                    ("samples", samples),
                    ("rows", rows),
                    ("channels", channels),
                    ("steps", steps),
                ]);
                backward.param("learns_mean", learns_mean).param("scale", scale);
                backward.read("output", 0).read("target_values", 1).read("x0", 2).read("t", 3);
                backward.read("table", 4).read("dy", 5).write("doutput", 0);
                backward.cover(samples * rows * channels, 256);
            },
        );
        let [output, target, x0, t, table] = &saved;
        dy.tape().launch(backward, &[output, target, x0, t, table, dy], [output.shape().clone()]).into()
    });
    each
}

#[derive(Clone, Copy)]
struct Sizes {
    samples: usize,
    /// Of channels, in a sample.
    rows: usize,
    channels: usize,
    steps: usize,
}

struct Reads<'a> {
    output: &'a [f32],
    target: &'a [f32],
    x0: &'a [f32],
}

impl Sizes {
    #[track_caller]
    fn of(output: &Tensor, [target, x0]: [&Tensor; 2], t: &Tensor, table: &Tensor) -> Sizes {
        let [steps, columns] = table.shape().of_rank("variational_bound");
        let (samples, channels) = (target.dims().first().copied().unwrap_or(0), target.shape().last());
        assert!(
            target.elements() > 0
                && target.shape() == x0.shape()
                && output.elements() == 2 * target.elements()
                && output.shape().last() == 2 * channels
                && t.elements() == samples
                && (steps > 0 && columns == 4),
            "variational_bound: output {}, target {}, x0 {}, t {}, table {}",
            output.shape(),
            target.shape(),
            x0.shape(),
            t.shape(),
            table.shape()
        );
        Sizes { samples, rows: target.elements() / samples / channels, channels, steps }
    }

    /// The terms of sample `n`.
    fn terms(self, n: usize, reads: &Reads, step: &Step, terms: &mut [Term]) {
        let size = self.rows * self.channels;
        let output = reads.output[2 * n * size..][..2 * size].chunks_exact(2 * self.channels);
        let (target, x0) = (&reads.target[n * size..][..size], &reads.x0[n * size..][..size]);
        let rows = target.chunks_exact(self.channels).zip(x0.chunks_exact(self.channels));
        for ((output, (target, x0)), terms) in output.zip(rows).zip(terms.chunks_exact_mut(self.channels)) {
            let (mean, variance) = output.split_at(self.channels);
            let values = mean.iter().zip(variance).zip(target).zip(x0).zip(terms);
            vectorized(
                #[inline(always)]
                || {
                    for ((((mean, variance), target), x0), term) in values {
                        let z = step.factor * (target - mean);
                        let l2 = step.middle + step.half * variance;
                        *term = if step.first { decoder(z, *x0, l2) } else { divergence(z, step.l1, l2) };
                    }
                },
            );
        }
    }
}

/// A row of the table.
struct Step {
    first: bool,
    factor: f32,
    l1: f32,
    middle: f32,
    half: f32,
}

impl Step {
    fn named(table: &[f32], t: f32) -> Step {
        let row = (t as usize).min(table.len() / 4 - 1);
        let [factor, l1, middle, half] = std::array::from_fn(|i| table[4 * row + i]);
        Step { first: row == 0, factor, l1, middle, half }
    }
}

/// A value, and its derivatives in z, the distance of the means, and in the logarithm of the variance.
#[derive(Clone, Copy, Debug, Default)]
struct Term {
    value: f32,
    dz: f32,
    dl: f32,
}

/// `e^d - 1 - d`, relatively exact to 1e-6.
#[inline(always)]
fn excess(d: f32) -> f32 {
    let p = d * (1.0 / 3_628_800.0) + 1.0 / 362_880.0;
    let p = d * p + 1.0 / 40_320.0;
    let p = d * p + 1.0 / 5040.0;
    let p = d * p + 1.0 / 720.0;
    let p = d * p + 1.0 / 120.0;
    let p = d * p + 1.0 / 24.0;
    let p = d * p + 1.0 / 6.0;
    let near = d * d * (d * p + 0.5);
    if d.abs() < 1.0 { near } else { exp(d) - 1.0 - d }
}

#[inline(always)]
fn divergence(z: f32, l1: f32, l2: f32) -> Term {
    let d = l1 - l2;
    let (excess, precision) = (excess(d), exp(-l2));
    let square = z * z * precision;
    Term { value: 0.5 * (excess + square), dz: z * precision, dl: -0.5 * (excess + d + square) }
}

const HALF_BIN: f32 = 1.0 / 255.0;
/// `1 / sqrt(2 pi)`.
const DENSITY: f32 = 0.398_942_3;

/// `exp(x^2 / 2) P(Z > x)` for `x >= 0`, relatively right to 4e-7: a Chebyshev fit of erfc (Press et al.,
/// Numerical Recipes, section 6.2).
fn tail(x: f32) -> f32 {
    let u = 1.0 / (1.0 + 0.353_553_4 * x);
    let high = 0.278_868_08 + u * (-1.135_204 + u * (1.488_515_9 + u * (-0.822_152_2 + u * 0.170_872_77)));
    let low = 1.000_023_7 + u * (0.374_091_96 + u * (0.096_784_18 + u * (-0.186_288_06 + u * high)));
    0.5 * u * (-1.265_512_2 + u * low).exp()
}

/// `ln P(Z < x)`, and `phi(x) / P`.
fn open_bin(x: f32) -> [f32; 2] {
    let (far, density) = (tail(x.abs()), (-0.5 * x * x).exp());
    if x < 0.0 {
        return [far.ln() - 0.5 * x * x, DENSITY / far];
    }
    let inside = 1.0 - density * far;
    [inside.ln(), DENSITY * density / inside]
}

/// `-ln P` of the bin of `x0`, at a distance of `z` from the mean.
fn decoder(z: f32, x0: f32, l2: f32) -> Term {
    let precision = (-0.5 * l2).exp();
    if x0.abs() > 0.999 {
        let way = if x0 > 0.0 { -1.0 } else { 1.0 };
        let x = (way * z + HALF_BIN) * precision;
        let [ln, ratio] = open_bin(x);
        return Term { value: -ln, dz: -way * ratio * precision, dl: 0.5 * x * ratio };
    }
    // By symmetry z >= 0.
    let way = if z < 0.0 { -1.0 } else { 1.0 };
    let (c, h) = (z.abs() * precision, 2.0 * HALF_BIN * precision);
    if h < 0.4 && c * h < 0.6 {
        // A narrow bin: the density in its middle, and two terms of Taylor's series.
        let (h2, c2) = (h * h, c * c);
        let more = h2 * (c2 - 1.0) / 24.0 + h2 * h2 * (c2 * c2 - 6.0 * c2 + 3.0) / 1920.0;
        let slope = (h2 * c / 12.0 + h2 * h2 * (c2 * c - 3.0 * c) / 480.0) / (1.0 + more);
        let by_h = (h2 * (c2 - 1.0) / 12.0 + h2 * h2 * (c2 * c2 - 6.0 * c2 + 3.0) / 480.0) / (1.0 + more);
        return Term {
            value: 0.5 * c2 + 0.918_938_5 - h.ln() - (1.0 + more).ln(),
            dz: way * (c - slope) * precision,
            // In ln s: h and c go down with it.
            dl: 0.5 * (1.0 - c2 + c * slope + by_h),
        };
    }
    let (low, high) = (c - 0.5 * h, c + 0.5 * h);
    // P and the densities at low and high, all times exp(low^2 / 2) where low > 0.
    let (near, scale) = if low > 0.0 { (1.0, -0.5 * low * low) } else { ((-0.5 * low * low).exp(), 0.0) };
    let far = near * (-c * h).exp();
    let inside =
        if low > 0.0 { tail(low) - far * tail(high) } else { 1.0 - near * tail(-low) - far * tail(high) };
    Term {
        value: -scale - inside.ln(),
        dz: -way * DENSITY * (far - near) / inside * precision,
        dl: 0.5 * DENSITY * (high * far - low * near) / inside,
    }
}
