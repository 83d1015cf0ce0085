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
    /// Gives `store` the sums of `M` rows from `row` on and a panel of `V` vectors.
    ///
    /// # Safety
    /// The rows and the panel must be there, and the processor have what the factors need.
    unsafe fn tile<S: Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
        row: usize,
        panel: usize,
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

impl<F: Factors> Tiles<'_, F> {
    /// All rows times one panel.
    #[inline(always)]
    pub fn panel<S: Simd>(&self, simd: S, panel: usize) {
        let wide = self.b.width == 2 * S::F32_LANES;
        assert!(wide || self.b.width == S::F32_LANES, "product: another machine's panels");
        let mut row = 0;
        while row < self.count {
            let left = self.count - row;
            // As many sums as the registers hold beside a row of the panel, and no small rest.
            row += match (wide, S::REGISTER_COUNT >= 32) {
                (true, true) if left >= 12 => self.tile::<S, 12, 2>(simd, row, panel),
                (true, _) if left >= 6 && left != 8 => self.tile::<S, 6, 2>(simd, row, panel),
                (true, _) if left >= 4 => self.tile::<S, 4, 2>(simd, row, panel),
                (true, _) => self.tile::<S, 1, 2>(simd, row, panel),
                (false, true) if left >= 12 => self.tile::<S, 12, 1>(simd, row, panel),
                (false, _) if left >= 6 && left != 8 => self.tile::<S, 6, 1>(simd, row, panel),
                (false, _) if left >= 4 => self.tile::<S, 4, 1>(simd, row, panel),
                (false, _) => self.tile::<S, 1, 1>(simd, row, panel),
            };
        }
    }

    /// `M` rows from `row` on times one panel of `V` vectors. Gives `M`.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const V: usize>(&self, simd: S, row: usize, panel: usize) -> usize {
        // SAFETY: `multiply` was promised the rows, and checked the panels and the processor.
        unsafe {
            self.factors.tile::<S, M, V>(
                simd,
                row,
                panel,
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
        panel: usize,
        sums: [[S::f32s; V]; M],
    ) {
        let (width, target) = (self.b.width, self.target);
        let (first, cols) = (target.col + panel * width, width.min(self.b.cols - panel * width));
        let to: [usize; M] = match target.rows {
            Some(rows) => {
                let rows: &[usize; M] = rows[row..].first_chunk().expect("a row for each");
                std::array::from_fn(|m| target.first + rows[m])
            }
            None => std::array::from_fn(|m| target.first + row + m),
        };
        let at: [_; M] = std::array::from_fn(|m| target.dst.unchecked(to[m] * target.stride + first));
        let vector = |m: usize, v: usize| at[m].wrapping_add(v * S::F32_LANES).cast::<S::f32s>();
        // SAFETY: the rows are there, as `multiply` checked, whose caller promised them to this task.
        unsafe {
            if cols < width {
                // A copy: the sums themselves, read by an index, would be kept in memory.
                let mut copy = [[simd.splat_f32s(0.0); V]; M];
                (0..M).for_each(|m| (0..V).for_each(|v| copy[m][v] = sums[m][v]));
                for m in 0..M {
                    let y = std::slice::from_raw_parts_mut(at[m], cols);
                    for (y, sum) in y.iter_mut().zip(bytemuck::cast_slice(&copy[m])) {
                        *y = if target.keep { *y + sum } else { *sum };
                    }
                    target.extra.add(to[m], first, y);
                }
                return;
            }
            let mut sums = sums;
            if target.keep {
                for m in 0..M {
                    for v in 0..V {
                        sums[m][v] = simd.add_f32s(vector(m, v).read_unaligned(), sums[m][v]);
                    }
                }
            }
            let [bias, shift, residual] = target.extra.terms;
            if let Some(bias) = bias {
                let bias = bias[first..][..width].as_ptr();
                for v in 0..V {
                    let bias = bias.wrapping_add(v * S::F32_LANES).cast::<S::f32s>().read_unaligned();
                    for m in 0..M {
                        sums[m][v] = simd.add_f32s(sums[m][v], bias);
                    }
                }
            }
            for m in 0..M {
                for v in 0..V {
                    vector(m, v).write_unaligned(sums[m][v]);
                }
            }
            let rest = Extra { terms: [None, shift, residual], ..target.extra };
            if rest.any() {
                for m in 0..M {
                    rest.add(to[m], first, std::slice::from_raw_parts_mut(at[m], width));
                }
            }
        }
    }
}
