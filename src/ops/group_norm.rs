//! Group normalisation with a scale and shift per channel and an activation (Wu & He 2018), of one tensor or of
//! two side by side.

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatch, Dispatches, Io, Launch, LaunchInfo, Recompute, Recorded};
use crate::ops::activation::{Activation, with_constant};
use crate::simd::vectorized;
use crate::tape::Tensor;
use crate::tensor::Shape;

mod apply;
mod backward;
mod loops;
mod size;
#[cfg(test)]
mod tests;

use backward::{BackwardParameters, BackwardX};
use loops::{Line, Sample, Source, column_moments, merge_moments, normalise};
use size::{How, Part, Size, TILES};

pub static KERNEL: Kernel = kernel!("group_norm");

/// In tiles; how many rows a thread holds.
pub static TILE: Kernel = kernel!("group_norm_tile", [[("HELD", "2u")], [("HELD", "8u")]]);

/// `y = f(gamma[c] * (x - mean) / sqrt(var + eps) + beta[c])`, where mean and (biased) variance are those
/// of a sample's group of `C / groups` neighbouring channels. `x [N, .., C]`, `gamma`, `beta [C]`, `y` as
/// `x`.
///
/// Of the forward pass only the statistics `[N, 3, groups]` are kept, a mean (as an element and the distance
/// from it) and a reciprocal deviation for each group; the backward pass reads `x` again.
#[track_caller]
pub fn group_norm(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    groups: usize,
    eps: f32,
    activation: Activation,
) -> Tensor {
    group_norm_of(&[x], gamma, beta, groups, eps, activation)
}

/// [`group_norm`] of one tensor, or of two, `[N, .., C1]` and `[N, .., C2]`, as if they stood side by side
/// along the channels: nobody writes `[N, .., C1 + C2]` but the result. A group may have channels of both.
#[track_caller]
pub fn group_norm_of(
    parts: &[&Tensor],
    gamma: &Tensor,
    beta: &Tensor,
    groups: usize,
    eps: f32,
    activation: Activation,
) -> Tensor {
    let shapes = || parts.iter().map(|x| x.shape().to_string()).collect::<Vec<_>>().join(" beside ");
    let outer = |x: &Tensor| x.dims().split_last().map(|(_, outer)| outer.to_vec());
    let fit = matches!(parts.len(), 1 | 2) && parts.iter().all(|x| x.elements() > 0 && x.dims().len() >= 2);
    assert!(fit && outer(parts[0]) == outer(parts[parts.len() - 1]), "group_norm: x {}", shapes());
    let c: usize = parts.iter().map(|x| x.shape().last()).sum();
    assert!(
        gamma.dims() == [c] && beta.dims() == [c],
        "group_norm: x {} wants gamma and beta [{c}], got {} and {}",
        shapes(),
        gamma.shape(),
        beta.shape()
    );
    assert!(
        groups > 0 && c.is_multiple_of(groups),
        "group_norm: {groups} groups do not divide the channels of x {}",
        shapes()
    );
    let dims = parts[0].dims();
    let (n, p) = (dims[0], dims[1..dims.len() - 1].iter().product());
    let size = Size { n, p, c, groups, left: parts[0].shape().last() };
    let (tape, kind) = (gamma.tape(), activation);
    let mut whole = dims.to_vec();
    *whole.last_mut().expect("at least two dimensions") = c;
    let inputs: Vec<&Tensor> = parts.iter().copied().chain([gamma, beta]).collect();
    let shapes = [Shape::from(whole.as_slice()), [n, 3, groups].into()];
    let [y, statistics] = tape.launch(Forward { size, eps, kind }.recorded(), &inputs, shapes);
    let (parts_, gamma_, beta_) =
        (parts.iter().map(|&x| x.clone()).collect::<Vec<_>>(), gamma.clone(), beta.clone());
    tape.derivative(&inputs, &[&y], move |dy| {
        let Some(dy) = &dy[0] else { return vec![None; parts_.len() + 2] };
        let tape = dy.tape();
        let reads: Vec<&Tensor> = parts_.iter().chain([dy, &gamma_, &beta_, &statistics]).collect();
        let launch = BackwardX { size, kind, accum: [None; 2] };
        let sums = Shape::from([size.n, 2, size.c]);
        let shape = |part: usize| parts_[part].shape().clone();
        let (sums, mut gradients) = if parts_.len() == 1 {
            let [sums, dx] = tape.launch(launch.recorded(), &reads, [sums, shape(0)]);
            (sums, vec![Some(dx)])
        } else {
            let [sums, left, right] = tape.launch(launch.recorded(), &reads, [sums, shape(0), shape(1)]);
            (sums, vec![Some(left), Some(right)])
        };
        let shapes = [gamma_.shape().clone(), beta_.shape().clone()];
        let [dgamma, dbeta] = tape.launch(BackwardParameters { size }, &[&sums], shapes);
        gradients.extend([Some(dgamma), Some(dbeta)]);
        gradients
    });
    y
}

