//! Matrices inside a slice that parallel tasks write.

use std::marker::PhantomData;

/// A matrix to write: rows that begin `row_stride` elements apart.
pub struct MatrixMut<'a> {
    start: *mut f32,
    rows: usize,
    cols: usize,
    row_stride: usize,
    lifetime: PhantomData<&'a mut f32>,
}

impl MatrixMut<'_> {
    /// # Panics
    /// When there is no such row.
    #[track_caller]
    pub fn row(&mut self, i: usize) -> &mut [f32] {
        assert!(i < self.rows, "row {i} of {}", self.rows);
        // SAFETY: the row lies inside the matrix, which this value alone may touch.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(i * self.row_stride), self.cols) }
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
        let inside =
            rows > 0 && cols > 0 && row_stride >= cols && first + (rows - 1) * row_stride + cols <= self.len;
        assert!(
            inside,
            "a {rows} x {cols} matrix of stride {row_stride} from {first} on does not lie in {} elements",
            self.len
        );
        // SAFETY: inside the slice, as was checked just now.
        let start = unsafe { self.start.add(first) };
        MatrixMut { start, rows, cols, row_stride, lifetime: PhantomData }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tile_is_written_alone() {
        let mut y = [9.0; 8];
        // SAFETY: the only tile.
        let mut tile = unsafe { Tiles::new(&mut y).tile(1, 2, 2, 4) };
        tile.row(0).fill(1.0);
        tile.row(1).fill(2.0);
        assert_eq!(y, [9.0, 1.0, 1.0, 9.0, 9.0, 2.0, 2.0, 9.0]);
    }

    #[test]
    #[should_panic(expected = "does not lie in")]
    fn a_tile_past_the_end() {
        // SAFETY: refused before it is made.
        unsafe { Tiles::new(&mut [0.0; 5]).tile(0, 2, 3, 3) };
    }

    #[test]
    #[should_panic(expected = "leave 5")]
    fn a_pointer_past_the_end() {
        Tiles::new(&mut [0.0; 5]).pointer(4, 2);
    }
}
