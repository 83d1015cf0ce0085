//! The adapter that programs are described for when it is not here: that of any browser with WebGPU.

use super::adapters::Traits;
use super::grid::{Grid, sub_dispatches};
use super::shader::{Dialect, Interface};
use crate::device::{Precision, size};

/// Offsets of all bindings are multiples of so many bytes.
pub(crate) const ALIGNMENT: usize = 256;

/// What WebGPU promises on every adapter, and no more: no subgroups, no immediates, no type f16.
pub(crate) struct Web {
    limits: wgpu::Limits,
    halves: bool,
    /// The dialect of kernels.
    pub dialect: Dialect,
    /// Layout of dispatches.
    pub grid: Grid,
}

impl Web {
    /// For programs in `precision`.
    pub fn new(precision: Precision) -> Web {
        // Those of the specification.
        let limits = wgpu::Limits::default();
        Web {
            limits,
            halves: precision == Precision::F16,
            dialect: Dialect::default(),
            grid: Grid::default(),
        }
    }

    /// The properties that decide which variants launches have there.
    pub fn traits(&self) -> Traits {
        // A page loads all weights as f32.
        let halves = self.halves;
        Traits { software: false, broadcasts: false, halves, keeps_halves: false, matrices: None }
    }

    /// As [`super::Gpu::sub_dispatches`], of a GPU that nobody has seen.
    pub fn sub_dispatches(&self, work: u64) -> usize {
        sub_dispatches(wgpu::DeviceType::Other, work, None)
    }

    /// Largest range that one binding can cover, in bytes.
    pub fn max_binding(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size
    }

    /// What an entry point asks for beyond the limits, if it does.
    pub fn lacks(&self, interface: &Interface) -> Option<String> {
        let Interface { bindings, workgroup_size, workgroup_bytes, .. } = interface;
        let threads = workgroup_size.iter().product::<u32>();
        let (most, most_threads, most_bytes) = (
            self.limits.max_storage_buffers_per_shader_stage as usize,
            self.limits.max_compute_invocations_per_workgroup,
            self.limits.max_compute_workgroup_storage_size,
        );
        if bindings.len() > most {
            return Some(format!("{} buffers of {most}", bindings.len()));
        }
        if threads > most_threads {
            return Some(format!("{threads} threads a workgroup of {most_threads}"));
        }
        let [wanted, given] = [*workgroup_bytes, most_bytes].map(|bytes| size(bytes.into()));
        (*workgroup_bytes > most_bytes).then(|| format!("{wanted} of workgroup memory of {given}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The numbers of the specification (W3C WebGPU, section 3.6.2), which all else here rests on.
    #[test]
    fn limits_are_those_of_every_browser() {
        let Web { limits, dialect, .. } = Web::new(Precision::F32);
        assert_eq!(limits.max_storage_buffers_per_shader_stage, 8);
        assert_eq!(limits.max_compute_invocations_per_workgroup, 256);
        assert_eq!(limits.max_compute_workgroup_storage_size, 16 << 10);
        assert_eq!(limits.max_storage_buffer_binding_size, 128 << 20);
        assert_eq!(limits.min_storage_buffer_offset_alignment as usize, ALIGNMENT);
        assert_eq!(dialect, Dialect::default());
    }
}
