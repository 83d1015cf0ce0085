//! Bind groups, built once, and the replay of a list of dispatches.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::memory::buffer;
use super::pipeline::{Pipeline, place};
use super::shader::{Kernel, Knob};
use super::timestamps::queries;
use super::{Gpu, GpuBuffer};
use crate::device::size;
use crate::error::{Error, Result};

/// A range of a buffer, in bytes.
#[derive(Clone, Copy)]
pub(crate) struct Range<'a> {
    pub buffer: &'a GpuBuffer,
    pub offset: usize,
    pub bytes: usize,
    /// It holds f16, where the kernel says f32.
    pub half: bool,
}

/// Operations that one submission may hold. Systems reset a GPU that is busy with one for some seconds; at 30
/// GFLOP/s, which is slow for a GPU, this takes one second.
const SUBMISSION: u64 = 32_000_000_000;

/// A dispatch with its pipeline, bindings and parameters: replaying it allocates and looks up nothing.
pub(crate) struct Bound {
    work: u64,
    pipeline: Arc<Pipeline>,
    group: wgpu::BindGroup,
    immediates: Vec<u8>,
    groups: [u32; 3],
}

impl Bound {
    /// Sets the number of operations, by which [`Gpu::replay`] limits submissions; 0 by default.
    #[must_use]
    pub(crate) fn of_work(self, work: u64) -> Self {
        Bound { work, ..self }
    }

    fn encode(&self, pass: &mut wgpu::ComputePass) {
        pass.set_pipeline(&self.pipeline.raw);
        pass.set_bind_group(0, &self.group, &[]);
        if !self.immediates.is_empty() {
            pass.set_immediates(0, &self.immediates);
        }
        let [x, y, z] = self.groups;
        pass.dispatch_workgroups(x, y, z);
    }
}

