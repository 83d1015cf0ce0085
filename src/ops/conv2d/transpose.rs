//! Transposed convolution: the adjoint of a convolution, as a layer that enlarges images and as the
//! gradient of a convolution's input.

#[cfg(test)]
mod tests;

use super::gpu::Gather;
use super::{BackwardShift, BackwardW, Forward, Geometry, Given, Padding, twin};
use crate::launch::{Accumulate, Dispatches, Io, Launch, LaunchInfo, Recorded, Tuning};
use crate::tape::Tensor;
use crate::tensor::Shape;

/// `y[n,oh,ow,co] = sum x[n,ih,iw,ci] * w[kh,kw,co,ci] + bias[co]` over all that have
/// `oh = ih*stride + kh - top` and `ow = iw*stride + kw - left`.
///
/// This is the adjoint of [`conv2d`](super::conv2d) with the same `w`, stride and padding: `x` and `y` have
/// changed places, and so have the channels of `w`. In files its weights are PyTorch's `[Cin, Cout, KH,
/// KW]` of `ConvTranspose2d`.
///
/// `x` is `[N, H, W, Cin]`, `w` is `[KH, KW, Cout, Cin]`, `bias` is `[Cout]`, the result `[N, OH, OW,
/// Cout]` with `OH = (H - 1) * stride - top - bottom + KH + output_padding`. A convolution maps images of
/// `stride` different heights to the same height; `output_padding`, less than the stride, says which of
/// them comes back. See Zeiler et al. 2010; Dumoulin and Visin 2016, chapter 4 (arXiv:1603.07285).
///
/// # Panics
/// When the shapes do not fit together, or nothing of the image would be left.
#[track_caller]
pub fn conv_transpose2d(
    x: &Tensor,
    w: &Tensor,
    stride: usize,
    padding: Padding,
    output_padding: usize,
    bias: Option<&Tensor>,
) -> Tensor {
    let [n, oh, ow, cin] = x.shape().of_rank("conv_transpose2d, image");
    let [kh, kw, cout, w_cin] = w.shape().of_rank("conv_transpose2d, weights");
    // Heights and widths with what the padding cuts off.
    let full = |size: usize, k: usize| size.saturating_sub(1) * stride + k + output_padding;
    let (full_h, full_w) = (full(oh, kh), full(ow, kw));
    let (cut_h, cut_w) = (padding.top + padding.bottom, padding.left + padding.right);
    assert!(
        cin == w_cin
            && output_padding < stride
            && n * oh * ow * cin * kh * kw * cout > 0
            && full_h > cut_h
            && full_w > cut_w,
        "conv_transpose2d: image {} does not fit weights {} with stride {stride}, {padding:?} and output \
         padding {output_padding}",
        x.shape(),
        w.shape()
    );
    if let Some(bias) = bias {
        assert_eq!(bias.elements(), cout, "conv_transpose2d: bias {} for {cout} channels", bias.shape());
    }
    // The convolution whose adjoint this is. It reads y and writes x: because output_padding is less than the
    // stride, the last row of x is the last that fits.
    let (h, width) = (full_h - cut_h, full_w - cut_w);
    let g = Geometry {
        n,
        h,
        w: width,
        cin: cout,
        kh,
        kw,
        cout: cin,
        oh,
        ow,
        stride,
        top: padding.top,
        left: padding.left,
    };
    let mut inputs = vec![x, w];
    inputs.extend(bias);
    let has_bias = bias.is_some();
    let given = Given { bias: has_bias, ..Given::default() };
    let launch = Adjoint { name: "conv_transpose2d", g, given };
    let [y] = x.tape().launch(launch.recorded(), &inputs, [Shape::from([n, h, width, cout])]);
    let (x_saved, w_saved) = (x.clone(), w.clone());
    x.tape().derivative(&inputs, &[&y], move |dy| {
        let (x, w, tape) = (&x_saved, &w_saved, x_saved.tape());
        let Some(dy) = &dy[0] else { return vec![None; 2 + usize::from(has_bias)] };
        // Its bias is of the image that `g` reads, not of the result whose pixels this goes over.
        let backward_w = BackwardW { name: "conv_transpose2d backward_w", g, bias: false };
        let [dw] = tape.launch(backward_w.recorded(), &[dy, x], [w.shape().clone()]);
        let backward_x = Forward { name: "conv_transpose2d backward_x", g, given: Given::default() };
        let [dx] = tape.launch(backward_x.recorded(), &[dy, w], [x.shape().clone()]);
        let mut gradients = vec![Some(dx), Some(dw)];
        if has_bias {
            let sums = BackwardShift { name: "conv_transpose2d backward_bias", of: g.image() };
            let [_, dbias] =
                tape.launch(sums.recorded(), &[dy], [Shape::from([n, g.cin]), Shape::from([g.cin])]);
            gradients.push(Some(dbias));
        }
        gradients
    });
    y
}

/// The adjoint of the convolution `g`: from `[N, OH, OW, Cout]` to `[N, H, W, Cin]`.
///
/// Reads `dy`, the weights and what is given of an epilogue.
#[derive(Clone, Copy, Debug)]
pub(super) struct Adjoint {
    pub name: &'static str,
    pub g: Geometry,
    pub given: Given,
}

impl Launch for Adjoint {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu(&self, io: &Io) {
        let (g, more) = (&self.g, self.given.slices(io));
        twin::adjoint(g, io.read(0), io.read(1), io.write(0), io.prepacked(), |first, pixels| {
            twin::epilogue(g.image(), first, pixels, more);
        });
    }

    fn gpu(&self, plan: &mut Dispatches) {
        self.gather().dispatch(plan);
    }
}

impl Adjoint {
    pub fn recorded(self) -> Recorded {
        let info = LaunchInfo {
            flops: self.g.flops(),
            cpu_scratch: vec![twin::adjoint_weights(&self.g)],
            gpu_scratch: self.gather().scratch(),
            prepacked_from: Some(1),
            accumulate: Accumulate::by(move |_| {
                Some(Adjoint { given: self.given.accumulating()?, ..self }.recorded())
            }),
            tuning: Tuning::new(self.gather().shape_class(), move |adapter| self.gather().variants(adapter)),
            ..LaunchInfo::default()
        };
        Recorded::new(self, info)
    }
}

impl Adjoint {
    fn gather(&self) -> Gather {
        Gather::adjoint(&self.g, self.given.reads())
    }
}
