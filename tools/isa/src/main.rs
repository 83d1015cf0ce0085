//! What a Vulkan driver makes of the kernels: registers, spills, instructions and whatever else it tells.
//!
//!     cargo run --release --manifest-path tools/isa/Cargo.toml -- product attention
//!     cargo run --release --manifest-path tools/isa/Cargo.toml -- product/tiled --entry product --assembly
//!
//! Needs a driver with VK_KHR_pipeline_executable_properties, but no GPU: Mesa's driver for AMD compiles for any that is
//! named, with `RADV_FORCE_FAMILY=navi21` (`vega10`, `gfx1100` ...) in the environment.

use std::ffi::{CStr, CString, c_char};
use std::io::{self, Write};

use ash::{khr, vk};
use clap::Parser;
use denoir::device::gpu::shader::{Dialect, Interface, Kernel, Knob, Module};
use naga::back::spv;

/// What a Vulkan driver makes of denoir's kernels.
#[derive(Parser)]
struct Arguments {
    /// Only kernels whose names contain one of these.
    kernels: Vec<String>,
    /// Only this entry.
    #[arg(long)]
    entry: Option<String>,
    /// Prints the program too, as far as the driver shows it.
    #[arg(long)]
    assembly: bool,
    /// The device: its number, as Vulkan lists them, or a part of its name.
    #[arg(long, default_value = "0")]
    device: String,
}

type Outcome<T> = Result<T, Box<dyn std::error::Error>>;

fn main() {
    let Err(e) = run(&Arguments::parse(), &mut io::stdout().lock()) else { return };
    // Who reads only the beginning has what was wanted.
    if e.downcast_ref::<io::Error>().is_none_or(|e| e.kind() != io::ErrorKind::BrokenPipe) {
        eprintln!("error: {e}");
        std::process::exit(1);
    }
}

fn run(arguments: &Arguments, out: &mut impl Write) -> Outcome<()> {
    let driver = Driver::open(&arguments.device)?;
    writeln!(out, "{}", driver.name)?;
    let wanted =
        |name: &str| arguments.kernels.is_empty() || arguments.kernels.iter().any(|k| name.contains(k));
    for kernel in denoir::ops::KERNELS.iter().filter(|kernel| wanted(kernel.name)) {
        for knobs in kernel.knob_sets {
            // Drivers crash that have no cooperative matrices.
            if knobs.iter().any(|(_, file)| file.starts_with("product/matrices_")) {
                continue;
            }
            // As on a GPU that offers everything.
            let module = kernel.expand(knobs, Dialect { immediates: true, subgroups: true, f16: true }).parse()?;
            for point in &module.naga.entry_points {
                if arguments.entry.as_ref().is_none_or(|entry| *entry == point.name) {
                    let interface = module.interface(&point.name).ok_or("an entry point is gone")?;
                    let words = release(&module)?;
                    writeln!(out, "\n{}", title(kernel, &point.name, knobs))?;
                    driver.show(&words, &point.name, &interface, arguments.assembly, out)?;
                }
            }
        }
    }
    Ok(())
}

fn title(kernel: &Kernel, entry: &str, knobs: &[Knob]) -> String {
    let knobs: Vec<String> = knobs.iter().map(|(name, value)| format!(", {name} = {value}")).collect();
    format!("{} {entry}{}", kernel.name, knobs.concat())
}

/// SPIR-V as wgpu writes it for kernels without checks.
fn release(module: &Module) -> Outcome<Vec<u32>> {
    let options = spv::Options {
        lang_version: (1, 3),
        bounds_check_policies: naga::proc::BoundsCheckPolicies::default(),
        force_loop_bounding: false,
        emit_int_div_checks: false,
        zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
        ..spv::Options::default()
    };
    Ok(spv::write_vec(&module.naga, &module.info, &options, None)?)
}

/// A device, until the program ends.
struct Driver {
    name: String,
    device: ash::Device,
    executables: khr::pipeline_executable_properties::Device,
    /// Has to outlive the others.
    _instance: ash::Instance,
    _entry: ash::Entry,
}

