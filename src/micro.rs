//! Sums of products in tiles that stay in registers: the inner loops of the CPU twins of convolution.
//!
//! Every element is one chain of fused multiply-adds, cut at lengths that the shapes alone decide, so that
//! it has the same bits wherever its tile lies and however wide the machine's vectors are.

use std::cell::RefCell;
use std::sync::OnceLock;

use pulp::{Arch, Simd, WithSimd};

/// Longest chain before it is added to the total: the rounding of a sum grows with its length.
const LONGEST: usize = 256;

/// Rows of the tallest tile of any machine.
const MOST_ROWS: usize = 12;

/// Rows of a gathered tile: as many as the registers hold beside two vectors of weights.
const fn rows_of<S: Simd>() -> usize {
    if S::REGISTER_COUNT >= 32 { MOST_ROWS } else { 6 }
}

/// Rows and columns of the largest tile of this machine: two vectors wide.
fn tile() -> (usize, usize) {
    struct Ask;
    impl WithSimd for Ask {
        type Output = (usize, usize);
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> (usize, usize) {
            (rows_of::<S>(), 2 * S::F32_LANES)
        }
    }
    static TILE: OnceLock<(usize, usize)> = OnceLock::new();
    *TILE.get_or_init(|| Arch::new().dispatch(Ask))
}

/// Columns that are computed together, of `cols` in all.
fn panel(cols: usize) -> usize {
    let (_, widest) = tile();
    if cols <= widest / 2 { widest / 2 } else { widest }
}

/// Elements that [`Panels`] of a matrix of this size take.
pub fn panel_elements(rows: usize, cols: usize) -> usize {
    rows * cols.next_multiple_of(panel(cols))
}

/// A matrix `[rows, cols]` in panels of columns, each panel `[rows, width]`, the last padded with zeros:
/// read in order by the tiles of a product.
#[derive(Clone, Copy)]
pub struct Panels<'a> {
    data: &'a [f32],
    rows: usize,
    cols: usize,
    width: usize,
}

impl<'a> Panels<'a> {
    /// Fills `data` with the panels of a matrix of which `pack` writes parts: `pack(piece, first column,
    /// columns, out)` writes rows `piece * rows / pieces ..` of so many columns into rows of `out` that
    /// begin `width` elements apart. In parallel over panels and pieces.
    pub fn fill(
        data: &'a mut [f32],
        rows: usize,
        cols: usize,
        pieces: usize,
        pack: impl Fn(usize, usize, usize, &mut [f32], usize) + Sync,
    ) -> Panels<'a> {
        use rayon::prelude::*;
        let width = panel(cols);
        assert!(data.len() == panel_elements(rows, cols) && rows.is_multiple_of(pieces), "panels");
        if rows > 0 {
            let piece_rows = rows / pieces;
            data.par_chunks_mut(piece_rows * width).enumerate().for_each(|(i, out)| {
                let (panel, piece) = (i / pieces, i % pieces);
                let first = panel * width;
                let filled = width.min(cols - first);
                if filled < width {
                    out.fill(0.0);
                }
                pack(piece, first, filled, out, width);
            });
        }
        Panels { data, rows, cols, width }
    }

    fn count(&self) -> usize {
        self.cols.div_ceil(self.width)
    }

    fn panel(&self, index: usize) -> &'a [f32] {
        &self.data[index * self.rows * self.width..][..self.rows * self.width]
    }
}

/// Working memory of [`gathered`]: where each run begins, and zeros for those outside.
#[derive(Default)]
struct Table {
    runs: Vec<*const f32>,
    zeros: Vec<f32>,
}

impl Table {
    /// For each tile, each tap and each of its rows the start of a run of `c` elements.
    fn fill<P: Copy>(
        &mut self,
        Gather { src, c, taps }: Gather,
        rows: usize,
        place: impl Fn(usize) -> P,
        start: impl Fn(P, usize) -> Option<usize>,
    ) {
        let (height, _) = tile();
        if self.zeros.len() < c {
            self.zeros = vec![0.0; c];
        }
        self.runs.clear();
        for first in (0..rows).step_by(height) {
            let mut places = [None; MOST_ROWS];
            for (row, place_of) in (first..rows).zip(&mut places[..height]) {
                *place_of = Some(place(row));
            }
            for tap in 0..taps {
                self.runs.extend(places[..height].iter().map(|place| {
                    match place.and_then(|place| start(place, tap)) {
                        Some(at) => src[at..at + c].as_ptr(),
                        None => self.zeros.as_ptr(),
                    }
                }));
            }
        }
    }
}

