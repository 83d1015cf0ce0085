//! The gradients of a group norm: of x, and from the sums that this needs, of the parameters.

use rayon::prelude::*;

use super::loops::{ChannelAffine, group_means, samples};
use super::norm::{Input, Norm, TILE_CHANNELS};
use crate::launch::{Accumulate, Dispatch, Dispatches, Io, Launch, LaunchInfo, Recorded, launch_of};
use crate::ops::activation::{Activation, with_constant};
use crate::shared::Shared;
use crate::simd::vectorized;

/// A dispatch of `entry` on an input, which reads all but `accum`.
fn per_tile<'a>(
    norm: Norm,
    plan: &'a mut Dispatches,
    entry: &'static str,
    input: Input,
    accumulate: bool,
) -> &'a mut Dispatch {
    let after = norm.inputs().len();
    norm.add(plan, entry, input, accumulate)
        .read("x", input.index)
        .read("dy", after)
        .read("gamma", after + 1)
        .read("beta", after + 2)
        .read("statistics", after + 3)
}

/// Reads the inputs, dy, gamma, beta and the statistics; writes the sums of each sample, and the gradient of
/// each input. `accum`: the reads that are added to the inputs' gradients.
pub(super) fn backward_x(norm: Norm, accum: [Option<usize>; 2]) -> Recorded {
    let Norm { n, p, c, groups, .. } = norm;
    let after = norm.inputs().len();
    let cpu = move |io: &Io| {
        let [dy, gamma, beta, statistics] = [0, 1, 2, 3].map(|i| io.read(after + i));
        let accum = accum.map(|read| read.map(|read| io.read(read)));
        let dx = [0, 1].map(|i| (i < after).then(|| Shared::new(io.write(1 + i))));
        let rows = norm.cpu_rows();
        samples(norm, io)
            .zip(dy.par_chunks(p * c))
            .zip(statistics.par_chunks(2 * c))
            .zip(io.write(0).par_chunks_mut(2 * c))
            .zip(io.scratch(0).par_chunks_mut(2 * c * norm.cpu_chunks()))
            .zip(io.scratch(1).par_chunks_mut(2 * c))
            .enumerate()
            .for_each(|(n, (((((x, dy), statistics), sums), partials), means))| {
                let chunks = partials.par_chunks_mut(2 * c).zip(dy.par_chunks(rows * c)).enumerate();
                chunks.for_each(|(chunk, (sums, dy))| {
                    let (s0, s1) = sums.split_at_mut(c);
                    for input in norm.inputs() {
                        let rows = x.chunk(input, chunk);
                        vectorized(
                            #[inline(always)]
                            || {
                                let affine = ChannelAffine::new(x, input, statistics, gamma, beta);
                                with_constant!(norm.activation, f => affine.column_sums(f, rows, dy, s0, s1))
                            },
                        );
                    }
                });
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = partials.iter().skip(i).step_by(2 * c).map(|&s| f64::from(s)).sum::<f64>() as f32;
                }
                group_means(norm, gamma, sums, means);
                let means = &*means;
                for input in norm.inputs() {
                    let Some(dx) = &dx[input.index] else { unreachable!("input {}", input.index) };
                    // SAFETY: every task has a sample of its own.
                    let dx = unsafe { dx.part(n * p * input.width, p * input.width) };
                    let chunks = dx.par_chunks_mut(rows * input.width).zip(dy.par_chunks(rows * c));
                    chunks.enumerate().for_each(|(chunk, (dx, dy))| {
                        let first = (n * p + chunk * rows) * input.width;
                        let accum = accum[input.index].map(|accum| &accum[first..][..dx.len()]);
                        let rows = x.chunk(input, chunk);
                        vectorized(
                            #[inline(always)]
                            || {
                                let affine = ChannelAffine::new(x, input, statistics, gamma, beta);
                                with_constant!(norm.activation, f => affine.gradient(f, rows, dy, means, accum, dx))
                            },
                        );
                    });
                }
            });
    };
    let gpu = move |plan: &mut Dispatches| {
        let entry = if norm.is_one_tile() { "backward_whole" } else { "backward_x" };
        if !norm.is_one_tile() {
            for input in norm.inputs() {
                per_tile(norm, plan, "backward_partials", input, false).scratch("partials", 0);
            }
            norm.add(plan, "backward_merge", norm.all(), false)
                .cover(n * groups, 1)
                .read("gamma", after + 1)
                .scratch("partials", 0)
                .write("sums_out", 0)
                .scratch("means", 1);
        }
        for input in norm.inputs() {
            let accum = accum[input.index];
            let dx = per_tile(norm, plan, entry, input, accum.is_some());
            dx.read("accum", accum.unwrap_or(input.index)).write("dx", 1 + input.index);
            if norm.is_one_tile() {
                dx.write("sums_out", 0)
            } else {
                dx.scratch("means", 1)
            };
        }
    };
    let info = LaunchInfo {
        cpu_scratch: vec![n * norm.cpu_chunks() * 2 * c, n * 2 * c],
        gpu_scratch: vec![n * norm.gpu_chunks() * 2 * c, n * groups * 2],
        accumulate: Accumulate::by(move |write| {
            let input = write.checked_sub(1)?; // the sums come first
            let mut more = accum;
            let next = after + 4 + accum.iter().flatten().count();
            more[input].replace(next).is_none().then(|| backward_x(norm, more))
        }),
        ..LaunchInfo::default()
    };
    Recorded::new(launch_of("group_norm backward_x", cpu, gpu), info)
}

/// Reads the sums of each sample; writes dgamma and dbeta.
pub(super) fn backward_parameters(norm: Norm) -> impl Launch {
    let c = norm.c;
    launch_of(
        "group_norm backward_parameters",
        move |io| {
            let sums = io.read(0);
            let total = |first: usize| {
                sums.iter().skip(first).step_by(2 * c).map(|&s| f64::from(s)).sum::<f64>() as f32
            };
            for (i, (dgamma, dbeta)) in io.write(0).iter_mut().zip(io.write(1)).enumerate() {
                *dbeta = total(i);
                *dgamma = total(c + i);
            }
        },
        move |plan| {
            let parameters = norm.add(plan, "backward_parameters", norm.all(), false).read("sums", 0);
            parameters.write("dgamma", 0).write("dbeta", 1).cover(c.div_ceil(TILE_CHANNELS), 1);
        },
    )
}
