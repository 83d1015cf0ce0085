//! The report of a benchmark of a workload, and how much memory it took.

use serde::Serialize;

use super::measure::{Setting, Times};
use super::subject::{Kind, Subject};
use super::workload::Workload;
use crate::device::Device;

/// Times and memory of a step of a workload; its JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    pub workload: String,
    pub kind: Kind,
    #[serde(flatten)]
    pub setting: Setting,
    pub batch: usize,
    pub parameters: usize,
    /// Of the timed steps.
    #[serde(flatten)]
    pub times: Times,
    pub images_per_s: f64,
    /// Of products and convolutions alone, at the median.
    pub gflops: f64,
    /// See [`Footprint::peak`].
    pub peak_memory_bytes: Option<u64>,
    pub launches: usize,
    pub warmup: usize,
    /// Of one step.
    pub flops: u64,
    /// Of the tensors between launches: f32 or f16.
    pub dtype: &'static str,
}

impl Report {
    pub fn new(
        workload: &Workload,
        device: &Device,
        subject: &Subject,
        warmup: usize,
        times: Times,
        footprint: Footprint,
    ) -> Report {
        let flops = subject.program().cost().flops;
        Report {
            workload: workload.name.clone(),
            kind: subject.kind,
            setting: Setting::of(device),
            batch: workload.batch(),
            parameters: workload.params().borrow().count(),
            images_per_s: workload.batch() as f64 / times.median_ms * 1e3,
            gflops: flops as f64 / times.median_ms / 1e6,
            times,
            peak_memory_bytes: footprint.peak(device),
            launches: subject.program().launches(),
            warmup,
            flops,
            dtype: device.precision().name(),
        }
    }
}

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
