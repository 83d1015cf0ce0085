//! Views of matrices inside slices, and their product on one thread of the CPU, through the `gemm` crate.

use std::marker::PhantomData;

use crate::simd::vectorized;

/// A matrix to read: element `(i, j)` is `data[i * row_stride + j * col_stride]`.
#[derive(Clone, Copy)]
pub struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    row_stride: usize,
    col_stride: usize,
}

impl<'a> Matrix<'a> {
    /// Rows that begin `row_stride` elements apart, from the start of `data`.
    ///
    /// # Panics
    /// When the matrix is empty or does not lie inside `data`.
    #[track_caller]
    pub fn new(data: &'a [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert_inside(data.len(), rows, cols, row_stride);
        Matrix { data, rows, cols, row_stride, col_stride: 1 }
    }

    pub fn transposed(self) -> Self {
        Matrix {
            rows: self.cols,
            cols: self.rows,
            row_stride: self.col_stride,
            col_stride: self.row_stride,
            ..self
        }
    }

    /// `rows` rows from row `first` on.
    pub fn rows(self, first: usize, rows: usize) -> Self {
        assert!(rows > 0 && first + rows <= self.rows, "rows {first}+{rows} of {}", self.rows);
        Matrix { data: &self.data[first * self.row_stride..], rows, ..self }
    }

    /// `cols` columns from column `first` on.
    pub fn cols(self, first: usize, cols: usize) -> Self {
        self.transposed().rows(first, cols).transposed()
    }
}

#[track_caller]
fn assert_inside(len: usize, rows: usize, cols: usize, row_stride: usize) {
    let inside = rows > 0 && cols > 0 && row_stride >= cols && (rows - 1) * row_stride + cols <= len;
    assert!(inside, "a {rows} x {cols} matrix of stride {row_stride} does not lie in {len} elements");
}

/// A matrix to write: rows that begin `row_stride` elements apart.
pub struct MatrixMut<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    lifetime: PhantomData<&'a mut f32>,
}

impl<'a> MatrixMut<'a> {
    /// # Panics
    /// When the matrix is empty or does not lie inside `data`.
    #[track_caller]
    pub fn new(data: &'a mut [f32], rows: usize, cols: usize, row_stride: usize) -> Self {
        assert_inside(data.len(), rows, cols, row_stride);
        MatrixMut { start: data.as_mut_ptr(), rows, cols, row_stride, lifetime: PhantomData }
    }

