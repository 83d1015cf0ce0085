//! Which element of a tensor a matrix has in a row and a column.

/// How a matrix `[rows, depth]` (A) or `[depth, cols]` (B) lies in its tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// As it stands, row by row, for each item.
    Dense,
    /// Rows and columns exchanged: `[cols, depth]` for B; for that of an adjoint, whose tensor is the weights
    /// `[taps, Cin, Cout]` of the convolution, those of each tap.
    Transposed,
    /// A of a convolution: a row is a pixel of the result, k is (kh, kw, channel of the image).
    Conv(Geometry),
    /// A of its adjoint: a row is a pixel of the image, k is (kh, kw, channel of the result).
    ConvAdjoint(Geometry),
    /// A of the gradient of its weights: a row is (kh, kw, channel of the image), k a pixel of the result.
    ConvWeights(Geometry),
}

/// Rows and columns of zeros around an image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Padding {
    /// Rows above.
    pub top: usize,
    /// Rows below.
    pub bottom: usize,
    /// Columns to the left.
    pub left: usize,
    /// Columns to the right.
    pub right: usize,
}

impl Padding {
    /// The same on all four sides.
    pub const fn same(pad: usize) -> Self {
        Padding { top: pad, bottom: pad, left: pad, right: pad }
    }

    /// One row below and one column to the right: TensorFlow's `SAME` for stride 2 on even sizes.
    pub const BOTTOM_RIGHT: Padding = Padding { top: 0, bottom: 1, left: 0, right: 1 };
}

/// The sizes of a convolution from `[n, h, w, cin]` to `[n, oh, ow, cout]`: tap (kh, kw) of pixel (oh, ow)
/// lies at row `oh * stride + kh - top` and column `ow * stride + kw - left` of the image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    pub n: usize,
    pub h: usize,
    pub w: usize,
    pub cin: usize,
    pub kh: usize,
    pub kw: usize,
    pub cout: usize,
    pub oh: usize,
    pub ow: usize,
    pub stride: usize,
    pub top: usize,
    pub left: usize,
}

impl Geometry {
    pub fn taps(&self) -> usize {
        self.kh * self.kw
    }

    pub fn weights(&self) -> usize {
        self.taps() * self.cin * self.cout
    }
}
