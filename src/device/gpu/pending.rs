//! Pending reads: copies that are submitted with a step and looked at some steps later.

use std::time::Duration;

use super::memory::{Mapped, map};
use super::{Gpu, GpuBuffer};
use crate::error::{Result, lock};

/// Bytes of the staging buffers of pending reads; the last 256 hold the ticks of a replay.
const BYTES: u64 = 4096;
const TICKS: u64 = BYTES - 256;

/// A copy of a few bytes under way from the device.
pub(crate) struct PendingCopy {
    staging: wgpu::Buffer,
    bytes: usize,
    submission: wgpu::SubmissionIndex,
    mapped: Mapped,
}

impl Gpu {
    /// Submits a copy of a few bytes, in order after all earlier submissions, and of the last replay's ticks.
    /// Does not wait.
    ///
    /// # Panics
    /// For more than 3840 bytes.
    #[track_caller]
    pub(crate) fn read_later(&self, buffer: &GpuBuffer, offset: usize, bytes: usize) -> Result<PendingCopy> {
        assert!(bytes as u64 <= TICKS, "{bytes} bytes are too many to be read later");
        let free = lock(&self.readback_pool).pop();
        let staging = free.map_or_else(|| self.readback_buffer(BYTES), Ok)?;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        encoder.copy_buffer_to_buffer(&buffer.raw, offset as u64, &staging, 0, bytes as u64);
        if let Some(timestamps) = &self.timestamps {
            encoder.copy_buffer_to_buffer(&timestamps.resolved.raw, 0, &staging, TICKS, 16);
        }
        let submission = self.queue.submit([encoder.finish()]);
        let mapped = map(&staging, BYTES);
        Ok(PendingCopy { staging, bytes, submission, mapped })
    }

    /// Waits for the bytes of [`Gpu::read_later`], and returns the duration of the last replay before it on
    /// the device's own clock, if it has one.
    ///
    /// # Panics
    /// When `out` has another size.
    #[track_caller]
    pub(crate) fn resolve(&self, pending: PendingCopy, out: &mut [u8]) -> Result<Option<Duration>> {
        let PendingCopy { staging, bytes, submission, mapped } = pending;
        assert_eq!(bytes, out.len(), "bytes read later");
        self.wait_for(Some(submission))?;
        let ticks: [u64; 2] = self.take_mapped(&staging, BYTES, &mapped, |view| {
            out.copy_from_slice(&view[..bytes]);
            bytemuck::pod_read_unaligned(&view[TICKS as usize..TICKS as usize + 16])
        })?;
        lock(&self.readback_pool).push(staging);
        Ok(self.timestamps.as_ref().map(|timestamps| timestamps.between(ticks)))
    }
}

#[cfg(test)]
mod tests {
    use crate::device::gpu::adapters;
    use crate::error::lock;

    #[test]
    fn each_copy_holds_what_there_was_when_it_was_sent() {
        let gpu = adapters::open(None).expect("an adapter: run tools/test, which installs a software driver");
        let buffer = gpu.alloc("test", 1024).unwrap();
        let mut out = [0_u8; 8];
        for round in 0..3 {
            let send = |value: u8| {
                gpu.write(&buffer, 512, &[value; 8]).unwrap();
                gpu.read_later(&buffer, 512, 8).unwrap()
            };
            let sent: Vec<_> = (0..5).map(|i| send(10 * round + i)).collect();
            // Plain reading goes on beside it.
            gpu.read(&buffer, 512, &mut out).unwrap();
            assert_eq!(out, [10 * round + 4; 8]);
            for (i, pending) in sent.into_iter().enumerate() {
                gpu.resolve(pending, &mut out).unwrap();
                assert_eq!(out, [10 * round + i as u8; 8]);
            }
        }
        assert_eq!(lock(&gpu.readback_pool).len(), 5, "buffers are used again");
    }
}
