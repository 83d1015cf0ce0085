//! The adapters of this machine, their properties, and the choice of one by name.

use serde::Serialize;

use super::Gpu;
use crate::error::{Error, Result};

/// One adapter, as `denoir devices` prints it.
#[derive(Debug, Serialize)]
pub struct Adapter {
    /// Number in `gpu:INDEX`.
    pub index: usize,
    /// Name from the driver.
    pub name: String,
    /// `discrete`, `integrated`, `virtual`, `software` or `other`.
    pub kind: &'static str,
    /// The API: `vulkan`, `metal` or `dx12`.
    pub backend: String,
    /// Name and version of the driver.
    pub driver: String,
    /// Largest buffer.
    pub max_buffer_bytes: u64,
    /// Largest range that one binding can cover.
    pub max_binding_bytes: u64,
    /// Workgroup memory of one workgroup.
    pub max_workgroup_bytes: u32,
    /// Threads of one workgroup.
    pub max_workgroup_threads: u32,
    /// Least and largest number of lanes.
    pub subgroup_sizes: [u32; 2],
    /// Features that denoir uses where they are present.
    pub features: Vec<&'static str>,
    /// True for the one that `auto` takes.
    pub auto: bool,
}

/// The properties of an adapter that decide which variants a launch has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Traits {
    /// The driver computes on the CPU, in lanes of its vectors.
    pub software: bool,
    /// Lanes of a subgroup can read one another's numbers, and there are at least eight of them.
    pub broadcasts: bool,
    /// Tensors between launches have 16 bits (see [`Gpu::halves`]).
    pub halves: bool,
    /// Weights of 16 bits stay so.
    pub keeps_halves: bool,
    /// Rows and columns of the matrices of f16 that a subgroup multiplies, with sums of f32.
    pub matrices: Option<u32>,
}

const FEATURES: [(&str, wgpu::Features); 5] = [
    ("timestamps", wgpu::Features::TIMESTAMP_QUERY),
    ("timestamps-inside", wgpu::Features::TIMESTAMP_QUERY_INSIDE_ENCODERS),
    ("f16", wgpu::Features::SHADER_F16),
    ("subgroups", wgpu::Features::SUBGROUP),
    ("immediates", wgpu::Features::IMMEDIATES),
];

pub(super) fn useful_features() -> wgpu::Features {
    FEATURES.iter().fold(wgpu::Features::empty(), |all, (_, feature)| all | *feature)
}

/// Sizes of cooperative matrices that kernels are written for, and the lanes of the subgroups that have them.
const MATRICES: [[u32; 2]; 2] = [[16, 32], [8, 8]];

/// The size of matrices that kernels use on an adapter.
pub(super) fn matrices(adapter: &wgpu::Adapter) -> Option<u32> {
    let (info, features) = (adapter.get_info(), adapter.features());
    let needed = wgpu::Features::EXPERIMENTAL_COOPERATIVE_MATRIX
        | wgpu::Features::SHADER_F16
        | wgpu::Features::SUBGROUP;
    let lanes = [info.subgroup_min_size, info.subgroup_max_size];
    features.contains(needed).then(|| usable(&adapter.cooperative_matrix_properties(), lanes)).flatten()
}

/// The size of [`MATRICES`] that is listed with factors of f16 and sums of f32. Neither wgpu nor a driver
/// refuses others.
fn usable(listed: &[wgpu::CooperativeMatrixProperties], subgroup: [u32; 2]) -> Option<u32> {
    use wgpu::CooperativeScalarType::{F16, F32};
    let has = |side: u32| {
        listed
            .iter()
            .any(|m| [m.m_size, m.n_size, m.k_size] == [side; 3] && (m.ab_type, m.cr_type) == (F16, F32))
    };
    let [side, _] = MATRICES.into_iter().find(|&[side, lanes]| subgroup == [lanes; 2] && has(side))?;
    Some(side)
}

/// All adapters of the native backends, in the system's order.
fn enumerate() -> Vec<wgpu::Adapter> {
    let mut descriptor = wgpu::InstanceDescriptor::new_without_display_handle();
    descriptor.backends = wgpu::Backends::VULKAN | wgpu::Backends::METAL | wgpu::Backends::DX12;
    // No validation layers: they are for debugging wgpu itself, and print to the terminal.
    descriptor.flags = wgpu::InstanceFlags::empty();
    let instance = wgpu::Instance::new(descriptor);
    pollster::block_on(instance.enumerate_adapters(wgpu::Backends::all()))
}

fn kind(adapter: &wgpu::Adapter) -> &'static str {
    match adapter.get_info().device_type {
        wgpu::DeviceType::DiscreteGpu => "discrete",
        wgpu::DeviceType::IntegratedGpu => "integrated",
        wgpu::DeviceType::VirtualGpu => "virtual",
        wgpu::DeviceType::Cpu => "software",
        wgpu::DeviceType::Other => "other",
    }
}

