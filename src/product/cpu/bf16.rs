//! Products of factors rounded to bf16, by an instruction that adds two products to a sum in f32.
//!
//! A and B are packed as pairs: two elements that follow one another along k, rounded, in one word of 32
//! bits. Twice the multiplications of the f32 tile; the sums have as many bits.

use std::arch::x86_64::*;
use std::cell::RefCell;
use std::mem::{transmute, transmute_copy};

use pulp::Simd;
use pulp::x86::V4;

use super::panels::Panels;
use super::rows::Rows;
use super::tile::{Extra, Factors, Target, Tiles};
use crate::device::cpu::has_bf16;

/// Pairs along k that are packed at a time: those of a panel stay in the first-level cache.
const PAIRS: usize = 256;

/// Words of a vector.
const LANES: usize = 16;

/// [`multiply`](super::multiply::multiply) with rounded factors.
///
/// # Safety
/// As there.
///
/// # Panics
/// Without the instructions.
pub unsafe fn multiply(rows: &Rows, b: &Panels, target: &Target) {
    assert!(has_bf16(), "bf16 products on a processor that has none");
    let simd = V4::try_new().expect("a processor with bf16 has AVX-512");
    MEMORY.with_borrow_mut(|memory| {
        // SAFETY: the features are there; the rest is the caller's promise.
        unsafe {
            with_features(
                #[inline(always)]
                || multiply_pairs(simd, rows, b, target, memory),
            );
        }
    });
}

thread_local! {
    /// Pairs of a task, kept by its thread.
    static MEMORY: RefCell<Vec<u32>> = const { RefCell::new(Vec::new()) };
}

#[inline(never)]
#[target_feature(
    enable = "avx512f,avx512bw,avx512cd,avx512dq,avx512vl,avx512bf16,fma,bmi1,bmi2,lzcnt,popcnt"
)]
unsafe fn with_features<R>(work: impl FnOnce() -> R) -> R {
    work()
}

#[inline(always)]
unsafe fn multiply_pairs(simd: V4, rows: &Rows, b: &Panels, target: &Target, memory: &mut Vec<u32>) {
    let Rows { count, taps, run, step, .. } = *rows;
    assert!(
        step == 1 || rows.side_by_side(0).is_some(),
        "rows that neither run along k nor lie side by side"
    );
    // A chunk of k: some whole taps, or a part of one.
    let whole = run <= 2 * PAIRS;
    let (taps_at_once, length) = if whole { (PAIRS / run.div_ceil(2), run) } else { (1, 2 * PAIRS) };
    let (pairs_of_tap, along) = (length.div_ceil(2), step == 1);
    let pairs = pairs_of_tap * taps_at_once.min(taps);
    // Words from one row of A to the next, and from one pair to the next; a vector may be written past a run.
    let (row, next) = if along { (pairs + LANES, 1) } else { (1, count.next_multiple_of(LANES)) };
    let size = if along { count * row + LANES } else { pairs * next };
    // Vectors of the panel lie in one line of the cache each.
    memory.resize(memory.len().max(size + pairs * b.width + LANES), 0);
    let (a, panel) = memory.split_at_mut(size);
    let skipped = panel.as_ptr().align_offset(4 * LANES).min(LANES);
    let panel = &mut panel[skipped..];
    let (a, panel) = (a.as_mut_ptr(), panel.as_mut_ptr());
    for tap in (0..taps).step_by(taps_at_once) {
        let chunk = tap..taps.min(tap + taps_at_once);
        for first in (0..run).step_by(length) {
            let elements = length.min(run - first);
            let each = elements.div_ceil(2);
            // SAFETY: `Rows` and `Panels` were promised the elements; the memory is of this size.
            unsafe {
                for (i, tap) in chunk.clone().enumerate() {
                    let a = a.add(i * each * next);
                    if along {
                        for r in 0..count {
                            pack_along(rows.start(tap, r).add(first), elements, a.add(r * row));
                        }
                    } else {
                        for pair in 0..each {
                            let from = rows.start(tap, 0).add((first + 2 * pair) * step);
                            let second = (2 * pair + 1 < elements).then(|| from.add(step));
                            pack_across(from, second, count, a.add(pair * next));
                        }
                    }
                }
                let target = Target {
                    keep: target.keep || tap + first > 0,
                    extra: if chunk.end == taps && first + elements == run {
                        target.extra
                    } else {
                        Extra::default()
                    },
                    ..*target
                };
                for number in 0..b.count() {
                    for (i, tap) in chunk.clone().enumerate() {
                        for pair in 0..each {
                            let from = b.panel(number).add((tap * run + first + 2 * pair) * b.row);
                            let second = (2 * pair + 1 < elements).then(|| from.add(b.row));
                            pack_across(from, second, b.width, panel.add((i * each + pair) * b.width));
                        }
                    }
                    let factors = Pairs { a, row, next, b: panel, pairs: each * chunk.len() };
                    Tiles { factors, count, b, target: &target }.panel(simd, number);
                }
            }
        }
    }
}