impl Driver {
    fn open(wanted: &str) -> Outcome<Driver> {
        // SAFETY: the handles are used while `_entry` and `_instance` live, with structures that live through each call.
        unsafe {
            let entry = ash::Entry::load()?;
            let application = vk::ApplicationInfo::default().api_version(vk::API_VERSION_1_2);
            let info = vk::InstanceCreateInfo::default().application_info(&application);
            let instance = entry.create_instance(&info, None)?;
            let devices = instance.enumerate_physical_devices()?;
            let name_of = |physical: &vk::PhysicalDevice| {
                let properties = instance.get_physical_device_properties(*physical);
                properties
                    .device_name_as_c_str()
                    .map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned())
            };
            let fits = |physical: &&vk::PhysicalDevice| {
                name_of(physical).to_lowercase().contains(&wanted.to_lowercase())
            };
            let found = wanted
                .parse()
                .map_or_else(|_| devices.iter().find(fits), |number: usize| devices.get(number));
            let names: Vec<String> = devices.iter().map(name_of).collect();
            let physical =
                *found.ok_or_else(|| format!("no device {wanted}; Vulkan lists: {}", names.join(", ")))?;
            let name = name_of(&physical);
            let extension = khr::pipeline_executable_properties::NAME;
            let offered = instance.enumerate_device_extension_properties(physical)?;
            if !offered.iter().any(|e| e.extension_name_as_c_str() == Ok(extension)) {
                return Err(format!(
                    "{name} does not tell what it compiles: it has no {}",
                    extension.to_string_lossy()
                )
                .into());
            }
            let priorities = [1.0];
            let queues = [vk::DeviceQueueCreateInfo::default().queue_priorities(&priorities)];
            let extensions = [extension.as_ptr()];
            let mut tells = vk::PhysicalDevicePipelineExecutablePropertiesFeaturesKHR::default()
                .pipeline_executable_info(true);
            let info = vk::DeviceCreateInfo::default()
                .queue_create_infos(&queues)
                .enabled_extension_names(&extensions)
                .push_next(&mut tells);
            let device = instance.create_device(physical, &info, None)?;
            let executables = khr::pipeline_executable_properties::Device::new(&instance, &device);
            Ok(Driver { name, device, executables, _instance: instance, _entry: entry })
        }
    }

    /// Compiles an entry and prints what the driver tells of it.
    fn show(
        &self,
        words: &[u32],
        entry: &str,
        interface: &Interface,
        assembly: bool,
        out: &mut impl Write,
    ) -> Outcome<()> {
        let device = &self.device;
        let storage = |binding| {
            vk::DescriptorSetLayoutBinding::default()
                .binding(binding)
                .descriptor_count(1)
                .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                .stage_flags(vk::ShaderStageFlags::COMPUTE)
        };
        let bindings: Vec<_> = interface.bindings.iter().map(|b| storage(b.index)).collect();
        let entry = CString::new(entry)?;
        let mut flags = vk::PipelineCreateFlags::CAPTURE_STATISTICS_KHR;
        if assembly {
            flags |= vk::PipelineCreateFlags::CAPTURE_INTERNAL_REPRESENTATIONS_KHR;
        }
        // SAFETY: the structures live through each call, and what is destroyed is not used any more.
        unsafe {
            let module =
                device.create_shader_module(&vk::ShaderModuleCreateInfo::default().code(words), None)?;
            let set = device.create_descriptor_set_layout(
                &vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings),
                None,
            )?;
            let sets = [set];
            let size = interface.params_size.max(4);
            let constants =
                [vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(size)];
            let layout = device.create_pipeline_layout(
                &vk::PipelineLayoutCreateInfo::default().set_layouts(&sets).push_constant_ranges(&constants),
                None,
            )?;
            let stage = vk::PipelineShaderStageCreateInfo::default()
                .stage(vk::ShaderStageFlags::COMPUTE)
                .module(module)
                .name(&entry);
            let info = vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout).flags(flags);
            let made = device.create_compute_pipelines(vk::PipelineCache::null(), &[info], None);
            let pipeline = made.map_err(|(_, e)| e)?[0];
            let which = vk::PipelineExecutableInfoKHR::default().pipeline(pipeline);
            for statistic in self.executables.get_pipeline_executable_statistics(&which)? {
                let name = text(&statistic.name);
                // SAFETY of the union: `format` says which of its fields is set.
                let value = match statistic.format {
                    vk::PipelineExecutableStatisticFormatKHR::BOOL32 => {
                        (statistic.value.b32 != 0).to_string()
                    }
                    vk::PipelineExecutableStatisticFormatKHR::INT64 => statistic.value.i64.to_string(),
                    vk::PipelineExecutableStatisticFormatKHR::UINT64 => statistic.value.u64.to_string(),
                    _ => statistic.value.f64.to_string(),
                };
                if !name.to_lowercase().contains("hash") {
                    writeln!(out, "  {name:<22} {value:>8}")?;
                }
            }
            if assembly {
                self.list(&which, out)?;
            }
            device.destroy_pipeline(pipeline, None);
            device.destroy_pipeline_layout(layout, None);
            device.destroy_descriptor_set_layout(set, None);
            device.destroy_shader_module(module, None);
        }
        Ok(())
    }

    /// # Safety
    /// The pipeline must have been made to show its internal representations.
    unsafe fn list(&self, which: &vk::PipelineExecutableInfoKHR, out: &mut impl Write) -> Outcome<()> {
        let get = self.executables.fp().get_pipeline_executable_internal_representations_khr;
        let device = self.device.handle();
        let mut count = 0;
        // SAFETY: asked for the number, then for the sizes, then for as much text as there is room for.
        unsafe {
            get(device, which, &mut count, std::ptr::null_mut()).result()?;
            let mut parts = vec![vk::PipelineExecutableInternalRepresentationKHR::default(); count as usize];
            get(device, which, &mut count, parts.as_mut_ptr()).result()?;
            let mut rooms: Vec<Vec<u8>> = parts.iter().map(|part| vec![0; part.data_size]).collect();
            for (part, room) in parts.iter_mut().zip(&mut rooms) {
                part.p_data = room.as_mut_ptr().cast();
            }
            get(device, which, &mut count, parts.as_mut_ptr()).result()?;
            for (part, room) in parts.iter().zip(&rooms).filter(|(part, _)| part.is_text == vk::TRUE) {
                let listing = String::from_utf8_lossy(room);
                writeln!(out, "\n{}\n{}", text(&part.name), listing.trim_end_matches('\0'))?;
            }
        }
        Ok(())
    }
}

fn text(name: &[c_char]) -> String {
    let bytes: Vec<u8> = name.iter().map(|&c| c as u8).collect();
    CStr::from_bytes_until_nul(&bytes)
        .map_or_else(|_| String::new(), |name| name.to_string_lossy().into_owned())
}
