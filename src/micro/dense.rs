//! Products of small matrices that lie in the cache: the inner loops of attention.

use pulp::{Arch, Simd, WithSimd};

use super::gather::Panels;

/// Longest chain of multiply-adds before it is added to what stands in the result.
const LONGEST: usize = 256;

/// The left side: element `(i, k)` is `data[i * row + k * step]`.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    pub data: &'a [f32],
    pub row: usize,
    pub step: usize,
}

impl Left<'_> {
    pub fn transposed(self) -> Self {
        Left { row: self.step, step: self.row, ..self }
    }
}

/// The right side, in panels of `width` columns that begin `panel` elements apart: row k of a panel begins at
/// `k * row`.
#[derive(Clone, Copy)]
pub struct Right<'a> {
    data: &'a [f32],
    row: usize,
    panel: usize,
    width: usize,
}

impl<'a> Right<'a> {
    pub fn packed(panels: Panels<'a>) -> Self {
        let (data, rows, width) = panels.parts();
        Right { data, row: width, panel: rows * width, width }
    }

    /// Rows of `row` elements, read as panels as wide as those of `cols` columns are; `row` must hold them all.
    pub fn rows(data: &'a [f32], row: usize, cols: usize) -> Self {
        let width = super::gather::panel(cols);
        assert!(cols.next_multiple_of(width) <= row, "rows of {row} elements for panels of {cols} columns");
        Right { data, row, panel: width, width }
    }
}

/// `dst[i][j] (+)= sum over k of left[i, k] * right[k, j]` for `rows` rows, `depth` terms and the panels of
/// `cols` columns, which are written whole: rows of `dst` begin `dst_row` elements apart and must hold them.
/// `keep`: add to what stands there.
///
/// Each element is one chain of multiply-adds (fused where the machine can), cut every 256 terms.
///
/// # Panics
/// When a side or the result is too small.
pub fn product(
    [rows, depth, cols]: [usize; 3],
    left: Left,
    right: Right,
    dst: &mut [f32],
    dst_row: usize,
    keep: bool,
) {
    assert!(rows * depth * cols > 0, "product: {rows} x {depth} x {cols}");
    let panels = cols.div_ceil(right.width);
    let fits = (rows - 1) * left.row + (depth - 1) * left.step < left.data.len()
        && (panels - 1) * right.panel + (depth - 1) * right.row + right.width <= right.data.len()
        && panels * right.width <= dst_row
        && (rows - 1) * dst_row + panels * right.width <= dst.len();
    assert!(fits, "product: {rows} x {depth} x {cols} does not lie in its sides");
    for first in (0..depth).step_by(LONGEST) {
        let depth = LONGEST.min(depth - first);
        Arch::new().dispatch(Product {
            a: left.data[first * left.step..].as_ptr(),
            a_row: left.row,
            a_step: left.step,
            b: right.data[first * right.row..].as_ptr(),
            right,
            dst: dst.as_mut_ptr(),
            dst_row,
            rows,
            depth,
            panels,
            keep: keep || first > 0,
        });
    }
}

struct Product<'a> {
    a: *const f32,
    a_row: usize,
    a_step: usize,
    b: *const f32,
    right: Right<'a>,
    dst: *mut f32,
    dst_row: usize,
    rows: usize,
    depth: usize,
    panels: usize,
    keep: bool,
}

impl WithSimd for Product<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let wide = self.right.width == 2 * S::F32_LANES;
        assert!(wide || self.right.width == S::F32_LANES, "product: another machine's panels");
        for panel in 0..self.panels {
            let mut row = 0;
            while row < self.rows {
                let left = self.rows - row;
                // As many sums as the registers hold beside a row of the panel, and no small rest.
                // SAFETY: `product` checked that all rows and panels lie in their slices.
                row += unsafe {
                    match (wide, S::REGISTER_COUNT >= 32) {
                        (true, true) if left >= 12 => self.tile::<S, 12, 2>(simd, row, panel),
                        (true, _) if left >= 6 && left != 8 => self.tile::<S, 6, 2>(simd, row, panel),
                        (true, _) if left >= 4 => self.tile::<S, 4, 2>(simd, row, panel),
                        (true, _) => self.tile::<S, 1, 2>(simd, row, panel),
                        (false, _) if left >= 12 => self.tile::<S, 12, 1>(simd, row, panel),
                        (false, _) if left >= 8 => self.tile::<S, 8, 1>(simd, row, panel),
                        (false, _) if left >= 4 => self.tile::<S, 4, 1>(simd, row, panel),
                        (false, _) => self.tile::<S, 1, 1>(simd, row, panel),
                    }
                };
            }
        }
    }
}

