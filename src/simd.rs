//! Vector code for the CPU twins: the widest instructions of the machine, and an exponential that
//! vectorises.
//!
//! Results do not depend on the width: no sum is reordered, and no multiplication is fused with an addition
//! unless the code says `mul_add`.

use half::f16;

/// Runs `work` compiled for the widest vectors that this machine has (AVX2, AVX-512, NEON ...). All that
/// `work` calls must be inlined into it to profit: write `vectorized(#[inline(always)] || ...)`, and mark
/// helpers `#[inline(always)]` too; a large closure is otherwise left outside, compiled for the oldest
/// machine. Write `for` loops over slices: the closure of a `for_each` may be left outside too.
#[inline(always)]
pub fn vectorized<R>(work: impl FnOnce() -> R) -> R {
    struct Work<F>(F);
    impl<R, F: FnOnce() -> R> pulp::WithSimd for Work<F> {
        type Output = R;
        #[inline(always)]
        fn with_simd<S: pulp::Simd>(self, _: S) -> R {
            (self.0)()
        }
    }
    pulp::Arch::new().dispatch(Work(work))
}

/// The numbers of `x` in f32, exactly. A NaN keeps its bits. Within `vectorized`, because the crate `half`
/// calls a function for each 8 numbers.
#[inline(always)]
pub fn widen(out: &mut [f32], x: &[f16]) {
    let (whole, rest) = out.split_at_mut(out.len() & !15);
    let (numbers, others) = x.split_at(whole.len());
    for (out, x) in whole.chunks_exact_mut(16).zip(numbers.chunks_exact(16)) {
        for i in 0..16 {
            out[i] = widened(x[i].to_bits());
        }
    }
    for (out, x) in rest.iter_mut().zip(others) {
        *out = widened(x.to_bits());
    }
}

/// A half from its bits (Giesen 2012, "Float->half and back, fast"): no float below the normal ones appears,
/// which some processors compute with slowly.
#[inline(always)]
fn widened(bits: u16) -> f32 {
    const SMALLEST: u32 = 113 << 23; // 2^-14
    let bits = u32::from(bits);
    let size = (bits & 0x7fff) << 13;
    let normal = size + (112 << 23);
    let subnormal = (f32::from_bits(size + SMALLEST) - f32::from_bits(SMALLEST)).to_bits();
    let special = size | 0x7f80_0000;
    let size = if size < 1 << 23 { subnormal } else { normal };
    let size = if bits & 0x7c00 == 0x7c00 { special } else { size };
    f32::from_bits(size | (bits & 0x8000) << 16)
}

/// `e^x` to within 1 unit in the last place; 0 far below, infinity far above. Branch-free, so that loops
/// over it vectorise.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    let (p, n_bits) = exp_parts(x.clamp(-87.3, 88.7));
    // n is at most 128, one too many for a single exponent: two halves.
    let half = n_bits >> 1;
    let scale = |k: i32| f32::from_bits((k.wrapping_add(127) << 23) as u32);
    let y = p * scale(half) * scale(n_bits.wrapping_sub(half));
    let y = if x < -87.3 { 0.0 } else { y };
    let y = if x > 88.7 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// `(e^r, n)` with `x = n ln(2) + r`, `|r| <= ln(2)/2`: Cody and Waite's reduction, then a polynomial of
/// degree 6 (coefficients of Cephes' `expf`).
///
/// `mul_add` is one instruction on every machine since about 2013 (within `vectorized`), and halves the
/// error.
#[inline(always)]
#[allow(
    clippy::excessive_precision,
    reason = "the first part of ln 2 is exact, and reads as it is published"
)]
fn exp_parts(x: f32) -> (f32, i32) {
    // Adding 1.5 * 2^23 rounds to the nearest integer, and leaves it in the low bits: a cast from float would
    // saturate, which costs more than all the rest.
    let magic = x.mul_add(std::f32::consts::LOG2_E, 12_582_912.0);
    let n = magic - 12_582_912.0;
    let n_bits = (magic.to_bits() as i32).wrapping_sub(0x4B40_0000);
    let r = n.mul_add(-0.693_359_375, x);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 0.166_666_66);
    let p = p.mul_add(r, 0.5);
    (p.mul_add(r * r, r) + 1.0, n_bits)
}

