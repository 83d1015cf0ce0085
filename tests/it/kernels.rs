//! Every kernel at every set of knobs in use, without a GPU: validated, and written in the languages of all
//! drivers.

use std::collections::BTreeSet;
use std::time::Duration;

use denoir::device::gpu::adapters;
use denoir::device::gpu::shader::{Dialect, Kernel, Knob, LIBRARY, Module};
use denoir::ops::KERNELS;
use naga::back::{hlsl, msl, spv};
use naga::proc::BoundsCheckPolicies;

use crate::place::{leavings, root};

const DIALECTS: [Dialect; 4] = [
    Dialect { immediates: false, subgroups: false, f16: false },
    Dialect { immediates: true, subgroups: false, f16: false },
    Dialect { immediates: false, subgroups: true, f16: true },
    Dialect { immediates: true, subgroups: true, f16: true },
];

/// For one entry of a kernel, on a busy machine.
const LONGEST_COMPILATION: Duration = Duration::from_secs(10);

/// The feature that a set of knobs needs, of those with cooperative matrices.
fn matrices(knobs: &[Knob]) -> Option<&'static str> {
    knobs.iter().find_map(|(_, file)| match *file {
        "product/matrices_8.wgsl" => Some("matrices-8"),
        "product/matrices_16.wgsl" => Some("matrices-16"),
        _ => None,
    })
}

fn each(mut visit: impl FnMut(&Kernel, String, Dialect, Module)) {
    for kernel in KERNELS.iter().chain(denoir::bench::KERNELS) {
        for (set, knobs) in kernel.knob_sets.iter().enumerate() {
            for dialect in DIALECTS {
                let expanded = kernel.expand(knobs, dialect);
                let name = format!("{}.{set}", kernel.name.replace('/', "-"));
                if dialect == Dialect::default() {
                    // For looking at, and for other compilers.
                    let folder = leavings().join("kernels");
                    std::fs::create_dir_all(&folder).unwrap();
                    std::fs::write(folder.join(format!("{name}.wgsl")), &expanded.text).unwrap();
                }
                visit(kernel, name, dialect, expanded.parse().unwrap());
            }
        }
    }
}

#[test]
fn every_file_is_listed_and_every_kernel_validates() {
    let mut listed = BTreeSet::new();
    each(|kernel, name, _, module| {
        listed.insert(format!("{}.wgsl", kernel.name));
        assert!(!module.naga.entry_points.is_empty(), "{name} has no entry point");
        for point in &module.naga.entry_points {
            let interface = module.interface(&point.name).unwrap();
            assert!(interface.params_size <= 128, "{name}, {}: parameters over 128 bytes", point.name);
            assert!(interface.bindings.len() <= 8, "{name}, {}: more than 8 storage buffers", point.name);
            let threads: u32 = interface.workgroup_size.iter().product();
            assert!(threads <= 256, "{name}, {}: {threads} threads, 256 are sure to be there", point.name);
        }
    });
    listed.extend(LIBRARY.iter().map(|(name, _)| (*name).to_owned()));
    let files_in = |folder: &str| -> Vec<String> {
        let entries = std::fs::read_dir(root().join("kernels").join(folder)).unwrap();
        entries.map(|e| format!("{folder}{}", e.unwrap().file_name().into_string().unwrap())).collect()
    };
    let files = ["", "lib/", "product/"].into_iter().flat_map(files_in);
    let files: BTreeSet<String> = files.filter(|name| name.ends_with(".wgsl")).collect();
    assert_eq!(files, listed, "files in kernels/ and the lists in src/ops/mod.rs, src/bench and shader.rs");
}

#[test]
fn every_kernel_is_written_as_spirv() {
    each(|_, name, dialect, module| {
        let options = spv::Options {
            lang_version: (1, 3),
            // As in a release.
            bounds_check_policies: BoundsCheckPolicies::default(),
            force_loop_bounding: false,
            emit_int_div_checks: false,
            zero_initialize_workgroup_memory: spv::ZeroInitializeWorkgroupMemoryMode::None,
            ..spv::Options::default()
        };
        let words = spv::write_vec(&module.naga, &module.info, &options, None)
            .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(words.len() > 100, "{name}");
        if dialect == (Dialect { immediates: true, subgroups: true, f16: true }) {
            // For the compilers of other drivers.
            let file = leavings().join("kernels").join(format!("{name}.spv"));
            std::fs::write(file, bytemuck::cast_slice(&words)).unwrap();
        }
    });
}

