//! Where a step's time goes: each kernel beside what the machine could do at most.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::measure::{Setting, Times, time};
use super::roofline::{Bound, Ceilings};
use super::subject::{Kind, Subject};
use super::variants::{VariantRow, variants};
use super::workload::Workload;
use crate::device::Device;
use crate::error::Result;
use crate::launch::Cost;
use crate::program::Span;

/// A step of the host around the launches that it waited for.
#[derive(Clone, Debug)]
pub(super) struct Timeline {
    /// Since the first step began.
    pub begin: Duration,
    pub time: Duration,
    /// When its launches were given to the device, since the first step began.
    pub launched: Duration,
    pub spans: Vec<Span>,
}

/// Launches of one name, or of one part of the model.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The op and the entry, `conv2d backward_x`; or the part of the model, `down_blocks.0.resnets.1.conv1`.
    pub name: String,
    /// Launches in a step.
    pub calls: usize,
    /// Of a step, on average.
    pub ms: f64,
    /// Of the step's time; all rows and the gaps add up to 100.
    pub percent: f64,
    /// In a step, of products and convolutions alone.
    pub flops: u64,
    /// In a step, each tensor that a launch reads or writes counted once.
    pub bytes: u64,
    pub gflops: f64,
    pub gb_s: f64,
    /// The least time that this work can take on the device, of the time that it took, in percent. Above
    /// 100 where tensors came from a cache instead of memory.
    pub percent_of_ceiling: f64,
    /// The ceiling that decides this least time.
    pub ceiling: Bound,
}

/// How long an entry of a kernel took to compile.
#[derive(Clone, Debug, Serialize)]
pub struct Compiled {
    /// `kernels/product/tiled.wgsl, product`
    pub entry: String,
    pub ms: f64,
}

/// A step's profile; its JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct Profile {
    pub workload: String,
    pub kind: Kind,
    #[serde(flatten)]
    pub setting: Setting,
    pub batch: usize,
    /// Steps that the times are averages of.
    pub n: usize,
    /// Median of as many steps without clocks inside.
    pub plain_ms: f64,
    /// The step with clocks inside, on average.
    pub step_ms: f64,
    /// Of all launches together.
    pub sum_ms: f64,
    /// The rest of the step: inputs written, results read, waiting between launches.
    pub gaps_ms: f64,
    pub gaps_percent: f64,
    /// Highest first.
    pub kernels: Vec<Row>,
    /// The same launches by the part of the model that they belong to.
    pub parts: Vec<Row>,
    /// Of the launches that have variants, on a GPU.
    pub variants: Vec<VariantRow>,
    /// Kernels that the device compiled since it was opened, the slowest first; empty on the CPU device.
    pub compiled: Vec<Compiled>,
    pub ceilings: Ceilings,
    #[serde(skip)]
    pub(super) timelines: Vec<Timeline>,
}

impl Profile {
    /// Profiles `steps` steps of `subject`, after `warmup` others. `progress` is called after each step.
    pub(crate) fn measure(
        workload: &Workload,
        device: &Device,
        subject: &mut Subject,
        ceilings: Ceilings,
        [warmup, steps]: [usize; 2],
        progress: &mut dyn FnMut(),
    ) -> Result<Profile> {
        let plain: Times = time(warmup, steps, progress, || subject.advance())?;
        // Once without looking: the clocks themselves need to warm up too.
        let mut spans = Vec::new();
        subject.advance_timed(&mut spans)?;
        let mut timelines = Vec::with_capacity(steps);
        let origin = Instant::now();
        for _ in 0..steps {
            let mut spans = Vec::with_capacity(subject.program().compiled().len());
            let begin = origin.elapsed();
            let launched = subject.advance_timed(&mut spans)?.duration_since(origin);
            timelines.push(Timeline { begin, time: origin.elapsed() - begin, launched, spans });
            progress();
        }
        let mean_ms = |total: Duration| total.as_secs_f64() * 1e3 / steps as f64;
        let step_ms = mean_ms(timelines.iter().map(|t| t.time).sum());
        let of_launch: Vec<f64> = (0..subject.program().compiled().len())
            .map(|launch| mean_ms(timelines.iter().map(|t| t.spans[launch].time).sum()))
            .collect();
        let sum_ms: f64 = of_launch.iter().sum();
        let rows = |by_label: bool| {
            let mut rows: BTreeMap<&str, (usize, f64, Cost)> = BTreeMap::new();
            for (launch, ms) in subject.program().compiled().iter().zip(&of_launch) {
                let label = if launch.label.is_empty() { "(no part)" } else { &launch.label };
                let (calls, sum, cost) = rows.entry(if by_label { label } else { launch.name }).or_default();
                *calls += 1;
                *sum += ms;
                *cost = [*cost, launch.cost].into_iter().sum();
            }
            let row = |(name, (calls, ms, cost)): (&str, (usize, f64, Cost))| {
                Row::new(name, calls, ms, cost, step_ms, &ceilings)
            };
            let mut rows: Vec<Row> = rows.into_iter().map(row).collect();
            rows.sort_by(|a, b| b.ms.total_cmp(&a.ms));
            rows
        };
        let (kernels, parts) = (rows(false), rows(true));
        let gaps_ms = step_ms - sum_ms;
        let compiled = match device {
            Device::Cpu(_) => Vec::new().into_iter(),
            Device::Gpu(gpu) => gpu.compile_times().into_iter(),
        };
        Ok(Profile {
            workload: workload.name.clone(),
            kind: subject.kind,
            setting: Setting::of(device),
            batch: workload.batch(),
            n: steps,
            plain_ms: plain.median_ms,
            step_ms,
            sum_ms,
            gaps_ms,
            gaps_percent: gaps_ms / step_ms * 100.0,
            kernels,
            parts,
            variants: variants(subject.program().compiled()),
            compiled: compiled.map(|(entry, t)| Compiled { entry, ms: t.as_secs_f64() * 1e3 }).collect(),
            ceilings,
            timelines,
        })
    }
}

impl Row {
    fn new(name: &str, calls: usize, ms: f64, cost: Cost, step_ms: f64, ceilings: &Ceilings) -> Row {
        let (least, ceiling) = ceilings.least_seconds(cost);
        // What takes no time that the clock sees reaches no rate.
        let per_ms = |amount: f64| if ms > 0.0 { amount / ms } else { 0.0 };
        Row {
            name: name.to_owned(),
            calls,
            ms,
            percent: ms / step_ms * 100.0,
            flops: cost.flops,
            bytes: cost.bytes,
            gflops: per_ms(cost.flops as f64 * 1e-6),
            gb_s: per_ms(cost.bytes as f64 * 1e-6),
            percent_of_ceiling: per_ms(least * 1e5),
            ceiling,
        }
    }
}
