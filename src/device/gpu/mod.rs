//! The GPU device: one adapter through wgpu, its memory, and prebuilt dispatches. The only module that names wgpu.

pub mod adapters;
mod dispatch;
pub mod shader;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

pub use dispatch::{Bound, Range};

use self::shader::Dialect;
use crate::error::{Error, Result};

/// How long a real GPU, and a software driver, may take over one submission before it is taken for dead.
const PATIENCE: Duration = Duration::from_secs(120);
const SOFTWARE_PATIENCE: Duration = Duration::from_secs(3600);

/// Largest piece that is read back or written in one go, so that staging memory stays small.
const STAGING: u64 = 32 << 20;

/// A block of device memory.
pub struct GpuBuffer {
    raw: wgpu::Buffer,
    bytes: u64,
}

impl GpuBuffer {
    pub fn bytes(&self) -> usize {
        self.bytes as usize
    }
}

/// What the driver has reported since the last look: validation errors, lost device.
type Faults = Arc<Mutex<Vec<String>>>;

/// An open adapter.
pub struct Gpu {
    device: wgpu::Device,
    queue: wgpu::Queue,
    info: wgpu::AdapterInfo,
    limits: wgpu::Limits,
    dialect: Dialect,
    /// Kernels are compiled without the checks that naga injects; tests keep them.
    checked: bool,
    faults: Faults,
    pipelines: Mutex<HashMap<dispatch::PipelineKey, Arc<dispatch::Pipeline>>>,
    staging: Mutex<Option<wgpu::Buffer>>,
    timestamps: Option<dispatch::Timestamps>,
}

impl Gpu {
    /// Opens the adapter with its own limits and the features that denoir can use.
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn open(adapter: &wgpu::Adapter) -> Result<Self> {
        let info = adapter.get_info();
        let limits = adapter.limits();
        let features = adapter.features() & adapters::useful_features();
        let opened = pollster::block_on(adapter.request_device(&wgpu::DeviceDescriptor {
            label: Some("denoir"),
            required_features: features,
            required_limits: limits.clone(),
            memory_hints: wgpu::MemoryHints::MemoryUsage,
            ..Default::default()
        }));
        let (device, queue) = opened.map_err(|e| {
            Error::new(format!("cannot open the GPU {}", info.name))
                .hint("update its driver, or use --device cpu")
                .caused_by(e)
        })?;
        let faults = Faults::default();
        let sink = Arc::clone(&faults);
        device.on_uncaptured_error(Arc::new(move |e: wgpu::Error| note(&sink, e.to_string())));
        let sink = Arc::clone(&faults);
        device.set_device_lost_callback(move |reason, message| {
            // Dropping the device at the end of the program is reported here too, and is no fault.
            if reason != wgpu::DeviceLostReason::Destroyed {
                note(&sink, format!("device lost: {message}"));
            }
        });
        let dialect = Dialect {
            immediates: features.contains(wgpu::Features::IMMEDIATES) && limits.max_immediate_size >= 128,
            subgroups: features.contains(wgpu::Features::SUBGROUP),
        };
        let timestamps = dispatch::Timestamps::new(&device, &queue, features);
        Ok(Gpu {
            device,
            queue,
            info,
            limits,
            dialect,
            checked: cfg!(debug_assertions),
            faults,
            pipelines: Mutex::default(),
            staging: Mutex::default(),
            timestamps,
        })
    }

    /// The adapter's name as its driver gives it.
    pub fn name(&self) -> &str {
        &self.info.name
    }

    /// True for drivers that compute on the CPU (llvmpipe, SwiftShader).
    pub fn is_software(&self) -> bool {
        self.info.device_type == wgpu::DeviceType::Cpu
    }

    /// Largest range that one binding can see, in bytes.
    pub fn max_binding(&self) -> u64 {
        self.limits.max_storage_buffer_binding_size
    }

    /// Largest buffer, in bytes.
    pub fn max_buffer(&self) -> u64 {
        self.limits.max_buffer_size
    }

    /// Offsets of bindings are multiples of this many bytes.
    pub fn alignment(&self) -> usize {
        self.limits.min_storage_buffer_offset_alignment as usize
    }

    /// Use the plain path (uniform buffers, no subgroups) whatever the adapter offers; for tests.
    pub fn use_dialect(&mut self, dialect: Dialect) {
        self.dialect = dialect;
    }

    pub fn dialect(&self) -> Dialect {
        self.dialect
    }

    /// Allocates zeroed memory.
    ///
    /// # Errors
    /// When the device has not that much memory, or allows no buffer of this size.
    pub fn alloc(&self, label: &str, bytes: usize) -> Result<GpuBuffer> {
        let bytes = bytes as u64;
        if bytes > self.limits.max_buffer_size {
            return Err(Error::new(format!(
                "{label} needs a buffer of {}, and {} allows at most {}",
                crate::device::size(bytes),
                self.info.name,
                crate::device::size(self.limits.max_buffer_size)
            ))
            .hint("lower --batch-size, the image size or the model's widths"));
        }
        let usage = wgpu::BufferUsages::STORAGE | wgpu::BufferUsages::COPY_SRC | wgpu::BufferUsages::COPY_DST;
        let raw = self.guarded(&format!("allocating {} for {label}", crate::device::size(bytes)), || {
            self.device.create_buffer(&wgpu::BufferDescriptor {
                label: Some(label),
                size: bytes,
                usage,
                mapped_at_creation: false,
            })
        })?;
        Ok(GpuBuffer { raw, bytes })
    }