#[test]
fn every_kernel_is_written_as_msl() {
    each(|_, name, dialect, module| {
        if dialect.immediates {
            return; // where they are in Metal's argument table is decided by wgpu
        }
        let options =
            msl::Options { lang_version: (2, 4), fake_missing_bindings: true, ..msl::Options::default() };
        let (text, _) =
            msl::write_string(&module.naga, &module.info, &options, &msl::PipelineOptions::default())
                .unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(text.contains("kernel void"), "{name}");
    });
}

#[test]
fn every_kernel_is_written_as_hlsl() {
    each(|kernel, name, dialect, module| {
        let set: usize = name.rsplit('.').next().unwrap().parse().unwrap();
        let knobs = kernel.knob_sets[set];
        if dialect.immediates {
            return; // as above, for DirectX's root constants
        }
        if matrices(knobs).is_some() {
            return; // DirectX has none
        }
        let options = hlsl::Options {
            shader_model: hlsl::ShaderModel::V6_0,
            fake_missing_bindings: true,
            // Where num_workgroups comes from.
            special_constants_binding: Some(hlsl::BindTarget::default()),
            ..hlsl::Options::default()
        };
        let pipeline = hlsl::PipelineOptions::default();
        let mut text = String::new();
        let mut writer = hlsl::Writer::new(&mut text, &options, &pipeline);
        let written =
            writer.write(&module.naga, &module.info, None).unwrap_or_else(|e| panic!("{name}: {e}"));
        for entry in written.entry_point_names {
            entry.unwrap_or_else(|e| panic!("{name}: {e}"));
        }
        assert!(text.contains("numthreads"), "{name}");
    });
}

/// Drivers that take long to compile what nobody thinks is long have made programs seem dead.
#[test]
fn every_driver_compiles_every_kernel_and_takes_not_long() {
    for adapter in adapters::list() {
        let gpu = adapters::open(Some(&adapter.index.to_string())).unwrap();
        for kernel in KERNELS.iter().chain(denoir::bench::KERNELS) {
            if kernel.name.ends_with("_f16") && !gpu.has_f16() {
                continue;
            }
            for knobs in kernel.knob_sets {
                if matrices(knobs).is_some_and(|of| !adapter.features.contains(&of)) {
                    continue;
                }
                let module = kernel.expand(knobs, gpu.dialect).parse().unwrap();
                for point in &module.naga.entry_points {
                    let entry: &'static str = point.name.clone().leak();
                    let took = gpu.compile(kernel, entry, knobs).unwrap();
                    let at = format!("kernels/{}.wgsl, {entry}, {knobs:?} on {}", kernel.name, adapter.name);
                    assert!(took < LONGEST_COMPILATION, "{at}: {took:?}");
                }
            }
        }
    }
}

#[test]
fn an_error_names_the_file_and_the_line() {
    static BROKEN: Kernel = Kernel {
        name: "broken",
        source: "//!include lib/grid.wgsl\n\nconst A: u32 = 1u; // knob\nfn f() -> u32 { return nothing; }\n",
        knob_sets: &[&[]],
    };
    let error = BROKEN.expand(&[("A", "2u")], Dialect::default()).parse().err().unwrap().to_string();
    assert!(error.starts_with("kernels/broken.wgsl:4: "), "{error}");
    assert!(error.contains("nothing"), "{error}");
}

#[test]
#[should_panic(expected = "kernels/broken.wgsl has no knob called B")]
fn a_knob_that_does_not_exist_is_named() {
    static BROKEN: Kernel =
        Kernel { name: "broken", source: "const A: u32 = 1u; // knob\n", knob_sets: &[&[]] };
    BROKEN.expand(&[("B", "2u")], Dialect::default());
}