/// The second pass over a sample, once its statistics are known.
fn normalise_sample(size: Size, activation: Activation, x: Sample, line: Line, y: &mut [f32]) {
    y.par_chunks_mut(size.rows() * size.c).enumerate().for_each(|(chunk, y)| {
        for (part, x) in x.chunk(chunk) {
            vectorized(
                #[inline(always)]
                || with_constant!(activation, kind => normalise(kind, x, part, line, y)),
            );
        }
    });
}

#[derive(Debug)]
struct Forward {
    size: Size,
    eps: f32,
    kind: Activation,
}

impl Forward {
    fn how(&self) -> How {
        How { eps: self.eps, ..How::of(self.kind) }
    }

    fn add<'a>(&self, plan: &'a mut Dispatches, entry: &'static str, part: Part) -> &'a mut Dispatch {
        let rows = self.size.gpu_rows()[plan.variant()];
        self.size.add(plan, entry, part, rows, self.how())
    }

    /// In tiles: in one launch where they hold whole samples.
    fn gpu_tiles(&self, plan: &mut Dispatches) {
        let (size, how) = (self.size, self.how());
        let after = size.parts().count();
        if !size.fits_tile() {
            for part in size.parts() {
                let moments = size.add_tiles(plan, "chunk_moments", part, how);
                moments.read("x", part.index).scratch("moments", 0).write("statistics_out", 1);
            }
            self.add(plan, "merge_moments", size.all())
                .scratch("moments", 0)
                .write("statistics_out", 1)
                .cover(size.n * size.groups, 256);
        }
        for part in size.parts() {
            let (entry, statistics) =
                if size.fits_tile() { ("whole", "statistics_out") } else { ("normalise", "statistics") };
            size.add_tiles(plan, entry, part, how)
                .read("x", part.index)
                .read("gamma", after)
                .read("beta", after + 1)
                .write(statistics, 1)
                .write("y", 0);
        }
    }
}

impl Launch for Forward {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn cpu(&self, io: &Io) {
        let size = self.size;
        let Size { c, groups, .. } = size;
        let (x, after) = (Source::new(size, io), size.parts().count());
        let (gamma, beta) = (io.read(after), io.read(after + 1));
        // Sample by sample, so that the second pass over a sample finds it in the cache.
        io.write(0)
            .par_chunks_mut(size.sample())
            .zip(io.write(1).par_chunks_mut(3 * groups))
            .zip(io.scratch(0).par_chunks_mut(3 * c * size.chunks()))
            .zip(io.scratch(1).par_chunks_mut(3 * c))
            .enumerate()
            .for_each(|(n, (((y, statistics), moments), line))| {
                let x = x.sample(n);
                moments.par_chunks_mut(3 * c).enumerate().for_each(|(chunk, moments)| {
                    let (mean, rest) = moments.split_at_mut(c);
                    let (squares, rest) = rest.split_at_mut(c);
                    for (part, x) in x.chunk(chunk) {
                        let of = part.channels();
                        let (mean, squares) = (&mut mean[of.clone()], &mut squares[of.clone()]);
                        let rest = &mut rest[of];
                        vectorized(
                            #[inline(always)]
                            || column_moments(x, mean, squares, rest),
                        );
                    }
                });
                merge_moments(size, self.eps, x, moments, statistics);
                let line = Line::new(size, statistics, gamma, beta, line);
                normalise_sample(size, self.kind, x, line, y);
            });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        if plan.variant() == TILES {
            return self.gpu_tiles(plan);
        }
        let size = self.size;
        let chunks = size.p.div_ceil(size.gpu_rows()[plan.variant()]);
        let after = size.parts().count();
        for part in size.parts() {
            self.add(plan, "chunk_moments", part)
                .read("x", part.index)
                .read("head", 0)
                .scratch("moments", 0)
                .write("statistics_out", 1)
                .cover(size.n * size.groups_of(part) * chunks, 1);
        }
        self.add(plan, "merge_moments", size.all())
            .scratch("moments", 0)
            .write("statistics_out", 1)
            .cover(size.n * size.groups, 256);
        for part in size.parts() {
            self.add(plan, "normalise", part)
                .read("x", part.index)
                .read("gamma", after)
                .read("beta", after + 1)
                .write("statistics", 1)
                .write("y", 0)
                .cover(size.blocks(part), 1);
        }
    }
}

impl Forward {
    fn recorded(self) -> Recorded {
        let Forward { size, kind, .. } = self;
        let info = LaunchInfo {
            cpu_scratch: vec![size.n * size.chunks() * 3 * size.c, size.n * 3 * size.c],
            gpu_scratch: vec![
                2 * size.parts().count() * size.n * size.groups * size.most_chunks(size.gpu_rows()),
            ],
            recompute: Recompute::With(apply::Apply { size, kind }.recorded()),
            tuning: size.tuning(size.gpu_rows(), kind),
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}