impl Gpu {
    /// Builds the pipeline and the bind group of one dispatch of `groups` workgroups.
    ///
    /// # Panics
    /// When a binding or a parameter is missing, or is none of the kernel's, or a dimension of `groups` is
    /// not from 1 to 65,535.
    pub(crate) fn bind(
        &self,
        kernel: &'static Kernel,
        entry: &'static str,
        knobs: &[Knob],
        params: &[(&'static str, u32)],
        ranges: &[(&'static str, Range)],
        groups: [u32; 3],
    ) -> Result<Bound> {
        let halves = ranges.iter().filter(|(_, range)| range.half).map(|(name, _)| *name).collect();
        let pipeline = self.pipeline(kernel, entry, knobs, halves)?;
        let interface = &pipeline.interface;
        let at = place(kernel.name, entry);
        assert!(
            groups.iter().all(|g| (1..=65_535).contains(g)),
            "{at}: {groups:?} workgroups, each dimension allows 1 to 65535"
        );
        let immediates = interface.pack(params, &at);
        let uniform = (!self.dialect.immediates && interface.params_size > 0)
            .then(|| self.uniform(&immediates))
            .transpose()?;
        let mut entries = Vec::new();
        if let Some(uniform) = &uniform {
            entries.push(wgpu::BindGroupEntry { binding: 0, resource: uniform.as_entire_binding() });
        }
        for (binding, range) in interface.bindings.iter().zip(interface.bound(ranges, &at)) {
            if range.bytes as u64 > self.max_binding() {
                let (needed, most) = (size(range.bytes as u64), size(self.max_binding()));
                let (name, kernel, gpu) = (&binding.name, kernel.name, &self.info.name);
                return Err(Error::new(format!(
                    "`{name}` of {kernel} is {needed}, and {gpu} binds at most {most}"
                ))
                .hint("lower the image size or the model's widths: a batch is cut where that helps"));
            }
            entries.push(wgpu::BindGroupEntry {
                binding: binding.index,
                resource: wgpu::BindingResource::Buffer(wgpu::BufferBinding {
                    buffer: &range.buffer.raw,
                    offset: range.offset as u64,
                    size: std::num::NonZeroU64::new(range.bytes as u64),
                }),
            });
        }
        let group = self.guarded(&format!("binding the buffers of {at}"), || {
            self.device.create_bind_group(&wgpu::BindGroupDescriptor {
                label: Some(kernel.name),
                layout: &pipeline.layout,
                entries: &entries,
            })
        })?;
        let immediates = if self.dialect.immediates { immediates } else { Vec::new() };
        Ok(Bound { work: 0, pipeline, group, immediates, groups })
    }

    fn uniform(&self, bytes: &[u8]) -> Result<wgpu::Buffer> {
        let usage = wgpu::BufferUsages::UNIFORM | wgpu::BufferUsages::COPY_DST;
        let size = bytes.len().next_multiple_of(16) as u64;
        let doing = "allocating parameters";
        let buffer = self.guarded(doing, || buffer(&self.device, "parameters", size, usage))?;
        self.queue.write_buffer(&buffer, 0, bytes);
        Ok(buffer)
    }

    /// Encodes the dispatches in order and submits them, each submission with at most [`SUBMISSION`]
    /// operations or one dispatch.
    pub(crate) fn replay<'a>(&self, dispatches: impl IntoIterator<Item = &'a Bound>) -> Result<()> {
        let mut rest = dispatches.into_iter().peekable();
        let mut begin = Some(0);
        loop {
            let mut encoder = self.device.create_command_encoder(&Default::default());
            let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                label: Some("program"),
                timestamp_writes: self.timestamps.as_ref().map(|t| wgpu::ComputePassTimestampWrites {
                    query_set: &t.queries,
                    beginning_of_pass_write_index: begin.take(),
                    // The last submission is not known yet: each overwrites the end of the one before.
                    end_of_pass_write_index: Some(1),
                }),
            });
            let mut work = 0;
            while let Some(dispatch) = rest.next_if(|next| fits(&mut work, next.work)) {
                dispatch.encode(&mut pass);
            }
            drop(pass);
            if rest.peek().is_some() {
                self.queue.submit([encoder.finish()]);
                continue;
            }
            if let Some(t) = &self.timestamps {
                encoder.resolve_query_set(&t.queries, 0..2, &t.resolved.raw, 0);
            }
            let submission = self.queue.submit([encoder.finish()]);
            return self.submitted(submission);
        }
    }

    /// As [`Gpu::replay`], with each dispatch between two timestamps, and waits for the end. For each
    /// dispatch: its begin since that of the first, and its duration. `None` where the device has no
    /// timestamps (nothing runs then).
    pub(crate) fn replay_timed(&self, dispatches: &[Bound]) -> Result<Option<Vec<(Duration, Duration)>>> {
        /// A set holds at most 4096 timestamps.
        const AT_ONCE: usize = wgpu::QUERY_SET_MAX_QUERIES as usize / 2;
        let Some(timestamps) = &self.timestamps else { return Ok(None) };
        let mut sets = Vec::new();
        let mut work = 0;
        let mut encoder = self.device.create_command_encoder(&Default::default());
        for some in dispatches.chunks(AT_ONCE) {
            let count = 2 * some.len() as u32;
            let (queries, resolved) =
                self.guarded("making room for timestamps", || queries(&self.device, count))?;
            for (i, dispatch) in some.iter().enumerate() {
                if !fits(&mut work, dispatch.work) {
                    let next = self.device.create_command_encoder(&Default::default());
                    self.queue.submit([std::mem::replace(&mut encoder, next).finish()]);
                    work = dispatch.work;
                }
                let mut pass = encoder.begin_compute_pass(&wgpu::ComputePassDescriptor {
                    label: Some("dispatch"),
                    timestamp_writes: Some(wgpu::ComputePassTimestampWrites {
                        query_set: &queries,
                        beginning_of_pass_write_index: Some(2 * i as u32),
                        end_of_pass_write_index: Some(2 * i as u32 + 1),
                    }),
                });
                dispatch.encode(&mut pass);
            }
            encoder.resolve_query_set(&queries, 0..count, &resolved.raw, 0);
            sets.push((resolved, count as usize));
        }
        let submission = self.queue.submit([encoder.finish()]);
        self.submitted(submission)?;
        let mut ticks = Vec::with_capacity(2 * dispatches.len());
        for (resolved, count) in sets {
            let mut some = vec![0_u64; count];
            self.read(&resolved, 0, bytemuck::cast_slice_mut(&mut some))?;
            ticks.extend(some);
        }
        let first = ticks.first().copied().unwrap_or(0);
        let span =
            |pair: &[u64]| (timestamps.between([first, pair[0]]), timestamps.between([pair[0], pair[1]]));
        Ok(Some(ticks.chunks_exact(2).map(span).collect()))
    }

    /// Mean duration of `dispatches` over `again` runs in a row, on the device's own clock where it has one.
    pub(crate) fn time(&self, dispatches: &[Bound], again: usize) -> Result<Duration> {
        self.wait()?;
        let began = Instant::now();
        self.replay(std::iter::repeat_n(dispatches, again).flatten())?;
        self.wait()?;
        let took = began.elapsed();
        Ok(self.device_time()?.unwrap_or(took).div_f64(again as f64))
    }

    /// Duration of the last replay on the device's own clock; `None` where it has no timestamps.
    pub(crate) fn device_time(&self) -> Result<Option<Duration>> {
        let Some(timestamps) = &self.timestamps else { return Ok(None) };
        let mut ticks = [0_u64; 2];
        self.read(&timestamps.resolved, 0, bytemuck::cast_slice_mut(&mut ticks))?;
        Ok(Some(timestamps.between(ticks)))
    }
}

/// Adds `more` operations to the `work` of a submission if there is room, as there always is for the first.
pub(crate) fn fits(work: &mut u64, more: u64) -> bool {
    let has_room = *work == 0 || *work + more <= SUBMISSION;
    *work += if has_room { more } else { 0 };
    has_room
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::gpu::adapters;

    #[test]
    fn a_submission_holds_at_least_one_dispatch_and_not_too_much_work() {
        let submissions = |works: &[u64]| -> Vec<usize> {
            let (mut rest, mut submissions) = (works.iter().peekable(), Vec::new());
            while rest.peek().is_some() {
                let mut work = 0;
                let mut count = 0;
                while rest.next_if(|more| fits(&mut work, **more)).is_some() {
                    count += 1;
                }
                submissions.push(count);
            }
            submissions
        };
        let half = SUBMISSION / 2;
        assert_eq!(submissions(&[0; 5000]), [5000]);
        assert_eq!(submissions(&[half; 5]), [2, 2, 1]);
        assert_eq!(submissions(&[10 * SUBMISSION, 1, half, 20 * SUBMISSION]), [1, 2, 1]);
    }

    #[test]
    fn sub_dispatches_run_in_order_and_are_timed_as_one() {
        let gpu = adapters::open(None).expect("an adapter: run tools/test, which installs a software driver");
        let [a, b] = [0, 1].map(|_| gpu.alloc("test", 1024).unwrap());
        gpu.write(&a, 0, bytemuck::cast_slice(&[1.0_f32; 256])).unwrap();
        let bind = |from, to, work| {
            let range = |buffer| Range { buffer, offset: 0, bytes: 1024, half: false };
            let ranges = [("x", range(from)), ("y", range(to))];
            let params = [("n", 256), ("kind", crate::ops::activation::Activation::Silu as u32)];
            let kernel = &crate::ops::activation::KERNEL;
            gpu.bind(kernel, "forward", &[], &params, &ranges, [1, 1, 1]).unwrap().of_work(work)
        };
        let run = |work| {
            gpu.write(&b, 0, &[0; 1024]).unwrap();
            gpu.write(&a, 0, bytemuck::cast_slice(&[1.0_f32; 256])).unwrap();
            let list: Vec<Bound> =
                (0..6).map(|i| if i % 2 == 0 { bind(&a, &b, work) } else { bind(&b, &a, work) }).collect();
            gpu.replay(&list).unwrap();
            let mut out = [0.0_f32; 256];
            gpu.read(&a, 0, bytemuck::cast_slice_mut(&mut out)).unwrap();
            if let Some(time) = gpu.device_time().unwrap() {
                assert!(time > Duration::ZERO && time < Duration::from_secs(60), "{time:?}");
            }
            if let Some(times) = gpu.replay_timed(&list).unwrap() {
                assert_eq!(times.len(), 6);
                assert!(times.windows(2).all(|pair| pair[0].0 <= pair[1].0), "{times:?}");
            }
            out
        };
        let whole = run(1);
        let silu = |x: f32| x / (1.0 + (-x).exp());
        let wanted = (0..6).fold(1.0, |x, _| silu(x));
        assert!((whole[0] - wanted).abs() <= 1e-5 * wanted, "{} {wanted}", whole[0]);
        assert_eq!(run(SUBMISSION), whole);
    }
}
