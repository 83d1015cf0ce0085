//! Memory of a GPU: blocks of it, and what is copied there and back.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, channel};

use super::{Gpu, PATIENCE};
use crate::error::{Error, Result};

/// Largest chunk that is read back or written in one go, so that staging memory stays small.
const STAGING: u64 = 32 << 20;

/// A block of device memory.
pub struct GpuBuffer {
    pub(super) raw: wgpu::Buffer,
    bytes: u64,
    /// `None` for the few bytes that no tensor lives in.
    _share: Option<Share>,
}

/// Bytes of all tensors' buffers, and the most that they ever were.
#[derive(Default)]
pub(super) struct Usage {
    now: AtomicU64,
    peak: AtomicU64,
}

impl Usage {
    pub(super) fn peak(&self) -> u64 {
        self.peak.load(Ordering::Relaxed)
    }

    pub(super) fn forget_peak(&self) {
        self.peak.store(self.now.load(Ordering::Relaxed), Ordering::Relaxed);
    }
}

/// A buffer's part of the usage, given back when it is dropped.
struct Share {
    usage: Arc<Usage>,
    bytes: u64,
}

impl Share {
    fn new(usage: &Arc<Usage>, bytes: u64) -> Share {
        let now = usage.now.fetch_add(bytes, Ordering::Relaxed) + bytes;
        usage.peak.fetch_max(now, Ordering::Relaxed);
        Share { usage: Arc::clone(usage), bytes }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.usage.now.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl GpuBuffer {
    /// One that does not count as a tensor's.
    pub(super) fn uncounted(raw: wgpu::Buffer) -> GpuBuffer {
        GpuBuffer { bytes: raw.size(), raw, _share: None }
    }

    pub fn bytes(&self) -> usize {
        self.bytes as usize
    }
}

impl Gpu {
    /// Allocates zeroed memory.
    ///
    /// # Errors
    /// When the device has not that much memory, or allows no buffer of this size.
    pub fn alloc(&self, label: &str, bytes: usize) -> Result<GpuBuffer> {
        let bytes = bytes as u64;
        if bytes > self.limits.max_buffer_size {
            return Err(Error::new(format!(
                "{label} needs {} of memory in one buffer, and {} allows at most {}",
                crate::device::size(bytes),
                self.info.name,
                crate::device::size(self.limits.max_buffer_size)
            ))
            .hint("lower the batch size, the image size or the model's widths"));
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
        Ok(GpuBuffer { raw, bytes, _share: Some(Share::new(&self.usage, bytes)) })
    }

    /// Writes into a buffer; later submissions see it.
    ///
    /// # Errors
    /// When the driver reports an error.
    pub fn write(&self, buffer: &GpuBuffer, offset: usize, data: &[u8]) -> Result<()> {
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

    /// Reads back from a buffer, waiting for all work before it.
    ///
    /// # Errors
    /// When the driver reports an error, or does not answer.
    pub fn read(&self, buffer: &GpuBuffer, offset: usize, out: &mut [u8]) -> Result<()> {
        for (i, chunk) in out.chunks_mut(STAGING as usize).enumerate() {
            self.read_chunk(buffer, offset as u64 + i as u64 * STAGING, chunk)?;
        }
        Ok(())
    }

    fn read_chunk(&self, buffer: &GpuBuffer, offset: u64, out: &mut [u8]) -> Result<()> {
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
        let mapped = map(staging, bytes);
        self.wait()?;
        self.take_mapped(staging, bytes, &mapped, |data| out.copy_from_slice(data))
    }

    /// Gives the bytes that [`map()`] asked for to `take`, after the work before was waited for.
    pub(super) fn take_mapped<R>(
        &self,
        staging: &wgpu::Buffer,
        bytes: u64,
        mapped: &Mapped,
        take: impl FnOnce(&[u8]) -> R,
    ) -> Result<R> {
        // Another thread's wait may be the one that runs the callback, just after ours returned.
        if !matches!(mapped.recv_timeout(PATIENCE), Ok(Ok(()))) {
            return Err(self.fault("reading back from the GPU failed"));
        }
        let view = staging
            .slice(..bytes)
            .get_mapped_range()
            .map_err(|e| self.fault("reading back from the GPU failed").caused_by(e))?;
        let taken = take(&view);
        drop(view);
        staging.unmap();
        Ok(taken)
    }
}

/// Tells when the host sees a buffer.
pub(super) type Mapped = Receiver<std::result::Result<(), wgpu::BufferAsyncError>>;

/// Asks for the first bytes of a buffer to be seen by the host.
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
