//! Sums of outer products over runs of rows: the gradient of a convolution's weights.

use std::cell::RefCell;
use std::ops::Range;

use pulp::{Arch, Simd, WithSimd};

/// Pairs of rows that are multiplied: `count` rows of the right side from `b` on, with rows of the left
/// side from `a` on, of which every `step`-th counts.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Run {
    pub a: usize,
    pub b: usize,
    pub count: usize,
}

/// One side of a sum of outer products: a matrix of rows of `stride` elements, of which the columns
/// `first .. first + cols` count.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub first: usize,
    pub cols: usize,
}

impl Side<'_> {
    /// Copies `rows` of up to `width` columns from `col` on, padded with zeros: a tile reads them in order,
    /// where rows far apart would fall into the same few lines of the cache.
    #[inline(always)]
    fn pack(&self, rows: &Range<usize>, col: usize, width: usize, out: &mut [f32]) {
        let cols = width.min(self.cols - col);
        let rows = self.data[rows.start * self.stride..rows.end * self.stride].chunks_exact(self.stride);
        for (row, out) in rows.zip(out.chunks_exact_mut(width)) {
            let row = &row[self.first + col..][..cols];
            if cols == width {
                out.copy_from_slice(row);
            } else {
                out[..cols].copy_from_slice(row);
                out[cols..].fill(0.0);
            }
        }
    }
}

/// What [`outer`] adds up: products of some rows of `a` with rows of `b`, for each of several taps.
pub struct Products<'a> {
    pub a: Side<'a>,
    pub b: Side<'a>,
    /// Rows of either side that the runs lie in.
    pub a_rows: Range<usize>,
    pub b_rows: Range<usize>,
    /// Rows of `a` from one pair to the next.
    pub step: usize,
    /// All runs; and of each tap, which of them.
    pub runs: &'a [Run],
    pub taps: &'a [Range<usize>],
}

/// `dst[tap][i][j] (+)= sum over the tap's runs of a[.., i] * b[.., j]`. Taps begin `tap_stride` elements
/// apart, rows `stride`. `keep`: add to what stands there.
///
/// # Safety
/// `dst` must be valid for `a.cols` rows of `b.cols` elements of every tap, and nothing else may use these
/// meanwhile.
///
/// # Panics
/// When a run leaves its rows, or these the matrix.
pub unsafe fn outer(what: &Products, keep: bool, dst: *mut f32, tap_stride: usize, stride: usize) {
    thread_local! {
        static PACKED: RefCell<[Vec<f32>; 2]> = RefCell::default();
    }
    let inside = |first: usize, step: usize, count: usize, rows: &Range<usize>| {
        first >= rows.start && count > 0 && first + (count - 1) * step < rows.end
    };
    for run in what.runs {
        let fits =
            inside(run.a, what.step, run.count, &what.a_rows) && inside(run.b, 1, run.count, &what.b_rows);
        assert!(fits, "outer: {run:?} leaves its rows");
    }
    PACKED.with_borrow_mut(|packed| {
        Arch::new().dispatch(Outer { what, keep, dst, tap_stride, stride, packed });
    });
}

struct Outer<'a> {
    what: &'a Products<'a>,
    keep: bool,
    dst: *mut f32,
    tap_stride: usize,
    stride: usize,
    /// Room for the packed sides.
    packed: &'a mut [Vec<f32>; 2],
}

impl WithSimd for Outer<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        if S::REGISTER_COUNT >= 32 { self.all::<S, 8>(simd) } else { self.all::<S, 4>(simd) }
    }
}