impl Product<'_> {
    /// `M` rows from `row` on of one panel of `V` vectors. Gives `M`.
    ///
    /// # Safety
    /// They must be there.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
        row: usize,
        panel: usize,
    ) -> usize {
        let a = self.a.wrapping_add(row * self.a_row);
        let b = self.b.wrapping_add(panel * self.right.panel);
        let dst = self.dst.wrapping_add(row * self.dst_row + panel * self.right.width);
        let mut sums = [[simd.splat_f32s(0.0); V]; M];
        for k in 0..self.depth {
            // SAFETY: the caller's promise.
            unsafe {
                let b = b.add(k * self.right.row);
                let a = a.add(k * self.a_step);
                let mut w = [simd.splat_f32s(0.0); V];
                for (v, w) in w.iter_mut().enumerate() {
                    *w = b.add(v * S::F32_LANES).cast::<S::f32s>().read_unaligned();
                }
                for m in 0..M {
                    let x = simd.splat_f32s(*a.add(m * self.a_row));
                    for v in 0..V {
                        sums[m][v] = simd.mul_add_e_f32s(x, w[v], sums[m][v]);
                    }
                }
            }
        }
        for (m, sums) in sums.into_iter().enumerate() {
            for (v, sum) in sums.into_iter().enumerate() {
                // SAFETY: the caller's promise.
                unsafe {
                    let out = dst.add(m * self.dst_row + v * S::F32_LANES).cast::<S::f32s>();
                    let sum = if self.keep { simd.add_f32s(out.read_unaligned(), sum) } else { sum };
                    out.write_unaligned(sum);
                }
            }
        }
        M
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::random;
    use crate::micro::gather::panel_elements;

    /// Every number of rows up to two tiles, sides with gaps, sums longer than a chain, kept results.
    #[test]
    fn products_of_every_height() {
        for (depth, cols) in [(1, 1), (8, 8), (3, 17), (8, 40), (300, 5), (600, 33)] {
            for rows in (1..=25).chain([40]) {
                for step in [1, rows + 2] {
                    let row = if step == 1 { depth + 1 } else { 1 };
                    let a = random(1, rows * (depth + 1) + (depth + 1) * (rows + 2));
                    let b = random(2, depth * cols);
                    let width = panel_elements(1, cols);
                    let mut data = vec![f32::NAN; panel_elements(depth, cols)];
                    let panels = Panels::fill_here(&mut data, depth, cols, |first, count, out, width| {
                        for k in 0..depth {
                            out[k * width..][..count].copy_from_slice(&b[k * cols + first..][..count]);
                        }
                    });
                    let mut wide = vec![0.0; depth * (width + 3)];
                    for k in 0..depth {
                        wide[k * (width + 3)..][..cols].copy_from_slice(&b[k * cols..][..cols]);
                    }
                    let left = Left { data: &a, row, step };
                    let mut y = vec![9.0; rows * (width + 1)];
                    product([rows, depth, cols], left, Right::packed(panels), &mut y, width + 1, false);
                    let right = Right::rows(&wide, width + 3, cols);
                    product([rows, depth, cols], left, right, &mut y, width + 1, true);
                    for i in 0..rows {
                        for j in 0..cols {
                            let terms = (0..depth)
                                .map(|k| f64::from(a[i * row + k * step]) * f64::from(b[k * cols + j]) * 2.0);
                            let (sum, size) = terms.fold((0.0, 1.0), |(s, z), p| (s + p, z + p.abs()));
                            let err = (f64::from(y[i * (width + 1) + j]) - sum).abs();
                            assert!(
                                err <= 2e-6 * size,
                                "{rows} x {depth} x {cols}, ({i}, {j}): off by {err:e}"
                            );
                        }
                        assert_eq!(y[i * (width + 1) + width], 9.0, "the gap after row {i}");
                    }
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "does not lie in its sides")]
    fn a_side_that_is_too_small() {
        let side = vec![0.0; 4 * panel_elements(1, 8)];
        let right = Right::rows(&side, panel_elements(1, 8), 8);
        let left = Left { data: &[0.0; 9], row: 5, step: 1 };
        product([2, 5, 8], left, right, &mut side.clone(), panel_elements(1, 8), false);
    }
}
