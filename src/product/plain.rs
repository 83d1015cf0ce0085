//! The product as four loops: the readable twin of `cpu.rs`, and the reference of its checks.

use super::{Geometry, Loader, Product};

/// Writes y `[batch, rows, cols]` from the tensors of A and B and from bias, shift and residual. Sums in f64.
pub fn product(
    p: &Product,
    a: &[f32],
    b: &[f32],
    [bias, shift, residual]: [Option<&[f32]>; 3],
    y: &mut [f32],
) {
    for item in 0..p.batch {
        for row in 0..p.rows {
            for col in 0..p.cols {
                let mut sum = 0.0_f64;
                for k in 0..p.depth {
                    if let Some(at) = p.a.a([p.rows, p.depth], item, row, k) {
                        sum += f64::from(a[at]) * f64::from(b[p.b_at(item, k, col)]);
                    }
                }
                let at = (item * p.rows + row) * p.cols + col;
                sum += bias.map_or(0.0, |bias| f64::from(bias[col]));
                sum += shift.map_or(0.0, |shift| f64::from(shift[row / p.epilogue.pixels * p.cols + col]));
                sum += residual.map_or(0.0, |residual| f64::from(residual[at]));
                y[at] = sum as f32;
            }
        }
    }
}

/// `sums[col] = sum over k of B[k, col]`.
pub fn column_sums(p: &Product, b: &[f32], sums: &mut [f32]) {
    for (col, sum) in sums.iter_mut().enumerate() {
        let terms = (0..p.depth).map(|k| f64::from(b[p.b_at(0, k, col)]));
        *sum = terms.sum::<f64>() as f32;
    }
}

impl Loader {
    /// Position in the tensor of A of element (row, k) of item `item`; `None` is a zero.
    fn a(self, [rows, depth]: [usize; 2], item: usize, row: usize, k: usize) -> Option<usize> {
        match self {
            Loader::Dense => Some((item * rows + row) * depth + k),
            Loader::Transposed => Some((item * depth + k) * rows + row),
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
}

impl Product {
    /// Position in the tensor of B of element (k, col) of item `item`.
    ///
    /// # Panics
    /// For the matrices of images, which are A alone.
    fn b_at(&self, item: usize, k: usize, col: usize) -> usize {
        let (first, cols) = (item * self.depth * self.cols, self.cols);
        let block = if let Loader::ConvAdjoint(g) = self.a { g.cout } else { self.depth };
        match self.b {
            Loader::Dense => first + k * cols + col,
            Loader::Transposed => first + (k / block * cols + col) * block + k % block,
            image => panic!("product: {image:?} as B"),
        }
    }
}

impl Geometry {
    /// Number of the image's pixel under tap (kh, kw) of pixel `out` of the result; `None` outside the image.
    fn under(&self, out: usize, kh: usize, kw: usize) -> Option<usize> {
        let (n, oh, ow) = (out / (self.oh * self.ow), out / self.ow % self.oh, out % self.ow);
        let h = (oh * self.stride + kh).checked_sub(self.top).filter(|&h| h < self.h)?;
        let w = (ow * self.stride + kw).checked_sub(self.left).filter(|&w| w < self.w)?;
        Some((n * self.h + h) * self.w + w)
    }

    /// Number of the result's pixel whose tap (kh, kw) lies on pixel `pixel` of the image; `None` if there is
    /// none.
    fn over(&self, pixel: usize, kh: usize, kw: usize) -> Option<usize> {
        let (n, h, w) = (pixel / (self.h * self.w), pixel / self.w % self.h, pixel % self.w);
        let along = |at: usize, tap: usize, size: usize| {
            let at = at.checked_sub(tap).filter(|at| at.is_multiple_of(self.stride))? / self.stride;
            (at < size).then_some(at)
        };
        let (oh, ow) = (along(h + self.top, kh, self.oh)?, along(w + self.left, kw, self.ow)?);
        Some((n * self.oh + oh) * self.ow + ow)
    }
}
