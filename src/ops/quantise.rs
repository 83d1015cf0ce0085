//! Vectors rounded to the nearest of a codebook, and how evenly its codes are used.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatch, Dispatches, LaunchInfo, Recorded, launch_of};
use crate::ops::shared::derivative;
use crate::simd::vectorized;
use crate::tape::Tensor;

pub(crate) static KERNEL: Kernel = kernel!("quantise");

/// The number of the nearest code of each vector, by Euclidean distance; of several as near, the first: `z
/// [M, C]` and `codes [K, C]` give `[M]`, whole numbers as `f32`, as
/// [`embedding`](crate::ops::embedding::embedding) takes them. It has no derivative. A vector that holds NaN
/// has code 0.
#[track_caller]
pub fn nearest(z: &Tensor, codes: &Tensor) -> Tensor {
    let ([vectors, width], [count, of]) = (z.shape().of_rank("nearest"), codes.shape().of_rank("nearest"));
    assert!(
        width == of && z.elements() > 0 && (1..=MOST_CODES).contains(&count),
        "nearest: vectors {} and codes {}",
        z.shape(),
        codes.shape()
    );
    let size = Size { vectors, codes: count, width };
    let launch = launch_of(
        "nearest",
        move |io| {
            let (z, codes, by_channel) = (io.read(0), io.read(1), io.scratch(0));
            // Blocks of codes, channel by channel, so that the distances of a block are one vector.
            for (k, code) in codes.chunks_exact(width).enumerate() {
                for (c, &value) in code.iter().enumerate() {
                    by_channel[(k / LANES * width + c) * LANES + k % LANES] = value;
                }
            }
            let (blocks, rows) = (&*by_channel, ROWS * width);
            io.write(0).par_chunks_mut(ROWS).zip(z.par_chunks(rows)).for_each(|(index, z)| {
                vectorized(
                    #[inline(always)]
                    || {
                        for (index, z) in index.iter_mut().zip(z.chunks_exact(width)) {
                            *index = nearest_of(z, blocks, count) as f32;
                        }
                    },
                );
            });
        },
        move |plan| {
            let nearest = size.dispatch(plan, "nearest");
            nearest.read("z", 0).read("codes", 1).write("nearest_index", 0).cover(vectors, 64);
        },
    );
    let scratch = vec![count.next_multiple_of(LANES) * width];
    let info = LaunchInfo { cpu_scratch: scratch, ..LaunchInfo::default() };
    let [index] = z.tape().launch(Recorded::new(launch, info), &[z, codes], [[vectors].into()]);
    index
}

/// Most codes whose numbers an `f32` holds.
const MOST_CODES: usize = 1 << 24;
/// Codes whose distances the CPU twin computes at once.
const LANES: usize = 32;
/// Vectors of one task of the CPU twin.
const ROWS: usize = 64;

/// `blocks`: `count` codes, channel by channel in blocks of [`LANES`]; the last one's rest is undefined.
#[inline(always)]
fn nearest_of(z: &[f32], blocks: &[f32], count: usize) -> usize {
    let (mut best, mut least) = (0, f32::MAX);
    for (block, codes) in blocks.chunks_exact(LANES * z.len()).enumerate() {
        let mut distances = [0.0_f32; LANES];
        for (z, codes) in z.iter().zip(codes.chunks_exact(LANES)) {
            for (distance, code) in distances.iter_mut().zip(codes) {
                *distance += (z - code) * (z - code);
            }
        }
        let first = block * LANES;
        for (k, &distance) in distances.iter().enumerate().take(count - first) {
            if distance < least {
                (best, least) = (first + k, distance);
            }
        }
    }
    best
}

/// The values of `e`, whose gradient goes to `z` as it is and not to `e`: the straight-through estimator
/// (Bengio et al. 2013, arXiv:1308.3432). Both have one shape, the result's.
#[track_caller]
pub fn straight_through(z: &Tensor, e: &Tensor) -> Tensor {
    assert!(z.shape() == e.shape(), "straight_through: z {} and e {}", z.shape(), e.shape());
    let size = Size { vectors: e.elements(), codes: 0, width: 1 };
    let launch = launch_of(
        "straight_through",
        #[inline(always)]
        |io| io.write(0).copy_from_slice(io.read(0)),
        move |plan| {
            let copy = size.dispatch(plan, "straight_through");
            copy.read("e", 0).write("y", 0).cover(size.vectors, 64);
        },
    );
    let [y] = e.tape().launch(launch, &[e, z], [e.shape().clone()]);
    derivative(&[z], &y, |dy| vec![dy.clone()]);
    y
}

/// How many of `index [M]`, as [`nearest`] gives them, are each of `codes` codes: `[codes]`. It has no
/// derivative.
#[track_caller]
pub fn usage(index: &Tensor, codes: usize) -> Tensor {
    let [vectors] = index.shape().of_rank("usage");
    let size = Size { vectors, codes, width: 1 };
    let launch = launch_of(
        "usage",
        move |io| {
            let counts = io.write(0);
            counts.fill(0.0);
            io.read(0).iter().for_each(|&index| counts[(index as usize).min(codes - 1)] += 1.0);
        },
        move |plan| {
            size.dispatch(plan, "usage").read("index", 0).write("new_counts", 0).cover(codes, 64);
        },
    );
    let [counts] = index.tape().launch(launch, &[index], [[codes].into()]);
    counts
}

