//! The embedding of a noise level by random Fourier features.

use std::f64::consts::TAU;

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::launch_of;
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("fourier_embedding");

/// `[sin(2 pi w_i ln t) | cos(2 pi w_i ln t)]`: `t [N]` and `w [half]` give `[N, 2 half]`, right to 2e-6 for
/// `|w|` up to 256. It has no derivative: the frequencies are drawn once and stay.
///
/// `t` must be above zero and no subnormal. Nothing reports that, since it is only known while the program
/// runs: whoever writes `t` answers for it.
///
/// Source: `GaussianFourierProjection` of diffusers, after Song et al. 2021 (arXiv:2011.13456).
#[track_caller]
pub fn fourier_embedding(t: &Tensor, w: &Tensor) -> Tensor {
    let [n] = t.shape().of_rank("fourier_embedding");
    let [half] = w.shape().of_rank("fourier_embedding");
    let launch = launch_of(
        "fourier_embedding",
        move |io| {
            let frequencies = io.read(1);
            io.write(0).par_chunks_mut(2 * half).zip(io.read(0)).for_each(|(y, &t)| {
                let log = f64::from(t).ln();
                let (sines, cosines) = y.split_at_mut(half);
                for ((sine, cosine), &w) in sines.iter_mut().zip(cosines).zip(frequencies) {
                    let (sin, cos) = (TAU * (f64::from(w) * log).fract()).sin_cos();
                    (*sine, *cosine) = (sin as f32, cos as f32);
                }
            });
        },
        move |plan| {
            let forward = plan.add(&KERNEL, "forward").params([("n", n), ("half", half)]);
            forward.read("t", 0).read("w", 1).write("y", 0).cover(n * half, 64);
        },
    );
    let [y] = t.tape().launch(launch, &[t, w], [[n, 2 * half].into()]);
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, random};

    fn reference(x: &[Vec<f64>]) -> Vec<f64> {
        let (t, w) = (&x[0], &x[1]);
        let angle = |t: &f64, w: &f64| t.ln() * w * TAU;
        t.iter()
            .flat_map(|t| {
                let sines = w.iter().map(move |w| angle(t, w).sin());
                sines.chain(w.iter().map(move |w| angle(t, w).cos()))
            })
            .collect()
    }

    fn check(t: Vec<f32>, w: Vec<f32>) {
        Check::new(format!("fourier_embedding of {} at {} frequencies", t.len(), w.len()))
            .tolerance(2e-6)
            .fixed(&[t.len()], t)
            .fixed(&[w.len()], w)
            .run(|x| fourier_embedding(&x[0], &x[1]), reference);
    }

    #[test]
    fn timesteps_noise_levels_and_edges() {
        let mut w: Vec<f32> = random(1, 37).into_iter().map(|v| 48.0 * v).collect();
        w.extend([0.0, 1.0, -1.0, 0.5, 256.0, -255.99, 1e-3, 1e-12, -1e-30]);
        check((1..1000).step_by(37).map(|t| t as f32).collect(), w.clone());
        let mut t = vec![1.0, 2.0, 0.5, 1.000_000_1, 0.999_999_94, 1348.0, 0.002, 80.0, 1e-30, 1.2e-38, 3e38];
        t.extend(random(2, 19).into_iter().map(|v| 50.0 * v.abs() + 1e-3));
        check(t, w);
        check(vec![7.5], vec![13.25]);
    }

    #[test]
    fn past_65535_workgroups() {
        let t = (1..=2053).map(|t| t as f32 / 7.0).collect();
        check(t, random(3, 2053).into_iter().map(|v| 16.0 * v).collect());
    }
}
