//! The device of a command: which one, and by what its kernels are tuned.

use std::path::PathBuf;
use std::time::Instant;

use indicatif::ProgressBar;

use super::output::check_folder_of;
use super::{bar, note};
use crate::device::Device;
use crate::device::gpu::Gpu;
use crate::device::gpu::tuning::{Tuning, TuningEvent};
use crate::error::Result;

#[derive(clap::Args)]
pub struct On {
    /// auto, cpu, gpu, gpu:INDEX or gpu:NAME-PART
    #[arg(long, default_value = "auto")]
    device: String,
    /// On a GPU, time no variants of kernels: they run as by default, or as --tuning says
    #[arg(long)]
    no_tune: bool,
    /// The file that remembers which variants are fastest [default: the adapter's own in the user's cache]
    #[arg(long, value_name = "FILE")]
    tuning: Option<PathBuf>,
}

impl On {
    /// Opens the device. Launches of which nothing is remembered are timed when a program is compiled; on
    /// software drivers, where that takes long and gains little, they run as by default.
    pub fn open(&self) -> Result<Device> {
        self.open_with(None)
    }

    /// `threads`: of the CPU device.
    pub fn open_with(&self, threads: Option<usize>) -> Result<Device> {
        let device = Device::open_with(&self.device, threads)?;
        if let Device::Gpu(gpu) = &device
            && !(self.no_tune && self.tuning.is_none())
        {
            tune(gpu, self.tuning.as_ref(), !self.no_tune && !gpu.is_software())?;
        }
        Ok(device)
    }
}

/// Gives a device its tuning: of `file`, else of the cache. `times`: what is not remembered is timed.
pub fn tune(gpu: &Gpu, file: Option<&PathBuf>, times: bool) -> Result<()> {
    let tuning = match file {
        Some(file) => {
            check_folder_of(file)?;
            Tuning::in_file(gpu, file, times, teller())?
        }
        None => Tuning::in_cache(gpu, times, teller()),
    };
    gpu.tune_with(Some(tuning));
    Ok(())
}

/// Shows on standard error how far tuning is.
fn teller() -> impl FnMut(TuningEvent) + Send {
    let mut shown = None::<ProgressBar>;
    let mut spoke = None::<Instant>;
    move |told| match told {
        TuningEvent::Timing { done, all, launch } => {
            let template = "tuning kernels {bar:30} {pos}/{len} {eta} left  {msg}";
            let bar = shown.get_or_insert_with(|| bar(all as u64, template));
            bar.set_message(launch.to_owned());
            bar.set_position(done as u64);
            if bar.is_hidden() && spoke.is_none_or(|at| at.elapsed().as_secs() >= 10) {
                spoke = Some(Instant::now());
                note(&format!("tuning kernels: {done} of {all}"));
            }
        }
        TuningEvent::Done => {
            if let Some(bar) = shown.take() {
                bar.finish_and_clear();
            }
        }
        TuningEvent::Warning(text) => match &shown {
            Some(bar) => bar.suspend(|| note(text)),
            None => note(text),
        },
    }
}
