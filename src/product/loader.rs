//! Which element of a tensor a matrix has in a row and a column.

/// How a matrix `[rows, depth]` (A) or `[depth, cols]` (B) lies in its tensor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Loader {
    /// As it stands, row by row, for each item.
    Dense,
    /// Rows and columns exchanged, in blocks of so many along the depth: `[cols, block]` for B, for each
    /// block. One block, as long as the depth, is a transposed matrix; a block for each tap makes of the
    /// weights `[taps, Cin, Cout]` of a convolution those of its adjoint, `[taps * Cout, Cin]`.
    Transposed { block: usize },
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
    pub top: usize,
    pub bottom: usize,
    pub left: usize,
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
    /// The convolution of one tap that a matrix product `[rows, cin] x [cin, cout]` is: an image one pixel
    /// wide.
    pub const fn point(rows: usize, cin: usize, cout: usize) -> Geometry {
        let n = 1;
        Geometry { n, h: rows, w: 1, cin, kh: 1, kw: 1, cout, oh: rows, ow: 1, stride: 1, top: 0, left: 0 }
    }

    /// Number of the image's pixel under tap (kh, kw) of pixel `out` of the result; `None` outside the image.
    pub fn under(&self, out: usize, kh: usize, kw: usize) -> Option<usize> {
        let (n, oh, ow) = (out / (self.oh * self.ow), out / self.ow % self.oh, out % self.ow);
        let h = (oh * self.stride + kh).checked_sub(self.top).filter(|&h| h < self.h)?;
        let w = (ow * self.stride + kw).checked_sub(self.left).filter(|&w| w < self.w)?;
        Some((n * self.h + h) * self.w + w)
    }

    /// Number of the result's pixel whose tap (kh, kw) lies on pixel `pixel` of the image; `None` if there is
    /// none.
    pub fn over(&self, pixel: usize, kh: usize, kw: usize) -> Option<usize> {
        let (n, h, w) = (pixel / (self.h * self.w), pixel / self.w % self.h, pixel % self.w);
        let along = |at: usize, tap: usize, size: usize| {
            let at = at.checked_sub(tap).filter(|at| at.is_multiple_of(self.stride))? / self.stride;
            (at < size).then_some(at)
        };
        let (oh, ow) = (along(h + self.top, kh, self.oh)?, along(w + self.left, kw, self.ow)?);
        Some((n * self.oh + oh) * self.ow + ow)
    }

    pub fn taps(&self) -> usize {
        self.kh * self.kw
    }

    pub fn weights(&self) -> usize {
        self.taps() * self.cin * self.cout
    }
}

impl Loader {
    /// Position in the tensor of A of element (row, k) of item `item`; `None` is a zero.
    pub fn a(self, [rows, depth]: [usize; 2], item: usize, row: usize, k: usize) -> Option<usize> {
        match self {
            Loader::Dense => Some((item * rows + row) * depth + k),
            Loader::Transposed { block } => {
                Some(item * rows * depth + k / block * block * rows + k % block * rows + row)
            }
            Loader::Conv(g) => {
                let (tap, ci) = (k / g.cin, k % g.cin);
                Some(g.under(row, tap / g.kw, tap % g.kw)? * g.cin + ci)
            }
            Loader::ConvAdjoint(g) => {
                let (tap, co) = (k / g.cout, k % g.cout);
                Some(g.over(row, tap / g.kw, tap % g.kw)? * g.cout + co)
            }
            Loader::ConvWeights(g) => {
                let (tap, ci) = (row / g.cin, row % g.cin);
                Some(g.under(k, tap / g.kw, tap % g.kw)? * g.cin + ci)
            }
        }
    }

    /// Position in the tensor of B of element (k, col) of item `item`.
    ///
    /// # Panics
    /// For the matrices of images, which are A alone.
    pub fn b(self, [depth, cols]: [usize; 2], item: usize, k: usize, col: usize) -> usize {
        let first = item * depth * cols;
        match self {
            Loader::Dense => first + k * cols + col,
            Loader::Transposed { block } => first + (k / block * cols + col) * block + k % block,
            image => panic!("product: {image:?} as B"),
        }
    }
}
