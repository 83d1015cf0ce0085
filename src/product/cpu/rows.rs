//! The rows of A as the register tile reads them: runs of memory, where they stand.

/// Rows of A: each is made of runs of `run` elements, one for each tap, `step` elements of memory apart.
pub struct Rows<'a> {
    starts: Starts<'a>,
    pub(super) count: usize,
    pub(super) taps: usize,
    pub(super) run: usize,
    pub(super) step: usize,
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

    /// Where a run begins.
    #[cfg(target_arch = "x86_64")]
    #[inline(always)]
    pub(super) fn start(&self, tap: usize, row: usize) -> *const f32 {
        let [start] = self.starts(tap, row);
        start
    }

    /// Where the runs of `M` rows begin.
    #[inline(always)]
    pub(super) fn starts<const M: usize>(&self, tap: usize, row: usize) -> [*const f32; M] {
        match self.starts {
            Starts::Table(starts) => {
                *starts[tap * self.count + row..].first_chunk().expect("a start for each row and tap")
            }
            Starts::Even { first, stride } => std::array::from_fn(|m| first.wrapping_add((row + m) * stride)),
        }
    }

    /// Where the run of a row begins if those of the next rows begin one element further each.
    #[inline(always)]
    pub(super) fn side_by_side(&self, row: usize) -> Option<*const f32> {
        match self.starts {
            Starts::Even { first, stride: 1 } => Some(first.wrapping_add(row)),
            _ => None,
        }
    }
}
