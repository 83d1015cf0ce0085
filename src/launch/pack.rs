//! Elements that a kernel takes one by one or, where sizes allow it, as vec4: a load of four costs little
//! more than a load of one.

use crate::device::gpu::shader::Knob;

/// The sets of knobs of kernels that call their elements `T`: one number, or four side by side.
pub const KNOBS: &[&[Knob]] = &[&[("T", "f32")], &[("T", "vec4<f32>")]];

/// How many numbers an element is: 4 if all of `sizes` are multiples of it, else 1.
pub fn of(sizes: &[usize]) -> usize {
    if sizes.iter().all(|size| size.is_multiple_of(4)) { 4 } else { 1 }
}

/// The set of [`KNOBS`] for elements of so many numbers.
pub fn set(pack: usize) -> usize {
    usize::from(pack == 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sets_hold_what_they_are_for() {
        for (sizes, kind) in [(&[8, 0, 4][..], "vec4<f32>"), (&[8, 2, 4], "f32"), (&[3], "f32")] {
            assert_eq!(KNOBS[set(of(sizes))], [("T", kind)], "{sizes:?}");
        }
    }
}
