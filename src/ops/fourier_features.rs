//! Fourier features of an image: sines and cosines of its values, which tell close values apart.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::launch_of;
use crate::ops::shared::derivative;
use crate::simd::sin_cos_turns;
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("fourier_features");

/// Pixels of a task of the CPU twin.
const ROWS: usize = 256;

/// `[x | sin(2 pi 2^n x) | cos(2 pi 2^n x)]` along the channels, for each n in `powers`: `x [.., C]` gives
/// `[.., C (1 + 2 K)]`, where within sines and cosines the powers of one channel stand together. Right to
/// 2e-7 for `|2^n x|` below 2^23. Source: Kingma et al. 2021 (arXiv:2107.00630, appendix C).
///
/// # Panics
/// When `powers` do not rise from one to the next, below 24.
#[track_caller]
pub fn fourier_features(x: &Tensor, powers: &[u32]) -> Tensor {
    let rise = powers.windows(2).all(|pair| pair[0] < pair[1]) && powers.iter().all(|&n| n < 24);
    assert!(rise && x.elements() > 0, "fourier_features: powers {powers:?} of x {}", x.shape());
    let (n, channels, count) = (x.elements(), x.shape().last(), powers.len());
    let width = channels * (1 + 2 * count);
    let mask: u32 = powers.iter().map(|n| 1 << n).sum();
    let frequencies: Vec<f32> = powers.iter().map(|&n| (1_u32 << n) as f32).collect();
    let params = [("n", n), ("channels", channels), ("powers", mask as usize)];
    let of_forward = frequencies.clone();
    let forward = launch_of(
        "fourier_features",
        move |io| {
            let rows = io.write(0).par_chunks_mut(ROWS * width).zip(io.read(0).par_chunks(ROWS * channels));
            rows.flat_map_iter(|(y, x)| y.chunks_mut(width).zip(x.chunks(channels))).for_each(|(y, x)| {
                let (plain, waves) = y.split_at_mut(channels);
                plain.copy_from_slice(x);
                let (sines, cosines) = waves.split_at_mut(channels * count);
                let angles = x.iter().flat_map(|x| of_forward.iter().map(move |f| x * f));
                for ((sine, cosine), turns) in sines.iter_mut().zip(cosines).zip(angles) {
                    (*sine, *cosine) = sin_cos(turns);
                }
            });
        },
        move |plan| {
            plan.add(&KERNEL, "forward").params(params).read("x", 0).write("y", 0).cover(n, 256);
        },
    );
    let mut shape = x.dims().to_vec();
    *shape.last_mut().expect("elements have a last dimension") = width;
    let [y] = x.tape().launch(forward, &[x], [shape.as_slice().into()]);
    let saved = x.clone();
    derivative(&[x], &y, move |dy| {
        let backward = launch_of(
            "fourier_features backward_x",
            move |io| {
                let (x, dy) = (io.read(0), io.read(1));
                let rows = io.write(0).par_chunks_mut(channels).zip(x.par_chunks(channels));
                rows.zip(dy.par_chunks(width)).with_min_len(ROWS).for_each(|((dx, x), dy)| {
                    let (plain, waves) = dy.split_at(channels);
                    let (sines, cosines) = waves.split_at(channels * count);
                    for (c, (dx, x)) in dx.iter_mut().zip(x).enumerate() {
                        *dx = plain[c];
                        for (k, frequency) in frequencies.iter().enumerate() {
                            let (sine, cosine) = sin_cos(x * frequency);
                            let at = c * count + k;
                            let slope = sines[at] * cosine - cosines[at] * sine;
                            *dx += std::f32::consts::TAU * frequency * slope;
                        }
                    }
                });
            },
            move |plan| {
                let backward = plan.add(&KERNEL, "backward_x").params(params);
                backward.read("x", 0).read("dy", 1).write("dx", 0).cover(n, 256);
            },
        );
        dy.tape().launch(backward, &[&saved, dy], [saved.shape().clone()]).into()
    });
    y
}

/// Sine and cosine of `2 pi turns`, counted from the nearest whole turn, which an f32 gives exactly.
fn sin_cos(turns: f32) -> (f32, f32) {
    let rest = turns - turns.round_ties_even();
    sin_cos_turns((rest * 4_294_967_296.0) as i32 as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, random};

    fn reference(x: &[f64], channels: usize, powers: &[u32]) -> Vec<f64> {
        let wave = |of: fn(f64) -> f64, row: &[f64]| -> Vec<f64> {
            let turns = row.iter().flat_map(|x| powers.iter().map(move |&n| x * f64::from(1 << n)));
            turns.map(|turns| of(std::f64::consts::TAU * turns)).collect()
        };
        x.chunks(channels).flat_map(|x| [x.to_vec(), wave(f64::sin, x), wave(f64::cos, x)].concat()).collect()
    }

    fn check(shape: &[usize], powers: &[u32], values: Option<Vec<f32>>) {
        let channels = *shape.last().unwrap();
        let check = Check::new(format!("fourier_features {powers:?}")).tolerance(1e-6);
        let check = match values {
            Some(values) => check.fixed(shape, values),
            None => check.input(shape),
        };
        check.run(|x| fourier_features(&x[0], powers), |x| reference(&x[0], channels, powers));
    }

    #[test]
    fn values_and_gradients_over_hostile_shapes() {
        for (shape, powers) in
            [(&[1, 1][..], &[0][..]), (&[2, 3, 5, 1], &[0, 1]), (&[257, 3], &[1, 2]), (&[2, 4, 4, 7], &[])]
        {
            check(shape, powers, None);
        }
    }

    /// Central differences are too coarse for these; noisy values, and each level of a picture.
    #[test]
    fn high_frequencies() {
        let noisy = random(1, 3000).into_iter().map(|v| 5.0 * v);
        let levels = (0..=255).map(|k| k as f32 / 127.5 - 1.0);
        let odd = [0.0, -0.0, 0.5, -0.5, 1e-20, -1e-20, 0.25 / 128.0];
        let values: Vec<f32> = noisy.chain(levels).chain(odd).collect();
        check(&[values.len(), 1], &[6, 7], Some(values.clone()));
        check(&[values.len(), 1], &[0, 12], Some(values));
    }
}
