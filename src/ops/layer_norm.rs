//! Layer normalisation over the channels (Ba et al. 2016): alone, with a scale and shift per channel, or
//! modulated by each sample's own (adaptive layer norm, Peebles & Xie 2023).

mod loops;
#[cfg(test)]
mod tests;

use rayon::prelude::*;

use self::loops::{Gain, backward_row, forward_row};
use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Accumulate, Dispatch, Dispatches, Io, LaunchInfo, Recorded, Slot, launch_of};
use crate::simd::vectorized;
use crate::tape::Tensor;
use crate::tensor::Shape;

pub(crate) static KERNEL: Kernel = kernel!("layer_norm");

/// What becomes of a normalised row.
#[derive(Clone, Copy, Debug)]
pub enum Affine<'a> {
    /// `xhat`.
    None,
    /// `scale * xhat + shift`, both `[C]`.
    Channels {
        /// Its `weight`.
        scale: &'a Tensor,
        /// Its `bias`.
        shift: &'a Tensor,
    },
    /// `(1 + scale) * xhat + shift`, both `[N, C]`, for each sample its own.
    Samples {
        /// 0: no change.
        scale: &'a Tensor,
        /// 0: no change.
        shift: &'a Tensor,
    },
}

/// `xhat = (x - mean) / sqrt(var + eps)`, where mean and (biased) variance are those of the C channels at
/// one place of one sample, then scaled and shifted. `x [N, .., C]`, the result as `x`.
///
/// The backward pass reads `x` again, and statistics `[R, 2]` of its `R` rows that the forward pass kept: the
/// mean, as the offset from the row's first element, and the reciprocal deviation.
///
/// # Panics
/// When scale and shift do not fit, or `x` has no elements.
#[track_caller]
pub fn layer_norm(x: &Tensor, affine: Affine, eps: f32) -> Tensor {
    let (n, c) = (x.dims().first().copied().unwrap_or(0), x.shape().last());
    assert!(x.elements() > 0 && !x.dims().is_empty(), "layer_norm: x {}", x.shape());
    let rows = x.elements() / c;
    let (parameters, sets, more) = match affine {
        Affine::None => (vec![], 1, 0.0),
        Affine::Channels { scale, shift } => (vec![scale, shift], 1, 0.0),
        Affine::Samples { scale, shift } => (vec![scale, shift], n, 1.0),
    };
    let shape: Shape = if let Affine::Samples { .. } = affine { [n, c].into() } else { [c].into() };
    for parameter in &parameters {
        let fits = *parameter.shape() == shape;
        assert!(fits, "layer_norm: x {} wants scale and shift {shape}, got {}", x.shape(), parameter.shape());
    }
    let norm = Norm { rows, c, per: rows / sets, scaled: !parameters.is_empty(), more, eps };
    let reads: Vec<&Tensor> = std::iter::once(x).chain(parameters).collect();
    let [y, statistics] = x.tape().launch(norm.forward(), &reads, [x.shape().clone(), [rows, 2].into()]);
    let statistics = statistics.exact();
    let saved: Vec<Tensor> = reads.iter().map(|&read| read.clone()).collect();
    x.tape().derivative(&reads, &[&y], move |dy| {
        let Some(dy) = &dy[0] else { return vec![None; saved.len()] };
        let reads: Vec<&Tensor> = [&saved[0], dy, &statistics].into_iter().chain(saved.get(1)).collect();
        let dx = saved[0].shape().clone();
        let backward = norm.backward(false);
        if saved.len() == 1 {
            return dy.tape().launch(backward, &reads, [dx]).map(Some).into();
        }
        let [dx, dscale, dshift] = dy.tape().launch(backward, &reads, [dx, shape.clone(), shape]);
        [dx, dscale.exact(), dshift.exact()].map(Some).into()
    });
    y
}

/// Sizes and options of a layer norm.
#[derive(Clone, Copy, Debug)]
struct Norm {
    rows: usize,
    c: usize,
    /// Rows of a set, which share scale and shift.
    per: usize,
    /// There are scale and shift.
    scaled: bool,
    /// Added to the scale.
    more: f32,
    eps: f32,
}

/// Rows whose sums one workgroup of the kernel makes, where sets are not so large that it would be too many
/// sums.
const SLICE_ROWS: usize = 64;
const MOST_SLICES: usize = 1024;

impl Norm {
    fn sets(self) -> usize {
        self.rows / self.per
    }

    /// Rows of a task of the CPU twin: some 32 KiB, and at most 256, which bounds the rounding of the sums.
    fn cpu_rows(self) -> usize {
        (8192 / self.c).clamp(1, 256)
    }

    /// Tasks of a set.
    fn cpu_chunks(self) -> usize {
        self.per.div_ceil(self.cpu_rows())
    }

    fn slice_rows(self) -> usize {
        SLICE_ROWS.max(self.per.div_ceil(MOST_SLICES))
    }

    fn slices(self) -> usize {
        self.per.div_ceil(self.slice_rows())
    }

    fn add<'a>(self, plan: &'a mut Dispatches, entry: &'static str, accumulate: bool) -> &'a mut Dispatch {
        plan.add(&KERNEL, entry)
            .params([("rows", self.rows), ("channels", self.c), ("per", self.per)])
            .params([("slice_rows", self.slice_rows()), ("slices", self.slices())])
            .param("eps", self.eps)
            .param("scaled", self.scaled)
            .param("more", self.more)
            .param("accumulate", accumulate)
            .cover(self.rows, 1)
    }

