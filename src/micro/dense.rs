//! Products of small matrices that lie in the cache: the inner loops of attention.

use pulp::{Arch, Simd, WithSimd};

use super::panels::{MOST_ROWS, Panels, WIDEST, height};

/// Longest chain of multiply-adds before it is added to what stands in the result. A panel of as many rows
/// takes half of a first-level cache of 32 KiB.
const LONGEST: usize = 256;

/// The left side: element `(i, k)` is `data[i * row + k * step]`; in tiles it is
/// `data[i / height * tile + i % height + k * height]`.
#[derive(Clone, Copy)]
pub struct Left<'a> {
    data: &'a [f32],
    row: usize,
    step: usize,
    /// Elements from one tile to the next; 0 for a side that is not in tiles.
    tile: usize,
}

impl<'a> Left<'a> {
    /// A matrix as it is stored: rows begin `row` elements apart, the terms of a sum `step`.
    pub fn new(data: &'a [f32], row: usize, step: usize) -> Self {
        Left { data, row, step, tile: 0 }
    }

    /// The columns `first .. first + cols` of some rows of `stride` elements, copied to `room`, so that a
    /// tile reads one number after the other: the rows are the terms of the sum.
    pub fn tiles(rows: &[f32], stride: usize, first: usize, cols: usize, room: &'a mut Vec<f32>) -> Self {
        let height = height();
        let terms = rows.len().div_ceil(stride);
        let tile = terms * height;
        let elements = cols.div_ceil(height) * tile;
        if room.len() < elements {
            room.resize(elements, 0.0);
        }
        for (col, out) in (first..first + cols).step_by(height).zip(room.chunks_exact_mut(tile)) {
            let some = height.min(first + cols - col);
            for (row, out) in rows.chunks(stride).zip(out.chunks_exact_mut(height)) {
                match (out.as_chunks_mut::<6>(), row[col..col + some].as_chunks::<6>()) {
                    (([out], []), ([x], [])) => *out = *x,
                    _ => {
                        out[..some].copy_from_slice(&row[col..col + some]);
                        out[some..].fill(0.0);
                    }
                }
            }
        }
        Left { data: &room[..elements], row: 1, step: height, tile }
    }

    /// # Panics
    /// When it is in tiles.
    pub fn transposed(self) -> Self {
        assert_eq!(self.tile, 0, "a left side in tiles");
        Left { row: self.step, step: self.row, ..self }
    }

    /// Position of the last element that [`product`] reads.
    fn last(&self, rows: usize, depth: usize) -> usize {
        let first = match self.tile {
            0 => (rows - 1) * self.row,
            // A tile is read whole.
            tile => (rows.div_ceil(height()) - 1) * tile + height() - 1,
        };
        first + (depth - 1) * self.step
    }
}

/// What the sums are added to.
#[derive(Clone, Copy)]
pub enum Start<'a> {
    Zero,
    /// What stands in the result.
    Kept,
    /// A number for each column.
    Bias(&'a [f32]),
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
        let width = super::panels::panel(cols);
        assert!(cols.next_multiple_of(width) <= row, "rows of {row} elements for panels of {cols} columns");
        Right { data, row, panel: width, width }
    }
}

/// `dst[i][j] (+)= sum over k of left[i, k] * right[k, j]` for `rows` rows, `depth` terms and the panels of
/// `cols` columns, which are written whole: rows of `dst` begin `dst_row` elements apart and must hold them.
/// `keep`: add to what stands there.
///
/// Each element is a chain of multiply-adds (fused where the machine can), cut into equal pieces of at most 256
/// terms: its value depends on neither the rows nor the columns that are computed with it.
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
    let cols = cols.next_multiple_of(right.width);
    let start = if keep { Start::Kept } else { Start::Zero };
    let fits = cols <= dst_row && (rows.max(1) - 1) * dst_row + cols <= dst.len();
    assert!(fits, "product: {rows} rows of {cols} columns do not fit their place");
    // SAFETY: the rows lie in `dst`.
    unsafe { product_into([rows, depth, cols], left, right, dst.as_mut_ptr(), dst_row, start) };
}

