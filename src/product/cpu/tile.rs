//! The register tile: some rows of A times one panel of B, with sums that stay in registers. The inner loop
//! of convolution, matrix product and attention on the CPU.
//!
//! Every element is a sum of chains of multiply-adds, fused on machines that can (all since about 2013), cut
//! at lengths that the shapes alone decide: it has the same bits wherever its tile lies and however wide the
//! vectors are.

use pulp::{Arch, Simd, WithSimd};

use super::panels::Panels;
use crate::shared::Shared;

/// Longest chain before it is added to the total, over as many taps as fit: the rounding of a sum grows with
/// its length.
const LONGEST: usize = 256;

/// Runs shorter than this are chains of their own: they are little work, and gradients of such small networks
/// show rounding most.
const SHORT: usize = 32;

/// Rows of A: each is made of runs of `run` elements, one for each tap, `step` elements of memory apart.
pub struct Rows<'a> {
    starts: Starts<'a>,
    count: usize,
    taps: usize,
    run: usize,
    step: usize,
}

/// Where the runs begin.
enum Starts<'a> {
    /// `[taps, count]`.
    Table(&'a [*const f32]),
    /// Of the one tap, `stride` elements apart.
    Even { first: *const f32, stride: usize },
}

impl<'a> Rows<'a> {
    /// Rows whose runs begin anywhere.
    ///
    /// # Safety
    /// `run` elements must be readable from each of `starts`, which holds `count` for each tap.
    pub unsafe fn gathered(starts: &'a [*const f32], count: usize, run: usize) -> Self {
        assert!(count > 0 && starts.len().is_multiple_of(count), "rows: {} starts of {count}", starts.len());
        Rows { starts: Starts::Table(starts), count, taps: starts.len() / count, run, step: 1 }
    }

    /// A matrix: element (r, k) is `a[r * stride + k * step]`.
    ///
    /// # Panics
    /// When `a` is too small.
    pub fn matrix(a: &'a [f32], [count, depth]: [usize; 2], [stride, step]: [usize; 2]) -> Self {
        let fits = count * depth > 0 && (count - 1) * stride + (depth - 1) * step < a.len();
        assert!(fits, "rows: {count} x {depth} of {} elements", a.len());
        Rows { starts: Starts::Even { first: a.as_ptr(), stride }, count, taps: 1, run: depth, step }
    }

    /// Where the runs of `M` rows begin.
    #[inline(always)]
    fn starts<const M: usize>(&self, tap: usize, row: usize) -> [*const f32; M] {
        match self.starts {
            Starts::Table(starts) => {
                *starts[tap * self.count + row..].first_chunk().expect("a start for each row and tap")
            }
            Starts::Even { first, stride } => std::array::from_fn(|m| first.wrapping_add((row + m) * stride)),
        }
    }
}

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

/// `dst[r][j] (+)= sum over k of a[r][k] * b[k][j]` for a matrix that lies in a cache: rows of `dst` begin
/// `stride` elements apart and hold whole panels.
///
/// # Panics
/// When B or the result is too small.
pub fn multiply_into(dst: &mut [f32], stride: usize, keep: bool, a: Rows, mut b: Panels) {
    let (dst, extra) = (Shared::new(dst), Extra::default());
    b.cols = b.cols.next_multiple_of(b.width);
    // SAFETY: nothing else has `dst`.
    unsafe { multiply(a, b, &Target { dst, first: 0, rows: None, stride, col: 0, keep, extra }) };
}

/// `dst[row][col + j] (+)= sum over taps and k of rows[r][tap][k] * b[tap * run + k][j]`, plus the extra.
///
/// # Safety
/// Nothing else may use these rows and columns of the target meanwhile.
///
/// # Panics
/// When B has not a row for each k, or the target has not the rows.
pub unsafe fn multiply(rows: Rows, b: Panels, target: &Target) {
    assert_eq!(b.rows, rows.taps * rows.run, "product: rows of B");
    let last = target.rows.map_or(rows.count - 1, |to| to[..rows.count].iter().copied().max().unwrap_or(0));
    target.dst.pointer((target.first + last) * target.stride + target.col, b.cols);
    Arch::new().dispatch(Work { rows, b, target });
}

struct Work<'a> {
    rows: Rows<'a>,
    b: Panels<'a>,
    target: &'a Target<'a>,
}

impl WithSimd for Work<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let wide = self.b.width == 2 * S::F32_LANES;
        assert!(wide || self.b.width == S::F32_LANES, "product: another machine's panels");
        for panel in 0..self.b.count() {
            let mut row = 0;
            while row < self.rows.count {
                let left = self.rows.count - row;
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
    }
}

