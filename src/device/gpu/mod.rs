//! The GPU device: one adapter through wgpu, its memory, and prebuilt dispatches. The only module that
//! names wgpu.

pub mod adapters;
mod dispatch;
mod faults;
mod grid;
mod memory;
mod pending;
mod pipeline;
pub mod shader;
mod timestamps;
pub mod tuning;
pub(crate) mod web;

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};

pub(crate) use dispatch::{Bound, Range, fits};
pub use faults::expects_panic;
pub use grid::Grid;
pub use memory::GpuBuffer;
pub(crate) use pending::PendingCopy;

use self::adapters::Traits;
use self::shader::Dialect;
use self::tuning::Tuning;
use crate::error::{Error, Result, lock};

/// An open adapter.
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    limits: wgpu::Limits,
    matrices: Option<u32>,
    /// The dialect that kernels are compiled in, within the adapter's features.
    pub dialect: Dialect,
    /// Kernels are compiled with the checks that naga injects, which hide accesses outside a tensor.
    pub checked: bool,
    /// Programs keep the tensors between their launches in 16 bits; what is stored, and what is read of a
    /// program, keeps its 32. Kernels compute in f32 all the same.
    pub halves: bool,
    /// Layout of dispatches.
    pub grid: Grid,
    faults: faults::Faults,
    pipelines: Mutex<HashMap<pipeline::PipelineKey, Arc<pipeline::Pipeline>>>,
    staging: Mutex<Option<wgpu::Buffer>>,
    /// Staging buffers of pending reads that are free.
    readback_pool: Mutex<Vec<wgpu::Buffer>>,
    /// Submissions of replays that have not been waited for.
    in_flight: Mutex<VecDeque<wgpu::SubmissionIndex>>,
    timestamps: Option<timestamps::Timestamps>,
    tuning: Mutex<Option<Tuning>>,
    usage: Arc<memory::Usage>,
}

