//! `denoir tune`

use std::fmt::Write as _;
use std::path::PathBuf;

use super::{device_args, named, note, print_report, thousands};
use crate::bench::{self, Kind, Subject, VariantRow, Workload, variants, workloads};
use crate::device::{Device, Precision};
use crate::error::{Error, Result};
use crate::recipe;

const ABOUT: &str = "\
Some kernels come in variants: other tiles, other splits of the work over threads. Which is fastest depends on
the GPU, its driver and the shapes. This times them for the training step and the sampling step of a workload
or a recipe, holds each against the default's results, and remembers the fastest. Other commands find it
there; they time what they do not find.

The choice of variants decides in which order sums are taken: with one tuning file a run gives the same
bytes each time.";

#[derive(clap::Args)]
#[command(after_help = workloads(), after_long_help = format!("{}\n\n{ABOUT}", workloads()))]
pub struct Arguments {
    /// A workload (see below), a recipe's name or TOML file, or a run folder
    #[arg(value_name = "WORKLOAD|RECIPE|RUN")]
    what: String,
    /// auto, gpu, gpu:INDEX or gpu:NAME-PART
    #[arg(long, default_value = "auto")]
    device: String,
    /// f32 or f16 [default: f32; of a recipe or a run, its own]
    #[arg(long, value_parser = named::<Precision>)]
    precision: Option<Precision>,
    /// Images of a step [default: the workload's]
    #[arg(long)]
    batch: Option<usize>,
    /// Remember in this file instead of the adapter's own in the user's cache
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,
    /// One JSON object, for programs
    #[arg(long)]
    json: bool,
}

/// The chosen variants; the JSON object.
#[derive(serde::Serialize)]
struct Tuned {
    workload: String,
    batch: usize,
    device: String,
    driver: String,
    /// `null` where there is no place for it.
    file: Option<PathBuf>,
    variants: Vec<VariantRow>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let device = Device::open(&arguments.device)?;
    if let Device::Cpu(_) = device {
        return Err(Error::usage("the CPU device has nothing to tune")
            .hint("choose a GPU with --device; `denoir devices` lists them"));
    }
    let workload = workload(arguments, &device)?;
    // A GPU has no bf16.
    let own = Some(workload.recipe.precision).filter(|own| *own != Precision::Bf16);
    let device = device.with_precision(arguments.precision.or(own).unwrap_or_default())?;
    let Device::Gpu(gpu) = &device else { unreachable!("a GPU, as it was") };
    device_args::tune(gpu, arguments.tuning.as_ref(), true)?;
    note(&format!("{}, batch {}, on {}", workload.name, workload.batch(), device.describe()));
    let mut rows: Vec<VariantRow> = Vec::new();
    for kind in [Kind::Step, Kind::Sample] {
        // One after the other: both at once would take the memory of both.
        let subject = Subject::new(&workload, kind, &device)?;
        for row in variants(subject.program().compiled()) {
            if !rows.iter().any(|r| (&r.name, &r.shape_class) == (&row.name, &row.shape_class)) {
                rows.push(row);
            }
        }
    }
    let tuned = Tuned {
        workload: workload.name.clone(),
        batch: workload.batch(),
        device: device.describe(),
        driver: device.driver(),
        file: gpu.tuning().as_ref().and_then(|tuning| tuning.file.clone()),
        variants: rows,
    };
    print_report(&tuned, arguments.json, |tuned| match &tuned.file {
        _ if tuned.variants.is_empty() => "no kernel of it has variants\n".to_owned(),
        Some(file) => format!("{}remembered in {}\n", describe(&tuned.variants), file.display()),
        None => describe(&tuned.variants),
    })
}

fn workload(arguments: &Arguments, device: &Device) -> Result<Workload> {
    let what = arguments.what.as_str();
    match recipe::find(what) {
        Ok(recipe) if !bench::names().any(|name| name == what) => {
            Workload::of_recipe(&recipe, arguments.batch)
        }
        // The name of a file means a recipe.
        Err(e) if what.ends_with(".toml") => Err(e),
        _ => bench::find_or_run(what, device, arguments.batch),
    }
}

/// A line for each launch that has variants.
pub(super) fn describe(rows: &[VariantRow]) -> String {
    let title = |row: &VariantRow| format!("{} ({})", row.name, row.shape_class);
    let wide = rows.iter().map(|row| title(row).chars().count()).max().unwrap_or(0);
    let mut text = format!(
        "{:wide$} {:>5} {:>10} {:>10} {:>6}  variant\n",
        "kernel and shapes", "calls", "ms", "default", "gain"
    );
    for row in rows {
        let [ms, default_ms] =
            [row.ms, row.default_ms].map(|ms| ms.map_or("-".to_owned(), |ms| format!("{ms:.4}")));
        let gain = row.gain_percent.map_or("-".to_owned(), |gain| format!("{gain:.0}%"));
        let untuned = if row.ms.is_none() { " (default, not timed)" } else { "" };
        let (title, calls) = (title(row), thousands(row.calls));
        let _ = writeln!(
            text,
            "{title:wide$} {calls:>5} {ms:>10} {default_ms:>10} {gain:>6}  {}{untuned}",
            row.variant
        );
        for refusal in &row.refused {
            let _ = writeln!(text, "  refused: {}, {}", refusal.variant, refusal.why);
        }
    }
    text
}
