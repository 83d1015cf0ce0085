//! The clock of a GPU.

use std::time::Duration;

use super::GpuBuffer;
use super::memory::buffer;

/// A set of `count` timestamps, and the memory that they are resolved to, as `u64`.
pub(super) fn queries(device: &wgpu::Device, count: u32) -> (wgpu::QuerySet, GpuBuffer) {
    let (label, ty) = (Some("timestamps"), wgpu::QueryType::Timestamp);
    let usage = wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC;
    let raw = buffer(device, "timestamps", u64::from(count * 8).max(256), usage);
    let set = device.create_query_set(&wgpu::QuerySetDescriptor { label, ty, count });
    (set, GpuBuffer { raw, counted: None })
}

/// Begin and end of the last replay on the device's clock.
pub(super) struct Timestamps {
    pub(super) queries: wgpu::QuerySet,
    pub(super) resolved: GpuBuffer,
    /// Nanoseconds per tick.
    period: f32,
}

impl Timestamps {
    pub(super) fn new(device: &wgpu::Device, queue: &wgpu::Queue, features: wgpu::Features) -> Option<Self> {
        features.contains(wgpu::Features::TIMESTAMP_QUERY).then(|| {
            let (queries, resolved) = queries(device, 2);
            Timestamps { queries, resolved, period: queue.get_timestamp_period() }
        })
    }

    /// Time between two ticks.
    pub(super) fn between(&self, [begin, end]: [u64; 2]) -> Duration {
        Duration::from_nanos((end.saturating_sub(begin) as f64 * f64::from(self.period)) as u64)
    }
}
