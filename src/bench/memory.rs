//! How much memory a measurement took.

use crate::device::Device;

/// Memory of the process and the device when a command began.
#[derive(Clone, Copy, Debug)]
pub struct Footprint {
    resident: Option<u64>,
}

impl Footprint {
    /// Reads it: call this before anything is built.
    pub fn now(device: &Device) -> Footprint {
        if let Device::Gpu(gpu) = device {
            gpu.forget_peak();
        }
        Footprint { resident: status("VmRSS:") }
    }

    /// The most memory that was in use at one time since then, in bytes. On a GPU: of buffers on the device.
    /// On the CPU device: resident memory of the process (Linux's `VmHWM`), less what was resident at the
    /// beginning; `None` where the system does not say.
    pub fn peak(&self, device: &Device) -> Option<u64> {
        match device {
            Device::Gpu(gpu) => Some(gpu.peak_bytes()),
            Device::Cpu(_) => Some(status("VmHWM:")?.saturating_sub(self.resident?)),
        }
    }
}

/// A line of Linux's `/proc/self/status`, which counts in KiB.
fn status(key: &str) -> Option<u64> {
    let text = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = text.lines().find(|line| line.starts_with(key))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}