impl Outer<'_> {
    /// In tiles of `M` of a's columns.
    #[inline(always)]
    fn all<S: Simd, const M: usize>(self, simd: S) {
        let Products { a, b, a_rows, b_rows, .. } = self.what;
        let [mut packed_a, mut packed_b] = std::mem::take(self.packed);
        let tile = a_rows.len() * M;
        packed_a.resize(packed_a.len().max(tile * a.cols.div_ceil(M)), 0.0);
        packed_b.resize(packed_b.len().max(b_rows.len() * 2 * S::F32_LANES), 0.0);
        for (col, out) in (0..a.cols).step_by(M).zip(packed_a.chunks_exact_mut(tile.max(1))) {
            a.pack(a_rows, col, M, out);
        }
        let mut col = 0;
        while col < b.cols {
            col += if b.cols - col > S::F32_LANES {
                self.columns::<S, M, 2>(simd, col, &packed_a, &mut packed_b)
            } else {
                self.columns::<S, M, 1>(simd, col, &packed_a, &mut packed_b)
            };
        }
        *self.packed = [packed_a, packed_b];
    }

    /// Up to `V` vectors of b's columns from `col` on, with all of `a`. Gives their number.
    #[inline(always)]
    fn columns<S: Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
        col: usize,
        packed_a: &[f32],
        packed_b: &mut [f32],
    ) -> usize {
        let Products { a, b, a_rows, b_rows, runs, taps, .. } = self.what;
        let width = V * S::F32_LANES;
        b.pack(b_rows, col, width, packed_b);
        let cols = width.min(b.cols - col);
        for (tap, range) in taps.iter().enumerate() {
            for (tile, row) in (0..a.cols).step_by(M).enumerate() {
                let packed_a = &packed_a[tile * a_rows.len() * M..][..a_rows.len() * M];
                let packed_b = &packed_b[..b_rows.len() * width];
                // SAFETY: `outer` checked that the runs lie in these rows.
                let sums =
                    unsafe { self.products::<S, M, V>(simd, &runs[range.clone()], packed_a, packed_b) };
                for (m, sums) in sums.iter().enumerate().take(a.cols - row) {
                    // SAFETY: inside the tile that the caller of `outer` promised.
                    let out = unsafe {
                        let first = tap * self.tap_stride + (row + m) * self.stride + col;
                        std::slice::from_raw_parts_mut(self.dst.add(first), cols)
                    };
                    let sums: &[f32] = bytemuck::cast_slice(sums);
                    if self.keep {
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                    } else {
                        out.copy_from_slice(&sums[..cols]);
                    }
                }
            }
        }
        cols
    }

    /// The sum of the outer products of rows of `M` elements of `a` and `V` vectors of `b`.
    ///
    /// # Safety
    /// The runs must lie in the rows that were packed.
    #[inline(always)]
    unsafe fn products<S: Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
        runs: &[Run],
        a: &[f32],
        b: &[f32],
    ) -> [[S::f32s; V]; M] {
        let mut sums = [[simd.splat_f32s(0.0); V]; M];
        let step = self.what.step * M;
        for run in runs {
            let a = a.as_ptr().wrapping_add((run.a - self.what.a_rows.start) * M);
            let b = b.as_ptr().wrapping_add((run.b - self.what.b_rows.start) * V * S::F32_LANES);
            for k in 0..run.count {
                // SAFETY: the caller's promise.
                unsafe {
                    let mut w = [simd.splat_f32s(0.0); V];
                    for (v, w) in w.iter_mut().enumerate() {
                        *w = b.add((k * V + v) * S::F32_LANES).cast::<S::f32s>().read_unaligned();
                    }
                    for m in 0..M {
                        let x = simd.splat_f32s(*a.add(k * step + m));
                        for v in 0..V {
                            sums[m][v] = simd.mul_add_e_f32s(x, w[v], sums[m][v]);
                        }
                    }
                }
            }
        }
        sums
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::random;

    fn close(got: f32, wanted: f64, size: f64) -> bool {
        (f64::from(got) - wanted).abs() <= 2e-6 * size
    }

    #[test]
    fn outer_products_of_runs() {
        for (m, n, step) in [(1, 1, 1), (3, 5, 2), (8, 16, 1), (15, 50, 3), (64, 33, 1)] {
            let (a, b) = (random(1, 90 * (m + 2)), random(2, 50 * (n + 1)));
            let runs = [
                Run { a: 10, b: 7, count: 4 },
                Run { a: 19, b: 5, count: 20 },
                Run { a: 5, b: 30, count: 15 },
            ];
            let taps = [0..2, 2..2, 1..3];
            let side = |data, cols, stride, first| Side { data, stride, first, cols };
            let what = Products {
                a: side(&a, m, m + 2, 2),
                b: side(&b, n, n + 1, 1),
                a_rows: 5..85,
                b_rows: 5..45,
                step,
                runs: &runs,
                taps: &taps,
            };
            let tap_stride = m * (n + 3) + 1;
            let mut y = vec![1.0; 3 * tap_stride];
            // SAFETY: `y` has m rows of n + 3 elements for each tap.
            unsafe {
                outer(&what, false, y.as_mut_ptr(), tap_stride, n + 3);
                outer(&what, true, y.as_mut_ptr(), tap_stride, n + 3);
            }
            for (tap, range) in taps.iter().enumerate() {
                for i in 0..m {
                    let row = &y[tap * tap_stride + i * (n + 3)..][..n + 3];
                    for j in 0..n {
                        let (mut sum, mut size) = (0.0, 1.0);
                        for run in &runs[range.clone()] {
                            for r in 0..run.count {
                                let x = f64::from(a[(run.a + r * step) * (m + 2) + 2 + i]);
                                let p = 2.0 * x * f64::from(b[(run.b + r) * (n + 1) + 1 + j]);
                                (sum, size) = (sum + p, size + p.abs());
                            }
                        }
                        assert!(close(row[j], sum, size), "{m} x {n}, ({i}, {j}): {}, wanted {sum}", row[j]);
                    }
                    assert_eq!(row[n..], [1.0; 3], "the gap after row {i}");
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "leaves its rows")]
    fn a_run_past_the_end() {
        let side = Side { data: &[0.0; 8], stride: 2, first: 0, cols: 2 };
        let runs = [Run { a: 1, b: 0, count: 3 }];
        let (a_rows, b_rows) = (0..3, 0..4);
        let what = Products { a: side, b: side, a_rows, b_rows, step: 1, runs: &runs, taps: &[0..1, 1..1] };
        // SAFETY: refused before anything is written.
        unsafe { outer(&what, false, [0.0; 4].as_mut_ptr(), 4, 2) };
    }
}