/// `exp` of the entropy of the codes' use, `[1]`, from the `counts [K]` of `vectors` vectors that
/// [`usage`] gives: K where all are used alike, 1 where one is. It has no derivative.
#[track_caller]
pub fn perplexity(counts: &Tensor, vectors: usize) -> Tensor {
    let [codes] = counts.shape().of_rank("perplexity");
    let size = Size { vectors, codes, width: 1 };
    let launch = launch_of(
        "perplexity",
        move |io| io.write(0)[0] = perplexity_of(io.read(0).iter().map(|&n| f64::from(n))) as f32,
        move |plan| {
            size.dispatch(plan, "perplexity").read("counts", 0).write("y", 0);
        },
    );
    let [y] = counts.tape().launch(launch, &[counts], [[1].into()]);
    y
}

/// As [`perplexity`], of counts on the host; 1 where nothing was counted.
pub fn perplexity_of(counts: impl Iterator<Item = f64> + Clone) -> f64 {
    let all: f64 = counts.clone().sum();
    let part = |n: f64| if n > 0.0 { -(n / all) * (n / all).ln() } else { 0.0 };
    counts.map(part).sum::<f64>().exp()
}

#[derive(Clone, Copy)]
struct Size {
    vectors: usize,
    codes: usize,
    width: usize,
}

impl Size {
    fn dispatch<'a>(self, plan: &'a mut Dispatches, entry: &'static str) -> &'a mut Dispatch {
        let Size { vectors, codes, width } = self;
        plan.add(&KERNEL, entry).params([("vectors", vectors), ("codes", codes), ("width", width)])
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::{Check, random};
    use crate::ops::arithmetic::affine;

    fn reference(z: &[f64], codes: &[f64], width: usize) -> Vec<f64> {
        let distance = |a: &[f64], b: &[f64]| a.iter().zip(b).map(|(a, b)| (a - b).powi(2)).sum::<f64>();
        let of = |z: &[f64]| {
            let all = codes.chunks_exact(width).map(|code| distance(code, z)).enumerate();
            all.min_by(|a, b| a.1.total_cmp(&b.1)).unwrap().0 as f64
        };
        z.chunks_exact(width).map(of).collect()
    }

    /// Vectors near codes that lie on a lattice, so that rounding decides nothing.
    #[test]
    fn nearest_codes_are_those_of_plain_loops() {
        for (vectors, count, width) in [(1, 1, 1), (7, 31, 1), (65, 33, 3), (300, 64, 5), (130, 257, 2)] {
            let on_lattice = |k: usize, c: usize| ((k >> (3 * c)) % 8 + 2 * c) as f32;
            let codes = (0..count * width).map(|i| on_lattice(i / width, i % width)).collect();
            let noise = random(1, vectors * width);
            let z = |i: usize| on_lattice(i / width * 7919 % count, i % width) + 0.4 * noise[i];
            Check::new("nearest")
                .tolerance(0.0)
                .fixed(&[vectors, width], (0..vectors * width).map(z).collect())
                .fixed(&[count, width], codes)
                .run(|x| nearest(&x[0], &x[1]), |x| reference(&x[0], &x[1], width));
        }
    }

    /// Golden values computed in numpy, f64; two vectors more, each as far from two codes.
    #[test]
    fn golden_codes_ties_and_perplexity() {
        let codes = vec![1.0, 0.0, 0.0, 1.0, -1.0, -1.0, 3.0, 3.0];
        let z = vec![0.9, 0.2, 0.2, 0.7, -0.6, -0.9, 0.6, 0.3, 0.1, 0.9, 0.5, 0.5, 0.0, 0.0];
        let check = Check::new("nearest, ties").tolerance(0.0);
        let check = check.fixed(&[7, 2], z.clone()).fixed(&[4, 2], codes.clone());
        check.run(|x| nearest(&x[0], &x[1]), |_| vec![0.0, 1.0, 2.0, 0.0, 1.0, 0.0, 0.0]);
        let check = Check::new("perplexity").fixed(&[5, 2], z[..10].to_vec()).fixed(&[4, 2], codes);
        check.run(|x| perplexity(&usage(&nearest(&x[0], &x[1]), 4), 5), |_| vec![2.871_745_887_49]);
    }

    #[test]
    fn every_vector_is_counted() {
        let index: Vec<f32> = (0..700).map(|m| (m * m % 131) as f32).collect();
        Check::new("usage").tolerance(0.0).fixed(&[700], index).run(
            |x| usage(&x[0], 131),
            |x| (0..131).map(|k| x[0].iter().filter(|&&i| i == f64::from(k)).count() as f64).collect(),
        );
    }

    /// To z as it is: the reference has the values of e and the slope of z.
    #[test]
    fn the_gradient_goes_straight_through() {
        let (e, at) = (random(9, 77), random(0, 77));
        Check::new("straight_through").input(&[7, 11]).fixed(&[7, 11], e).run(
            |x| affine(&straight_through(&x[0], &x[1]), 2.0, 0.0),
            |x| {
                let values = x[0].iter().zip(&x[1]).zip(&at);
                values.map(|((z, e), at)| 2.0 * (e + (z - f64::from(*at)))).collect()
            },
        );
    }

    #[test]
    #[should_panic(expected = "nearest: vectors [3, 2] and codes [4, 3]")]
    fn codes_are_as_wide_as_vectors() {
        let tape = crate::tape::Tape::new();
        nearest(&tape.stored("z", 0, [3, 2]), &tape.stored("codes", 0, [4, 3]));
    }
}