    pub fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: the row lies inside the matrix, which this value alone may touch.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i * self.row_stride), self.cols) }
    }

    /// `self = alpha * a * b`.
    #[track_caller]
    pub fn set_product(&mut self, alpha: f32, a: Matrix, b: Matrix) {
        self.product(false, alpha, a, b);
    }

    /// `self += alpha * a * b`.
    #[track_caller]
    pub fn add_product(&mut self, alpha: f32, a: Matrix, b: Matrix) {
        self.product(true, alpha, a, b);
    }

    #[track_caller]
    fn product(&mut self, keep: bool, alpha: f32, a: Matrix, b: Matrix) {
        assert!(
            (a.rows, a.cols, b.cols) == (self.rows, b.rows, self.cols),
            "product of {} x {} and {} x {} into {} x {}",
            a.rows,
            a.cols,
            b.rows,
            b.cols,
            self.rows,
            self.cols
        );
        // `gemm` adds a longer sum in blocks whose length depends on the other sides. Cut here, an element's
        // sum has the same order however many rows are computed together: a sample must not depend on
        // its batch.
        for first in (0..a.cols).step_by(SUM) {
            let (a, b) = (a.cols(first, SUM.min(a.cols - first)), b.rows(first, SUM.min(a.cols - first)));
            let keep = keep || first > 0;
            if b.cols == 1 {
                self.column_product(keep, alpha, a, b);
            } else if self.rows == 1 {
                self.row_product(keep, alpha, a, b);
            } else {
                // SAFETY: all three matrices lie inside their slices, and only this value may touch the one
                // that is written.
                unsafe { multiply(self.rows, self.start, self.row_stride, keep, alpha, a, a.row_stride, b) };
            }
        }
    }

    /// The product with a single column, for which `gemm` has several ways of its own, chosen by the number
    /// of rows.
    fn column_product(&mut self, keep: bool, alpha: f32, a: Matrix, b: Matrix) {
        const ROWS: usize = 256;
        let mut column = [0.0_f32; SUM];
        for (i, value) in column[..a.cols].iter_mut().enumerate() {
            *value = b.data[i * b.row_stride];
        }
        vectorized(
            #[inline(always)]
            || {
                for first in (0..self.rows).step_by(ROWS) {
                    let rows = ROWS.min(self.rows - first);
                    let mut sums = [0.0_f32; ROWS];
                    if a.row_stride == 1 {
                        for (k, b) in column[..a.cols].iter().enumerate() {
                            let a = &a.data[first + k * a.col_stride..][..rows];
                            for (sum, a) in sums.iter_mut().zip(a) {
                                *sum += a * b;
                            }
                        }
                    } else {
                        for (i, sum) in sums[..rows].iter_mut().enumerate() {
                            *sum =
                                dot(&a.data[(first + i) * a.row_stride..], a.col_stride, &column[..a.cols]);
                        }
                    }
                    for (i, sum) in sums[..rows].iter().enumerate() {
                        let y = &mut self.row(first + i)[0];
                        *y = if keep { *y + alpha * sum } else { alpha * sum };
                    }
                }
            },
        );
    }

    /// The product of a single row, computed as two equal ones: `gemm` has another order for a vector.
    fn row_product(&mut self, keep: bool, alpha: f32, a: Matrix, b: Matrix) {
        const COLS: usize = 256;
        let mut twice = [0.0_f32; 2 * COLS];
        for first in (0..self.cols).step_by(COLS) {
            let cols = COLS.min(self.cols - first);
            // SAFETY: `twice` has room for two rows of `cols`; both rows of the left side are its only one
            // (stride 0).
            unsafe { multiply(2, twice.as_mut_ptr(), cols, false, alpha, a, 0, b.cols(first, cols)) };
            for (y, product) in self.row(0)[first..first + cols].iter_mut().zip(&twice) {
                *y = if keep { *y + product } else { *product };
            }
        }
    }
}

/// `sum of a[k * stride] * b[k]`, in sixteen strands so that it vectorises, added in order.
#[inline(always)]
fn dot(a: &[f32], stride: usize, b: &[f32]) -> f32 {
    let mut strands = [0.0_f32; 16];
    if stride == 1 {
        for (a, b) in a[..b.len()].chunks(16).zip(b.chunks(16)) {
            for ((strand, a), b) in strands.iter_mut().zip(a).zip(b) {
                *strand += a * b;
            }
        }
    } else {
        for (k, b) in b.iter().enumerate() {
            strands[k % 16] += a[k * stride] * b;
        }
    }
    let mut sum = 0.0;
    for strand in strands {
        sum += strand;
    }
    sum
}

/// Longest sum that goes to `gemm` in one piece; it takes at least this many at a time.
const SUM: usize = 512;

