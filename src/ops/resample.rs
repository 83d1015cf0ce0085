//! Nearest upsampling and average pooling by a whole factor; each is the other's derivative but for a
//! scale.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatch, Dispatches, Launch, launch_of, pack};
use crate::ops::shared::{derivative, replayed};
use crate::simd::vectorized;
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("resample", pack::KNOBS);

/// Every pixel repeated `factor` times in both directions: `x [N, H, W, C]` to `[N, factor * H, factor * W,
/// C]`.
#[track_caller]
pub fn upsample_nearest(x: &Tensor, factor: usize) -> Tensor {
    assert!(factor > 0, "upsample_nearest: factor 0 for x {}", x.shape());
    let [n, h, w, c] = x.shape().of_rank("upsample_nearest");
    let size = Size { lines: n * h, width: w, channels: c, factor };
    let shape = [n, h * factor, w * factor, c];
    let [y] = x.tape().launch(replayed(spread(size, 1.0)), &[x], [shape.into()]);
    let small = x.shape().clone();
    derivative(&[x], &y, move |dy| dy.tape().launch(gather(size, 1.0), &[dy], [small]).into());
    y
}

/// The mean of every `factor` by `factor` block of pixels: `x [N, H, W, C]` to `[N, H / factor, W / factor,
/// C]`.
#[track_caller]
pub fn average_pool(x: &Tensor, factor: usize) -> Tensor {
    let [n, h, w, c] = x.shape().of_rank("average_pool");
    assert!(
        factor > 0 && h.is_multiple_of(factor) && w.is_multiple_of(factor),
        "average_pool: factor {factor} does not divide height and width of x {}",
        x.shape()
    );
    let size = Size { lines: n * (h / factor), width: w / factor, channels: c, factor };
    let scale = 1.0 / (factor * factor) as f32;
    let shape = [n, h / factor, w / factor, c];
    let [y] = x.tape().launch(gather(size, scale), &[x], [shape.into()]);
    let large = x.shape().clone();
    derivative(&[x], &y, move |dy| dy.tape().launch(replayed(spread(size, scale)), &[dy], [large]).into());
    y
}

/// Of the smaller of the two images; `lines` are those of all samples, which the factor lets one count
/// through.
#[derive(Clone, Copy, Debug)]
struct Size {
    lines: usize,
    width: usize,
    channels: usize,
    factor: usize,
}

impl Size {
    /// Elements of a line of the small image and of the large one.
    fn line(self) -> [usize; 2] {
        [1, self.factor].map(|factor| self.width * factor * self.channels)
    }

    /// A dispatch that writes so many lines of so many numbers.
    fn add<'a>(
        self,
        plan: &'a mut Dispatches,
        entry: &'static str,
        scale: f32,
        [lines, line]: [usize; 2],
    ) -> &'a mut Dispatch {
        let pack = pack::of(&[self.channels]);
        plan.add(&KERNEL, entry)
            .knobs(pack::set(pack))
            .params([("lines", self.lines), ("width", self.width)])
            .params([("channels", self.channels / pack), ("factor", self.factor)])
            .param("scale", scale)
            .cover(lines * line / pack, 256)
    }
}

/// `large = scale * ` the pixel of `small` that covers it.
fn spread(size: Size, scale: f32) -> impl Launch {
    let Size { lines, factor, channels, .. } = size;
    let [line, large_line] = size.line();
    launch_of(
        "resample spread",
        move |io| {
            // The lines that one line of the small image becomes: the first is made, the others copy it.
            let lines = io.write(0).par_chunks_mut(large_line * factor).zip(io.read(0).par_chunks(line));
            lines.for_each(|(large, small)| {
                let (first, others) = large.split_at_mut(large_line);
                vectorized(
                    #[inline(always)]
                    || {
                        let blocks = first.chunks_exact_mut(factor * channels);
                        for (block, small) in blocks.zip(small.chunks_exact(channels)) {
                            for large in block.chunks_exact_mut(channels) {
                                for (large, small) in large.iter_mut().zip(small) {
                                    *large = scale * small;
                                }
                            }
                        }
                    },
                );
                others.chunks_exact_mut(large_line).for_each(|other| other.copy_from_slice(first));
            });
        },
        move |plan| {
            let spread = size.add(plan, "spread", scale, [lines * factor, large_line]);
            spread.read("small", 0).write("large_out", 0);
        },
    )
}

