//! Group normalisation with a scale and shift per channel and an activation (Wu & He 2018).

use std::sync::Arc;

use rayon::prelude::*;

use crate::device::gpu::adapters::Traits;
use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Again, Cut, Dispatch, Dispatches, Io, Launch, Variant};
use crate::ops::activation::{Activation, with_constant};
use crate::simd::vectorized;
use crate::tape::Tensor;
use crate::tensor::Shape;

mod apply;
mod loops;
#[cfg(test)]
mod tests;

use loops::{Line, column_moments, column_sums, gradient, group_means, merge_moments, normalise};

pub static KERNEL: Kernel = kernel!("group_norm");

/// `y = f(gamma[c] * (x - mean) / sqrt(var + eps) + beta[c])`, where mean and (biased) variance are those
/// of a sample's group of `C / groups` neighbouring channels. `x [N, .., C]`, `gamma`, `beta [C]`, `y` as
/// `x`.
///
/// Of the forward pass only the mean and the reciprocal deviation `[N, groups]` are kept; the backward pass
/// reads `x` again.
#[track_caller]
pub fn group_norm(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    groups: usize,
    eps: f32,
    activation: Activation,
) -> Tensor {
    let (dims, c) = (x.dims(), x.shape().last());
    assert!(
        dims.len() >= 2 && x.elements() > 0 && gamma.dims() == [c] && beta.dims() == [c],
        "group_norm: x {} wants gamma and beta [{c}], got {} and {}",
        x.shape(),
        gamma.shape(),
        beta.shape()
    );
    assert!(
        groups > 0 && c.is_multiple_of(groups),
        "group_norm: {groups} groups do not divide the channels of x {}",
        x.shape()
    );
    let size = Size { n: dims[0], p: dims[1..dims.len() - 1].iter().product(), c, groups };
    let kind = activation;
    let statistics = || Shape::from([size.n, groups]);
    let shapes = [x.shape().clone(), statistics(), statistics()];
    let [y, offset, rstd] = x.tape().launch(Forward { size, eps, kind }, &[x, gamma, beta], shapes);
    let (x_, gamma_, beta_) = (x.clone(), gamma.clone(), beta.clone());
    x.tape().derivative(&[x, gamma, beta], &[&y], move |dy| {
        let Some(dy) = &dy[0] else { return vec![None, None, None] };
        let tape = x_.tape();
        let reads = [&x_, dy, &gamma_, &beta_, &offset, &rstd];
        let shapes = [x_.shape().clone(), [size.n, 2, size.c].into()];
        let [dx, sums] = tape.launch(BackwardX { size, kind }, &reads, shapes);
        let shapes = [gamma_.shape().clone(), beta_.shape().clone()];
        let [dgamma, dbeta] = tape.launch(BackwardParameters { size }, &[&sums], shapes);
        vec![Some(dx), Some(dgamma), Some(dbeta)]
    });
    y
}

/// Samples, pixels of a sample, channels, groups.
#[derive(Clone, Copy, Debug)]
struct Size {
    n: usize,
    p: usize,
    c: usize,
    groups: usize,
}

impl Size {
    /// Channels of a group.
    fn width(self) -> usize {
        self.c / self.groups
    }

    /// Elements of a sample.
    fn sample(self) -> usize {
        self.p * self.c
    }

    /// Pixels that one task of the CPU twin takes: some 32 KiB, so that a single sample is work for many
    /// cores, and at most 256, which bounds the rounding of the sums.
    fn rows(self) -> usize {
        (8192 / self.c).clamp(1, 256)
    }

    fn chunks(self) -> usize {
        self.p.div_ceil(self.rows())
    }

    /// Pixels that a workgroup takes for the moments of one group, by variant: at least 2048 elements, eight
    /// a thread; fewer, which fills a GPU with small batches; or more, which leaves less to put together.
    fn gpu_rows(self) -> [usize; 3] {
        [2048_usize, 512, 8192].map(|elements| self.at_most_64_chunks(elements.div_ceil(self.width())))
    }