impl Gpu {
    /// Opens the adapter with its own limits and the features that denoir uses.
    pub(crate) fn open(adapter: &wgpu::Adapter) -> Result<Self> {
        let (info, limits) = (adapter.get_info(), adapter.limits());
        let features = adapter.features() & adapters::useful_features();
        let request = |more: wgpu::Features, experimental_features| {
            pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
                label: Some("denoir"),
                required_features: features | more,
                required_limits: limits.clone(),
                experimental_features,
                memory_hints: wgpu::MemoryHints::MemoryUsage,
                ..Default::default()
            }))
        };
        let with_matrices = |side: u32| {
            // SAFETY: nothing else that is experimental is asked for, and the first use of a kernel with
            // matrices is held against one without.
            let experimental = unsafe { wgpu::ExperimentalFeatures::enabled() };
            let wanted = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX;
            // There are drivers that list what they refuse, and wgpu may panic then.
            let opened = faults::quietly(|| request(wanted, experimental)).ok()?.ok()?;
            Some((Ok(opened), Some(side)))
        };
        let (opened, matrices) = adapters::matrices(adapter).and_then(with_matrices).unwrap_or_else(|| {
            (request(wgpu::Features::empty(), wgpu::ExperimentalFeatures::disabled()), None)
        });
        let (device, queue) = opened.map_err(|e| {
            Error::new(format!("cannot open the GPU {}", info.name))
                .hint("update its driver, or use --device cpu")
                .caused_by(e)
        })?;
        let dialect = Dialect {
            immediates: features.contains(wgpu::Features::IMMEDIATES) && limits.max_immediate_size >= 128,
            subgroups: features.contains(wgpu::Features::SUBGROUP),
            f16: features.contains(wgpu::Features::SHADER_F16),
        };
        Ok(Gpu {
            faults: faults::watch(&device),
            timestamps: timestamps::Timestamps::new(&device, &queue, features),
            device,
            queue,
            info,
            matrices,
            dialect,
            checked: cfg!(debug_assertions),
            halves: false,
            pipelines: Mutex::default(),
            staging: Mutex::default(),
            readback_pool: Mutex::default(),
            in_flight: Mutex::default(),
            tuning: Mutex::default(),
            grid: Grid::default(),
            limits,
            usage: Arc::default(),
        })
    }

    /// The adapter's name as its driver gives it.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// The driver's name, version and API: `llvmpipe Mesa 25.0 (vulkan)`.
    pub fn driver(&self) -> String {
        let text = format!("{} {} ({})", self.info.driver, self.info.driver_info, self.info.backend);
        text.trim().to_owned()
    }

    /// True if kernels can compute with 16-bit floats.
    pub fn has_f16(&self) -> bool {
        self.device.features().contains(wgpu::Features::SHADER_F16)
    }

    /// True for drivers that compute on the CPU (llvmpipe, SwiftShader).
    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// The properties that decide which variants launches have here.
    pub(crate) fn traits(&self) -> Traits {
        Traits {
            software: self.is_software(),
            broadcasts: self.dialect.subgroups && self.info.subgroup_min_size >= 8,
            halves: self.halves,
            keeps_halves: self.halves && self.binds_at(128),
            matrices: self.matrices.filter(|_| self.dialect.f16),
        }
    }

    /// Compiles programs by `tuning` from now on; `None`: with default variants.
    pub(crate) fn tune_with(&self, tuning: Option<Tuning>) {
        *self.tuning() = tuning;
    }

    /// The tuning in use.
    pub(crate) fn tuning(&self) -> MutexGuard<'_, Option<Tuning>> {
        lock(&self.tuning)
    }

    /// Largest range that one binding can cover, in bytes.
    pub(crate) fn max_binding(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size
    }

    /// Whether a binding may begin at any multiple of so many bytes.
    pub(crate) fn binds_at(&self, bytes: u64) -> bool {
        bytes.is_multiple_of(self.limits.min_storage_buffer_offset_alignment.into())
    }

    /// Largest buffer, in bytes.
    pub(crate) fn max_buffer(&self) -> u64 {
        self.limits.max_buffer_size
    }

    /// Binds no more than this in one binding, in bytes; for tests.
    pub fn use_max_binding(&mut self, bytes: u64) {
        self.limits.max_storage_buffer_binding_size = bytes.min(self.max_binding());
    }

    /// Into how many sub-dispatches to cut a dispatch of `work` operations, or of `ms` measured milliseconds,
    /// so that none takes more than a tenth of a second.
    pub(crate) fn sub_dispatches(&self, work: u64, ms: Option<f64>) -> usize {
        grid::sub_dispatches(self.info.device_type, work, ms)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gpu() -> Gpu {
        adapters::open(None)
            .expect("an adapter, if only a software one: run tools/test, which installs a driver")
    }

    #[test]
    fn what_the_driver_refuses_is_an_error_with_a_cause() {
        let gpu = gpu();
        let buffer = gpu.alloc("test", 1024).unwrap();
        let misaligned = Range { buffer: &buffer, offset: 4, bytes: 64, half: false };
        let ranges = [("x", misaligned), ("y", Range { offset: 512, ..misaligned })];
        let kernel = &crate::ops::activation::KERNEL;
        let params = [("n", 16), ("kind", 1)];
        let error = gpu
            .bind(kernel, "forward", &[], &params, &ranges, [1, 1, 1])
            .err()
            .expect("a misaligned binding");
        assert!(
            error.report().contains("binding the buffers of kernels/activation.wgsl"),
            "{}",
            error.report()
        );
        assert!(error.report().contains("caused by"), "{}", error.report());
        // The device goes on working.
        let mut bytes = [1_u8; 4];
        gpu.read(&buffer, 0, &mut bytes).unwrap();
    }

    #[test]
    fn a_lost_device_is_an_error_and_neither_a_panic_nor_a_hang() {
        let gpu = gpu();
        let buffer = gpu.alloc("test", 1024).unwrap();
        gpu.device.destroy();
        let mut bytes = [0_u8; 4];
        let error = gpu.read(&buffer, 0, &mut bytes).expect_err("the device is gone");
        assert!(error.to_string().contains("--device cpu"), "{error}");
        assert!(gpu.alloc("more", 1024).is_err());
        assert!(gpu.write(&buffer, 0, &[0; 4]).and_then(|()| gpu.wait()).is_err());
    }
}