/// `e^x` for `-87.3 <= x <= 87.3`, to within 1 unit in the last place; arguments outside count as these
/// bounds. About half the work of [`exp`], whose reduction and polynomial it shares.
#[inline(always)]
pub fn exp_within(x: f32) -> f32 {
    // Written so that NaN passes: `clamp` and `max` would need two more instructions for that.
    let x = if x < -87.3 { -87.3 } else { x };
    let x = if x > 87.3 { 87.3 } else { x };
    let (p, n_bits) = exp_parts(x);
    p * f32::from_bits((n_bits.wrapping_add(127) << 23) as u32)
}

/// `1 / (1 + e^-x)`; far below, where it would leave the normal numbers, their smallest.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp_within(-x))
}

/// The hyperbolic tangent, to within 2 units in the last place: the polynomial of Cephes' `tanhf` near 0,
/// `1 - 2 / (e^2|x| + 1)` further out.
#[inline(always)]
#[allow(clippy::excessive_precision, reason = "the coefficients read as they are published")]
pub fn tanh(x: f32) -> f32 {
    let z = x * x;
    let p = -5.704_988_7e-3_f32;
    let p = p.mul_add(z, 2.063_908_9e-2);
    let p = p.mul_add(z, -5.373_971_5e-2);
    let p = p.mul_add(z, 0.133_314_42);
    let p = p.mul_add(z, -0.333_332_8);
    let near = (p * z).mul_add(x, x);
    let far = 1.0 - 2.0 / (exp_within(2.0 * x.abs()) + 1.0);
    (if x.abs() < 0.625 { near } else { far }).copysign(x)
}

/// The error function, to within 2 units in the last place: polynomials that N. Juffa fitted, for
/// `erf(x) / x - 1` near 0 and for `ln(1 - erf(x))` further out. Branch-free.
#[inline(always)]
#[allow(clippy::excessive_precision, reason = "the coefficients read as they are published")]
pub fn erf(x: f32) -> f32 {
    let (t, z) = (x.abs(), x * x);
    let p = -5.967_617_03e-4_f32;
    let p = p.mul_add(z, 4.991_194_23e-3);
    let p = p.mul_add(z, -2.676_813_49e-2);
    let p = p.mul_add(z, 0.112_819_925);
    let p = p.mul_add(z, -0.376_125_336);
    let p = p.mul_add(z, 0.128_379_166);
    let near = p.mul_add(x, x);
    let q = (-1.728_534_70e-5_f32).mul_add(t, 3.831_971_26e-4);
    let q = q.mul_add(z, (-3.883_964_38e-3_f32).mul_add(t, 2.425_462_19e-2));
    let q = q.mul_add(t, -0.106_777_877);
    let q = q.mul_add(t, -0.634_846_687);
    let q = q.mul_add(t, -0.128_717_512);
    let far = 1.0 - exp_within(q.mul_add(t, -t));
    (if t < 0.921_875 { near } else { far }).copysign(x)
}

