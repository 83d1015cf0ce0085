//! The sums of a register tile whose factors keep all their bits.
//!
//! Every element is a sum of chains of multiply-adds, fused on machines that can (all since about 2013), cut
//! at lengths that the shapes alone decide: it has the same bits wherever its tile lies and however wide the
//! vectors are.

use pulp::Simd;

use super::panels::Panels;
use super::rows::Rows;
use super::tile::Factors;

/// Longest chain before it is added to the total, over as many taps as fit: the rounding of a sum grows with
/// its length.
const LONGEST: usize = 256;

/// Runs shorter than this are chains of their own: they are little work, and gradients of such small networks
/// show rounding most.
const SHORT: usize = 32;

/// Rows and panels where they stand.
pub struct Unrounded<'a> {
    pub rows: Rows<'a>,
    pub b: Panels<'a>,
}

impl Factors for Unrounded<'_> {
    /// In functions of their own, one for each kind of loop: else a loop would share its registers with the
    /// others. The short ones know strides when they are compiled, which leaves registers for the starts.
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
        row: usize,
        panel: *const f32,
        store: impl FnOnce([[S::f32s; V]; M]),
    ) {
        let Unrounded { rows, b } = self;
        let one_chain = rows.taps == 1 && rows.run <= LONGEST;
        // SAFETY: the caller's promise.
        unsafe {
            if one_chain && rows.step == 1 && b.row == V * S::F32_LANES {
                apart(
                    simd,
                    #[inline(always)]
                    || {
                        let (a, zero) = (rows.starts(0, row), [[simd.splat_f32s(0.0); V]; M]);
                        store(multiply_add(simd, zero, a, 1, panel, V * S::F32_LANES, rows.run));
                    },
                );
            } else if one_chain && rows.side_by_side(row).is_some() {
                apart(
                    simd,
                    #[inline(always)]
                    || {
                        let first = rows.side_by_side(row).expect("asked above");
                        let a = std::array::from_fn(|m| first.wrapping_add(m));
                        let zero = [[simd.splat_f32s(0.0); V]; M];
                        store(multiply_add(simd, zero, a, rows.step, panel, b.row, rows.run));
                    },
                );
            } else {
                apart(
                    simd,
                    #[inline(always)]
                    || store(self.chains(simd, row, panel)),
                );
            }
        }
    }
}

#[inline(never)]
fn apart<S: Simd>(simd: S, work: impl FnOnce()) {
    simd.vectorize(work);
}

impl Unrounded<'_> {
    /// The sums of several chains.
    ///
    /// # Safety
    /// The rows and the panel must be there.
    #[inline(always)]
    unsafe fn chains<S: Simd, const M: usize, const V: usize>(
        &self,
        simd: S,
        row: usize,
        mut b: *const f32,
    ) -> [[S::f32s; V]; M] {
        let Rows { taps, run, step, .. } = self.rows;
        let (width, zero) = (V * S::F32_LANES, [[simd.splat_f32s(0.0); V]; M]);
        let longest = if run < SHORT { run } else { LONGEST };
        let (mut chain, mut length) = (zero, 0);
        // The sums so far and what rounding took from them.
        let (mut totals, mut first_chain) = ([zero; 2], true);
        for tap in 0..taps {
            let mut a: [*const f32; M] = self.rows.starts(tap, row);
            for first in (0..run).step_by(LONGEST) {
                let terms = LONGEST.min(run - first);
                if length + terms > longest {
                    if first_chain {
                        totals[0] = chain;
                    } else {
                        add_chain(simd, &mut totals, &chain);
                    }
                    (first_chain, chain, length) = (false, zero, 0);
                }
                // SAFETY: the caller's promise.
                chain = unsafe {
                    if step == 1 && self.b.row == width {
                        multiply_add(simd, chain, a, 1, b, width, terms)
                    } else {
                        multiply_add(simd, chain, a, step, b, self.b.row, terms)
                    }
                };
                for a in &mut a {
                    *a = a.wrapping_add(terms * step);
                }
                b = b.wrapping_add(terms * self.b.row);
                length += terms;
            }
        }
        if first_chain {
            return chain;
        }
        add_chain(simd, &mut totals, &chain);
        let [sum, rest] = totals;
        std::array::from_fn(|m| std::array::from_fn(|v| simd.add_f32s(sum[m][v], rest[m][v])))
    }
}

/// `sums[m][v] + sum over k of a[m][k * step] * b[k * row][v]`: the inner loop of all products.
///
/// # Safety
/// `terms` elements of each of `a` and as many rows of `V` vectors of `b` must be there.
#[inline(always)]
unsafe fn multiply_add<S: Simd, const M: usize, const V: usize>(
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
