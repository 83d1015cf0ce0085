//! The device of a command, and the tuning of its kernels.

use std::path::PathBuf;
use std::time::Instant;

use indicatif::ProgressBar;

use super::output::check_folder_of;
use super::{bar, count, named, note};
use crate::device::gpu::Gpu;
use crate::device::gpu::tuning::{Tuning, TuningEvent};
use crate::device::{Device, Precision};
use crate::error::Result;

#[derive(clap::Args)]
pub struct DeviceArgs {
    /// auto, cpu, gpu, gpu:INDEX or gpu:NAME-PART
    #[arg(long, default_value = "auto")]
    device: String,
    /// f32; f16, 16 bits for the tensors between a GPU's kernels; or bf16, to which the CPU device rounds
    /// what it multiplies [default: f32; of a training, the recipe's]
    #[arg(long, value_parser = named::<Precision>)]
    precision: Option<Precision>,
    /// On a GPU, time no variants of kernels: run the defaults, or what --tuning holds
    #[arg(long)]
    no_tune: bool,
    /// The file that keeps the fastest variants [default: the adapter's own in the user's cache]
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,
}

/// The device of a measurement.
#[derive(clap::Args)]
pub struct DeviceAndThreads {
    #[command(flatten)]
    device: DeviceArgs,
    /// Threads of the CPU device [default: one per core]
    #[arg(long)]
    threads: Option<usize>,
}

impl DeviceAndThreads {
    pub fn open(&self) -> Result<Device> {
        self.device.open_with(self.threads, self.device.precision.unwrap_or_default())
    }
}

impl DeviceArgs {
    /// Opens the device. When a program is compiled, variants are timed that the tuning does not hold; on
    /// software drivers, where that takes long and gains little, the defaults run.
    pub fn open(&self) -> Result<Device> {
        self.open_in(self.precision.unwrap_or_default())
    }

    /// As asked for, if it was.
    pub fn precision(&self) -> Option<Precision> {
        self.precision
    }

    /// As [`DeviceArgs::open`], of this precision.
    pub fn open_in(&self, precision: Precision) -> Result<Device> {
        self.open_with(None, precision)
    }

    fn open_with(&self, threads: Option<usize>, precision: Precision) -> Result<Device> {
        let device = Device::open_with(&self.device, threads)?.with_precision(precision)?;
        if let Device::Gpu(gpu) = &device
            && !(self.no_tune && self.tuning.is_none())
        {
            tune(gpu, self.tuning.as_ref(), !self.no_tune && !gpu.is_software())?;
        }
        Ok(device)
    }
}

/// Gives a device the tuning of `file`, else of the user's cache. `times`: whether missing entries are timed.
pub fn tune(gpu: &Gpu, file: Option<&PathBuf>, times: bool) -> Result<()> {
    let tuning = match file {
        Some(file) => {
            check_folder_of(file)?;
            Tuning::in_file(gpu, file, times, progress())?
        }
        None => Tuning::in_cache(gpu, times, progress()),
    };
    gpu.tune_with(Some(tuning));
    Ok(())
}

/// Shows the progress of tuning on standard error.
fn progress() -> impl FnMut(TuningEvent) + Send {
    let mut shown = None::<ProgressBar>;
    let mut noted = None::<Instant>;
    move |event| match event {
        TuningEvent::Timing { done, all, launch } => {
            let template = "tuning kernels {bar:30} {pos}/{len} {eta} left  {msg}";
            let bar = shown.get_or_insert_with(|| bar(all as u64, template));
            bar.set_message(launch.to_owned());
            count(bar, &mut noted, "tuning kernels", done as u64, all as u64);
        }
        TuningEvent::Done => shown.take().iter().for_each(ProgressBar::finish_and_clear),
        TuningEvent::Warning(text) => match &shown {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        },
    }
}
