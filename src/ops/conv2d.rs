//! Convolution (cross-correlation) of images, with bias, time embedding and residual added where the result
//! is written.

#[cfg(test)]
pub(crate) mod tests;

pub use super::epilogue::Epilogue;
pub use crate::product::Padding;
use crate::product::{self, Geometry, Loader, Product};
use crate::tape::Tensor;

/// `y[n,oh,ow,co] = sum x[n, oh*stride + kh - top, ow*stride + kw - left, ci] * w[kh,kw,ci,co]`, plus the
/// epilogue.
///
/// `x` is `[N, H, W, Cin]`, `w` is `[KH, KW, Cin, Cout]`, the result `[N, OH, OW, Cout]` with
/// `OH = (H + top + bottom - KH) / stride + 1`.
///
/// # Panics
/// When the shapes do not fit together.
#[track_caller]
pub fn conv2d(x: &Tensor, w: &Tensor, stride: usize, padding: Padding, epilogue: Epilogue) -> Tensor {
    let (image, weights) = (x.shape(), w.shape());
    let [n, h, width, cin] = image.of_rank("conv2d, image");
    let [kh, kw, w_cin, cout] = weights.of_rank("conv2d, weights");
    let Padding { top, bottom, left, right } = padding;
    let (ph, pw) = (h + top + bottom, width + left + right);
    assert!(
        cin == w_cin && stride > 0 && ph >= kh && pw >= kw && kh * kw * cout > 0,
        "conv2d: image {image} does not fit weights {weights} with stride {stride} and {padding:?}"
    );
    let (oh, ow) = ((ph - kh) / stride + 1, (pw - kw) / stride + 1);
    let g = Geometry { n, h, w: width, cin, kh, kw, cout, oh, ow, stride, top, left };
    let added = epilogue.added("conv2d", n, oh * ow, cout);
    let y = Product::conv("conv2d", g, added);
    // Where a time embedding needs the sums of each sample, these give the gradient of the bias too.
    let dw = Product::conv_weights("conv2d backward_w", g, added.bias && !added.shift);
    let dx = Product::conv_adjoint("conv2d backward_x", g, product::Epilogue::default());
    epilogue.record([x, w], [y, dw, dx], [n, oh, ow, cout], "conv2d backward_shift")
}

impl Product {
    /// From `x [N, H, W, Cin]` and `w [KH, KW, Cin, Cout]` to `[N, OH, OW, Cout]`.
    pub(crate) fn conv(name: &'static str, g: Geometry, epilogue: product::Epilogue) -> Product {
        let sizes = [1, g.n * g.oh * g.ow, g.cout, g.taps() * g.cin];
        Product { epilogue, ..Product::new(name, sizes, [Loader::Conv(g), Loader::Dense]) }
    }

    /// From `dy [N, OH, OW, Cout]` and the same `w` to `[N, H, W, Cin]`: the gradient of x, the transposed
    /// convolution.
    pub(crate) fn conv_adjoint(name: &'static str, g: Geometry, epilogue: product::Epilogue) -> Product {
        let sizes = [1, g.n * g.h * g.w, g.cin, g.taps() * g.cout];
        Product { epilogue, ..Product::new(name, sizes, [Loader::ConvAdjoint(g), Loader::Transposed]) }
    }

    /// From `x` and `dy` to `dw [KH, KW, Cin, Cout]`, and the sums of `dy` over all pixels if wanted: `dbias
    /// [Cout]`.
    pub(crate) fn conv_weights(name: &'static str, g: Geometry, column_sums: bool) -> Product {
        let sizes = [1, g.taps() * g.cin, g.cout, g.n * g.oh * g.ow];
        let product = Product::new(name, sizes, [Loader::ConvWeights(g), Loader::Dense]);
        Product { split_k: true, column_sums, ..product }
    }
}
