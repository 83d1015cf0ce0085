//! The sinusoidal embedding of the diffusion step.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::launch_of;
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("timestep_embedding");

/// `[sin(t f_i) | cos(t f_i)]` with `f_i = max_period^(-i / (half - freq_shift))`, `half = dim / 2`;
/// cosines first if `flip_sin_to_cos`, and one zero at the end if `dim` is odd. `t [N]` gives `[N, dim]`,
/// right to 1e-6 for any `|t|` below 2^24, whole or not. It has no derivative.
///
/// Source: `get_timestep_embedding` of diffusers, which Ho et al. 2020 use with `freq_shift` 1 and sines
/// first.
#[track_caller]
pub fn timestep_embedding(
    t: &Tensor,
    dim: usize,
    flip_sin_to_cos: bool,
    freq_shift: f64,
    max_period: f64,
) -> Tensor {
    let [n] = t.shape().of_rank("timestep_embedding");
    let half = dim / 2;
    assert!(
        freq_shift < half as f64 && max_period > 1.0,
        "timestep_embedding: needs max_period above 1 and freq_shift below dim / 2, got dim {dim}, \
         freq_shift {freq_shift}, max_period {max_period}"
    );
    // Of a frequency to the one before it.
    let ratio = max_period.powf(-1.0 / (half as f64 - freq_shift));
    let frequencies: Vec<f64> =
        (0..half).map(|i| max_period.powf(-(i as f64) / (half as f64 - freq_shift))).collect();
    let launch = launch_of(
        "timestep_embedding",
        move |io| {
            io.write(0).par_chunks_mut(dim).zip(io.read(0)).for_each(|(y, &t)| {
                let (first, rest) = y.split_at_mut(half);
                let (second, odd) = rest.split_at_mut(half);
                let (sines, cosines) = if flip_sin_to_cos { (second, first) } else { (first, second) };
                for ((sine, cosine), frequency) in sines.iter_mut().zip(cosines).zip(&frequencies) {
                    let (sin, cos) = (f64::from(t) * frequency).sin_cos();
                    (*sine, *cosine) = (sin as f32, cos as f32);
                }
                odd.fill(0.0);
            });
        },
        move |plan| {
            // As a fraction in units of 2^-64: the kernel multiplies in integers, and is as exact as f64
            // without having it.
            let ratio = (ratio * 2.0_f64.powi(64)) as u64;
            plan.add(&KERNEL, "forward")
                .params([("n", n), ("dim", dim)])
                .param("cos_first", flip_sin_to_cos)
                .param("ratio_high", (ratio >> 32) as u32)
                .param("ratio_low", ratio as u32)
                .read("t", 0)
                .write("y", 0)
                .cover(n * dim.div_ceil(2), 256);
        },
    );
    let [y] = t.tape().launch(launch, &[t], [[n, dim].into()]);
    y
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, random};

    fn reference(t: &[f64], dim: usize, flip: bool, shift: f64, period: f64) -> Vec<f64> {
        let half = dim / 2;
        let mut y = vec![0.0; t.len() * dim];
        for n in 0..t.len() {
            for i in 0..half {
                let f = (-period.ln() * i as f64 / (half as f64 - shift)).exp();
                let (sine, cosine) = if flip { (half + i, i) } else { (i, half + i) };
                y[n * dim + sine] = (t[n] * f).sin();
                y[n * dim + cosine] = (t[n] * f).cos();
            }
        }
        y
    }

    fn check(t: Vec<f32>, dim: usize, flip: bool, shift: f64, period: f64) {
        Check::new(format!("timestep_embedding {dim}, flip {flip}, shift {shift}, period {period}"))
            .tolerance(1e-6)
            .fixed(&[t.len()], t)
            .run(
                |x| timestep_embedding(&x[0], dim, flip, shift, period),
                |x| reference(&x[0], dim, flip, shift, period),
            );
    }

    #[test]
    fn every_step_of_a_thousand() {
        check((0..=1000).map(|t| t as f32).collect(), 128, false, 1.0, 10_000.0);
    }

    #[test]
    fn steps_between_and_beyond() {
        let mut t: Vec<f32> = random(0, 257).into_iter().map(|t| 1000.0 * t.abs()).collect();
        t.extend([-3.0, -712.25, 1e-3, 0.999_999_94, 65_535.5, 4_000_003.0]);
        check(t, 64, true, 0.0, 10_000.0);
    }

    #[test]
    fn odd_and_smallest_dimensions() {
        let t = vec![0.0, 1.0, 999.0, 12.5, 250.0];
        for (dim, shift) in
            [(2, 0.0), (3, 0.0), (4, 1.0), (33, 1.0), (33, 0.0), (6, 0.5), (320, 0.0), (1030, 1.0)]
        {
            for flip in [false, true] {
                check(t.clone(), dim, flip, shift, 10_000.0);
            }
        }
        check(t, 32, false, 1.0, 100.0);
    }

    #[test]
    fn printed_values_of_diffusers() {
        // get_timestep_embedding(torch.tensor([10]), 128, flip_sin_to_cos, downscale_freq_shift)
        let y = reference(&[10.0], 128, false, 1.0, 10_000.0);
        for (at, wanted) in [(0, -0.5440211), (1, 0.7067498), (63, 0.000_999_999_83), (65, -0.7074636)] {
            assert!((y[at] - wanted).abs() < 1e-7, "{at}: {}", y[at]);
        }
        let y = reference(&[10.0], 128, true, 0.0, 10_000.0);
        for (at, wanted) in [(1, -0.7212890), (64, -0.5440211), (65, 0.6926342), (127, 0.001_154_78)] {
            assert!((y[at] - wanted).abs() < 1e-7, "{at}: {}", y[at]);
        }
    }
}