/// Sine and cosine of `2 pi * turns / 2^32`, to 1e-7. Branch-free; the same function stands in
/// `kernels/lib/trig.wgsl`.
#[inline(always)]
pub fn sin_cos_turns(turns: u32) -> (f32, f32) {
    let quarter = turns.wrapping_add(1 << 29) >> 30; // the nearest quarter turn
    let x = turns.wrapping_sub(quarter << 30) as i32 as f32 * 1.462_918_1e-9; // 2 pi / 2^32
    let z = x * x;
    let s = x + x * z * (-0.166_666_55 + z * (8.332_161e-3 - z * 1.951_529_6e-4));
    let c = 1.0 - 0.5 * z + z * z * (4.166_664_6e-2 + z * (-1.388_731_6e-3 + z * 2.443_315_7e-5));
    let (sin, cos) = if quarter & 1 == 1 { (c, s) } else { (s, c) };
    let negated = |x: f32, by: u32| f32::from_bits(x.to_bits() ^ (by & 2) << 30);
    (negated(sin, quarter), negated(cos, quarter + 1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_is_widened_exactly() {
        let all: Vec<f16> = (0..=u16::MAX).map(f16::from_bits).collect();
        for count in [all.len(), 45] {
            let mut got = vec![0.0; count];
            vectorized(
                #[inline(always)]
                || widen(&mut got, &all[..count]),
            );
            for (got, x) in got.iter().zip(&all) {
                // A signalling NaN stays one here; `half` makes it quiet.
                let same = got.to_bits() == x.to_f32().to_bits() || got.is_nan() && x.is_nan();
                assert!(same, "{:#06x} became {got}", x.to_bits());
            }
        }
    }

    #[test]
    fn sine_and_cosine_of_turns_are_right_to_1e_7() {
        for turns in
            (0..=u32::MAX).step_by(999_983).chain([1 << 29, 3 << 29, 1 << 30, 1 << 31, 3 << 30, u32::MAX])
        {
            let angle = f64::from(turns) / 4_294_967_296.0 * std::f64::consts::TAU;
            let (sin, cos) = sin_cos_turns(turns);
            let err = (f64::from(sin) - angle.sin()).abs().max((f64::from(cos) - angle.cos()).abs());
            assert!(err <= 1e-7, "sine and cosine of {turns} are {sin} and {cos}, off by {err:e}");
        }
    }

    #[test]
    fn the_error_function_is_right_to_two_units() {
        for i in -60_000..=60_000_i32 {
            let x = i as f32 * 1e-4;
            let exact = libm::erf(f64::from(x));
            let unit = f64::from(f32::EPSILON) * exact.abs().max(1e-6) / 2.0;
            let err = (f64::from(erf(x)) - exact).abs();
            assert!(err <= 4.0 * unit, "erf({x}) is {}, off by {err:e}", erf(x));
        }
        assert_eq!([erf(f32::INFINITY), erf(-30.0), erf(0.0)], [1.0, -1.0, 0.0]);
        assert!(erf(f32::NAN).is_nan());
    }

    #[test]
    fn the_short_exponential_is_right_within_its_bounds() {
        for i in -87_000..=87_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            let err = (f64::from(exp_within(x)) - exact).abs() / exact;
            assert!(err <= f64::from(f32::EPSILON), "exp_within({x}) is {}, off by {err:e}", exp_within(x));
        }
        assert!(exp_within(f32::NEG_INFINITY) <= 2e-38 && exp_within(f32::INFINITY).is_finite());
        assert!(exp_within(f32::NAN).is_nan() && sigmoid(f32::NAN).is_nan());
        assert_eq!([sigmoid(-1e30), sigmoid(0.0), sigmoid(1e30)].map(|y| (y * 2.0).round()), [0.0, 1.0, 2.0]);
    }

    #[test]
    fn tanh_is_right_to_two_units_in_the_last_place() {
        for x in (-100_000..=100_000).map(|i| i as f32 * 1e-4).chain([1e-30, -1e-6, 80.0, -1e30]) {
            let exact = f64::from(x).tanh();
            let err = (f64::from(tanh(x)) - exact).abs();
            assert!(
                err <= 2.0 * f64::from(f32::EPSILON) * exact.abs(),
                "tanh({x}) is {}, off by {err:e}",
                tanh(x)
            );
        }
        assert!(tanh(f32::NAN).is_nan() && tanh(f32::INFINITY) == 1.0);
        assert_eq!(tanh(-0.0).to_bits(), (-0.0_f32).to_bits());
    }

    #[test]
    fn exp_is_right_to_one_unit_in_the_last_place() {
        for i in -87_000..=88_000 {
            let x = i as f32 * 1e-3;
            let exact = f64::from(x).exp();
            let err = (f64::from(exp(x)) - exact).abs() / exact;
            assert!(err <= f64::from(f32::EPSILON), "exp({x}) is {}, off by {err:e}", exp(x));
        }
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(-1000.0), 0.0);
        assert_eq!(exp(1000.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }
}
