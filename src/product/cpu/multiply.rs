//! Rows of A times panels of B: the inner loop of convolution, matrix product and attention on the CPU.

use pulp::Arch;

#[cfg(target_arch = "x86_64")]
use super::bf16;
use super::panels::Panels;
use super::rows::Rows;
use super::tile::{Extra, Target, Tiles};
use super::unrounded::Unrounded;
#[cfg(target_arch = "x86_64")]
use crate::device::cpu::rounds_factors;
use crate::shared::Shared;

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
    // Rows that no tap meets have no factors.
    #[cfg(target_arch = "x86_64")]
    if rounds_factors() && b.rows > 0 {
        // SAFETY: the caller's promise.
        return unsafe { bf16::multiply(&rows, &b, target) };
    }
    let count = rows.count;
    Arch::new().dispatch(Tiles { factors: Unrounded { rows, b }, count, b: &b, target });
}
