//! The report of a benchmark of a workload.

use serde::Serialize;

use super::measure::{Setting, Times};
use super::memory::Footprint;
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
    pub median_ms: f64,
    pub min_ms: f64,
    pub max_ms: f64,
    /// Half of the readings lie between these two.
    pub quartiles_ms: [f64; 2],
    pub images_per_s: f64,
    /// Of products and convolutions alone, at the median.
    pub gflops: f64,
    /// See [`Footprint::peak`].
    pub peak_memory_bytes: Option<u64>,
    pub launches: usize,
    /// Timed steps.
    pub n: usize,
    pub warmup: usize,
    /// Of one step.
    pub flops: u64,
    pub dtype: &'static str,
}

impl Report {
    pub fn new(
        workload: &Workload,
        device: &Device,
        subject: &Subject,
        warmup: usize,
        times: &Times,
        footprint: Footprint,
    ) -> Report {
        let (median, flops) = (times.median(), subject.program().cost().flops);
        Report {
            workload: workload.name.clone(),
            kind: subject.kind(),
            setting: Setting::of(device),
            batch: workload.batch(),
            parameters: workload.params().borrow().count(),
            median_ms: median,
            min_ms: times.quantile(0.0),
            max_ms: times.quantile(1.0),
            quartiles_ms: [times.quantile(0.25), times.quantile(0.75)],
            images_per_s: workload.batch() as f64 / median * 1e3,
            gflops: flops as f64 / median / 1e6,
            peak_memory_bytes: footprint.peak(device),
            launches: subject.program().launches(),
            n: times.count(),
            warmup,
            flops,
            dtype: "f32",
        }
    }
}
