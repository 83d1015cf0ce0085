//! The register tile: some rows of A times one panel of B, with sums that stay in registers until they are
//! written.

use pulp::{Simd, WithSimd};

use super::panels::Panels;
use crate::shared::Shared;

/// What is added to a row of a product when its sums are there.
#[derive(Clone, Copy, Default)]
pub struct Extra<'a> {
    /// Bias `[cols]`, shift `[samples, cols]`, and the residual, which is like the result.
    pub terms: [Option<&'a [f32]>; 3],
    pub cols: usize,
    /// Rows of a sample.
    pub pixels: usize,
}

impl Extra<'_> {
    #[inline(always)]
    pub fn any(&self) -> bool {
        self.terms.iter().any(Option::is_some)
    }

    /// What is added to `count` columns from `first` on of row `row` of the result, in this order.
    #[inline(always)]
    fn of(&self, row: usize, first: usize, count: usize) -> impl Iterator<Item = &[f32]> {
        let sample = if self.terms[1].is_some() { row / self.pixels } else { 0 };
        let terms = self.terms.into_iter().zip([0, sample, row]);
        terms.filter_map(move |(x, row)| Some(&x?[row * self.cols + first..][..count]))
    }

    /// Adds to `y`, the columns from `first` on of row `row` of the result.
    #[inline(always)]
    pub fn add(&self, row: usize, first: usize, y: &mut [f32]) {
        for x in self.of(row, first, y.len()) {
            for (y, x) in y.iter_mut().zip(x) {
                *y += x;
            }
        }
    }
}

/// Where a product is written: into a matrix whose rows begin `stride` elements apart, its columns from `col`
/// on.
pub struct Target<'a> {
    pub dst: Shared<'a>,
    /// Row r of the product goes to row `first + r`, or `first + rows[r]` where that is given.
    pub first: usize,
    pub rows: Option<&'a [usize]>,
    pub stride: usize,
    pub col: usize,
    /// Adds to what stands there.
    pub keep: bool,
    pub extra: Extra<'a>,
}

/// The factors of a product, and how a register tile multiplies them.
pub trait Factors {
    /// Gives `store` the sums of `M` rows from `row` on and the panel of `V` vectors that begins at `panel`.
    ///
    /// # Safety
    /// The rows and the panel must be there, and the processor have what the factors need.
    unsafe fn tile<S: Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
        row: usize,
        panel: *const f32,
        store: impl FnOnce([[S::f32s; V]; M]),
    );
}

/// A product in register tiles.
pub struct Tiles<'a, F> {
    pub factors: F,
    /// Rows.
    pub count: usize,
    pub b: &'a Panels<'a>,
    pub target: &'a Target<'a>,
}

impl<F: Factors> WithSimd for Tiles<'_, F> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        for panel in 0..self.b.count() {
            self.panel(simd, panel);
        }
    }
}

/// A panel of B, and the columns of the target that it gives.
struct Panel {
    start: *const f32,
    col: usize,
    cols: usize,
}

impl<F: Factors> Tiles<'_, F> {
    /// All rows times one panel.
    #[inline(always)]
    pub fn panel<S: Simd>(&self, simd: S, number: usize) {
        let Panels { cols, width, .. } = *self.b;
        let first = number * width;
        let panel = Panel {
            start: self.b.panel(number),
            col: self.target.col + first,
            cols: width.min(cols - first),
        };
        if width == 2 * S::F32_LANES {
            self.rows::<S, 2>(simd, &panel);
        } else {
            assert!(width == S::F32_LANES, "product: another machine's panels");
            self.rows::<S, 1>(simd, &panel);
        }
    }

    /// In tiles of as many sums as the registers hold beside a row of the panel, and no small rest.
    #[inline(always)]
    fn rows<S: Simd, const V: usize>(&self, simd: S, panel: &Panel) {
        let mut row = 0;
        while row < self.count {
            row += match self.count - row {
                12.. if S::REGISTER_COUNT >= 32 => self.tile::<S, 12, V>(simd, row, panel),
                6..=7 | 9.. => self.tile::<S, 6, V>(simd, row, panel),
                4.. => self.tile::<S, 4, V>(simd, row, panel),
                _ => self.tile::<S, 1, V>(simd, row, panel),
            };
        }
    }

    /// `M` rows from `row` on. Gives `M`.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const V: usize>(&self, simd: S, row: usize, panel: &Panel) -> usize {
        // SAFETY: `multiply` was promised the rows, and checked the panels and the processor.
        unsafe {
            self.factors.tile::<S, M, V>(
                simd,
                row,
                panel.start,
                #[inline(always)]
                move |sums| self.store(simd, row, panel, sums),
            );
        }
        M
    }

    #[inline(always)]
    fn store<S: Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
        row: usize,
        &Panel { col, cols, .. }: &Panel,
        mut sums: [[S::f32s; V]; M],
    ) {
        let &Target { dst, first, rows, stride, keep, extra, .. } = self.target;
        let width = V * S::F32_LANES;
        let rows = rows.map(|rows| rows[row..].first_chunk::<M>().expect("a row for each"));
        let to = |m: usize| first + rows.map_or(row + m, |rows| rows[m]);
        let at: [_; M] = std::array::from_fn(|m| dst.unchecked(to(m) * stride + col));
        // SAFETY: the rows are there, as `multiply` checked, whose caller promised them to this task.
        unsafe {
            if cols < width {
                // A copy: the sums themselves, read by an index, would be kept in memory.
                let mut copy = [[simd.splat_f32s(0.0); V]; M];
                (0..M).for_each(|m| (0..V).for_each(|v| copy[m][v] = sums[m][v]));
                for m in 0..M {
                    let y = std::slice::from_raw_parts_mut(at[m], cols);
                    for (y, sum) in y.iter_mut().zip(bytemuck::cast_slice(&copy[m])) {
                        *y = if keep { *y + sum } else { *sum };
                    }
                    extra.add(to(m), col, y);
                }
                return;
            }
            if keep {
                add_rows(simd, &mut sums, |m| at[m].cast_const());
            }
            let [bias, shift, residual] = extra.terms;
            if let Some(x) = bias {
                let x = x[col..][..width].as_ptr();
                add_rows(simd, &mut sums, |_| x);
            }
            if let Some(x) = shift {
                add_rows(simd, &mut sums, |m| x[to(m) / extra.pixels * extra.cols + col..][..width].as_ptr());
            }
            if let Some(x) = residual {
                add_rows(simd, &mut sums, |m| x[to(m) * extra.cols + col..][..width].as_ptr());
            }
            for m in 0..M {
                for v in 0..V {
                    at[m].add(v * S::F32_LANES).cast::<S::f32s>().write_unaligned(sums[m][v]);
                }
            }
        }
    }
}

/// Adds what begins at `x(m)` to row m.
///
/// # Safety
/// `V` vectors must be there.
#[inline(always)]
unsafe fn add_rows<S: Simd, const M: usize, const V: usize>(
    simd: S,
    sums: &mut [[S::f32s; V]; M],
    x: impl Fn(usize) -> *const f32,
) {
    for m in 0..M {
        let x = x(m);
        for v in 0..V {
            // SAFETY: the caller's promise.
            let x = unsafe { x.add(v * S::F32_LANES).cast::<S::f32s>().read_unaligned() };
            sums[m][v] = simd.add_f32s(x, sums[m][v]);
        }
    }
}
