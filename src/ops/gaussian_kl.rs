//! The divergence of normal distributions from the standard one: the prior term of a VAE's loss.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{CHUNK, LaunchInfo, Recorded, launch_of};
use crate::ops::reduce::{add_total, slice_size, sum_in_f64, total};
use crate::ops::shared::{Size, derivative};
use crate::simd::{exp, vectorized};
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("gaussian_kl");

/// `KL(N(mean, exp(log_var)) || N(0, 1))` in nats, summed over the elements of a sample, the mean over the
/// batch: `1/2N` times the sum of `mean^2 + exp(log_var) - 1 - log_var`, a tensor of `[1]`. Source: Kingma
/// & Welling 2014 (arXiv:1312.6114), appendix B.
///
/// `mean` and `log_var` of one shape `[N, ..]`; infinite for a `log_var` from about 88.7 on. Each element's
/// term is right relative to itself, also next to the standard normal distribution, where
/// `exp(log_var) - 1` and `log_var` all but cancel.
#[track_caller]
pub fn gaussian_kl(mean: &Tensor, log_var: &Tensor) -> Tensor {
    assert!(
        mean.shape() == log_var.shape(),
        "gaussian_kl: expected mean and log_var of one shape [N, ..], got {} and {}",
        mean.shape(),
        log_var.shape()
    );
    let elements = mean.elements();
    let scale = 0.5 / Size::of("gaussian_kl", mean.shape()).samples as f64;
    let slice_size = slice_size(elements, 1024);
    let slices = elements.div_ceil(slice_size);
    let forward = launch_of(
        "gaussian_kl",
        move |io| {
            let (mean, log_var) = (io.read(0), io.read(1));
            total(io, scale, |chunk| {
                let range = chunk * CHUNK..elements.min((chunk + 1) * CHUNK);
                vectorized(
                    #[inline(always)]
                    || divergence(&mean[range.clone()], &log_var[range]),
                )
            });
        },
        move |plan| {
            let forward = plan.add(&KERNEL, "forward").param("scale", 1.0_f32);
            forward.params([("elements", elements), ("slices", slices), ("slice_size", slice_size)]);
            forward.read("mean", 0).read("log_var", 1).scratch("out", 0).cover(slices, 1);
            add_total(plan, slices, scale as f32);
        },
    );
    let info = LaunchInfo {
        cpu_scratch: vec![elements.div_ceil(CHUNK)],
        gpu_scratch: vec![slices],
        ..LaunchInfo::default()
    };
    let [y] = mean.tape().launch(Recorded::new(forward, info), &[mean, log_var], [[1].into()]);
    let (saved_mean, saved_log_var) = (mean.clone(), log_var.clone());
    derivative(&[mean, log_var], &y, move |dy| {
        let (mean, log_var) = (&saved_mean, &saved_log_var);
        let backward = launch_of(
            "gaussian_kl backward",
            move |io| {
                let scale = scale as f32 * io.read(2)[0];
                let reads = io.read(0).par_chunks(CHUNK).zip(io.read(1).par_chunks(CHUNK));
                let writes = io.write(0).par_chunks_mut(CHUNK).zip(io.write(1).par_chunks_mut(CHUNK));
                writes.zip(reads).for_each(|((dmean, dlog_var), (mean, log_var))| {
                    vectorized(
                        #[inline(always)]
                        || {
                            for (dmean, mean) in dmean.iter_mut().zip(mean) {
                                *dmean = 2.0 * scale * mean;
                            }
                            for (dlog_var, log_var) in dlog_var.iter_mut().zip(log_var) {
                                *dlog_var = scale * exp_minus_1(*log_var);
                            }
                        },
                    );
                });
            },
            move |plan| {
                let backward = plan.add(&KERNEL, "backward").param("scale", scale as f32);
                backward.params([("elements", elements), ("slices", 1), ("slice_size", elements)]);
                backward.read("mean", 0).read("log_var", 1).read("dy", 2);
                backward.write("dmean", 0).write("dlog_var", 1).cover(elements, 256);
            },
        );
        let shapes = [mean.shape().clone(), mean.shape().clone()];
        dy.tape().launch(backward, &[mean, log_var, dy], shapes).into()
    });
    y
}

/// The sum of `mean^2 + exp(log_var) - 1 - log_var`, in f64.
#[inline(always)]
fn divergence(mean: &[f32], log_var: &[f32]) -> f64 {
    sum_in_f64(mean, log_var, |_, log_var| excess(log_var), |mean, excess| mean * mean + excess)
}

/// `e^x - 1 - x`, relatively exact to 1e-6.
#[inline(always)]
fn excess(x: f32) -> f32 {
    let (near, far) = (series(x), exp(x) - 1.0 - x);
    if x.abs() < 1.0 { near } else { far }
}

/// `e^x - 1`, relatively exact to 1e-6.
#[inline(always)]
fn exp_minus_1(x: f32) -> f32 {
    let (near, far) = (x + series(x), exp(x) - 1.0);
    if x.abs() < 1.0 { near } else { far }
}

