//! The clock of a GPU.

use std::time::Duration;

use super::GpuBuffer;

/// Memory that timestamps are resolved to.
pub(super) fn resolve_buffer(device: &wgpu::Device, bytes: u64) -> wgpu::Buffer {
    device.create_buffer(&wgpu::BufferDescriptor {
        label: Some("timestamps"),
        size: bytes.max(256),
        usage: wgpu::BufferUsages::QUERY_RESOLVE | wgpu::BufferUsages::COPY_SRC,
        mapped_at_creation: false,
    })
}

/// Begin and end of the last replay on the device's clock.
pub(super) struct Timestamps {
    pub(super) queries: wgpu::QuerySet,
    /// Two ticks, `u64`.
    pub(super) resolved: GpuBuffer,
    /// Nanoseconds per tick.
    period: f32,
}

impl Timestamps {
    pub(super) fn new(device: &wgpu::Device, queue: &wgpu::Queue, features: wgpu::Features) -> Option<Self> {
        features.contains(wgpu::Features::TIMESTAMP_QUERY).then(|| Timestamps {
            queries: device.create_query_set(&wgpu::QuerySetDescriptor {
                label: Some("step"),
                ty: wgpu::QueryType::Timestamp,
                count: 2,
            }),
            resolved: GpuBuffer::uncounted(resolve_buffer(device, 256)),
            period: queue.get_timestamp_period(),
        })
    }

    /// Time between two ticks.
    pub(super) fn between(&self, [begin, end]: [u64; 2]) -> Duration {
        Duration::from_nanos((end.saturating_sub(begin) as f64 * f64::from(self.period)) as u64)
    }
}
