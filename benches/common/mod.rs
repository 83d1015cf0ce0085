//! What the benchmarks share: devices, numbers and the clock.

use std::sync::LazyLock;
use std::time::{Duration, Instant};

use denoir::device::Device;

/// The CPU device, and the one that the variable `DENOIR_BENCH_DEVICE` names (`gpu`, `gpu:INDEX`,
/// `gpu:NAME-PART`), by the names that benchmarks carry.
pub fn devices() -> &'static [(String, Device)] {
    static DEVICES: LazyLock<Vec<(String, Device)>> = LazyLock::new(|| {
        let wanted =
            std::env::var("DENOIR_BENCH_DEVICE").ok().filter(|name| !name.is_empty() && name != "cpu");
        let open = |name: String| {
            let device = Device::open(&name).unwrap_or_else(|e| panic!("{}", e.report()));
            eprintln!("{name} is {}", device.describe());
            (name, device)
        };
        std::iter::once("cpu".to_owned()).chain(wanted).map(open).collect()
    });
    &DEVICES
}

/// Time of `runs` calls of `run`, until the device has done all of the work.
pub fn time(device: &Device, runs: u64, mut run: impl FnMut()) -> Duration {
    let wait = || {
        if let Device::Gpu(gpu) = device {
            gpu.wait().expect("the GPU finishes");
        }
    };
    wait();
    let began = Instant::now();
    for number in 1..=runs {
        run();
        // Work that is submitted but not done takes memory of the driver, so it must not pile up.
        if number.is_multiple_of(64) {
            wait();
        }
    }
    wait();
    began.elapsed()
}
