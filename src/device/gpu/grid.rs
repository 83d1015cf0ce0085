//! Layout of the workgroups of a dispatch, and the number of sub-dispatches that it is cut into.

/// Layout of the workgroups of a dispatch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Grid {
    /// Workgroups in a row: WebGPU promises 65,535.
    pub row: usize,
    /// Sub-dispatches that a dispatch is cut into at least, where its kernel can start at a workgroup.
    pub sub_dispatches: usize,
}

impl Default for Grid {
    fn default() -> Self {
        Grid { row: 65_535, sub_dispatches: 1 }
    }
}

impl Grid {
    /// `groups` workgroups in at most `wanted` sub-dispatches: the first workgroup of each, and its
    /// workgroups in each dimension. Only the last may have workgroups past the end, which fill its last row.
    pub(crate) fn layout(self, groups: usize, wanted: usize) -> Vec<(u32, [u32; 3])> {
        let row = self.row.max(groups.div_ceil(Grid::default().row));
        let size = groups.div_ceil(wanted.max(self.sub_dispatches).min(groups));
        let size = if size > row { size.next_multiple_of(row) } else { size };
        let sub_dispatch = |first: usize| {
            let count = size.min(groups - first);
            let x = count.min(row);
            (first as u32, [x as u32, count.div_ceil(x) as u32, 1])
        };
        (0..groups).step_by(size).map(sub_dispatch).collect()
    }
}

/// As [`super::Gpu::sub_dispatches`]. The system draws nothing else while a GPU works on one dispatch, and
/// may reset it after some seconds.
pub(super) fn sub_dispatches(kind: wgpu::DeviceType, work: u64, ms: Option<f64>) -> usize {
    const LONGEST_MS: f64 = 100.0;
    // Operations of the slowest of a kind in that time, at 1 TFLOP/s and at 0.1 TFLOP/s.
    let longest = match kind {
        wgpu::DeviceType::Cpu => return 1, // the system does not reset it
        wgpu::DeviceType::DiscreteGpu => 100_000_000_000,
        _ => 10_000_000_000,
    };
    match ms {
        Some(ms) => (ms / LONGEST_MS).ceil().max(1.0) as usize,
        None => work.div_ceil(longest).max(1) as usize,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn long_launches_are_cut() {
        let (discrete, integrated) = (wgpu::DeviceType::DiscreteGpu, wgpu::DeviceType::IntegratedGpu);
        assert_eq!(
            [0, 100_000_000_000, 100_000_000_001].map(|work| sub_dispatches(discrete, work, None)),
            [1, 1, 2]
        );
        assert_eq!(sub_dispatches(integrated, 77_000_000_000, None), 8);
        // A measured time counts more than the number of operations.
        assert_eq!([0.0, 99.0, 250.0].map(|ms| sub_dispatches(integrated, u64::MAX, Some(ms))), [1, 1, 3]);
        assert_eq!(sub_dispatches(wgpu::DeviceType::Cpu, u64::MAX, Some(1e6)), 1);
    }

    #[test]
    fn a_layout_has_every_workgroup_once() {
        let default = Grid::default();
        assert_eq!(default.layout(1, 1), [(0, [1, 1, 1])]);
        assert_eq!(default.layout(65_536, 1), [(0, [65_535, 2, 1])]);
        assert_eq!(default.layout(5, 9).len(), 5);
        for grid in [default, Grid { row: 7, sub_dispatches: 3 }, Grid { row: 1, sub_dispatches: 1 }] {
            for groups in [1, 2, 3, 6, 7, 8, 20, 21, 22, 50, 65_535, 65_536, 200_000, 1 << 20] {
                for wanted in [1, 2, 5] {
                    let sub_dispatches = grid.layout(groups, wanted);
                    assert!(
                        sub_dispatches.len() <= wanted.max(grid.sub_dispatches),
                        "{grid:?}, {groups}, {wanted}: {sub_dispatches:?}"
                    );
                    let mut next = 0;
                    for (i, (first, [x, y, z])) in sub_dispatches.iter().enumerate() {
                        assert_eq!(
                            (*first as usize, *z),
                            (next, 1),
                            "{grid:?}, {groups}, {wanted}: {sub_dispatches:?}"
                        );
                        assert!([x, y].iter().all(|n| (1..=65_535).contains(*n)), "{sub_dispatches:?}");
                        let count = *x as usize * *y as usize;
                        next += if i + 1 < sub_dispatches.len() { count } else { count.min(groups - next) };
                    }
                    assert_eq!(next, groups, "{grid:?}, {wanted}: {sub_dispatches:?}");
                }
            }
        }
    }
}