/// Packs a run of elements; up to a vector of words may be written past it.
#[inline(always)]
unsafe fn pack_along(x: *const f32, elements: usize, out: *mut u32) {
    // SAFETY: the caller's promise; what the mask leaves out is not read.
    unsafe {
        for first in (0..elements).step_by(2 * LANES) {
            let part = |at: usize| {
                let left = elements.saturating_sub(at).min(LANES);
                _mm512_maskz_loadu_ps(((1_u32 << left) - 1) as u16, x.wrapping_add(at))
            };
            let both = _mm512_cvtne2ps_pbh(part(first + LANES), part(first));
            _mm512_storeu_si512(out.add(first / 2).cast(), transmute::<__m512bh, __m512i>(both));
        }
    }
}

/// Packs two lines, whose elements of one column become a pair, into whole vectors; no second line is one of
/// zeros.
#[inline(always)]
unsafe fn pack_across(x: *const f32, second: Option<*const f32>, cols: usize, out: *mut u32) {
    const ORDER: [u16; 2 * LANES] = {
        let mut order = [0; 2 * LANES];
        let mut i = 0;
        while i < LANES {
            order[2 * i] = i as u16;
            order[2 * i + 1] = (LANES + i) as u16;
            i += 1;
        }
        order
    };
    // SAFETY: as above.
    unsafe {
        let order = _mm512_loadu_si512(ORDER.as_ptr().cast());
        for first in (0..cols).step_by(LANES) {
            let mask = ((1_u32 << (cols - first).min(LANES)) - 1) as u16;
            let line = |x: *const f32| _mm512_maskz_loadu_ps(mask, x.wrapping_add(first));
            let both = _mm512_cvtne2ps_pbh(second.map_or(_mm512_setzero_ps(), line), line(x));
            let pairs = _mm512_permutexvar_epi16(order, transmute::<__m512bh, __m512i>(both));
            _mm512_storeu_si512(out.add(first).cast(), pairs);
        }
    }
}

/// A chunk of A and of one panel of B, packed.
struct Pairs {
    a: *const u32,
    /// Words from one row of A to the next, and from one pair to the next.
    row: usize,
    next: usize,
    b: *const u32,
    pairs: usize,
}

impl Factors for Pairs {
    #[inline(always)]
    unsafe fn tile<S: Simd, const M: usize, const V: usize>(
        &self,
        _: S,
        row: usize,
        _: *const f32,
        store: impl FnOnce([[S::f32s; V]; M]),
    ) {
        assert!(S::F32_LANES == LANES, "vectors of {} elements", S::F32_LANES);
        // SAFETY: the rows and the panel are packed, and `multiply` checked the processor.
        unsafe {
            with_features(
                #[inline(always)]
                move || store(transmute_copy(&self.sums::<M, V>(row))),
            );
        }
    }
}

impl Pairs {
    /// # Safety
    /// The rows and the panel must be there, and the features.
    #[inline(always)]
    unsafe fn sums<const M: usize, const V: usize>(&self, row: usize) -> [[__m512; V]; M] {
        // SAFETY: the caller's promise.
        unsafe {
            let mut sums = [[_mm512_setzero_ps(); V]; M];
            let a: [*const u32; M] = std::array::from_fn(|m| self.a.add((row + m) * self.row));
            for k in 0..self.pairs {
                let vector = |v| _mm512_loadu_si512(self.b.add((k * V + v) * LANES).cast());
                let w: [__m512bh; V] = std::array::from_fn(|v| transmute(vector(v)));
                for m in 0..M {
                    let x: __m512bh = transmute(_mm512_set1_epi32((*a[m].add(k * self.next)).cast_signed()));
                    for v in 0..V {
                        sums[m][v] = _mm512_dpbf16_ps(sums[m][v], x, w[v]);
                    }
                }
            }
            sums
        }
    }
}