/// The adapter that `auto` takes: the first discrete one, else the first integrated one. Software drivers
/// are some twenty times slower than the CPU device and are used only when asked for.
fn automatic(adapters: &[wgpu::Adapter]) -> Option<usize> {
    ["discrete", "integrated"].iter().find_map(|wanted| adapters.iter().position(|a| kind(a) == *wanted))
}

/// Every adapter of this machine.
pub fn list() -> Vec<Adapter> {
    let adapters = enumerate();
    let auto = automatic(&adapters);
    let describe = |(index, adapter): (usize, &wgpu::Adapter)| {
        let (info, limits, features) = (adapter.get_info(), adapter.limits(), adapter.features());
        let present = FEATURES.iter().filter(|(_, feature)| features.contains(*feature));
        let matrices = matrices(adapter).map(|side| if side == 8 { "matrices-8" } else { "matrices-16" });
        Adapter {
            index,
            name: info.name.clone(),
            kind: kind(adapter),
            backend: info.backend.to_string(),
            driver: format!("{} {}", info.driver, info.driver_info).trim().to_owned(),
            max_buffer_bytes: limits.max_buffer_size,
            max_binding_bytes: limits.max_storage_buffer_binding_size,
            max_workgroup_bytes: limits.max_compute_workgroup_storage_size,
            max_workgroup_threads: limits.max_compute_invocations_per_workgroup,
            subgroup_sizes: [info.subgroup_min_size, info.subgroup_max_size],
            features: present.map(|(name, _)| *name).chain(matrices).collect(),
            auto: auto == Some(index),
        }
    };
    adapters.iter().enumerate().map(describe).collect()
}

/// Opens the GPU that `auto` means, or says that there is none.
pub(crate) fn open_automatic() -> Result<Option<Gpu>> {
    let adapters = enumerate();
    automatic(&adapters).map(|index| Gpu::open(&adapters[index])).transpose()
}

/// Opens the adapter that `wanted` means: a number, a part of a name, or nothing for the best one, software
/// included.
///
/// # Errors
/// When there is no such adapter, or the driver refuses to open it.
pub fn open(wanted: Option<&str>) -> Result<Gpu> {
    let adapters = enumerate();
    if adapters.is_empty() {
        return Err(Error::new("this machine has no GPU that wgpu can use (Vulkan, Metal or DX12)")
            .hint("install a GPU driver (for software Vulkan: mesa-vulkan-drivers), or use --device cpu"));
    }
    let names: Vec<String> = adapters.iter().map(|a| a.get_info().name).collect();
    let index = match wanted {
        None => automatic(&adapters).or(Some(0)),
        Some(number) if number.bytes().all(|b| b.is_ascii_digit()) => number.parse().ok(),
        Some(part) => names.iter().position(|name| name.to_lowercase().contains(&part.to_lowercase())),
    };
    if let Some(adapter) = index.and_then(|index| adapters.get(index)) {
        return Gpu::open(adapter);
    }
    let numbered: Vec<String> = names.iter().enumerate().map(|(i, name)| format!("{i} = {name}")).collect();
    Err(Error::new(format!("no GPU called {}", wanted.unwrap_or_default()))
        .hint(format!("this machine has {}; `denoir devices` tells more", numbered.join(", "))))
}

#[cfg(test)]
mod tests {
    use wgpu::CooperativeScalarType::{F16, F32};

    use super::*;

    #[test]
    fn only_matrices_that_are_listed_are_used() {
        let listed =
            |[m_size, n_size, k_size]: [u32; 3], ab_type, cr_type| wgpu::CooperativeMatrixProperties {
                m_size,
                n_size,
                k_size,
                ab_type,
                cr_type,
                saturating_accumulation: false,
            };
        let nvidia = [listed([16; 3], F16, F16), listed([16; 3], F16, F32)];
        assert_eq!(usable(&nvidia, [32; 2]), Some(16));
        assert_eq!(usable(&nvidia, [32, 64]), None, "lanes that the driver chooses");
        assert_eq!(usable(&nvidia[..1], [32; 2]), None, "sums of f16");
        assert_eq!(usable(&[listed([8, 16, 16], F16, F32)], [32; 2]), None, "another shape");
        assert_eq!(usable(&[listed([16; 3], F32, F32)], [32; 2]), None, "factors of f32");
        assert_eq!(usable(&[listed([8; 3], F16, F32)], [8; 2]), Some(8));
        assert_eq!(usable(&[listed([8; 3], F16, F32)], [16; 2]), None, "lanes of another register");
        assert_eq!(usable(&[], [32; 2]), None);
    }
}