/// As [`product`], of which `cols` columns and no more are written, to rows of a slice that other tasks may
/// write too.
///
/// # Safety
/// `dst` must be valid for `rows` rows of `cols` elements, and nothing else may use these meanwhile.
///
/// # Panics
/// When a side is too small.
pub unsafe fn product_into(
    [rows, depth, cols]: [usize; 3],
    left: Left,
    right: Right,
    dst: *mut f32,
    dst_row: usize,
    start: Start,
) {
    assert!(rows * depth * cols > 0, "product: {rows} x {depth} x {cols}");
    let panels = cols.div_ceil(right.width);
    let fits = left.last(rows, depth) < left.data.len()
        && (panels - 1) * right.panel + (depth - 1) * right.row + right.width <= right.data.len()
        && if let Start::Bias(bias) = start { bias.len() == cols } else { true };
    assert!(fits, "product: {rows} x {depth} x {cols} does not lie in its sides");
    let length = depth.div_ceil(depth.div_ceil(LONGEST));
    for first in (0..depth).step_by(length) {
        Arch::new().dispatch(Product {
            a: left.data[first * left.step..].as_ptr(),
            left,
            b: right.data[first * right.row..].as_ptr(),
            right,
            dst,
            dst_row,
            rows,
            depth: length.min(depth - first),
            cols,
            start: if first > 0 { Start::Kept } else { start },
        });
    }
}

struct Product<'a> {
    a: *const f32,
    left: Left<'a>,
    b: *const f32,
    right: Right<'a>,
    dst: *mut f32,
    dst_row: usize,
    rows: usize,
    depth: usize,
    cols: usize,
    start: Start<'a>,
}

