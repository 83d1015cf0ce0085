//! `denoir bench`

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Subcommand;

use super::device_args::DeviceAndThreads;
use super::output::check_folder_of;
use super::{bar, messages, note, number, print, print_report, table, thousands};
use crate::bench::{
    self, Ceilings, Direction, Effort, Footprint, Kind, OpsReport, Report, Times, Workload, time, time_ops,
    verified, workloads,
};
use crate::device::size;
use crate::error::Result;

const FIELDS: &str = "\
The JSON object has workload, kind, device, driver, threads, batch, parameters, median_ms, min_ms, max_ms,
quartiles_ms, images_per_s, gflops, peak_memory_bytes, launches, n, warmup, flops, dtype, version, date.

gflops counts two operations for each multiplication and addition of products and convolutions, as PyTorch's
counter does; element-wise work is not counted. peak_memory_bytes: on the CPU device the process's peak
resident memory less what was resident when the command began; on a GPU the most that was allocated on it at
one time; null where the system does not say. Nothing is timed before results are checked: finite, the same
bits in a second run, a loss that falls from step to step on the same images and noise, and on a GPU the
numbers of the CPU device.";

#[derive(Subcommand)]
pub enum What {
    /// Time a training step: noise, forward, loss, backward, clipping, Adam, EMA
    #[command(after_help = workloads(), after_long_help = format!("{}\n\n{FIELDS}", workloads()))]
    Step(Timed),
    /// Time a sampling step: one forward and one update; of a VAE, the decoder
    #[command(after_help = workloads(), after_long_help = format!("{}\n\n{FIELDS}", workloads()))]
    Sample(Timed),
    /// Time single ops, forward and backward
    #[command(after_help = OPS)]
    Ops(Ops),
    /// Measure the device's ceilings: multiply-add rate, memory bandwidth, and the program's matrix product
    #[command(after_help = CEILINGS)]
    Roofline(Roofline),
    /// Compute output, loss and gradients from given weights and inputs, to hold another framework's against
    #[command(after_help = workloads(), after_long_help = format!("{CONTRACT}\n\n{}", workloads()))]
    Check(Check),
}

#[derive(clap::Args)]
pub struct Timed {
    /// The workload (see below)
    workload: String,
    /// Images of a step [default: the workload's]
    #[arg(long)]
    batch: Option<usize>,
    #[command(flatten)]
    runs: Runs,
}

/// How often something is timed, and where.
#[derive(clap::Args)]
struct Runs {
    #[command(flatten)]
    device: DeviceAndThreads,
    /// Timed runs
    #[arg(long, default_value_t = 20, value_parser = number::<usize>(1..=1_000_000))]
    steps: usize,
    /// Runs before them that are not timed
    #[arg(long, default_value_t = 3, value_parser = number::<usize>(0..=1_000_000))]
    warmup: usize,
    /// One JSON object, for programs
    #[arg(long)]
    json: bool,
}

const CONTRACT: &str = "\
GIVEN is a safetensors file of f32 tensors:
  NAME       every parameter of the workload under its name in PyTorch (conv_in.weight, ...), in PyTorch's
             layout: convolutions [Cout, Cin, KH, KW], transposed ones [Cin, Cout, KH, KW], linear layers
             [Cout, Cin]
  in/x       images [N, C, H, W]; N is the batch size. U-Nets: the noised image. VAEs: the image in [-1, 1];
             of mlp-vae [N, 784] is fine too
  in/t       U-Nets but arena-unet: timesteps [N], f32 or i64
  in/target  U-Nets: what the output is compared with (the noise), of the shape of in/x
  in/eps     VAEs: the noise of the reparameterisation, [N, 4, 8, 8] (vae64) or [N, 2] (mlp-vae)

OUT holds f32 tensors:
  out        [N, C, H, W]. U-Nets: the output. vae64: the decoded image, after tanh. mlp-vae: the decoder's
             logits
  loss       [1]. U-Nets: mean of (out - in/target)^2. VAEs: reconstruction + KL divergence, both summed over
             an image and averaged over the batch; the reconstruction is (out - in/x)^2 (vae64), or the binary
             cross-entropy of the logits with the probabilities (in/x + 1) / 2 (mlp-vae)
  grad/NAME  the loss's derivative by every parameter, in the layout of the parameter