    /// Reads x, and scale and shift if there are any; writes y and the statistics.
    fn forward(self) -> Recorded {
        let norm = self;
        let c = norm.c;
        let cpu = move |io: &Io| {
            let x = io.read(0);
            let gains = norm.scaled.then(|| (io.read(1), io.read(2)));
            let rows = norm.cpu_rows();
            let y = io.write(0).par_chunks_mut(rows * c).zip(io.write(1).par_chunks_mut(2 * rows));
            y.zip(x.par_chunks(rows * c)).enumerate().for_each(|(chunk, ((y, statistics), x))| {
                vectorized(
                    #[inline(always)]
                    || {
                        let all =
                            y.chunks_exact_mut(c).zip(x.chunks_exact(c)).zip(statistics.as_chunks_mut().0);
                        for (row, ((y, x), statistics)) in all.enumerate() {
                            let first = (chunk * rows + row) / norm.per * c;
                            let gain = gains.map(|(scale, shift)| Gain {
                                scale: &scale[first..][..c],
                                shift: &shift[first..][..c],
                                more: norm.more,
                            });
                            *statistics = forward_row(x, gain, norm.eps, y);
                        }
                    },
                );
            });
        };
        let gpu = move |plan: &mut Dispatches| {
            let [scale, shift] = if norm.scaled { [1, 2] } else { [0, 0] };
            let forward = norm.add(plan, "forward", false).read("x", 0).read("scale", scale);
            forward.read("shift", shift).write("y", 0).write("statistics_out", 1);
        };
        launch_of("layer_norm", cpu, gpu).into()
    }

    /// Reads x, dy and the statistics, scale if there is one, and what is added to dx if `accumulate`; writes
    /// dx, and the gradients of scale and shift if there are any.
    fn backward(self, accumulate: bool) -> Recorded {
        let norm = self;
        let Norm { c, per, scaled, more, .. } = norm;
        let (sets, chunks, slices) = (norm.sets(), norm.cpu_chunks(), norm.slices());
        let cpu = move |io: &Io| {
            let [x, dy, statistics] = [0, 1, 2].map(|i| io.read(i));
            let scale = scaled.then(|| io.read(3));
            let accum = accumulate.then(|| io.read(3 + usize::from(scaled)));
            let rows = norm.cpu_rows();
            let partials = io.scratch(0);
            let of_sets = io.write(0).par_chunks_mut(per * c).zip(partials.par_chunks_mut(2 * c * chunks));
            of_sets.enumerate().for_each(|(set, (dx, partials))| {
                let scale = scale.map(|scale| &scale[set * c..][..c]);
                let of_chunks = dx.par_chunks_mut(rows * c).zip(partials.par_chunks_mut(2 * c));
                of_chunks.enumerate().for_each(|(chunk, (dx, sums))| {
                    let first = set * per + chunk * rows;
                    let (dscale, dshift) = sums.split_at_mut(c);
                    vectorized(
                        #[inline(always)]
                        || {
                            dscale.fill(0.0);
                            dshift.fill(0.0);
                            for (row, dx) in (first..).zip(dx.chunks_exact_mut(c)) {
                                let of = [x, dy].map(|x| &x[row * c..][..c]);
                                let found = [statistics[2 * row], statistics[2 * row + 1]];
                                let sums = scaled.then_some((&mut *dscale, &mut *dshift));
                                backward_row(of, found, scale.map(|scale| (scale, more)), sums, dx);
                                let accum = accum.map(|accum| &accum[row * c..][..c]).unwrap_or_default();
                                for (dx, accum) in dx.iter_mut().zip(accum) {
                                    *dx += accum;
                                }
                            }
                        },
                    );
                });
            });
            if scaled {
                let gradients = io.write(1).par_chunks_mut(c).zip(io.write(2).par_chunks_mut(c));
                gradients.zip(partials.par_chunks(2 * c * chunks)).for_each(
                    |((dscale, dshift), partials)| {
                        let total = |i: usize| {
                            partials.iter().skip(i).step_by(2 * c).map(|&s| f64::from(s)).sum::<f64>() as f32
                        };
                        for (i, (dscale, dshift)) in dscale.iter_mut().zip(dshift).enumerate() {
                            (*dscale, *dshift) = (total(i), total(c + i));
                        }
                    },
                );
            }
        };
        let gpu = move |plan: &mut Dispatches| {
            let backward = norm.add(plan, "backward_x", accumulate).read("x", 0).read("dy", 1);
            backward.read("statistics", 2).read("scale", if scaled { 3 } else { 0 });
            let accum = if accumulate { 3 + usize::from(scaled) } else { 0 };
            backward.read("accum", accum).write("dx", 0);
            if !scaled {
                return;
            }
            let result = [Slot::Write(1), Slot::Write(2)];
            let parts = if slices == 1 { result } else { [Slot::Scratch(0), Slot::Scratch(1)] };
            let sums = norm.add(plan, "sums", false).read("x", 0).read("dy", 1).read("statistics", 2);
            sums.bind("dscale", parts[0]).bind("dshift", parts[1]).cover(sets * slices * c.div_ceil(32), 1);
            if slices > 1 {
                let merge = norm.add(plan, "merge", false).cover(sets * c, 64);
                merge.bind("scale_parts", parts[0]).bind("shift_parts", parts[1]);
                merge.bind("dscale", result[0]).bind("dshift", result[1]);
            }
        };
        let parts = if scaled && slices > 1 { sets * slices * c } else { 0 };
        let info = LaunchInfo {
            cpu_scratch: vec![sets * chunks * 2 * c],
            gpu_scratch: vec![parts; 2],
            accumulate: Accumulate::by(move |write| (write == 0 && !accumulate).then(|| norm.backward(true))),
            ..LaunchInfo::default()
        };
        Recorded::new(launch_of("layer_norm backward", cpu, gpu), info)
    }
}
