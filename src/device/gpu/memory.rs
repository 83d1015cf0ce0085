//! Memory of a GPU: buffers, and copies to and from them.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};

use wgpu::BufferUsages;

use super::Gpu;
use super::faults::TIMEOUT;
use crate::device::size;
use crate::error::{Error, Result, lock};

/// Bytes that are read back or written in one go, so that staging memory stays small.
const STAGING: u64 = 32 << 20;

/// A block of device memory.
pub struct GpuBuffer {
    pub(super) raw: wgpu::Buffer,
    /// Where its bytes are counted; `None` for the few that hold no tensor.
    pub(super) counted: Option<Arc<Usage>>,
}

/// Bytes of all tensors' buffers, and the most that they ever were.
#[derive(Default)]
pub(super) struct Usage {
    now: AtomicU64,
    peak: AtomicU64,
}

impl Drop for GpuBuffer {
    fn drop(&mut self) {
        if let Some(usage) = &self.counted {
            usage.now.fetch_sub(self.raw.size(), Ordering::Relaxed);
        }
    }
}

impl GpuBuffer {
    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.raw.size() as usize
    }
}

pub(super) fn buffer(device: &wgpu::Device, label: &str, size: u64, usage: BufferUsages) -> wgpu::Buffer {
    let label = Some(label);
    device.create_buffer(&wgpu::BufferDescriptor { label, size, usage, mapped_at_creation: false })
}

impl Gpu {
    /// The most bytes that tensors' buffers took at one time since [`Gpu::forget_peak`].
    pub(crate) fn peak_bytes(&self) -> u64 {
        self.usage.peak.load(Ordering::Relaxed)
    }

    /// Restarts the peak at the bytes that are allocated now.
    pub(crate) fn forget_peak(&self) {
        self.usage.peak.store(self.usage.now.load(Ordering::Relaxed), Ordering::Relaxed);
    }

    /// A buffer to copy to and to read from the host.
    pub(super) fn readback_buffer(&self, bytes: u64) -> Result<wgpu::Buffer> {
        let usage = BufferUsages::MAP_READ | BufferUsages::COPY_DST;
        let doing = "allocating memory for reading back";
        self.guarded(doing, || buffer(&self.device, "read back", bytes, usage))
    }

    /// Allocates zeroed memory.
    pub(crate) fn alloc(&self, label: &str, bytes: usize) -> Result<GpuBuffer> {
        let bytes = bytes as u64;
        if bytes > self.max_buffer() {
            let (needed, most, gpu) = (size(bytes), size(self.max_buffer()), &self.info.name);
            return Err(Error::new(format!(
                "{label} needs {needed} of memory in one buffer, and {gpu} allows at most {most}"
            ))
            .hint("lower the batch size, the image size or the model's widths"));
        }
        let usage = BufferUsages::STORAGE | BufferUsages::COPY_SRC | BufferUsages::COPY_DST;
        let doing = format!("allocating {} for {label}", size(bytes));
        let raw = self.guarded(&doing, || buffer(&self.device, label, bytes, usage))?;
        let now = self.usage.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        self.usage.peak.fetch_max(now, Ordering::Relaxed);
        Ok(GpuBuffer { raw, counted: Some(Arc::clone(&self.usage)) })
    }

    /// Writes into a buffer, before all later submissions.
    pub(crate) fn write(&self, buffer: &GpuBuffer, offset: usize, data: &[u8]) -> Result<()> {
        for (i, chunk) in data.chunks(STAGING as usize).enumerate() {
            self.queue.write_buffer(&buffer.raw, offset as u64 + i as u64 * STAGING, chunk);
            if data.len() as u64 > STAGING {
                // Staging memory of a large upload would otherwise pile up until the next step.
                self.queue.submit([]);
                self.wait()?;
            }
        }
        self.check("writing to the GPU")
    }

    /// Reads from a buffer, after all earlier submissions.
    pub(crate) fn read(&self, buffer: &GpuBuffer, offset: usize, out: &mut [u8]) -> Result<()> {
        for (i, chunk) in out.chunks_mut(STAGING as usize).enumerate() {
            self.read_chunk(buffer, offset as u64 + i as u64 * STAGING, chunk)?;
        }
        Ok(())
    }

    fn read_chunk(&self, buffer: &GpuBuffer, offset: u64, out: &mut [u8]) -> Result<()> {
        let bytes = out.len() as u64;
        let mut staging = lock(&self.staging);
        let large_enough = staging.take().filter(|s| s.size() >= bytes);
        let staging = staging.insert(match large_enough {
            Some(buffer) => buffer,
            None => self.readback_buffer(bytes.next_power_of_two().max(4096))?,
        });
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&buffer.raw, offset, staging, 0, bytes);
        self.queue.submit([encoder.finish()]);
        let mapped = map(staging, bytes);
        self.wait()?;
        self.take_mapped(staging, bytes, &mapped, |data| out.copy_from_slice(data))
    }

    /// Hands the bytes that [`map()`] asked for to `take`; the work before must have been waited for.
    pub(super) fn take_mapped<R>(
        &self,
        staging: &wgpu::Buffer,
        bytes: u64,
        mapped: &Mapped,
        take: impl FnOnce(&[u8]) -> R,
    ) -> Result<R> {
        let failed = || self.fault("reading back from the GPU failed");
        // Another thread's wait may run the callback, just after ours returned.
        if !matches!(mapped.recv_timeout(TIMEOUT), Ok(Ok(()))) {
            return Err(failed());
        }
        let view = staging.slice(..bytes).get_mapped_range().map_err(|e| failed().caused_by(e))?;
        let taken = take(&view);
        drop(view);
        staging.unmap();
        Ok(taken)
    }
}

/// Receives a message when the host can read a buffer.
pub(super) type Mapped = Receiver<std::result::Result<(), wgpu::BufferAsyncError>>;

/// Maps the first bytes of a buffer for the host.
pub(super) fn map(staging: &wgpu::Buffer, bytes: u64) -> Mapped {
    let (sender, mapped) = channel();
    staging.slice(..bytes).map_async(wgpu::MapMode::Read, move |result| {
        let _ = sender.send(result);
    });
    mapped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::adapters;

    fn gpu() -> Gpu {
        adapters::open(None).expect("an adapter: run tools/test, which installs a software driver")
    }

    #[test]
    fn memory_is_zero_and_keeps_what_is_written() {
        let gpu = gpu();
        let buffer = gpu.alloc("test", 1024).unwrap();
        let mut bytes = [1_u8; 12];
        gpu.read(&buffer, 512, &mut bytes).unwrap();
        assert_eq!(bytes, [0; 12]);
        gpu.write(&buffer, 516, &[7; 4]).unwrap();
        gpu.read(&buffer, 512, &mut bytes).unwrap();
        assert_eq!(bytes, [0, 0, 0, 0, 7, 7, 7, 7, 0, 0, 0, 0]);
    }

    #[test]
    fn too_large_a_buffer_is_an_error_with_a_hint() {
        let error = gpu().alloc("the batch", 1 << 60).err().expect("no GPU has an exbibyte").to_string();
        assert!(
            error.contains("the batch needs 1048576.0 TiB of memory")
                && error.contains("lower the batch size"),
            "{error}"
        );
    }
}
