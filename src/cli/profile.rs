//! `denoir profile`

use std::fmt::Write as _;
use std::path::PathBuf;

use super::device_args::DeviceAndThreads;
use super::output::check_folder_of;
use super::{bar, note, number, print_report, thousands, tune};
use crate::bench::{
    Bound, Ceilings, Effort, Kind, Profile, Row, Subject, find_or_run, run_of, workloads, write_trace,
};
use crate::error::Result;
use crate::run::Table;

const ABOUT: &str = "\
A row is all launches of one name in a step: how often, how long, its share of the step, operations (two for
each multiplication and addition of products and convolutions; element-wise work is not counted) and bytes
(each tensor that a launch reads or writes, once) counted from the shapes, the rates that follow, and how near
it comes to the ceiling that binds it. Ceilings are measured at the start, as by `denoir bench roofline`.
Above 100 % the tensors came from a cache.

On the CPU device a clock is read between launches; on a GPU each dispatch stands between two timestamps,
which keeps dispatches from overlapping, so the whole step may take longer than without. `gaps` is what is
left of the step: inputs written, results read, waiting. With it the shares add up to 100 %.

A run keeps the table of its training step (`profile.txt`), which its page shows (`denoir watch`).

Below it stand the kernels that come in variants: which one runs, its time and the default's when they were
tuned, and how much less that is.";

#[derive(clap::Args)]
#[command(after_help = workloads(), after_long_help = format!("{}\n\n{ABOUT}", workloads()))]
pub struct Arguments {
    /// A workload (see below), or a run folder, whose recipe's step is profiled on generated numbers
    #[arg(value_name = "WORKLOAD|RUN")]
    what: String,
    /// The sampling step (of a VAE, the decoder) instead of the training step
    #[arg(long)]
    sample: bool,
    /// Group by the part of the model instead of the kernel
    #[arg(long)]
    by_label: bool,
    #[command(flatten)]
    device: DeviceAndThreads,
    /// Images of a step [default: the workload's]
    #[arg(long)]
    batch: Option<usize>,
    /// Steps that times are averages of
    #[arg(long, default_value_t = 10, value_parser = number::<usize>(1..=10_000))]
    steps: usize,
    /// Steps before them
    #[arg(long, default_value_t = 3, value_parser = number::<usize>(0..=10_000))]
    warmup: usize,
    /// Write the steps as a trace that ui.perfetto.dev and chrome://tracing open
    #[arg(long, value_name = "FILE.json")]
    trace: Option<PathBuf>,
    /// One JSON object, for programs; it holds both groupings
    #[arg(long)]
    json: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    if let Some(trace) = &arguments.trace {
        check_folder_of(trace)?;
    }
    let device = arguments.device.open()?;
    let workload = find_or_run(&arguments.what, &device, arguments.batch)?;
    let kind = if arguments.sample { Kind::Sample } else { Kind::Step };
    let (warmup, steps) = (arguments.warmup, arguments.steps);
    note(&format!("{}, batch {}, on {}", workload.name, workload.batch(), device.describe()));
    let bar = bar((warmup + 2 * steps) as u64, "{msg} {bar:30} {pos}/{len} {eta} left");
    bar.set_message("ceilings");
    bar.tick();
    let ceilings = Ceilings::measure(&device, Effort::Short, &mut |_| bar.tick())?;
    bar.set_message("profiling");
    let mut subject = Subject::new(&workload, kind, &device)?;
    bar.reset_eta();
    let profile =
        Profile::measure(&workload, &device, &mut subject, ceilings, [warmup, steps], &mut || bar.inc(1))?;
    bar.finish_and_clear();
    if let Some(trace) = &arguments.trace {
        write_trace(trace, &profile, subject.program().compiled(), &device)?;
        note(&format!("trace: {} (open it in ui.perfetto.dev)", trace.display()));
    }
    print_report(&profile, arguments.json, |profile| describe(profile, arguments.by_label))?;
    if let (Some(run), Kind::Step) = (run_of(&arguments.what), kind)
        && let Err(error) = run.write_table(Table::Profile, &describe(&profile, false))
    {
        note(&format!("warning: {error}"));
    }
    Ok(())
}

fn describe(profile: &Profile, by_label: bool) -> String {
    let mut text = String::new();
    let what = if profile.kind == Kind::Step { "training step" } else { "sampling step" };
    let (workload, batch, setting) = (&profile.workload, profile.batch, &profile.setting);
    let on = format!("{} ({})", setting.device, setting.driver);
    let _ = writeln!(text, "{workload}, {what}, batch {batch}, on {on}, mean of {}", steps(profile.n));
    let of = &profile.ceilings;
    let _ = writeln!(text, "ceilings: {:.0} GFLOP/s, {:.1} GB/s\n", of.compute_gflops(), of.memory_gb_s);
    let rows = if by_label { &profile.parts } else { &profile.kernels };
    let title = if by_label { "part" } else { "kernel" };
    let wide = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(11);
    let _ = writeln!(
        text,
        "{title:wide$} {:>5} {:>10} {:>6} {:>9} {:>9} {:>8} {:>7} {:>7}  binds",
        "calls", "ms", "share", "MFLOP", "MB", "GFLOP/s", "GB/s", "ceiling"
    );
    for row in rows {
        let _ = writeln!(text, "{}", describe_row(row, wide));
    }
    let mut total = |what: &str, ms: f64, note: &str| {
        let line = format!("{what:wide$} {:>5} {ms:>10.3} {:>5.1}%{note}", "", ms / profile.step_ms * 100.0);
        let _ = writeln!(text, "{}", line.trim_end());
    };
    total("sum", profile.sum_ms, "");
    total("gaps", profile.gaps_ms, "");
    total("step", profile.step_ms, "");
    let plain = format!("  (median of {} without clocks inside)", steps(profile.n));
    total("plain step", profile.plain_ms, &plain);
    if let Some(slowest) = profile.compiled.first() {
        let sum: f64 = profile.compiled.iter().map(|one| one.ms).sum();
        let count = thousands(profile.compiled.len());
        let [all, one] = [sum, slowest.ms].map(|ms| format!("in {:.2} s", ms * 1e-3));
        let _ = writeln!(text, "\ncompiled {count} kernels {all}, the slowest {one}: {}", slowest.entry);
    }
    if !profile.variants.is_empty() {
        let _ = write!(text, "\n{}", tune::describe(&profile.variants));
    }
    text
}

fn describe_row(row: &Row, wide: usize) -> String {
    // Dashes where nothing is multiplied.
    let or_dash = |value: f64, digits: usize| {
        if row.flops == 0 { "-".to_owned() } else { format!("{value:.digits$}") }
    };
    format!(
        "{:wide$} {:>5} {:>10.3} {:>5.1}% {:>9} {:>9.2} {:>8} {:>7.1} {:>6.0}%  {}",
        row.name,
        thousands(row.calls),
        row.ms,
        row.percent,
        or_dash(row.flops as f64 * 1e-6, 1),
        row.bytes as f64 * 1e-6,
        or_dash(row.gflops, 1),
        row.gb_s,
        row.percent_of_ceiling,
        if row.ceiling == Bound::Compute { "compute" } else { "memory" }
    )
}

fn steps(n: usize) -> String {
    if n == 1 { "1 step".to_owned() } else { format!("{n} steps") }
}
