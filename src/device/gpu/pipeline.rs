//! Pipelines, compiled once for each kernel, entry point and set of knobs.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::Gpu;
use super::shader::{Dialect, Interface, Kernel, Knob};
use crate::error::{Result, lock};

/// The identity of a pipeline: kernel, entry point, knobs, dialect, and the variables of 16 bits.
pub(super) type PipelineKey = (&'static str, &'static str, Vec<Knob>, Dialect, Vec<&'static str>);

pub(super) struct Pipeline {
    pub(super) raw: wgpu::ComputePipeline,
    pub(super) layout: wgpu::BindGroupLayout,
    pub(super) interface: Interface,
    /// Time that naga and the driver took to compile it.
    took: Duration,
}

/// An entry point, for messages.
pub(super) fn place(kernel: &str, entry: &str) -> String {
    format!("kernels/{kernel}.wgsl, {entry}")
}

impl Gpu {
    /// Compiles an entry point unless that was done before, and returns the time that it took when it was.
    ///
    /// # Errors
    /// When the driver cannot.
    pub fn compile(&self, kernel: &'static Kernel, entry: &'static str, knobs: &[Knob]) -> Result<Duration> {
        Ok(self.pipeline(kernel, entry, knobs, Vec::new())?.took)
    }

    /// The time that each pipeline took to compile, by `kernels/file.wgsl, entry`, the slowest first.
    pub(crate) fn compile_times(&self) -> Vec<(String, Duration)> {
        let cache = lock(&self.pipelines);
        let mut times: Vec<_> =
            cache.iter().map(|((kernel, entry, ..), built)| (place(kernel, entry), built.took)).collect();
        times.sort_by(|(a, x), (b, y)| y.cmp(x).then_with(|| a.cmp(b)));
        times
    }

    pub(super) fn pipeline(
        &self,
        kernel: &'static Kernel,
        entry: &'static str,
        knobs: &[Knob],
        halves: Vec<&'static str>,
    ) -> Result<Arc<Pipeline>> {
        let key = (kernel.name, entry, knobs.to_vec(), self.dialect, halves);
        let mut cache = lock(&self.pipelines);
        if let Some(pipeline) = cache.get(&key) {
            return Ok(Arc::clone(pipeline));
        }
        let pipeline = Arc::new(self.build(kernel, entry, knobs, &key.4)?);
        cache.insert(key, Arc::clone(&pipeline));
        Ok(pipeline)
    }

    fn build(
        &self,
        kernel: &'static Kernel,
        entry: &'static str,
        knobs: &[Knob],
        halves: &[&str],
    ) -> Result<Pipeline> {
        let at = place(kernel.name, entry);
        let began = Instant::now();
        let expanded = kernel.expand(knobs, self.dialect).in_halves(halves, self.dialect)?;
        let interface =
            expanded.parse()?.interface(entry).unwrap_or_else(|| panic!("{at}: no such entry point"));
        self.guarded(&format!("compiling {at}"), || {
            let entry_of = |(binding, ty)| wgpu::BindGroupLayoutEntry {
                binding,
                visibility: wgpu::ShaderStages::COMPUTE,
                ty: wgpu::BindingType::Buffer { ty, has_dynamic_offset: false, min_binding_size: None },
                count: None,
            };
            let has_uniform = !self.dialect.immediates && interface.params_size > 0;
            let uniform = has_uniform.then_some((0, wgpu::BufferBindingType::Uniform));
            let storage = interface.bindings.iter().map(|binding| {
                (binding.index, wgpu::BufferBindingType::Storage { read_only: !binding.writable })
            });
            let entries: Vec<_> = uniform.into_iter().chain(storage).map(entry_of).collect();
            let layout = self.device.create_bind_group_layout(&wgpu::BindGroupLayoutDescriptor {
                label: Some(kernel.name),
                entries: &entries,
            });
            let pipeline_layout = self.device.create_pipeline_layout(&wgpu::PipelineLayoutDescriptor {
                label: Some(kernel.name),
                bind_group_layouts: &[Some(&layout)],
                immediate_size: if self.dialect.immediates { interface.params_size } else { 0 },
            });
            let descriptor = wgpu::ShaderModuleDescriptor {
                label: Some(kernel.name),
                source: wgpu::ShaderSource::Wgsl(expanded.text.as_str().into()),
            };
            let checks = if self.checked {
                wgpu::ShaderRuntimeChecks::checked()
            } else {
                wgpu::ShaderRuntimeChecks::unchecked()
            };
            // SAFETY: the kernels are this program's own. Tests run them with and without the checks, over
            // buffers with guard words, and every dispatch bounds its indices by the shapes it was recorded
            // with.
            let module = unsafe { self.device.create_shader_module_trusted(descriptor, checks) };
            let raw = self.device.create_compute_pipeline(&wgpu::ComputePipelineDescriptor {
                label: Some(&at),
                layout: Some(&pipeline_layout),
                module: &module,
                entry_point: Some(entry),
                compilation_options: wgpu::PipelineCompilationOptions {
                    // Every kernel writes workgroup memory before it reads it.
                    zero_initialize_workgroup_memory: false,
                    ..Default::default()
                },
                cache: None,
            });
            Pipeline { raw, layout, interface, took: began.elapsed() }
        })
    }
}