There is no dropout.";

const OPS: &str = "\
Each op is compared with plain loops in f64, and its gradients with differences of forward passes, before it
is timed. Backward is the gradients of all inputs and weights, without the forward pass before it. GFLOP/s
counts products and convolutions; GB/s the bytes that must move: of group norm two tensors forward and three
backward, of Adam with EMA 36 for each parameter, elsewhere each tensor of a launch once.";

#[derive(clap::Args)]
pub struct Ops {
    /// Only ops that have this in their names [default: all]
    name_part: Option<String>,
    /// Instead, one product in each of its schedules on a GPU, see kernels/README.md: conv2d or matmul
    #[arg(long, value_name = "OP", conflicts_with = "name_part")]
    ladder: Option<String>,
    #[command(flatten)]
    runs: Runs,
}

const CEILINGS: &str = "\
The best of several readings each, by kernels of denoir's own. memory is the highest of copy, read and triad
(a = b + s c) over arrays that no cache holds, counted as bytes that the program names; f32 multiply-add is
at least what the matrix product reaches. Other programs on the machine make all of them lower: measure on
an idle one.";

#[derive(clap::Args)]
pub struct Roofline {
    #[command(flatten)]
    device: DeviceAndThreads,
    /// One JSON object, for programs
    #[arg(long)]
    json: bool,
}

#[derive(clap::Args)]
pub struct Check {
    /// The workload (see below)
    workload: String,
    /// Weights and inputs (see `--help`)
    #[arg(long, value_name = "FILE.safetensors")]
    given: PathBuf,
    /// The file for output, loss and gradients
    #[arg(long, value_name = "FILE.safetensors")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceAndThreads,
}

pub fn run(what: &What) -> Result<()> {
    match what {
        What::Step(timed) => step(timed, Kind::Step),
        What::Sample(timed) => step(timed, Kind::Sample),
        What::Ops(arguments) => ops(arguments),
        What::Roofline(arguments) => roofline(arguments),
        What::Check(arguments) => check(arguments),
    }
}

fn step(arguments: &Timed, kind: Kind) -> Result<()> {
    let Runs { ref device, warmup, steps, json } = arguments.runs;
    let device = device.open()?;
    let footprint = Footprint::now(&device);
    let workload = bench::find(&arguments.workload, &device, arguments.batch)?;
    let bar = bar((warmup + steps) as u64, "{msg} {bar:30} {pos}/{len} {eta} left");
    note(&format!("{}, batch {}, on {}", workload.name, workload.batch(), device.describe()));
    let mut subject = verified(&workload, kind, &device, &mut messages(&bar))?;
    bar.set_message("timing");
    bar.reset_eta();
    let times = time(warmup, steps, &mut || bar.inc(1), || subject.advance())?;
    bar.finish_and_clear();
    let report = Report::new(&workload, &device, &subject, warmup, times, footprint);
    print_report(&report, json, |report| describe(report, &workload))
}

fn describe(report: &Report, workload: &Workload) -> String {
    let what = match (report.kind, workload.is_vae()) {
        (Kind::Step, _) => "training step",
        (Kind::Sample, false) => "sampling step",
        (Kind::Sample, true) => "decoding",
    };
    let Times { median_ms, min_ms, max_ms, quartiles_ms: [low, high], n } = report.times;
    table(
        16,
        &[
            ("workload", format!("{}, {what}, batch {}, {}", report.workload, report.batch, report.dtype)),
            ("device", format!("{} ({})", report.setting.device, report.setting.driver)),
            ("parameters", thousands(report.parameters)),
            ("median", format!("{median_ms:.3} ms of {n} steps, after {} to warm up", report.warmup)),
            ("middle half", format!("{low:.3} ms to {high:.3} ms")),
            ("spread", format!("{min_ms:.3} ms to {max_ms:.3} ms")),
            ("images/s", format!("{:.1}", report.images_per_s)),
            ("GFLOP/s", format!("{:.1} (products and convolutions)", report.gflops)),
            ("peak memory", report.peak_memory_bytes.map_or("unknown".to_owned(), size)),
            ("launches", thousands(report.launches)),
        ],
    )
}