    /// Writes into a buffer; later submissions see it.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn write(&self, buffer: &GpuBuffer, offset: usize, data: &[u8]) -> Result<()> {
        for (i, piece) in data.chunks(STAGING as usize).enumerate() {
            self.queue.write_buffer(&buffer.raw, offset as u64 + i as u64 * STAGING, piece);
            if data.len() as u64 > STAGING {
                // Staging memory of a large upload would otherwise pile up until the next step.
                self.queue.submit([]);
                self.wait()?;
            }
        }
        self.check("writing to the GPU")
    }

    /// Reads back from a buffer, waiting for all work before it.
    ///
    /// # Errors
    /// When the driver reports an error, or does not answer.
    pub fn read(&self, buffer: &GpuBuffer, offset: usize, out: &mut [u8]) -> Result<()> {
        for (i, piece) in out.chunks_mut(STAGING as usize).enumerate() {
            self.read_piece(buffer, offset as u64 + i as u64 * STAGING, piece)?;
        }
        Ok(())
    }

    fn read_piece(&self, buffer: &GpuBuffer, offset: u64, out: &mut [u8]) -> Result<()> {
        let bytes = out.len() as u64;
        let mut staging = self.staging.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if staging.as_ref().is_none_or(|s| s.size() < bytes) {
            *staging = Some(self.guarded("allocating memory for reading back", || {
                self.device.create_buffer(&wgpu::BufferDescriptor {
                    label: Some("read back"),
                    size: bytes.next_power_of_two().max(4096),
                    usage: wgpu::BufferUsages::MAP_READ | wgpu::BufferUsages::COPY_DST,
                    mapped_at_creation: false,
                })
            })?);
        }
        let Some(staging) = staging.as_ref() else { return Ok(()) };
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&buffer.raw, offset, staging, 0, bytes);
        self.queue.submit([encoder.finish()]);
        let (sender, receiver) = std::sync::mpsc::channel();
        staging.slice(..bytes).map_async(wgpu::MapMode::Read, move |result| {
            let _ = sender.send(result);
        });
        self.wait()?;
        match receiver.try_recv() {
            Ok(Ok(())) => {
                let view = staging
                    .slice(..bytes)
                    .get_mapped_range()
                    .map_err(|e| self.fault("reading back from the GPU failed").caused_by(e))?;
                out.copy_from_slice(&view);
                drop(view);
                staging.unmap();
                Ok(())
            }
            _ => Err(self.fault("reading back from the GPU failed")),
        }
    }

    /// Waits until all submitted work is done.
    ///
    /// # Errors
    /// When the driver reports an error, or does not answer in reasonable time.
    pub fn wait(&self) -> Result<()> {
        let patience = if self.is_software() { SOFTWARE_PATIENCE } else { PATIENCE };
        match self.device.poll(wgpu::PollType::Wait { submission_index: None, timeout: Some(patience) }) {
            Ok(_) => self.check("computing on the GPU"),
            Err(e) => Err(self
                .fault(&format!("the GPU {} did not answer within {} s", self.info.name, patience.as_secs()))
                .caused_by(e)),
        }
    }

    /// Turns what the driver reported in the background into an error.
    pub(crate) fn check(&self, doing: &str) -> Result<()> {
        let faulty = !self.faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner).is_empty();
        if faulty { Err(self.fault(&format!("{doing} failed ({})", self.info.name))) } else { Ok(()) }
    }

    fn fault(&self, message: &str) -> Error {
        let faults = self.faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let lost = faults.iter().any(|f| f.contains("lost"));
        let hint = if lost {
            "the driver reset the GPU: resume from the last checkpoint with a smaller --batch-size, or use --device cpu"
        } else {
            "try a smaller --batch-size, a newer driver or --device cpu"
        };
        faults.iter().fold(Error::new(message).hint(hint), |error, fault| error.caused_by(fault))
    }

    /// Runs `work` and turns what the driver says of it into an error.
    fn guarded<T>(&self, doing: &str, work: impl FnOnce() -> T) -> Result<T> {
        let memory = self.device.push_error_scope(wgpu::ErrorFilter::OutOfMemory);
        let internal = self.device.push_error_scope(wgpu::ErrorFilter::Internal);
        let validation = self.device.push_error_scope(wgpu::ErrorFilter::Validation);
        let value = work();
        let validation = pollster::block_on(validation.pop());
        let internal = pollster::block_on(internal.pop());
        let memory = pollster::block_on(memory.pop());
        if let Some(error) = memory {
            return Err(Error::new(format!("{} has too little memory: {doing} failed", self.info.name))
                .hint("lower --batch-size or the image size, or close other programs that use the GPU")
                .caused_by(error));
        }
        match validation.or(internal) {
            Some(error) => Err(Error::new(format!("{doing} failed on {}", self.info.name))
                .hint("this is a defect of denoir or of the driver: please report it, and use --device cpu")
                .caused_by(error)),
            None => Ok(value),
        }
    }
}

fn note(faults: &Faults, message: String) {
    let mut faults = faults.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    // One lost device makes thousands of followers that say nothing new.
    if faults.len() < 4 {
        faults.push(message);
    }
}