impl Work<'_> {
    /// `M` rows from `row` on times one panel of `V` vectors. Gives `M`.
    #[inline(always)]
    fn tile<S: Simd, const M: usize, const V: usize>(&self, simd: S, row: usize, panel: usize) -> usize {
        let (b, target) = (self.b.panel(panel), self.target);
        // SAFETY: `Rows` was promised the runs; `multiply` checked that the panel has a row for each k.
        let mut sums = unsafe { self.sums::<S, M, V>(simd, row, b) };
        let first = target.col + panel * self.b.width;
        let cols = self.b.width.min(self.b.cols - panel * self.b.width);
        let to: [usize; M] = match target.rows {
            Some(rows) => rows[row..].first_chunk().expect("a row for each").map(|row| target.first + row),
            None => std::array::from_fn(|m| target.first + row + m),
        };
        let at = to.map(|to| target.dst.unchecked(to * target.stride + first));
        // SAFETY: the rows are there, as `multiply` checked, whose caller promised them to this task.
        unsafe {
            if cols < self.b.width {
                for m in 0..M {
                    let y = std::slice::from_raw_parts_mut(at[m], cols);
                    for (y, sum) in y.iter_mut().zip(bytemuck::cast_slice(&sums[m])) {
                        *y = if target.keep { *y + sum } else { *sum };
                    }
                    target.extra.add(to[m], first, y);
                }
                return M;
            }
            let vector = |m: usize, v: usize| at[m].wrapping_add(v * S::F32_LANES).cast::<S::f32s>();
            if target.keep {
                for m in 0..M {
                    for v in 0..V {
                        sums[m][v] = simd.add_f32s(vector(m, v).read_unaligned(), sums[m][v]);
                    }
                }
            }
            if target.extra.any() {
                for m in 0..M {
                    for x in target.extra.of(to[m], first, cols) {
                        for (x, sum) in x.chunks_exact(S::F32_LANES).zip(&mut sums[m]) {
                            *sum = simd.add_f32s(*sum, x.as_ptr().cast::<S::f32s>().read_unaligned());
                        }
                    }
                }
            }
            for m in 0..M {
                for v in 0..V {
                    vector(m, v).write_unaligned(sums[m][v]);
                }
            }
        }
        M
    }

    /// # Safety
    /// The rows and a panel of `V` vectors must be there.
    #[inline(always)]
    unsafe fn sums<S: Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
        row: usize,
        mut b: *const f32,
    ) -> [[S::f32s; V]; M] {
        let Rows { taps, run, step, .. } = self.rows;
        let zero = [[simd.splat_f32s(0.0); V]; M];
        if taps == 1 && run <= LONGEST {
            // One chain, whose sums stay in registers as those of the loops below do not.
            // SAFETY: the caller's promise.
            return unsafe { multiply_add(simd, zero, self.rows.starts(0, row), step, b, self.b.row, run) };
        }
        let longest = if run < SHORT { run } else { LONGEST };
        let (mut chain, mut length) = (zero, 0);
        let mut total: Option<[[[S::f32s; V]; M]; 2]> = None;
        for tap in 0..taps {
            let mut a: [*const f32; M] = self.rows.starts(tap, row);
            for first in (0..run).step_by(LONGEST) {
                let terms = LONGEST.min(run - first);
                if length + terms > longest {
                    match &mut total {
                        None => total = Some([chain, zero]),
                        Some(total) => add_chain(simd, total, &chain),
                    }
                    (chain, length) = (zero, 0);
                }
                // SAFETY: the caller's promise.
                chain = unsafe { multiply_add(simd, chain, a, step, b, self.b.row, terms) };
                a = a.map(|a| a.wrapping_add(terms * step));
                b = b.wrapping_add(terms * self.b.row);
                length += terms;
            }
        }
        let Some(mut total) = total else { return chain };
        add_chain(simd, &mut total, &chain);
        let [sum, rest] = total;
        std::array::from_fn(|m| std::array::from_fn(|v| simd.add_f32s(sum[m][v], rest[m][v])))
    }
}

/// `sums[m][v] + sum over k of a[m][k * step] * b[k * row][v]`: the inner loop of all products.
///
/// # Safety
/// `terms` elements of each of `a` and as many rows of `V` vectors of `b` must be there.
#[inline(always)]
pub unsafe fn multiply_add<S: Simd, const M: usize, const V: usize>(
    simd: S,
    mut sums: [[S::f32s; V]; M],
    a: [*const f32; M],
    step: usize,
    b: *const f32,
    row: usize,
    terms: usize,
) -> [[S::f32s; V]; M] {
    for k in 0..terms {
        // SAFETY: the caller's promise.
        unsafe {
            let b = b.add(k * row);
            let w: [_; V] =
                std::array::from_fn(|v| b.add(v * S::F32_LANES).cast::<S::f32s>().read_unaligned());
            for m in 0..M {
                let x = simd.splat_f32s(*a[m].add(k * step));
                for v in 0..V {
                    sums[m][v] = simd.mul_add_e_f32s(x, w[v], sums[m][v]);
                }
            }
        }
    }
    sums
}

/// Adds a chain to sums of chains, which stand before what rounding took from them, by Knuth's two-sum:
/// gradients of what a norm follows nearly cancel, and show every digit that is lost here.
#[inline(always)]
fn add_chain<S: Simd, const M: usize, const V: usize>(
    simd: S,
    [sums, rests]: &mut [[[S::f32s; V]; M]; 2],
    chain: &[[S::f32s; V]; M],
) {
    for m in 0..M {
        for v in 0..V {
            let (sum, next) = (sums[m][v], chain[m][v]);
            let new = simd.add_f32s(sum, next);
            let added = simd.sub_f32s(new, sum);
            let left = simd.sub_f32s(sum, simd.sub_f32s(new, added));
            let lost = simd.add_f32s(left, simd.sub_f32s(next, added));
            sums[m][v] = new;
            rests[m][v] = simd.add_f32s(rests[m][v], lost);
        }
    }
}
