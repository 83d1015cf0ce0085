//! The devices that ops are checked on.

use std::sync::{Arc, OnceLock};

use crate::device::cpu::Cpu;
use crate::device::gpu::{Grid, adapters, shader::Dialect};
use crate::device::{Device, Precision};

/// Of a device whose tensors have 16 bits, in its name.
pub(super) const HALVES: &str = "in 16 bits";

/// Of a device whose products round their factors, in its name.
pub(super) const BF16: &str = "with bf16";

/// Every device that this machine has: the CPU device with one and with three threads, and each GPU with
/// all that it offers and on the plain path (uniform buffers, no subgroups).
pub fn devices() -> &'static [(String, Device)] {
    static DEVICES: OnceLock<Vec<(String, Device)>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let cpu = |threads| Device::Cpu(Arc::new(Cpu::open(Some(threads)).expect("threads start")));
        let mut all = vec![("cpu, 1 thread".to_owned(), cpu(1)), ("cpu, 3 threads".to_owned(), cpu(3))];
        let adapters = adapters::list();
        assert!(
            !adapters.is_empty(),
            "no Vulkan, Metal or DX12 adapter: the kernels cannot be checked. Run tools/test, which installs \
             a software driver"
        );
        for adapter in adapters {
            let open = || adapters::open(Some(&adapter.index.to_string())).expect("the adapter opens");
            // Once as it ships, where a stray write reaches the guard words; once with the checks on.
            let mut full = open();
            full.checked = false;
            // Many rows of workgroups and several sub-dispatches, which else only large launches have.
            full.grid = Grid { row: 7, sub_dispatches: 3 };
            let offers = full.dialect;
            all.push((format!("{} with {offers:?}", adapter.name), Device::Gpu(Arc::new(full))));
            if offers != Dialect::default() {
                let mut plain = open();
                plain.dialect = Dialect::default();
                plain.checked = true;
                all.push((format!("{} on the plain path", adapter.name), Device::Gpu(Arc::new(plain))));
            }
        }
        all
    })
}

/// Each GPU with its tensors in 16 bits between launches, with all that it offers and on the plain path,
/// where words hold two numbers; and the CPU device with products of bf16 numbers, where the processor has
/// them.
pub(super) fn half_devices() -> &'static [(String, Device)] {
    static DEVICES: OnceLock<Vec<(String, Device)>> = OnceLock::new();
    DEVICES.get_or_init(|| {
        let cpu = Device::open("cpu").expect("threads start").with_precision(Precision::Bf16);
        let cpu = cpu.inspect_err(|e| eprintln!("products of bf16 numbers are not checked: {e}"));
        let mut all = Vec::new();
        for adapter in adapters::list() {
            let mut plain = adapters::open(Some(&adapter.index.to_string())).expect("the adapter opens");
            plain.halves = true;
            let offers = std::mem::take(&mut plain.dialect);
            all.push((format!("{} {HALVES} on the plain path", adapter.name), plain));
            if offers.f16 {
                let mut full = adapters::open(Some(&adapter.index.to_string())).expect("the adapter opens");
                full.halves = true;
                all.push((format!("{} {HALVES}", adapter.name), full));
            }
        }
        let gpus = all.into_iter().map(|(name, gpu)| (name, Device::Gpu(Arc::new(gpu))));
        gpus.chain(cpu.ok().map(|cpu| (format!("cpu {BF16}"), cpu))).collect()
    })
}
