//! Slices in parts: a slice that parallel tasks write disjoint parts of, and a slice split at once.

use std::marker::PhantomData;

#[derive(Clone, Copy)]
pub struct Shared<'a> {
    start: *mut f32,
    len: usize,
    lifetime: PhantomData<&'a mut [f32]>,
}

// SAFETY: `part` is the only access that is not a bare pointer, and its contract keeps tasks apart.
unsafe impl Send for Shared<'_> {}
// SAFETY: as above.
unsafe impl Sync for Shared<'_> {}

impl<'a> Shared<'a> {
    pub fn new(data: &'a mut [f32]) -> Self {
        Shared { start: data.as_mut_ptr(), len: data.len(), lifetime: PhantomData }
    }

    /// Where `count` elements from `first` on stand.
    ///
    /// # Panics
    /// When they leave the slice.
    #[track_caller]
    pub fn pointer(&self, first: usize, count: usize) -> *mut f32 {
        assert!(first + count <= self.len, "{count} elements from {first} on leave {}", self.len);
        // SAFETY: inside the slice, as was checked just now.
        unsafe { self.start.add(first) }
    }

    /// As [`Shared::pointer`], where the caller has checked that the element is there.
    #[inline(always)]
    pub fn unchecked(&self, first: usize) -> *mut f32 {
        self.start.wrapping_add(first)
    }

    /// `count` elements from `first` on.
    ///
    /// # Safety
    /// Nothing else may use them meanwhile.
    ///
    /// # Panics
    /// When they leave the slice.
    #[track_caller]
    #[allow(clippy::mut_from_ref, reason = "the contract keeps the parts apart")]
    pub unsafe fn part(&self, first: usize, count: usize) -> &'a mut [f32] {
        // SAFETY: inside the slice, and the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.pointer(first, count), count) }
    }
}

/// Splits a slice into parts of so many elements.
pub fn split<const N: usize>(mut data: &mut [f32], elements: [usize; N]) -> [&mut [f32]; N] {
    elements.map(|elements| data.split_off_mut(..elements).expect("as many elements as all parts have"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_is_written_alone() {
        let mut y = [9.0; 4];
        // SAFETY: the only part.
        unsafe { Shared::new(&mut y).part(1, 2) }.fill(1.0);
        assert_eq!(y, [9.0, 1.0, 1.0, 9.0]);
    }

    #[test]
    #[should_panic(expected = "leave 5")]
    fn a_part_past_the_end() {
        Shared::new(&mut [0.0; 5]).pointer(4, 2);
    }
}