fn ops(arguments: &Ops) -> Result<()> {
    let ops = bench::ops(arguments.name_part.as_deref().unwrap_or_default())?;
    let Runs { ref device, warmup, steps, json } = arguments.runs;
    let device = device.open()?;
    note(&format!("on {}", device.describe()));
    let bar = bar(1, "{spinner} {msg}");
    if let Some(op) = &arguments.ladder {
        let ladder = bench::ladder(op, &device, [warmup, steps], &mut messages(&bar))?;
        bar.finish_and_clear();
        return print_report(&ladder, json, ToString::to_string);
    }
    let report = time_ops(&ops, &device, [warmup, steps], &mut messages(&bar))?;
    bar.finish_and_clear();
    print_report(&report, json, describe_ops)
}

fn describe_ops(report: &OpsReport) -> String {
    let mut text = format!("{} ({})\n", report.setting.device, report.setting.driver);
    text += "op                                median ms       min       max   GFLOP/s      GB/s\n";
    for op in &report.ops {
        let direction = match op.direction {
            Direction::Forward => "forward",
            Direction::Backward => "backward",
            Direction::Step => "step",
        };
        let Times { median_ms: median, min_ms: min, max_ms: max, .. } = op.times;
        let rate = if op.flops == 0 { "-".to_owned() } else { format!("{:.1}", op.gflops) };
        let _ = writeln!(
            text,
            "{:24}{direction:9}{median:>10.3}{min:>10.3}{max:>10.3}{rate:>10}{:>10.1}",
            op.op, op.gb_s
        );
    }
    text
}

fn roofline(arguments: &Roofline) -> Result<()> {
    let device = arguments.device.open()?;
    note(&format!("on {}", device.describe()));
    let bar = bar(1, "{spinner} {msg}");
    let ceilings = Ceilings::measure(&device, Effort::Full, &mut messages(&bar))?;
    bar.finish_and_clear();
    print_report(&ceilings, arguments.json, describe_ceilings)
}

fn describe_ceilings(of: &Ceilings) -> String {
    let percent = of.matmul_gflops.unwrap_or_default() / of.compute_gflops() * 100.0;
    let side = of.matmul_side.unwrap_or_default();
    let rows = [
        ("f32 multiply-add", Some(of.f32_gflops), "GFLOP/s".to_owned()),
        ("  one thread", of.f32_one_thread_gflops, "GFLOP/s".to_owned()),
        ("f16 multiply-add", of.f16_gflops, "GFLOP/s".to_owned()),
        ("bf16 multiply-add", of.bf16_gflops, "GFLOP/s".to_owned()),
        ("denoir's matrix product", of.matmul_gflops, format!("GFLOP/s ({side}x{side}, {percent:.0} %)")),
        ("memory", Some(of.memory_gb_s), "GB/s".to_owned()),
        ("  copy", Some(of.copy_gb_s), format!("GB/s (arrays of {})", size(of.array_bytes))),
        ("  read", of.read_gb_s, "GB/s".to_owned()),
        ("  triad", of.triad_gb_s, "GB/s".to_owned()),
        ("  one thread", of.memory_one_thread_gb_s, "GB/s".to_owned()),
    ];
    let rows =
        rows.into_iter().filter_map(|(name, rate, unit)| Some((name, format!("{:10.1} {unit}", rate?))));
    format!("{} ({})\n{}", of.setting.device, of.setting.driver, table(24, &rows.collect::<Vec<_>>()))
}

fn check(arguments: &Check) -> Result<()> {
    check_folder_of(&arguments.out)?;
    let device = arguments.device.open()?;
    let workload = bench::find(&arguments.workload, &device, None)?;
    bench::compute(&workload, &device, &arguments.given, &arguments.out)?;
    print(&format!("{}\n", arguments.out.display()))
}
