//! Classifier-free guidance: a model's predictions with a class and without, to one.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::launch_of;
use crate::ops::shared::Size;
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("guidance");

/// `y = u + scale (c - u)`, where `x [2 N, .., C]` holds the predictions `c` of N samples with their classes,
/// then `u` of the same without: `[N, .., C]`. `scale` 1 is `c` alone, 0 is `u` (the `w` of Ho & Salimans
/// 2022, arXiv:2207.12598, is `scale - 1`). With `rescale` phi, y becomes `phi y std(c) / std(y) + (1 - phi)
/// y`, the deviations over all of a sample (Lin et al. 2023, arXiv:2305.08891, equations 15 and 16).
///
/// Only the first `guided` channels are guided; further ones, which are a learned variance, are those of `c`.
/// There is no derivative: only sampling guides.
///
/// # Panics
/// When `x` has an odd number of samples, or fewer channels than `guided`.
#[track_caller]
pub fn guide(x: &Tensor, guided: usize, scale: f32, rescale: f32) -> Tensor {
    let (twice, channels) = (x.dims().first().copied().unwrap_or(0), x.shape().last());
    let fits = twice > 0 && twice.is_multiple_of(2) && (1..=channels).contains(&guided);
    assert!(fits, "guide: x {} of twice the samples, {guided} channels guided", x.shape());
    let mut shape = x.dims().to_vec();
    shape[0] = twice / 2;
    let Size { samples, elements } = Size::of("guide", &shape.as_slice().into());
    let launch = launch_of(
        "guide",
        move |io| {
            let (c, u) = io.read(0).split_at(samples * elements);
            let predictions = c.par_chunks(elements).zip(u.par_chunks(elements));
            io.write(0).par_chunks_mut(elements).zip(predictions).for_each(|(y, (c, u))| {
                for ((y, c), u) in y.iter_mut().zip(c).zip(u) {
                    *y = u + scale * (c - u);
                }
                let factor = if rescale > 0.0 {
                    let [spread_c, spread_y] = [c, &*y].map(|x| squares(x, channels, guided));
                    // A prediction that is the same everywhere has no spread to be rescaled.
                    let ratio = if spread_y > 0.0 { (spread_c / spread_y).sqrt() } else { 1.0 };
                    rescale * ratio as f32 + (1.0 - rescale)
                } else {
                    1.0
                };
                for (y, c) in y.chunks_mut(channels).zip(c.chunks(channels)) {
                    y[..guided].iter_mut().for_each(|y| *y *= factor);
                    y[guided..].copy_from_slice(&c[guided..]);
                }
            });
        },
        move |plan| {
            let guide = plan.add(&KERNEL, "guide").params([("samples", samples), ("elements", elements)]);
            guide.params([("channels", channels), ("guided", guided)]);
            guide.param("scale", scale).param("rescale", rescale);
            guide.read("x", 0).write("y", 0).cover(samples, 1);
        },
    );
    let [y] = x.tape().launch(launch, &[x], [shape.as_slice().into()]);
    y
}

/// Sum of the squared distances from the mean, of the guided elements.
fn squares(x: &[f32], channels: usize, guided: usize) -> f64 {
    let all = || x.chunks(channels).flat_map(|x| &x[..guided]).map(|&x| f64::from(x));
    let mean = all().sum::<f64>() / (x.len() / channels * guided) as f64;
    all().map(|x| (x - mean).powi(2)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, random};

    fn reference(
        x: &[f64],
        samples: usize,
        [channels, guided]: [usize; 2],
        scale: f64,
        rescale: f64,
    ) -> Vec<f64> {
        let elements = x.len() / samples / 2;
        let is_guided = |i: usize| i % channels < guided;
        let std = |x: &[f64]| {
            let x: Vec<f64> = (0..x.len()).filter(|&i| is_guided(i)).map(|i| x[i]).collect();
            let mean = x.iter().sum::<f64>() / x.len() as f64;
            (x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / x.len() as f64).sqrt()
        };
        let of_sample = |n: usize| {
            let [c, u] = [n, samples + n].map(|n| &x[n * elements..][..elements]);
            let g: Vec<f64> = c.iter().zip(u).map(|(c, u)| u + scale * (c - u)).collect();
            let factor = if rescale > 0.0 { rescale * std(c) / std(&g) + 1.0 - rescale } else { 1.0 };
            (0..elements).map(|i| if is_guided(i) { g[i] * factor } else { c[i] }).collect::<Vec<f64>>()
        };
        (0..samples).flat_map(of_sample).collect()
    }

    #[test]
    fn as_plain_loops_guide() {
        for (samples, inner, channels, guided) in [(1, 4, 1, 1), (3, 49, 2, 1), (2, 300, 3, 3), (5, 1, 8, 4)]
        {
            for (scale, rescale) in [(0.0, 0.0), (1.0, 0.0), (3.0, 0.0), (3.0, 0.7), (7.5, 1.0)] {
                let shape = [2 * samples, inner, channels];
                let x = random(samples as u32, shape.iter().product());
                Check::new(format!("guide, {shape:?}, {scale}, {rescale}")).fixed(&shape, x).run(
                    |x| guide(&x[0], guided, scale, rescale),
                    |x| reference(&x[0], samples, [channels, guided], scale.into(), rescale.into()),
                );
            }
        }
    }

    /// The numbers that PyTorch gives for diffusers' `rescale_noise_cfg`.
    #[test]
    fn golden_values() {
        let x = vec![0.5, -0.1, 0.2, -0.6, 0.1, -0.2, 0.4, 0.3];
        let wanted = [
            [1.3, 0.1, -0.2, -2.4],
            [0.666_671_391_408, 0.051_282_414_724, -0.102_564_829_447, -1.230_777_953_368],
        ];
        for (rescale, wanted) in [0.0, 0.7].into_iter().zip(wanted) {
            let check = Check::new("guide, golden").fixed(&[2, 4, 1], x.clone());
            check.run(|x| guide(&x[0], 1, 3.0, rescale), |_| wanted.to_vec());
        }
    }

    #[test]
    fn equal_predictions_are_left_as_they_are() {
        let check = Check::new("guide, equal").fixed(&[2, 5, 1], vec![0.25; 10]);
        check.run(|x| guide(&x[0], 1, 4.0, 1.0), |_| vec![0.25; 5]);
    }

    #[test]
    #[should_panic(expected = "guide: x [3, 4] of twice the samples")]
    fn samples_come_in_pairs() {
        let tape = crate::tape::Tape::new();
        guide(&tape.stored("x", 0, [3, 4]), 1, 1.0, 0.0);
    }
}