/// `e^x - 1 - x` for |x| < 1, where the difference would cancel: the series up to `x^11 / 11!`.
#[inline(always)]
fn series(x: f32) -> f32 {
    let p = x * (1.0 / 39_916_800.0) + 1.0 / 3_628_800.0;
    let p = x * p + 1.0 / 362_880.0;
    let p = x * p + 1.0 / 40_320.0;
    let p = x * p + 1.0 / 5040.0;
    let p = x * p + 1.0 / 720.0;
    let p = x * p + 1.0 / 120.0;
    let p = x * p + 1.0 / 24.0;
    let p = x * p + 1.0 / 6.0;
    let p = x * p + 0.5;
    x * x * p
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, devices, random};
    use crate::program::{Plan, Program, Sharing};
    use crate::tape::Tape;

    /// Appendix B of Kingma & Welling as it stands there.
    fn reference(mean: &[f64], log_var: &[f64], samples: usize) -> f64 {
        let sum: f64 = mean.iter().zip(log_var).map(|(m, l)| 1.0 + l - m * m - l.exp()).sum();
        -0.5 * sum / samples as f64
    }

    fn check(shape: &[usize], spread: f32, probes: usize) {
        let n = shape.iter().product();
        Check::new(format!("gaussian_kl, log_var to {spread}"))
            .probes(probes)
            .input(shape)
            .values(shape, random(7, n).into_iter().map(|l| spread * l).collect())
            .run(|x| gaussian_kl(&x[0], &x[1]), |x| vec![reference(&x[0], &x[1], shape[0])]);
    }

    #[test]
    fn shapes() {
        let shapes: [&[usize]; 9] = [
            &[1],
            &[7],
            &[1, 1],
            &[257, 2],
            &[3, 5, 7, 3],
            &[2, 257],
            &[3, 4099],
            &[2, CHUNK + 1],
            &[1, 300, 301, 3],
        ];
        for shape in shapes {
            for spread in [0.5, 4.0] {
                check(shape, spread, 6);
            }
        }
    }

    #[test]
    fn past_65535_workgroups() {
        check(&[7, 65_536 * 256 / 7 + 1], 2.0, 2); // backward: one for 256 elements
    }

    #[test]
    fn log_var_from_minus_30_to_20() {
        Check::new("gaussian_kl far out")
            .values(&[2, 4], vec![0.5, -2.0, 0.0, 100.0, -0.25, 3.0, 1e-3, -1.0])
            .values(&[2, 4], vec![-30.0, 20.0, -10.0, 10.0, -1.0, 1.0, 5.0, -5.0])
            .run(|x| gaussian_kl(&x[0], &x[1]), |x| vec![reference(&x[0], &x[1], 2)]);
    }

    /// One element on every device, right relative to itself: where the parts of the formula cancel, on
    /// both sides of the series' end, and far out.
    #[test]
    fn relative_accuracy() {
        let sizes = [0.0, 1e-6, 1e-4, 1e-2, 0.3, 0.999, 1.0, 1.001, 2.0, 20.0];
        let log_vars: Vec<f32> =
            sizes.into_iter().flat_map(|l| [l, -l]).chain([-30.0, -80.0, 80.0]).collect();
        for (name, device) in devices() {
            let tape = Tape::new();
            let (mean, log_var) = (tape.variable("mean", 0, [1]), tape.variable("log_var", 0, [1]));
            let y = gaussian_kl(&mean, &log_var);
            let gradients = tape.backward_from(&y, &tape.stored("dy", 0, [1]));
            let (dmean, dlog_var) = (gradients.get(&mean).unwrap(), gradients.get(&log_var).unwrap());
            let plan = Plan::new(&tape, &[&y, dmean, dlog_var], device);
            let mut program = Program::compile(&plan, device, &[], Sharing::Guarded).unwrap();
            program.write("dy", &[1.0_f32]).unwrap();
            for &l in &log_vars {
                for m in [0.0, 1e-3, -2.0_f32] {
                    program.write("mean", &[m]).unwrap();
                    program.write("log_var", &[l]).unwrap();
                    program.run().unwrap();
                    let (m, l) = (f64::from(m), f64::from(l));
                    // f64's own difference is right to 1e-9 from 1e-6 on.
                    let kl = 0.5 * (m * m + (l.exp_m1() - l));
                    // WGSL allows its exp an error of (3 + 2 |x|) units in the last place, which the
                    // difference at |l| = 1 makes four times as large.
                    let allowed = if name.starts_with("cpu") { 1e-6 } else { 3e-6 + 2.4e-7 * l.max(0.0) };
                    for (what, tensor, wanted) in
                        [("kl", &y, kl), ("dmean", dmean, m), ("dlog_var", dlog_var, 0.5 * l.exp_m1())]
                    {
                        let got = program.read(tensor).unwrap()[0];
                        assert!(
                            (f64::from(got) - wanted).abs() <= allowed * wanted.abs(),
                            "on {name}: {what} of mean {m}, log_var {l} is {got}, wanted {wanted}"
                        );
                    }
                }
            }
            assert!(program.guards_intact().unwrap(), "on {name}");
        }
    }

    #[test]
    fn a_gradient_for_one_of_the_two() {
        Check::new("gaussian_kl of a given mean")
            .fixed(&[2, 3], random(1, 6))
            .input(&[2, 3])
            .run(|x| gaussian_kl(&x[0], &x[1]), |x| vec![reference(&x[0], &x[1], 2)]);
        Check::new("gaussian_kl of a given log_var")
            .input(&[2, 3])
            .fixed(&[2, 3], random(1, 6))
            .run(|x| gaussian_kl(&x[0], &x[1]), |x| vec![reference(&x[0], &x[1], 2)]);
    }

    #[test]
    #[should_panic(expected = "gaussian_kl: expected mean and log_var of one shape [N, ..], got [3, 4]")]
    fn shapes_must_agree() {
        let tape = Tape::new();
        gaussian_kl(&tape.stored("mean", 0, [3, 4]), &tape.stored("log_var", 0, [4, 3]));
    }
}