    /// Pixels that a workgroup takes for the sums of the gradients, by variant.
    fn gpu_sum_rows(self) -> [usize; 3] {
        [64, 16, 256].map(|rows| self.at_most_64_chunks(rows))
    }

    /// A single thread puts the chunks together.
    fn at_most_64_chunks(self, rows: usize) -> usize {
        self.p.div_ceil(64).max(rows)
    }

    /// Those ways to cut a sample that differ.
    fn variants(self, rows: [usize; 3]) -> Vec<Variant> {
        let mut variants: Vec<Variant> = Vec::new();
        for (index, rows) in rows.into_iter().enumerate() {
            let name = format!("chunks of {} pixels", rows.min(self.p));
            if variants.iter().all(|other| other.name != name) {
                variants.push(Variant { name, index });
            }
        }
        variants
    }

    /// The most chunks of a sample that a variant makes.
    fn most_chunks(self, rows: [usize; 3]) -> usize {
        rows.into_iter().map(|rows| self.p.div_ceil(rows)).max().unwrap_or(1)
    }

    fn shape_class(self) -> String {
        let Size { n, p, c, groups } = self;
        format!("{p} pixels of {c} channels, {groups} groups, up to {} samples", n.next_power_of_two())
    }

    /// Workgroups of the elementwise entries, whose 256 threads take 4 rows of a channel each and do not cross samples.
    fn blocks(self) -> usize {
        self.n * (self.p.div_ceil(4) * self.c).div_ceil(256)
    }

    fn add<'a>(
        self,
        plan: &'a mut Dispatches,
        entry: &'static str,
        chunk_rows: usize,
        kind: Activation,
        eps: f32,
    ) -> &'a mut Dispatch {
        plan.add(&KERNEL, entry)
            .param("samples", self.n)
            .param("rows", self.p)
            .param("channels", self.c)
            .param("channel_groups", self.groups)
            .param("width", self.width())
            .param("chunk_rows", chunk_rows)
            .param("chunks", self.p.div_ceil(chunk_rows))
            .param("kind", kind as u32)
            .param("eps", eps)
    }
}

/// The second pass over a sample, once its statistics are known.
fn normalise_sample(size: Size, activation: Activation, x: &[f32], line: Line, y: &mut [f32]) {
    let chunk = size.rows() * size.c;
    y.par_chunks_mut(chunk).zip(x.par_chunks(chunk)).for_each(|(y, x)| {
        vectorized(
            #[inline(always)]
            || with_constant!(activation, kind => normalise(kind, x, line, y)),
        );
    });
}

#[derive(Debug)]
struct Forward {
    size: Size,
    eps: f32,
    kind: Activation,
}

impl Forward {
    fn add<'a>(&self, plan: &'a mut Dispatches, entry: &'static str) -> &'a mut Dispatch {
        let rows = self.size.gpu_rows()[plan.variant()];
        self.size.add(plan, entry, rows, self.kind, self.eps)
    }
}

