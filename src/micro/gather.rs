//! Products whose left side is gathered from runs of an image: convolution, forward and adjoint.

use std::cell::RefCell;

use pulp::{Arch, Simd, WithSimd};

use super::panels::{MOST_ROWS, Panels, height, rows_of};
use crate::matrix::Tiles;

/// Longest chain of a gathered tile, over as many taps as fit, before it is added to the total: the rounding
/// of a sum grows with its length.
const LONGEST: usize = 256;

/// Fewer channels than this are no great work, and the gradients of such small networks show rounding most:
/// each tap is a chain of its own then.
const FEW: usize = 32;

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
        let height = height();
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
    // SAFETY: nothing else may use `dst`.
    unsafe { gathered_into(left, place, start, weights, rows, Tiles::new(dst), out) };
}

/// As [`gathered`], into rows of a slice that other tasks write too.
///
/// # Safety
/// Nothing else may use these rows, as wide as the weights have columns, meanwhile.
///
/// # Panics
/// As [`gathered`].
pub unsafe fn gathered_into<P: Copy>(
    left: Gather,
    place: impl Fn(usize) -> P,
    start: impl Fn(P, usize) -> Option<usize>,
    weights: Panels,
    rows: usize,
    dst: Tiles,
    out: impl Fn(usize) -> usize,
) {
    assert!(weights.rows() == left.taps * left.c, "gathered: weights");
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
        dst: Tiles<'a>,
        out: F,
    }
    impl<F: Fn(usize) -> usize> WithSimd for Work<'_, F> {
        type Output = ();
        #[inline(always)]
        fn with_simd<S: Simd>(self, simd: S) {
            match (S::REGISTER_COUNT >= 32, self.weights.width() == 2 * S::F32_LANES) {
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
            assert!(
                M == rows_of::<S>() && weights.width() == V * S::F32_LANES,
                "gathered: another machine's tile"
            );
            for panel in 0..weights.count() {
                let first = panel * weights.width();
                let cols = weights.width().min(weights.cols() - first);
                let b = weights.panel(panel);
                for (tile, row) in (0..rows).step_by(M).enumerate() {
                    let runs = &table.runs[tile * taps * M..][..taps * M];
                    // SAFETY: every run has `c` elements and the panel `taps * c` rows of `V` vectors.
                    let sums = unsafe { sums::<S, M, V>(simd, runs, c, b.as_ptr()) };
                    for (m, sums) in sums.iter().enumerate().take(rows - row) {
                        let y = dst.pointer(out(row + m) + first, cols);
                        // SAFETY: `pointer` checked the row, which the caller of `gathered_into` promised.
                        unsafe {
                            if cols == weights.width() {
                                for (v, sum) in sums.iter().enumerate() {
                                    y.add(v * S::F32_LANES).cast::<S::f32s>().write_unaligned(*sum);
                                }
                            } else {
                                let sums: &[f32] = bytemuck::cast_slice(sums);
                                y.copy_from_nonoverlapping(sums.as_ptr(), cols);
                            }
                        }
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
    let zero = [[simd.splat_f32s(0.0); V]; M];
    let longest = if c < FEW { c } else { LONGEST };
    let (mut chain, mut length) = (zero, 0);
    let mut total: Option<Total<S, M, V>> = None;
    let (runs, _) = runs.as_chunks::<M>();
    for runs in runs {
        for first in (0..c).step_by(LONGEST) {
            let count = LONGEST.min(c - first);
            if length + count > longest {
                match &mut total {
                    None => total = Some(Total { sum: chain, rest: zero }),
                    Some(total) => total.add(simd, &chain),
                }
                (chain, length) = (zero, 0);
            }
            // SAFETY: the caller's promise.
            chain = unsafe { lengthened::<S, M, V>(simd, chain, runs, first, count, b) };
            b = b.wrapping_add(count * V * S::F32_LANES);
            length += count;
        }
    }
    match total {
        None => chain,
        Some(mut total) => {
            total.add(simd, &chain);
            total.value(simd)
        }
    }
}

/// Sums of chains, and what rounding took from them.
struct Total<S: Simd, const M: usize, const V: usize> {
    sum: [[S::f32s; V]; M],
    rest: [[S::f32s; V]; M],
}

impl<S: Simd, const M: usize, const V: usize> Total<S, M, V> {
    /// Knuth's two-sum: what rounding takes from the total is kept. Gradients of what a norm follows nearly
    /// cancel, and show every digit that is lost here.
    #[inline(always)]
    fn add(&mut self, simd: S, chain: &[[S::f32s; V]; M]) {
        for m in 0..M {
            for v in 0..V {
                let (sum, next) = (self.sum[m][v], chain[m][v]);
                let new = simd.add_f32s(sum, next);
                let added = simd.sub_f32s(new, sum);
                let left = simd.sub_f32s(sum, simd.sub_f32s(new, added));
                let lost = simd.add_f32s(left, simd.sub_f32s(next, added));
                self.sum[m][v] = new;
                self.rest[m][v] = simd.add_f32s(self.rest[m][v], lost);
            }
        }
    }

    #[inline(always)]
    fn value(mut self, simd: S) -> [[S::f32s; V]; M] {
        for m in 0..M {
            for v in 0..V {
                self.sum[m][v] = simd.add_f32s(self.sum[m][v], self.rest[m][v]);
            }
        }
        self.sum
    }
}

/// `sums` and the part of a tile that elements `first .. first + count` of its runs make with as many rows of
/// `b`.
///
/// # Safety
/// All of them must be there.
#[inline(always)]
unsafe fn lengthened<S: Simd, const M: usize, const V: usize>(
    simd: S,
    mut sums: [[S::f32s; V]; M],
    runs: &[*const f32; M],
    first: usize,
    count: usize,
    b: *const f32,
) -> [[S::f32s; V]; M] {
    let runs = *runs;
    for k in 0..count {
        // SAFETY: the caller's promise.
        unsafe {
            let mut w = [simd.splat_f32s(0.0); V];
            for (v, w) in w.iter_mut().enumerate() {
                *w = b.add((k * V + v) * S::F32_LANES).cast::<S::f32s>().read_unaligned();
            }
            for m in 0..M {
                let x = simd.splat_f32s(*runs[m].add(first + k));
                for v in 0..V {
                    sums[m][v] = simd.mul_add_e_f32s(x, w[v], sums[m][v]);
                }
            }
        }
    }
    sums
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::random;
    use crate::micro::panels::panel_elements;

    fn close(got: f32, wanted: f64, size: f64) -> bool {
        (f64::from(got) - wanted).abs() <= 2e-6 * size
    }

    #[test]
    fn gathered_rows_with_holes() {
        for (c, taps, rows, cols) in
            [(1, 1, 1, 1), (3, 4, 5, 2), (7, 9, 30, 33), (300, 3, 25, 70), (600, 1, 13, 16)]
        {
            let src = random(1, 40 * c);
            let w = random(2, taps * c * cols);
            let mut data = vec![f32::NAN; panel_elements(taps * c, cols)];
            let panels = Panels::fill(&mut data, taps * c, cols, taps, |tap, first, count, out, width| {
                for k in 0..c {
                    out[k * width..][..count].copy_from_slice(&w[(tap * c + k) * cols + first..][..count]);
                }
            });
            let start = |row: usize, tap: usize| {
                (!(row + tap).is_multiple_of(5)).then_some((row * 7 + tap * 3) % 40 * c)
            };
            let mut y = vec![9.0; rows * (cols + 1)];
            gathered(
                Gather { src: &src, c, taps },
                |row| row,
                start,
                panels,
                rows,
                &mut y,
                |row| row * (cols + 1),
            );
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
}