impl WithSimd for Product<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let wide = self.right.width == 2 * S::F32_LANES;
        assert!(wide || self.right.width == S::F32_LANES, "product: another machine's panels");
        for panel in 0..self.cols.div_ceil(self.right.width) {
            let mut row = 0;
            while row < self.rows {
                let left = if self.left.tile > 0 { MOST_ROWS } else { self.rows - row };
                // As many sums as the registers hold beside a row of the panel, and no small rest.
                // SAFETY: `product_into` checked that all rows and panels lie in their slices.
                row += unsafe {
                    match (wide, S::REGISTER_COUNT >= 32) {
                        (true, true) if left >= 12 => self.tile::<S, 12, 2>(simd, row, panel),
                        (true, _) if left >= 6 && left != 8 => self.tile::<S, 6, 2>(simd, row, panel),
                        (true, _) if left >= 4 => self.tile::<S, 4, 2>(simd, row, panel),
                        (true, _) => self.tile::<S, 1, 2>(simd, row, panel),
                        (false, true) if left >= 12 => self.tile::<S, 12, 1>(simd, row, panel),
                        (false, _) if left >= 6 && left != 8 => self.tile::<S, 6, 1>(simd, row, panel),
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
    /// They must be there, those past the last in a left side in tiles alone.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
        row: usize,
        panel: usize,
    ) -> usize {
        let Left { row: a_row, tile, .. } = self.left;
        let a = self.a.wrapping_add(if tile > 0 { row / M * tile } else { row * a_row });
        let b = self.b.wrapping_add(panel * self.right.panel);
        let dst = self.dst.wrapping_add(row * self.dst_row + panel * self.right.width);
        const { assert!(V * S::F32_LANES <= WIDEST) };
        // SAFETY: the caller's promise.
        let mut sums = unsafe { self.sums::<S, M, V>(simd, a, b) };
        let first = panel * self.right.width;
        let cols = self.right.width.min(self.cols - first);
        // Whole tiles are written from the registers: no length that is not known when this is compiled.
        if cols == self.right.width && self.rows - row >= M {
            let at =
                |m: usize, v: usize| dst.wrapping_add(m * self.dst_row + v * S::F32_LANES).cast::<S::f32s>();
            match self.start {
                Start::Zero => {}
                Start::Kept => {
                    for m in 0..M {
                        for v in 0..V {
                            // SAFETY: the caller's promise.
                            let kept = unsafe { at(m, v).read_unaligned() };
                            sums[m][v] = simd.add_f32s(kept, sums[m][v]);
                        }
                    }
                }
                Start::Bias(all) => {
                    let mut bias = [simd.splat_f32s(0.0); V];
                    for (v, bias) in bias.iter_mut().enumerate() {
                        // SAFETY: as many as there are columns, which `product_into` checked.
                        *bias = unsafe {
                            let bias = all.as_ptr().add(first + v * S::F32_LANES);
                            bias.cast::<S::f32s>().read_unaligned()
                        };
                    }
                    for m in 0..M {
                        for v in 0..V {
                            sums[m][v] = simd.add_f32s(bias[v], sums[m][v]);
                        }
                    }
                }
            }
            for m in 0..M {
                for v in 0..V {
                    // SAFETY: the caller's promise.
                    unsafe { at(m, v).write_unaligned(sums[m][v]) };
                }
            }
            return M;
        }
        // A copy, since rows that are counted when this runs cannot be read from registers: the sums themselves
        // would be kept in memory, and stored with every term that is added.
        let mut copy = [[0.0; WIDEST]; M];
        for m in 0..M {
            for v in 0..V {
                // SAFETY: `V` vectors are no more than the widest panel.
                unsafe {
                    let to = copy[m].as_mut_ptr().add(v * S::F32_LANES);
                    to.cast::<S::f32s>().write_unaligned(sums[m][v]);
                }
            }
        }
        for (m, sums) in copy.iter().enumerate().take(self.rows - row) {
            // SAFETY: the caller's promise.
            let out = unsafe { std::slice::from_raw_parts_mut(dst.add(m * self.dst_row), cols) };
            match self.start {
                Start::Zero => out.copy_from_slice(&sums[..cols]),
                Start::Kept => out.iter_mut().zip(sums).for_each(|(out, sum)| *out += sum),
                Start::Bias(bias) => {
                    for ((out, sum), bias) in out.iter_mut().zip(sums).zip(&bias[first..]) {
                        *out = bias + sum;
                    }
                }
            }
        }
        M
    }

    /// The sums of one tile, whose rows begin at `a`, and whose panel at `b`.
    ///
    /// # Safety
    /// `M` rows and a panel of `V` vectors, of `depth` terms each, must be there.
    #[inline(always)]
    unsafe fn sums<S: Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
        a: *const f32,
        b: *const f32,
    ) -> [[S::f32s; V]; M] {
        let Left { row: a_row, step, .. } = self.left;
        let mut sums = [[simd.splat_f32s(0.0); V]; M];
        for k in 0..self.depth {
            // SAFETY: the caller's promise.
            unsafe {
                let b = b.add(k * self.right.row);
                let a = a.add(k * step);
                let mut w = [simd.splat_f32s(0.0); V];
                for (v, w) in w.iter_mut().enumerate() {
                    *w = b.add(v * S::F32_LANES).cast::<S::f32s>().read_unaligned();
                }
                for m in 0..M {
                    let x = simd.splat_f32s(*a.add(m * a_row));
                    for v in 0..V {
                        sums[m][v] = simd.mul_add_e_f32s(x, w[v], sums[m][v]);
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
    use crate::micro::panels::panel_elements;

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
                    let left = Left::new(&a, row, step);
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
        let left = Left::new(&[0.0; 9], 5, 1);
        product([2, 5, 8], left, right, &mut side.clone(), panel_elements(1, 8), false);
    }
}
