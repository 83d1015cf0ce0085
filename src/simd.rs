//! Vector code for the CPU twins: the widest instructions of the machine, and an exponential that
//! vectorises.
//!
//! Results do not depend on the width: no sum is reordered, and no multiplication is fused with an addition
//! unless the code says `mul_add`.

/// Runs `work` compiled for the widest vectors that this machine has (AVX2, AVX-512, NEON ...). What `work`
/// calls must be inlined into it to profit: write `vectorized(#[inline(always)] || ...)`, and mark helpers
/// `#[inline(always)]` too; a large closure is otherwise left outside, compiled for the oldest machine.
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

/// `e^x` to within 1 unit in the last place; 0 far below, infinity far above. Branch-free, so that loops
/// over it vectorise.
///
/// `mul_add` is one instruction on every machine since about 2013 (within `vectorized`), and halves the
/// error.
///
/// Cody and Waite's reduction to `|r| <= ln(2)/2`, then a polynomial of degree 6 (coefficients of Cephes'
/// `expf`).
#[inline(always)]
#[allow(
    clippy::excessive_precision,
    reason = "the first part of ln 2 is exact, and reads as it is published"
)]
pub fn exp(x: f32) -> f32 {
    let clamped = x.clamp(-87.3, 88.7);
    // Adding 1.5 * 2^23 rounds to the nearest integer, and leaves it in the low bits: a cast from float would
    // saturate, which costs more than all the rest.
    let magic = clamped * std::f32::consts::LOG2_E + 12_582_912.0;
    let n = magic - 12_582_912.0;
    let n_bits = (magic.to_bits() as i32).wrapping_sub(0x4B40_0000);
    let r = n.mul_add(-0.693_359_375, clamped);
    let r = n.mul_add(2.121_944_4e-4, r);
    let p = 1.987_569_1e-4_f32;
    let p = p.mul_add(r, 1.398_199_9e-3);
    let p = p.mul_add(r, 8.333_452e-3);
    let p = p.mul_add(r, 4.166_579_6e-2);
    let p = p.mul_add(r, 0.166_666_66);
    let p = p.mul_add(r, 0.5);
    let p = p.mul_add(r * r, r) + 1.0;
    // n is at most 128, one too many for a single exponent: two halves.
    let half = n_bits >> 1;
    let scale = |k: i32| f32::from_bits((k.wrapping_add(127) << 23) as u32);
    let y = p * scale(half) * scale(n_bits.wrapping_sub(half));
    let y = if x < -87.3 { 0.0 } else { y };
    let y = if x > 88.7 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + exp(-x))
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