/// The left side of a product of gathered rows: each row is made of `taps` runs of `c` elements of `src`.
#[derive(Clone, Copy)]
pub struct Gather<'a> {
    pub src: &'a [f32],
    pub c: usize,
    pub taps: usize,
}

/// `dst[out(row)..][..cols] = sum over taps and k of src[start(place(row), tap) + k] * weights[tap * c + k]`
/// for `rows` rows; a tap whose start is `None` lies outside the image and adds nothing.
///
/// # Panics
/// When a run does not lie in `src` or a row not in `dst`, or the weights have not `taps * c` rows.
pub fn gathered<P: Copy>(
    left: Gather,
    place: impl Fn(usize) -> P,
    start: impl Fn(P, usize) -> Option<usize>,
    weights: Panels,
    rows: usize,
    dst: &mut [f32],
    out: impl Fn(usize) -> usize,
) {
    assert!(weights.rows == left.taps * left.c, "gathered: weights");
    thread_local! {
        static TABLE: RefCell<Table> = RefCell::default();
    }
    TABLE.with_borrow_mut(|table| {
        table.fill(left, rows, place, start);
        Arch::new().dispatch(Work { table, left, weights, rows, dst, out });
    });

    struct Work<'a, F> {
        table: &'a Table,
        left: Gather<'a>,
        weights: Panels<'a>,
        rows: usize,
        dst: &'a mut [f32],
        out: F,
    }
    impl<F: Fn(usize) -> usize> WithSimd for Work<'_, F> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            match (S::REGISTER_COUNT >= 32, self.weights.width == 2 * S::F32_LANES) {
                (true, true) => self.tiles::<S, 12, 2>(simd),
                (true, false) => self.tiles::<S, 12, 1>(simd),
                (false, true) => self.tiles::<S, 6, 2>(simd),
                (false, false) => self.tiles::<S, 6, 1>(simd),
            }
        }
    }
    impl<F: Fn(usize) -> usize> Work<'_, F> {
        #[inline(always)]
        fn tiles<S: Simd, const M: usize, const V: usize>(self, simd: S) {
            let Work { table, left: Gather { c, taps, .. }, weights, rows, dst, out } = self;
            assert!(M == rows_of::<S>() && weights.width == V * S::F32_LANES, "gathered: another machine's tile");
            for panel in 0..weights.count() {
                let first = panel * weights.width;
                let cols = weights.width.min(weights.cols - first);
                let b = weights.panel(panel);
                for (tile, row) in (0..rows).step_by(M).enumerate() {
                    let runs = &table.runs[tile * taps * M..][..taps * M];
                    // SAFETY: every run has `c` elements and the panel `taps * c` rows of `V` vectors.
                    let sums = unsafe { sums::<S, M, V>(simd, runs, c, b.as_ptr()) };
                    for (m, sums) in sums.iter().enumerate().take(rows - row) {
                        let y = &mut dst[out(row + m) + first..][..cols];
                        let sums: &[f32] = bytemuck::cast_slice(sums);
                        y.copy_from_slice(&sums[..cols]);
                    }
                }
            }
        }
    }
}

/// One tile: `M` rows of `V` vectors.
///
/// # Safety
/// Each run must have `c` elements, and `b` must have `runs / M * c` rows of `V` vectors.
#[inline(always)]
unsafe fn sums<S: Simd, const M: usize, const V: usize>(
    simd: S,
    runs: &[*const f32],
    c: usize,
    mut b: *const f32,
) -> [[S::f32s; V]; M] {
    let zero = simd.splat_f32s(0.0);
    let mut total = [[zero; V]; M];
    let mut chain = [[zero; V]; M];
    let mut length = 0;
    let (runs, _) = runs.as_chunks::<M>();
    for runs in runs {
        let mut k = 0;
        while k < c {
            let end = c.min(k + (LONGEST - length));
            length += end - k;
            while k < end {
                // SAFETY: the caller's promise.
                unsafe {
                    let mut w = [zero; V];
                    for (v, w) in w.iter_mut().enumerate() {
                        *w = b.add(v * S::F32_LANES).cast::<S::f32s>().read_unaligned();
                    }
                    for m in 0..M {
                        let x = simd.splat_f32s(*runs[m].add(k));
                        for v in 0..V {
                            chain[m][v] = simd.mul_add_f32s(x, w[v], chain[m][v]);
                        }
                    }
                    b = b.add(V * S::F32_LANES);
                }
                k += 1;
            }
            if length == LONGEST {
                for m in 0..M {
                    for v in 0..V {
                        total[m][v] = simd.add_f32s(total[m][v], chain[m][v]);
                        chain[m][v] = zero;
                    }
                }
                length = 0;
            }
        }
    }
    for m in 0..M {
        for v in 0..V {
            chain[m][v] = simd.add_f32s(total[m][v], chain[m][v]);
        }
    }
    chain
}