impl Launch for Forward {
    fn name(&self) -> &'static str {
        "group_norm"
    }

    fn cpu(&self, io: &Io) {
        let Size { c, groups, .. } = self.size;
        let (gamma, beta) = (io.read(1), io.read(2));
        let (sample, chunk) = (self.size.sample(), self.size.rows() * c);
        // Sample by sample, so that the second pass over a sample finds it in the cache.
        io.write(0)
            .par_chunks_mut(sample)
            .zip(io.read(0).par_chunks(sample))
            .zip(io.write(1).par_chunks_mut(groups))
            .zip(io.write(2).par_chunks_mut(groups))
            .zip(io.scratch(0).par_chunks_mut(3 * c * self.size.chunks()))
            .zip(io.scratch(1).par_chunks_mut(3 * c))
            .for_each(|(((((y, x), offset), rstd), moments), line)| {
                moments.par_chunks_mut(3 * c).zip(x.par_chunks(chunk)).for_each(|(moments, x)| {
                    let (mean, rest) = moments.split_at_mut(c);
                    let (squares, rest) = rest.split_at_mut(c);
                    vectorized(
                        #[inline(always)]
                        || column_moments(x, mean, squares, rest),
                    );
                });
                merge_moments(self.size, self.eps, x, moments, offset, rstd);
                let line = Line::new(self.size, x, offset, rstd, gamma, beta, line);
                normalise_sample(self.size, self.kind, x, line, y);
            });
    }

    fn cpu_scratch(&self) -> Vec<usize> {
        vec![self.size.n * self.size.chunks() * 3 * self.size.c, self.size.n * 3 * self.size.c]
    }

    fn again(&self) -> Again {
        Again::By(Arc::new(apply::Apply { size: self.size, kind: self.kind }))
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let size = self.size;
        let chunks = size.p.div_ceil(size.gpu_rows()[plan.variant()]);
        self.add(plan, "chunk_moments")
            .read("x", 0)
            .scratch("moments", 0)
            .cover(size.n * size.groups * chunks, 1);
        self.add(plan, "merge_moments")
            .scratch("moments", 0)
            .write("offset_out", 1)
            .write("rstd_out", 2)
            .cover(size.n * size.groups, 256);
        self.add(plan, "normalise")
            .read("x", 0)
            .read("gamma", 1)
            .read("beta", 2)
            .write("offset", 1)
            .write("rstd", 2)
            .write("y", 0)
            .cover(size.blocks(), 1);
    }

    fn gpu_scratch(&self) -> Vec<usize> {
        vec![2 * self.size.n * self.size.groups * self.size.most_chunks(self.size.gpu_rows())]
    }

    fn cuts(&self) -> Vec<Cut> {
        let Forward { size, eps, kind } = *self;
        let part = move |_, n| Forward { size: Size { n, ..size }, eps, kind };
        vec![Cut::along(size.n, part).reads([0]).writes(0..3)]
    }

    fn variants(&self, _: &Traits) -> Vec<Variant> {
        self.size.variants(self.size.gpu_rows())
    }

    fn shape_class(&self) -> String {
        self.size.shape_class()
    }
}

#[derive(Debug)]
struct BackwardX {
    size: Size,
    kind: Activation,
}

impl BackwardX {
    fn add<'a>(&self, plan: &'a mut Dispatches, entry: &'static str) -> &'a mut Dispatch {
        let rows = self.size.gpu_sum_rows()[plan.variant()];
        self.size.add(plan, entry, rows, self.kind, 0.0)
    }
}