/// `small = scale * ` the sum of the pixels of `large` that it covers.
fn gather(size: Size, scale: f32) -> impl Launch {
    let Size { lines, factor, channels, .. } = size;
    let [line, large_line] = size.line();
    launch_of(
        "resample gather",
        move |io| {
            let lines = io.write(0).par_chunks_mut(line).zip(io.read(0).par_chunks(large_line * factor));
            lines.for_each(|(small, large)| {
                vectorized(
                    #[inline(always)]
                    || {
                        small.fill(0.0);
                        for large in large.chunks_exact(large_line) {
                            let blocks = large.chunks_exact(factor * channels);
                            for (small, block) in small.chunks_exact_mut(channels).zip(blocks) {
                                for large in block.chunks_exact(channels) {
                                    for (small, large) in small.iter_mut().zip(large) {
                                        *small += large;
                                    }
                                }
                            }
                        }
                        for small in small {
                            *small *= scale;
                        }
                    },
                );
            });
        },
        move |plan| {
            size.add(plan, "gather", scale, [lines, line]).read("large", 0).write("small_out", 0);
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Check;

    fn reference_upsample([n, h, w, c]: [usize; 4], factor: usize, x: &[f64]) -> Vec<f64> {
        let mut y = Vec::new();
        for sample in 0..n {
            for row in 0..h * factor {
                for column in 0..w * factor {
                    for channel in 0..c {
                        y.push(x[((sample * h + row / factor) * w + column / factor) * c + channel]);
                    }
                }
            }
        }
        y
    }

    /// `h` and `w` are those of the result.
    fn reference_pool([n, h, w, c]: [usize; 4], factor: usize, x: &[f64]) -> Vec<f64> {
        let mut y = vec![0.0; n * h * w * c];
        for sample in 0..n {
            for row in 0..h * factor {
                for column in 0..w * factor {
                    for channel in 0..c {
                        let from = ((sample * h * factor + row) * w * factor + column) * c + channel;
                        let to = ((sample * h + row / factor) * w + column / factor) * c + channel;
                        y[to] += x[from] / (factor * factor) as f64;
                    }
                }
            }
        }
        y
    }

    /// The small image and the factor.
    const CASES: [([usize; 4], usize); 6] = [
        ([1, 1, 1, 1], 1),
        ([2, 3, 5, 7], 2),
        ([3, 5, 2, 4], 3),
        ([2, 1, 7, 33], 5),
        ([1, 4, 4, 16], 4),
        ([2, 1, 1, 257], 2),
    ];

    #[test]
    fn upsampling() {
        for (small, factor) in CASES {
            Check::new(format!("upsample_nearest by {factor}"))
                .input(&small)
                .run(|x| upsample_nearest(&x[0], factor), |x| reference_upsample(small, factor, &x[0]));
        }
    }

    #[test]
    fn pooling() {
        for (small, factor) in CASES {
            let [n, h, w, c] = small;
            Check::new(format!("average_pool by {factor}"))
                .input(&[n, h * factor, w * factor, c])
                .run(|x| average_pool(&x[0], factor), |x| reference_pool(small, factor, &x[0]));
        }
    }

    #[test]
    fn past_65535_workgroups() {
        // The large image of 16.8 million elements: more workgroups of 256 than one dimension holds.
        let small = [1, 1025, 1024, 1];
        Check::new("upsample_nearest")
            .probes(2)
            .input(&small)
            .run(|x| upsample_nearest(&x[0], 4), |x| reference_upsample(small, 4, &x[0]));
    }

    #[test]
    #[should_panic(expected = "average_pool: factor 2 does not divide height and width of x [1, 4, 3, 2]")]
    fn factor_must_divide() {
        average_pool(&crate::tape::Tape::new().variable("x", 0, [1, 4, 3, 2]), 2);
    }
}
