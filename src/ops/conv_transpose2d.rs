//! Transposed convolution: the adjoint of a convolution, as a layer that enlarges images.

#[cfg(test)]
mod tests;

use super::epilogue::Epilogue;
use crate::product::{self, Geometry, Padding, Product};
use crate::tape::Tensor;

/// `y[n,oh,ow,co] = sum x[n,ih,iw,ci] * w[kh,kw,co,ci]` over all that have `oh = ih*stride + kh - top` and
/// `ow = iw*stride + kw - left`, plus the epilogue.
///
/// This is the adjoint of a convolution with the same `w`, stride and padding: `x` and `y` have changed
/// places, and so have the channels of `w`. In files its weights are PyTorch's `[Cin, Cout, KH, KW]` of
/// `ConvTranspose2d`.
///
/// `x` is `[N, H, W, Cin]`, `w` is `[KH, KW, Cout, Cin]`, the result `[N, OH, OW, Cout]` with `OH = (H - 1) *
/// stride - top - bottom + KH + output_padding`. A convolution maps images of `stride` different heights to
/// the same height; `output_padding`, less than the stride, says which of them comes back. See Zeiler et al.
/// 2010; Dumoulin and Visin 2016, chapter 4 (arXiv:1603.07285).
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
    epilogue: Epilogue,
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
    // The convolution whose adjoint this is. It reads y and writes x: because output_padding is less than the
    // stride, the last row of x is the last that fits.
    let (h, width) = (full_h - cut_h, full_w - cut_w);
    let (top, left) = (padding.top, padding.left);
    let g = Geometry { n, h, w: width, cin: cout, kh, kw, cout: cin, oh, ow, stride, top, left };
    let added = epilogue.added("conv_transpose2d", n, h * width, cout);
    let y = Product::conv_adjoint("conv_transpose2d", g, added);
    // The bias is of the image that `g` reads, not of the result whose channels are the columns here.
    let dw = Product::conv_weights("conv_transpose2d backward_w", g, false);
    let dx = Product::conv("conv_transpose2d backward_x", g, product::Epilogue::default());
    epilogue.record([x, w], [y, dw, dx], [n, h, width, cout], "conv_transpose2d backward_shift")
}
