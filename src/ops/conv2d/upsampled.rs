//! The convolution of an image of twice the height and width, each pixel repeated, without that image.
//!
//! Along either axis two of three taps meet the same pixel, or the other two do: it is multiplied by their sum.
//! So this is the adjoint of a convolution with a stride of 2 and one row and one column of taps more
//! (`kernels/conv2d.wgsl` has the formula): 4 multiplications for each result and channel instead of 9, forward
//! and in both gradients, and the large image is nowhere in memory. Reference: Shi et al. 2016
//! (arXiv:1609.07009), on convolutions of the small image for each of the four residues.

mod twin;

#[cfg(test)]
mod tests;

use super::gpu::{Gather, KERNEL, Origin, WG, Weights};
use super::{Epilogue, Geometry, Given, Padding, sum_parts};
use crate::launch::{Dispatches, Io, Launch, LaunchInfo, Recorded, Slot, Tuning};
use crate::tape::Tensor;
use crate::tensor::Shape;

/// What [`conv2d`](super::conv2d) with a stride of 1 makes of `x` with each pixel repeated twice in both
/// directions, but for the rounding of sums.
///
/// `x` is `[N, H, W, Cin]`, `w` is `[KH, KW, Cin, Cout]`, the result `[N, OH, OW, Cout]` with
/// `OH = 2 * H + top + bottom - KH + 1`.
///
/// # Panics
/// When the shapes do not fit together, or rows or columns of the result see nothing but padding.
#[track_caller]
pub fn conv2d_upsampled(x: &Tensor, w: &Tensor, padding: Padding, epilogue: Epilogue) -> Tensor {
    let [n, h, width, cin] = x.shape().of_rank("conv2d_upsampled, image");
    let [kh, kw, w_cin, cout] = w.shape().of_rank("conv2d_upsampled, weights");
    let Padding { top, bottom, left, right } = padding;
    let (ph, pw) = (2 * h + top + bottom, 2 * width + left + right);
    assert!(
        cin == w_cin
            && n * h * width * cin * kh * kw * cout > 0
            && (ph >= kh && pw >= kw)
            && (top.max(bottom) < kh && left.max(right) < kw),
        "conv2d_upsampled: image {} does not fit weights {} with {padding:?}",
        x.shape(),
        w.shape()
    );
    // The convolution whose adjoint this is: it reads y and writes x.
    let g = Geometry {
        n,
        h: ph - kh + 1,
        w: pw - kw + 1,
        cin: cout,
        kh: kh + 1,
        kw: kw + 1,
        cout: cin,
        oh: h,
        ow: width,
        stride: 2,
        top: kh - 1 - top,
        left: kw - 1 - left,
    };
    let given = epilogue.given("conv2d_upsampled", g.image());
    let inputs: Vec<&Tensor> = [x, w].into_iter().chain(epilogue.reads()).collect();
    let [y] = x.tape().launch(Forward { g, given }.recorded(), &inputs, [Shape::from([n, g.h, g.w, cout])]);
    let (count, x_saved, w_saved) = (inputs.len(), x.clone(), w.clone());
    x.tape().derivative(&inputs, &[&y], move |dy| {
        let (x, w, tape) = (&x_saved, &w_saved, x_saved.tape());
        let Some(dy) = &dy[0] else { return vec![None; count] };
        // `x` is not needed after `dw`: it makes room for `dx`.
        let [dw] = tape.launch(BackwardW { g }.recorded(), &[dy, x], [w.shape().clone()]);
        let [dx] = tape.launch(BackwardX { g }.recorded(), &[dy, w], [x.shape().clone()]);
        let mut gradients = vec![Some(dx), Some(dw)];
        gradients.extend(given.gradients(tape, "conv2d_upsampled backward_shift", g.image(), dy, None));
        gradients
    });
    y
}

/// Of the convolution, its adjoint and the gradient of its weights alike: every tap over the large image, as
/// PyTorch counts.
fn flops(g: &Geometry) -> u64 {
    2 * (g.n * g.h * g.w * weights(g)) as u64
}

/// Elements of the weights as they are given, for which `g` has one row and column of taps more.
fn weights(g: &Geometry) -> usize {
    (g.kh - 1) * (g.kw - 1) * g.cin * g.cout
}