/// `dst (+)= alpha * a * b` for `rows` rows that begin `row_stride` apart in `dst` and `a_stride` apart in
/// `a`.
///
/// # Safety
/// `dst` must have room for the product, and `a` for rows of that stride.
unsafe fn multiply(
    rows: usize,
    dst: *mut f32,
    row_stride: usize,
    keep: bool,
    alpha: f32,
    a: Matrix,
    a_stride: usize,
    b: Matrix,
) {
    // SAFETY: the caller's promise for `dst` and `a`; `b` lies inside its slice.
    unsafe {
        gemm::gemm(
            rows,
            b.cols,
            a.cols,
            dst,
            1,
            row_stride as isize,
            keep,
            a.data.as_ptr(),
            a.col_stride as isize,
            a_stride as isize,
            b.data.as_ptr(),
            b.col_stride as isize,
            b.row_stride as isize,
            1.0,
            alpha,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

/// A slice that parallel tasks write disjoint matrices of.
#[derive(Clone, Copy)]
pub struct Tiles<'a> {
    start: *mut f32,
    len: usize,
    lifetime: PhantomData<&'a mut f32>,
}

// SAFETY: `tile` is the only access, and its contract keeps tasks apart.
unsafe impl Send for Tiles<'_> {}
// SAFETY: as above.
unsafe impl Sync for Tiles<'_> {}

impl<'a> Tiles<'a> {
    pub fn new(data: &'a mut [f32]) -> Self {
        Tiles { start: data.as_mut_ptr(), len: data.len(), lifetime: PhantomData }
    }

    /// Where `count` elements from `first` on stand, for writing them in another shape than a matrix. Writing
    /// is up to the caller to keep apart, as with [`Tiles::tile`].
    #[track_caller]
    pub fn pointer(&self, first: usize, count: usize) -> *mut f32 {
        assert!(first + count <= self.len, "{count} elements from {first} on leave {}", self.len);
        // SAFETY: inside the slice, as was checked just now.
        unsafe { self.start.add(first) }
    }

    /// The matrix whose first element stands at `first`.
    ///
    /// # Safety
    /// No other tile in use at the same time has an element in common with this one.
    #[track_caller]
    pub unsafe fn tile(&self, first: usize, rows: usize, cols: usize, row_stride: usize) -> MatrixMut<'a> {
        assert_inside(self.len.saturating_sub(first), rows, cols, row_stride);
        // SAFETY: inside the slice, as was checked just now.
        let start = unsafe { self.start.add(first) };
        MatrixMut { start, rows, cols, row_stride, lifetime: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::random;

    #[test]
    fn a_part_of_a_product() {
        // [1 2; 3 4] in rows of stride 3, times its transpose, into the corner of a larger matrix.
        let a = [1.0, 2.0, 0.0, 3.0, 4.0];
        let a = Matrix::new(&a, 2, 2, 3);
        let mut y = [9.0; 8];
        let mut corner = MatrixMut::new(&mut y, 2, 2, 4);
        corner.set_product(1.0, a, a.transposed());
        corner.add_product(2.0, a.rows(1, 1).transposed(), a.rows(1, 1));
        assert_eq!(y, [23.0, 35.0, 9.0, 9.0, 35.0, 57.0, 9.0, 9.0]);
        assert_eq!(a.cols(1, 1).data[..], [2.0, 0.0, 3.0, 4.0]);
    }

    #[test]
    #[should_panic(expected = "does not lie in")]
    fn a_view_past_the_end() {
        Matrix::new(&[0.0; 5], 2, 3, 3);
    }

    /// A row of a product must not depend on how many rows are computed with it.
    #[test]
    fn a_row_has_the_same_bits_in_any_company() {
        const MOST: usize = 300;
        let mut bad = Vec::new();
        for (k, n) in [
            (1, 3),
            (2, 64),
            (8, 8),
            (9, 32),
            (64, 1),
            (288, 32),
            (512, 64),
            (576, 64),
            (1024, 96),
            (1600, 17),
        ] {
            let (a, b) = (random(1, MOST * k), random(2, k * n));
            for ta in [false, true] {
                let rows_of = |m: usize| {
                    let a = if ta {
                        Matrix::new(&a, k, MOST, MOST).transposed()
                    } else {
                        Matrix::new(&a, MOST, k, k)
                    };
                    let b = Matrix::new(&b, k, n, n);
                    let mut y = vec![0.0; m * n];
                    MatrixMut::new(&mut y, m, n, n).set_product(1.0, a.rows(0, m), b);
                    y
                };
                let whole = rows_of(MOST);
                for m in [1, 2, 3, 4, 5, 8, 16, 17, 49, 63, 64, 65, 100, 196, 256] {
                    if rows_of(m) != whole[..m * n] {
                        bad.push((k, n, ta, m));
                    }
                }
            }
        }
        assert!(bad.is_empty(), "(k, n, a transposed, rows): {bad:?}");
    }
}
