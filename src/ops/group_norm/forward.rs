//! Group norm forward: statistics and result, or the result again from statistics that were kept.

use rayon::prelude::*;

use super::loops::{ChannelAffine, Sample, samples};
use super::norm::{Input, Norm};
use crate::launch::{Dispatch, Dispatches, Io, Launch, LaunchInfo, Recompute, Recorded};
use crate::ops::activation::{Activation, with_constant};
use crate::simd::vectorized;

/// Reads the inputs, gamma and beta; writes y and the statistics.
#[derive(Debug)]
pub(super) struct Forward {
    pub norm: Norm,
}

/// Writes the same y from the reads of [`Forward`] and its statistics: one pass over x instead of three.
#[derive(Debug)]
struct Apply {
    norm: Norm,
}

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

impl Forward {
    pub fn recorded(self) -> Recorded {
        let norm = self.norm;
        let info = LaunchInfo {
            cpu_scratch: vec![norm.n * norm.cpu_chunks() * 3 * norm.c],
            gpu_scratch: vec![norm.n * norm.gpu_chunks() * 2 * norm.c],
            recompute: Recompute::With(Apply { norm }.into()),
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}

impl Launch for Forward {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn cpu(&self, io: &Io) {
        let norm = self.norm;
        let (c, after) = (norm.c, norm.inputs().len());
        let (gamma, beta) = (io.read(after), io.read(after + 1));
        // Sample by sample, so that the second pass over a sample finds it in the cache.
        samples(norm, io)
            .zip(io.write(0).par_chunks_mut(norm.p * c))
            .zip(io.write(1).par_chunks_mut(2 * c))
            .zip(io.scratch(0).par_chunks_mut(3 * c * norm.cpu_chunks()))
            .for_each(|(((x, y), statistics), moments)| {
                moments.par_chunks_mut(3 * c).enumerate().for_each(|(chunk, moments)| {
                    for input in norm.inputs() {
                        vectorized(
                            #[inline(always)]
                            || x.column_moments(input, chunk, moments),
                        );
                    }
                });
                x.merge_moments(moments, statistics);
                normalise(norm, x, statistics, gamma, beta, y);
            });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let norm = self.norm;
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
    }
}

impl Launch for Apply {
    fn name(&self) -> &'static str {
        "group_norm again"
    }

    fn cpu(&self, io: &Io) {
        let (norm, after) = (self.norm, self.norm.inputs().len());
        let [gamma, beta, statistics] = [0, 1, 2].map(|i| io.read(after + i));
        samples(norm, io)
            .zip(io.write(0).par_chunks_mut(norm.p * norm.c))
            .zip(statistics.par_chunks(2 * norm.c))
            .for_each(|((x, y), statistics)| normalise(norm, x, statistics, gamma, beta, y));
    }

    fn gpu(&self, plan: &mut Dispatches) {
        for input in self.norm.inputs() {
            write_y(self.norm, plan, "normalise", input).read("statistics", self.norm.inputs().len() + 2);
        }
    }
}