/// From `x [N, H, W, Cin]` to `y [N, OH, OW, Cout]`: the adjoint of `g`.
#[derive(Clone, Copy, Debug)]
struct Forward {
    g: Geometry,
    given: Given,
}

impl Launch for Forward {
    fn name(&self) -> &'static str {
        "conv2d_upsampled"
    }

    fn cpu(&self, io: &Io) {
        let more = self.given.slices(io);
        twin::forward(&self.g, io.read(0), io.read(1), io.write(0), io.prepacked(), more);
    }

    fn gpu(&self, plan: &mut Dispatches) {
        self.gather().dispatch(plan);
    }
}

impl Forward {
    fn recorded(self) -> Recorded {
        let info = LaunchInfo {
            flops: flops(&self.g),
            cpu_scratch: vec![twin::forward_weights(&self.g)],
            gpu_scratch: self.gather().scratch(),
            prepacked_from: Some(1),
            tuning: Tuning::new(self.gather().shape_class(), move |adapter| self.gather().variants(adapter)),
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}

impl Forward {
    fn gather(&self) -> Gather {
        Gather { weights: Origin::Upsampled, ..Gather::adjoint(&self.g, self.given.reads()) }
    }
}

/// From `dy [N, OH, OW, Cout]` to `dx [N, H, W, Cin]`: the convolution `g` itself.
#[derive(Clone, Copy, Debug)]
struct BackwardX {
    g: Geometry,
}

impl Launch for BackwardX {
    fn name(&self) -> &'static str {
        "conv2d_upsampled backward_x"
    }

    fn cpu(&self, io: &Io) {
        twin::backward_x(&self.g, io.read(0), io.read(1), io.write(0), io.prepacked());
    }

    fn gpu(&self, plan: &mut Dispatches) {
        self.gather().dispatch(plan);
    }
}

impl BackwardX {
    fn recorded(self) -> Recorded {
        let info = LaunchInfo {
            flops: flops(&self.g),
            cpu_scratch: vec![twin::backward_x_weights(&self.g)],
            gpu_scratch: self.gather().scratch(),
            prepacked_from: Some(1),
            tuning: Tuning::new(self.gather().shape_class(), move |adapter| self.gather().variants(adapter)),
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}

impl BackwardX {
    fn gather(&self) -> Gather {
        Gather { weights: Origin::UpsampledAdjoint, ..Gather::forward(&self.g, [None; 3]) }
    }
}

/// From `dy [N, OH, OW, Cout]` and `x [N, H, W, Cin]` to `dw [KH, KW, Cin, Cout]`, by way of the gradient of
/// the weights of `g`.
#[derive(Clone, Copy, Debug)]
struct BackwardW {
    g: Geometry,
}

impl Launch for BackwardW {
    fn name(&self) -> &'static str {
        "conv2d_upsampled backward_w"
    }

    fn cpu(&self, io: &Io) {
        let scratch = [0, 1].map(|block| io.scratch(block));
        twin::backward_w(&self.g, io.read(0), io.read(1), io.write(0), scratch);
    }

    fn gpu(&self, plan: &mut Dispatches) {
        let g = &self.g;
        let parts = self.wide().dispatch(plan);
        sum_parts(plan.add(&KERNEL, "sum_parts"), g.weights(), parts, parts, 1)
            .range("pieces", Slot::Scratch(0), 0, parts * g.weights())
            .scratch("total", 1);
        plan.add(&KERNEL, "upsampled_gradient")
            .param("kh", g.kh)
            .param("kw", g.kw)
            .param("rows", g.cout)
            .param("cols", g.cin)
            .param("step", g.stride)
            .scratch("weights", 1)
            .write("made", 0)
            .cover(weights(g), WG);
    }
}

impl BackwardW {
    fn recorded(self) -> Recorded {
        let info = LaunchInfo {
            flops: flops(&self.g),
            cpu_scratch: twin::weight_room(&self.g).to_vec(),
            gpu_scratch: vec![self.wide().scratch(), self.g.weights()],
            tuning: Tuning::new(self.wide().shape_class(), move |adapter| self.wide().variants(adapter)),
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}

impl BackwardW {
    /// The gradient of the weights of `g`. Its `dy` is the image, so the bias's is none of it.
    fn wide(&self) -> Weights<'_> {
        Weights { g: &self.g, bias: false }
    }
}
