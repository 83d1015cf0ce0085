//! The transforms of single tiles, for all channels: vectors of channels in registers, places one after the other.

use pulp::{Simd, WithSimd};

use super::PLACES;

/// `B^T d B` of one tile: place p goes to `out[p * step..]`.
pub(super) struct TransformInput<'a> {
    pub places: [&'a [f32]; PLACES],
    pub c: usize,
    pub out: &'a mut [f32],
    pub step: usize,
}

impl WithSimd for TransformInput<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let TransformInput { places, c, out, step } = self;
        assert!(c.is_multiple_of(S::F32_LANES) && out.len() >= (PLACES - 1) * step + c, "a tile's input");
        let places = places.map(|place| {
            assert!(place.len() == c, "a pixel of a tile");
            place.as_ptr()
        });
        let out = out.as_mut_ptr();
        for first in (0..c).step_by(S::F32_LANES) {
            let mut half = [[simd.splat_f32s(0.0); 4]; 4];
            for s in 0..4 {
                // SAFETY: `first` and a vector lie inside `c`.
                let read =
                    |r: usize| unsafe { places[r * 4 + s].add(first).cast::<S::f32s>().read_unaligned() };
                let column = transform(simd, [read(0), read(1), read(2), read(3)]);
                for r in 0..4 {
                    half[r][s] = column[r];
                }
            }
            for (r, half) in half.into_iter().enumerate() {
                for (s, value) in transform(simd, half).into_iter().enumerate() {
                    // SAFETY: the last place was checked above.
                    unsafe { out.add((r * 4 + s) * step + first).cast::<S::f32s>().write_unaligned(value) };
                }
            }
        }
    }
}

/// `B^T d` for one column.
#[inline(always)]
fn transform<S: Simd>(simd: S, [a, b, c, d]: [S::f32s; 4]) -> [S::f32s; 4] {
    [simd.sub_f32s(a, c), simd.add_f32s(b, c), simd.sub_f32s(c, b), simd.sub_f32s(b, d)]
}

/// Row r of `A^T m A` of one tile, one or two pixels as `out` has: place p stands at `places[p * step..]`.
pub(super) struct TransformOutput<'a> {
    pub places: &'a [f32],
    pub step: usize,
    pub c: usize,
    pub r: usize,
    pub out: &'a mut [f32],
}

impl WithSimd for TransformOutput<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let TransformOutput { places, step, c, r, out } = self;
        assert!(c.is_multiple_of(S::F32_LANES) && places.len() >= (PLACES - 1) * step + c, "a tile's output");
        let both = out.len() == 2 * c;
        assert!(both || out.len() == c, "the pixels of a tile");
        let (places, out) = (places.as_ptr(), out.as_mut_ptr());
        for first in (0..c).step_by(S::F32_LANES) {
            let mut column = [simd.splat_f32s(0.0); 4];
            for (s, value) in column.iter_mut().enumerate() {
                // SAFETY: the last place was checked above.
                let read = |row: usize| unsafe {
                    places.add((row * 4 + s) * step + first).cast::<S::f32s>().read_unaligned()
                };
                *value = if r == 0 {
                    simd.add_f32s(simd.add_f32s(read(1), read(2)), read(0))
                } else {
                    simd.sub_f32s(simd.sub_f32s(read(1), read(2)), read(3))
                };
            }
            let [a, b, c_, d] = column;
            // SAFETY: the pixels were counted above.
            unsafe {
                let y = simd.add_f32s(simd.add_f32s(b, c_), a);
                out.add(first).cast::<S::f32s>().write_unaligned(y);
                if both {
                    let y = simd.sub_f32s(simd.sub_f32s(b, c_), d);
                    out.add(c + first).cast::<S::f32s>().write_unaligned(y);
                }
            }
        }
    }
}

/// `A dy A^T` of one tile from its 2 x 2 gradients: place p goes to `out[p * step..]`.
pub(super) struct TransformSlope<'a> {
    pub places: [&'a [f32]; 4],
    pub c: usize,
    pub out: &'a mut [f32],
    pub step: usize,
}

impl WithSimd for TransformSlope<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let TransformSlope { places, c, out, step } = self;
        assert!(c.is_multiple_of(S::F32_LANES) && out.len() >= (PLACES - 1) * step + c, "a tile's gradients");
        let places = places.map(|place| {
            assert!(place.len() == c, "a pixel of a tile");
            place.as_ptr()
        });
        let out = out.as_mut_ptr();
        let spread = |a: S::f32s, b: S::f32s| [a, simd.add_f32s(a, b), simd.sub_f32s(a, b), simd.neg_f32s(b)];
        for first in (0..c).step_by(S::F32_LANES) {
            // SAFETY: `first` and a vector lie inside `c`.
            let [a, b, c, d] =
                places.map(|place| unsafe { place.add(first).cast::<S::f32s>().read_unaligned() });
            let (left, right) = (spread(a, c), spread(b, d));
            for r in 0..4 {
                for (s, value) in spread(left[r], right[r]).into_iter().enumerate() {
                    // SAFETY: the last place was checked above.
                    unsafe { out.add((r * 4 + s) * step + first).cast::<S::f32s>().write_unaligned(value) };
                }
            }
        }
    }
}

/// `G g G^T` of the taps from one source channel to `cols` others: place p goes to `out[p * step..]`, a row of a panel
/// of `width`, padded with zeros.
pub(super) struct TransformWeights<'a> {
    pub taps: [&'a [f32]; 9],
    pub width: usize,
    pub out: [*mut f32; PLACES],
}

impl WithSimd for TransformWeights<'_> {
    type Output = ();
    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        let TransformWeights { taps, width, out } = self;
        let cols = taps[0].len();
        assert!(cols.is_multiple_of(S::F32_LANES) && width.is_multiple_of(S::F32_LANES), "a row of a panel");
        let taps = taps.map(|tap| {
            assert!(tap.len() == cols && cols <= width, "a tap's row");
            tap.as_ptr()
        });
        for first in (0..cols).step_by(S::F32_LANES) {
            // SAFETY: `first` and a vector lie inside `cols`.
            let read = |tap: usize| unsafe { taps[tap].add(first).cast::<S::f32s>().read_unaligned() };
            let p = spread(simd, [read(0), read(3), read(6)]);
            let q = spread(simd, [read(1), read(4), read(7)]);
            let r = spread(simd, [read(2), read(5), read(8)]);
            for row in 0..4 {
                for (s, value) in spread(simd, [p[row], q[row], r[row]]).into_iter().enumerate() {
                    // SAFETY: the caller's promise.
                    unsafe { out[row * 4 + s].add(first).cast::<S::f32s>().write_unaligned(value) };
                }
            }
        }
        for first in (cols..width).step_by(S::F32_LANES) {
            for out in out {
                // SAFETY: the caller's promise.
                unsafe { out.add(first).cast::<S::f32s>().write_unaligned(simd.splat_f32s(0.0)) };
            }
        }
    }
}

/// `G g` for one column.
#[inline(always)]
fn spread<S: Simd>(simd: S, [a, b, c]: [S::f32s; 3]) -> [S::f32s; 4] {
    let half = simd.splat_f32s(0.5);
    let (outer, middle) = (simd.mul_f32s(half, simd.add_f32s(a, c)), simd.mul_f32s(half, b));
    [a, simd.add_f32s(outer, middle), simd.sub_f32s(outer, middle), c]
}
