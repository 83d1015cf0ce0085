//! Group norm forward: statistics and result, or the result again from statistics that were kept.

use rayon::prelude::*;

use super::loops::{ChannelAffine, Sample, column_moments, samples};
use super::norm::{Input, Norm};
use crate::launch::{Dispatch, Dispatches, Io, Launch, LaunchInfo, Recompute, Recorded, launch_of};
use crate::ops::activation::{Activation, with_constant};
use crate::simd::vectorized;

/// y of a sample whose statistics are known.
fn normalise(norm: Norm, x: Sample, statistics: &[f32], gamma: &[f32], beta: &[f32], y: &mut [f32]) {
    y.par_chunks_mut(norm.cpu_rows() * norm.c).enumerate().for_each(|(chunk, y)| {
        for input in norm.inputs() {
            let rows = x.chunk(input, chunk);
            vectorized(
                #[inline(always)]
                || {
                    let affine = ChannelAffine::new(x, input, statistics, gamma, beta);
                    with_constant!(norm.activation, f => affine.normalise(f, rows, y))
                },
            );
        }
    });
}

/// A dispatch of `entry` that writes y from the elements of an input.
fn write_y<'a>(norm: Norm, plan: &'a mut Dispatches, entry: &'static str, input: Input) -> &'a mut Dispatch {
    let after = norm.inputs().len();
    norm.add(plan, entry, input, false)
        .read("x", input.index)
        .read("gamma", after)
        .read("beta", after + 1)
        .write("y", 0)
}

/// Reads the inputs, gamma and beta; writes y and the statistics.
pub(super) fn forward(norm: Norm) -> Recorded {
    let (c, after) = (norm.c, norm.inputs().len());
    let cpu = move |io: &Io| {
        let (gamma, beta) = (io.read(after), io.read(after + 1));
        // Sample by sample, so that the second pass over a sample finds it in the cache.
        samples(norm, io)
            .zip(io.write(0).par_chunks_mut(norm.p * c))
            .zip(io.write(1).par_chunks_mut(2 * c))
            .zip(io.scratch(0).par_chunks_mut(2 * c * norm.cpu_chunks()))
            .for_each(|(((x, y), statistics), moments)| {
                moments.par_chunks_mut(2 * c).enumerate().for_each(|(chunk, moments)| {
                    let (mean, squares) = moments.split_at_mut(c);
                    for input in norm.inputs() {
                        let (rows, firsts, of) = (x.chunk(input, chunk), x.firsts(input), input.channels());
                        let (mean, squares) = (&mut mean[of.clone()], &mut squares[of]);
                        vectorized(
                            #[inline(always)]
                            || column_moments(rows, firsts, mean, squares),
                        );
                    }
                });
                x.merge_moments(moments, statistics);
                normalise(norm, x, statistics, gamma, beta, y);
            });
    };
    let gpu = move |plan: &mut Dispatches| {
        if norm.is_one_tile() {
            for input in norm.inputs() {
                write_y(norm, plan, "whole", input).write("statistics_out", 1);
            }
            return;
        }
        for input in norm.inputs() {
            let moments = norm.add(plan, "chunk_moments", input, false);
            moments.read("x", input.index).scratch("moments", 0).write("statistics_out", 1);
        }
        let merge = norm.add(plan, "merge_moments", norm.all(), false).cover(norm.n * norm.groups, 1);
        merge.scratch("moments", 0).write("statistics_out", 1);
        for input in norm.inputs() {
            write_y(norm, plan, "normalise", input).write("statistics", 1);
        }
    };
    let info = LaunchInfo {
        cpu_scratch: vec![norm.n * norm.cpu_chunks() * 2 * c],
        gpu_scratch: vec![norm.n * norm.gpu_chunks() * 2 * c],
        recompute: Recompute::With(apply(norm).into()),
        ..LaunchInfo::default()
    };
    Recorded::new(launch_of("group_norm", cpu, gpu), info)
}

/// Writes the same y from the reads of [`forward`] and its statistics: one pass over x instead of three.
fn apply(norm: Norm) -> impl Launch {
    let after = norm.inputs().len();
    launch_of(
        "group_norm again",
        move |io| {
            let [gamma, beta, statistics] = [0, 1, 2].map(|i| io.read(after + i));
            samples(norm, io)
                .zip(io.write(0).par_chunks_mut(norm.p * norm.c))
                .zip(statistics.par_chunks(2 * norm.c))
                .for_each(|((x, y), statistics)| normalise(norm, x, statistics, gamma, beta, y));
        },
        move |plan| {
            for input in norm.inputs() {
                write_y(norm, plan, "normalise", input).read("statistics", after + 2);
            }
        },
    )
}
