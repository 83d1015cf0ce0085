//! Weights that do to an image what a convolution does to the same image upsampled to twice its size, each
//! pixel repeated.
//!
//! Along either axis two neighbouring taps of such a convolution meet the same pixel: it is multiplied by
//! their sum. So the convolution is a transposed one of the small image with a stride of 2, one row and one
//! column of taps more, and summed weights: 4 multiplications for each result and channel instead of 9, in
//! both directions, and the large image is nowhere in memory. Reference: Shi et al. 2016 (arXiv:1609.07009),
//! on convolutions of the small image for each of the four residues.

#[cfg(test)]
mod tests;

use rayon::prelude::*;

use crate::device::gpu::shader::Kernel;
use crate::kernel;
use crate::launch::{Dispatches, Io, Launch, LaunchInfo, Recorded};
use crate::simd::vectorized;
use crate::tape::Tensor;

/// The sums of neighbouring taps.
pub static KERNEL: Kernel = kernel!("fold_upsample");

/// Threads of a workgroup, as in the kernel.
const WG: usize = 64;

/// `v[j,i,co,ci] = sum w[KH-1-j .. KH-j, KW-1-i .. KW-i, ci, co]`, where taps outside are 0: from weights
/// `[KH, KW, Cin, Cout]` of a convolution with a stride of 1 to weights `[KH+1, KW+1, Cout, Cin]` of the
/// transposed convolution with a stride of 2 and a padding of `K - 1 - padding` on each side.
#[track_caller]
pub fn fold_upsample(w: &Tensor) -> Tensor {
    let [kh, kw, rows, cols] = w.shape().of_rank("fold_upsample");
    let fold = Fold { name: "fold_upsample", kernel: [kh, kw], backward: false, rows, cols };
    let recorded = Recorded::new(fold, LaunchInfo { keeps_results: true, ..LaunchInfo::default() });
    let [v] = w.tape().launch(recorded, &[w], [[kh + 1, kw + 1, cols, rows].into()]).map(Tensor::exact);
    let shape = w.shape().clone();
    w.tape().derivative(&[w], &[&v], move |dv| {
        let Some(dv) = dv[0].clone().map(Tensor::exact) else { return vec![None] };
        let name = "fold_upsample backward";
        let fold = Fold { name, backward: true, rows: cols, cols: rows, ..fold };
        let [dw] = dv.tape().launch(fold, &[&dv], [shape]);
        vec![Some(dw)]
    });
    v
}

/// Writes a plane `[cols, rows]` for each tap: the sum of up to four planes `[rows, cols]`, transposed.
#[derive(Clone, Copy, Debug)]
struct Fold {
    name: &'static str,
    /// Rows and columns of taps of the convolution.
    kernel: [usize; 2],
    backward: bool,
    rows: usize,
    cols: usize,
}

impl Fold {
    /// Rows and columns of taps that are read, and that are written.
    fn taps(&self) -> [[usize; 2]; 2] {
        let more = self.kernel.map(|k| k + 1);
        if self.backward { [more, self.kernel] } else { [self.kernel, more] }
    }

    /// Numbers of the taps that make tap `tap`.
    fn sources(&self, tap: usize) -> impl Iterator<Item = usize> {
        let [[from_h, from_w], [_, to_w]] = self.taps();
        let [kh, kw] = self.kernel;
        let along = |k: usize, at: usize, count: usize| (k - at).saturating_sub(1)..(k - at + 1).min(count);
        let columns = along(kw, tap % to_w, from_w);
        along(kh, tap / to_w, from_h).flat_map(move |h| columns.clone().map(move |w| h * from_w + w))
    }
}

impl Launch for Fold {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu(&self, io: &Io) {
        /// Columns that are summed at once: a line of the cache.
        const LINE: usize = 16;
        let Fold { rows, cols, .. } = *self;
        let (src, dst) = (io.read(0), io.write(0));
        dst.par_chunks_mut(rows * cols).enumerate().for_each(|(tap, plane)| {
            plane.par_chunks_mut(LINE * rows).enumerate().for_each(|(block, dst)| {
                vectorized(
                    #[inline(always)]
                    || {
                        let count = dst.len() / rows;
                        for row in 0..rows {
                            let mut sums = [0.0; LINE];
                            for source in self.sources(tap) {
                                let src = &src[(source * rows + row) * cols + block * LINE..][..count];
                                for (sum, x) in sums.iter_mut().zip(src) {
                                    *sum += x;
                                }
                            }
                            for (col, sum) in sums.iter().enumerate().take(count) {
                                dst[col * rows + row] = *sum;
                            }
                        }
                    },
                );
            });
        });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let [[from_h, from_w], [to_h, to_w]] = self.taps();
        let Fold { kernel: [kh, kw], rows, cols, .. } = *self;
        let count = to_h * to_w * rows * cols;
        let fold = plan.add(&KERNEL, "fold").read("src", 0).write("dst", 0).cover(count, WG);
        fold.params([("kh", kh), ("kw", kw), ("from_h", from_h), ("from_w", from_w), ("to_w", to_w)]);
        fold.params([("rows", rows), ("cols", cols), ("count", count)]);
    }
}
