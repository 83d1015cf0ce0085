//! Views of matrices inside slices, and their product on one thread of the CPU, through the `gemm` crate.

use std::marker::PhantomData;

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

    /// Transposed if `yes`.
    pub fn transposed_if(self, yes: bool) -> Self {
        if yes { self.transposed() } else { self }
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
        // SAFETY: all three matrices lie inside their slices, and only this value may touch the one that is
        // written.
        unsafe {
            gemm::gemm(
                self.rows,
                self.cols,
                a.cols,
                self.start,
                1,
                self.row_stride as isize,
                keep,
                a.data.as_ptr(),
                a.col_stride as isize,
                a.row_stride as isize,
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
}