/// Pairs of rows that are multiplied: `count` rows from `a` on in the left matrix and from `b` on in the
/// right one.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    pub a: usize,
    pub b: usize,
    pub count: usize,
}

/// One side of a sum of outer products: rows that begin `stride` elements apart, of which the columns
/// `first .. first + cols` count.
#[derive(Clone, Copy)]
pub struct Side<'a> {
    pub data: &'a [f32],
    pub stride: usize,
    pub first: usize,
    pub cols: usize,
}

impl Side<'_> {
    /// True if `count` rows from element `at` on lie inside.
    fn holds(&self, at: usize, count: usize) -> bool {
        count == 0 || at + (count - 1) * self.stride + self.first + self.cols <= self.data.len()
    }
}

/// `dst[i][j] (+)= sum over the runs' rows of a[.., i] * b[.., j]`, rows of `dst` beginning `stride` apart.
/// `keep`: add to what stands there.
///
/// # Safety
/// `dst` must be valid for `a.cols` rows of `b.cols` elements, and nothing else may use these meanwhile.
///
/// # Panics
/// When a run leaves its matrix.
pub unsafe fn outer(a: Side, b: Side, runs: &[Run], keep: bool, dst: *mut f32, stride: usize) {
    struct Work<'a> {
        a: Side<'a>,
        b: Side<'a>,
        runs: &'a [Run],
        keep: bool,
        dst: *mut f32,
        stride: usize,
    }
    impl WithSimd for Work<'_> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            let lanes = S::F32_LANES;
            let mut col = 0;
            while col < self.b.cols {
                let left = self.b.cols - col;
                if left >= 2 * lanes {
                    self.columns::<S, 2, false>(simd, col, 2 * lanes);
                    col += 2 * lanes;
                } else if left >= lanes {
                    self.columns::<S, 1, false>(simd, col, lanes);
                    col += lanes;
                } else {
                    self.columns::<S, 1, true>(simd, col, left);
                    col += left;
                }
            }
        }
    }
    impl Work<'_> {
        /// `cols` columns of `b` from `col` on, with all of `a`.
        #[inline(always)]
        fn columns<S: Simd, const V: usize, const PART: bool>(&self, simd: S, col: usize, cols: usize) {
            let mut row = 0;
            while row < self.a.cols {
                let left = self.a.cols - row;
                // SAFETY: the caller's promise for `dst`; `outer` checked the runs.
                unsafe {
                    row += if left >= 8 && S::REGISTER_COUNT >= 32 {
                        self.tile::<S, 8, V, PART>(simd, row, col, cols)
                    } else if left >= 4 {
                        self.tile::<S, 4, V, PART>(simd, row, col, cols)
                    } else if left >= 2 {
                        self.tile::<S, 2, V, PART>(simd, row, col, cols)
                    } else {
                        self.tile::<S, 1, V, PART>(simd, row, col, cols)
                    };
                }
            }
        }

        /// # Safety
        /// As `outer`; the tile must lie inside.
        #[inline(always)]
        unsafe fn tile<S: Simd, const M: usize, const V: usize, const PART: bool>(
            &self,
            simd: S,
            row: usize,
            col: usize,
            cols: usize,
        ) -> usize {
            let Work { a, b, dst, .. } = self;
            let zero = simd.splat_f32s(0.0);
            let mut sums = [[zero; V]; M];
            // SAFETY: the runs lie inside both matrices, which was checked, and the tile in `dst`.
            unsafe {
                for run in self.runs {
                    let mut x = a.data.as_ptr().add(run.a + a.first + row);
                    let mut y = b.data.as_ptr().add(run.b + b.first + col);
                    for _ in 0..run.count {
                        let mut w = [zero; V];
                        for (v, w) in w.iter_mut().enumerate() {
                            *w = if PART {
                                simd.partial_load_f32s(std::slice::from_raw_parts(y, cols))
                            } else {
                                y.add(v * S::F32_LANES).cast::<S::f32s>().read_unaligned()
                            };
                        }
                        for (m, sums) in sums.iter_mut().enumerate() {
                            let x = simd.splat_f32s(*x.add(m));
                            for (sum, w) in sums.iter_mut().zip(w) {
                                *sum = simd.mul_add_f32s(x, w, *sum);
                            }
                        }
                        x = x.wrapping_add(a.stride);
                        y = y.wrapping_add(b.stride);
                    }
                }
                for (m, sums) in sums.iter().enumerate() {
                    let out = dst.add((row + m) * self.stride + col);
                    let out = std::slice::from_raw_parts_mut(out, cols);
                    let sums: &[f32] = bytemuck::cast_slice(sums);
                    if self.keep {
                        out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum);
                    } else {
                        out.copy_from_slice(&sums[..cols]);
                    }
                }
            }
            M
        }
    }
    for run in runs {
        assert!(a.holds(run.a, run.count) && b.holds(run.b, run.count), "outer: {run:?} leaves a matrix");
    }
    Arch::new().dispatch(Work { a, b, runs, keep, dst, stride });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::random;

    fn close(got: f32, wanted: f64, size: f64) -> bool {
        (f64::from(got) - wanted).abs() <= 2e-6 * size
    }

    #[test]
    fn gathered_rows_with_holes() {
        for (c, taps, rows, cols) in [(1, 1, 1, 1), (3, 4, 5, 2), (7, 9, 30, 33), (300, 3, 25, 70), (600, 1, 13, 16)] {
            let src = random(1, 40 * c);
            let w = random(2, taps * c * cols);
            let mut data = vec![f32::NAN; panel_elements(taps * c, cols)];
            let panels = Panels::fill(&mut data, taps * c, cols, taps, |tap, first, count, out, width| {
                for k in 0..c {
                    out[k * width..][..count].copy_from_slice(&w[(tap * c + k) * cols + first..][..count]);
                }
            });
            let start = |row: usize, tap: usize| (!(row + tap).is_multiple_of(5)).then_some((row * 7 + tap * 3) % 40 * c);
            let mut y = vec![9.0; rows * (cols + 1)];
            gathered(Gather { src: &src, c, taps }, |row| row, start, panels, rows, &mut y, |row| row * (cols + 1));
            for row in 0..rows {
                for col in 0..cols {
                    let products = (0..taps).flat_map(|tap| {
                        let (w, src) = (&w, &src);
                        let at = start(row, tap);
                        (0..c).filter_map(move |k| {
                            at.map(|at| f64::from(src[at + k]) * f64::from(w[(tap * c + k) * cols + col]))
                        })
                    });
                    let (sum, size) = products.fold((0.0, 1.0), |(s, z), p| (s + p, z + p.abs()));
                    let got = y[row * (cols + 1) + col];
                    assert!(close(got, sum, size), "c {c}, row {row}, column {col}: {got}, wanted {sum}");
                }
                assert_eq!(y[row * (cols + 1) + cols], 9.0, "the gap after row {row}");
            }
        }
    }

    #[test]
    fn outer_products_of_runs() {
        for (m, n) in [(1, 1), (3, 5), (8, 16), (15, 50), (64, 33)] {
            let (a, b) = (random(1, 50 * (m + 2)), random(2, 50 * (n + 1)));
            let runs = [Run { a: 0, b: 3 * (n + 1), count: 4 }, Run { a: 9 * (m + 2), b: 0, count: 41 }];
            let side = |data, cols, stride, first| Side { data, stride, first, cols };
            let mut y = vec![1.0; m * (n + 3)];
            let (left, right) = (side(&a, m, m + 2, 2), side(&b, n, n + 1, 1));
            // SAFETY: `y` has m rows of n + 3 elements.
            unsafe {
                outer(left, right, &runs, false, y.as_mut_ptr(), n + 3);
                outer(left, right, &runs[..1], true, y.as_mut_ptr(), n + 3);
            }
            for i in 0..m {
                for j in 0..n {
                    let (mut sum, mut size) = (0.0, 1.0);
                    for (run, times) in [(runs[0], 2.0), (runs[1], 1.0)] {
                        for r in 0..run.count {
                            let x = f64::from(a[run.a + r * (m + 2) + 2 + i]);
                            let p = times * x * f64::from(b[run.b + r * (n + 1) + 1 + j]);
                            (sum, size) = (sum + p, size + p.abs());
                        }
                    }
                    let got = y[i * (n + 3) + j];
                    assert!(close(got, sum, size), "{m} x {n}, ({i}, {j}): {got}, wanted {sum}");
                }
                assert_eq!(y[i * (n + 3) + n..][..3], [1.0; 3], "the gap after row {i}");
            }
        }
    }

    #[test]
    #[should_panic(expected = "leaves a matrix")]
    fn a_run_past_the_end() {
        let side = Side { data: &[0.0; 8], stride: 2, first: 0, cols: 2 };
        // SAFETY: refused before anything is written.
        unsafe { outer(side, side, &[Run { a: 0, b: 2, count: 4 }], false, [0.0; 4].as_mut_ptr(), 2) };
    }
}