impl Launch for BackwardX {
    fn name(&self) -> &'static str {
        "group_norm backward_x"
    }

    fn cpu(&self, io: &Io) {
        let Size { c, groups, .. } = self.size;
        let (gamma, beta) = (io.read(2), io.read(3));
        let (sample, chunk) = (self.size.sample(), self.size.rows() * c);
        io.write(0)
            .par_chunks_mut(sample)
            .zip(io.read(0).par_chunks(sample))
            .zip(io.read(1).par_chunks(sample))
            .zip(io.read(4).par_chunks(groups))
            .zip(io.read(5).par_chunks(groups))
            .zip(io.write(1).par_chunks_mut(2 * c))
            .zip(io.scratch(0).par_chunks_mut(2 * c * self.size.chunks()))
            .zip(io.scratch(1).par_chunks_mut(5 * c))
            .for_each(|(((((((dx, x), dy), offset), rstd), sums), partial), line)| {
                let (line, means) = line.split_at_mut(3 * c);
                let line = Line::new(self.size, x, offset, rstd, gamma, beta, line);
                let chunks = || x.par_chunks(chunk).zip(dy.par_chunks(chunk));
                partial.par_chunks_mut(2 * c).zip(chunks()).for_each(|(sums, (x, dy))| {
                    let (s0, s1) = sums.split_at_mut(c);
                    vectorized(
                        #[inline(always)]
                        || with_constant!(self.kind, kind => column_sums(kind, x, dy, line, s0, s1)),
                    );
                });
                for (i, sum) in sums.iter_mut().enumerate() {
                    *sum = partial.iter().skip(i).step_by(2 * c).map(|&s| f64::from(s)).sum::<f64>() as f32;
                }
                let (m0, m1) = means.split_at_mut(c);
                group_means(self.size, gamma, sums, m0, m1);
                let (m0, m1) = (&*m0, &*m1);
                dx.par_chunks_mut(chunk).zip(chunks()).for_each(|(dx, (x, dy))| {
                    vectorized(
                        #[inline(always)]
                        || with_constant!(self.kind, kind => gradient(kind, x, dy, line, m0, m1, dx)),
                    );
                });
            });
    }

    fn cpu_scratch(&self) -> Vec<usize> {
        vec![self.size.n * self.size.chunks() * 2 * self.size.c, self.size.n * 5 * self.size.c]
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let size = self.size;
        let chunks = size.p.div_ceil(size.gpu_sum_rows()[plan.variant()]);
        self.add(plan, "backward_partial")
            .read("x", 0)
            .read("dy", 1)
            .read("gamma", 2)
            .read("beta", 3)
            .read("offset", 4)
            .read("rstd", 5)
            .scratch("partial", 0)
            .cover(size.n * chunks * size.c.div_ceil(32), 1);
        self.add(plan, "backward_sums")
            .scratch("partial", 0)
            .write("sums_out", 1)
            .cover(size.n * size.c, 256);
        self.add(plan, "backward_means")
            .read("gamma", 2)
            .write("sums", 1)
            .scratch("means", 1)
            .cover(size.n * size.groups, 256);
        self.add(plan, "backward_x")
            .read("x", 0)
            .read("dy", 1)
            .read("gamma", 2)
            .read("beta", 3)
            .read("offset", 4)
            .read("rstd", 5)
            .scratch("means", 1)
            .write("dx", 0)
            .cover(size.blocks(), 1);
    }

    fn gpu_scratch(&self) -> Vec<usize> {
        let chunks = self.size.most_chunks(self.size.gpu_sum_rows());
        vec![2 * self.size.n * chunks * self.size.c, 2 * self.size.n * self.size.groups]
    }

    fn cuts(&self) -> Vec<Cut> {
        let BackwardX { size, kind } = *self;
        let part = move |_, n| BackwardX { size: Size { n, ..size }, kind };
        vec![Cut::along(size.n, part).reads([0, 1, 4, 5]).writes([0, 1])]
    }

    fn variants(&self, _: &Traits) -> Vec<Variant> {
        self.size.variants(self.size.gpu_sum_rows())
    }

    fn shape_class(&self) -> String {
        self.size.shape_class()
    }
}

#[derive(Debug)]
struct BackwardParameters {
    size: Size,
}

impl Launch for BackwardParameters {
    fn name(&self) -> &'static str {
        "group_norm backward_parameters"
    }

    fn cpu(&self, io: &Io) {
        let (sums, c) = (io.read(0), self.size.c);
        let total =
            |first: usize| sums.iter().skip(first).step_by(2 * c).map(|&s| f64::from(s)).sum::<f64>() as f32;
        for (i, (dgamma, dbeta)) in io.write(0).iter_mut().zip(io.write(1)).enumerate() {
            *dbeta = total(i);
            *dgamma = total(c + i);
        }
    }

    fn gpu(&self, plan: &mut Dispatches) {
        self.size
            .add(plan, "backward_parameters", self.size.p, Activation::Identity, 0.0)
            .read("sums", 0)
            .write("dgamma", 0)
            .write("dbeta", 1)
            .cover(self.size.c.div_ceil(32), 1);
    }

    fn cuts(&self) -> Vec<Cut> {
        let size = self.size;
        let part = move |_, n| BackwardParameters { size: Size { n, ..size } };
        vec![Cut::along(size.n, part).reads([0]).sums([0, 1])]
    }
}
