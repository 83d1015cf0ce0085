//! `denoir devices`

use std::fmt::Write as _;

use serde::Serialize;

use super::{print, table};
use crate::device::gpu::adapters::{self, Adapter};
use crate::device::{available_memory, size, threads};
use crate::error::{Error, Result};

#[derive(clap::Args)]
pub struct Arguments {
    /// One JSON object, for programs
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Devices {
    /// The device that `--device auto` opens.
    auto: String,
    cpu: CpuDevice,
    adapters: Vec<Adapter>,
}

#[derive(Serialize)]
struct CpuDevice {
    threads: usize,
    available_bytes: Option<u64>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let adapters = adapters::list();
    let auto = adapters.iter().find(|a| a.auto).map_or("cpu".to_owned(), |a| format!("gpu:{}", a.index));
    let threads = threads::cores();
    let devices = Devices { auto, cpu: CpuDevice { threads, available_bytes: available_memory() }, adapters };
    if !arguments.json {
        return print(&describe(&devices));
    }
    let text =
        serde_json::to_string_pretty(&devices).map_err(|e| Error::new("cannot write JSON").caused_by(e))?;
    print(&format!("{text}\n"))
}

fn describe(devices: &Devices) -> String {
    let mut text = String::new();
    let mark = |auto: bool| if auto { "  <- auto takes this one" } else { "" };
    let cpu = &devices.cpu;
    let _ = writeln!(text, "cpu    {} threads{}", cpu.threads, mark(devices.auto == "cpu"));
    if let Some(bytes) = cpu.available_bytes {
        let _ = writeln!(text, "       memory available  {}", size(bytes));
    }
    for a in &devices.adapters {
        let _ = writeln!(text, "gpu:{}  {} ({}, {}){}", a.index, a.name, a.kind, a.backend, mark(a.auto));
        let [low, high] = a.subgroup_sizes;
        let memory = size(a.max_workgroup_bytes.into());
        text += &table(
            24,
            &[
                ("       driver", a.driver.clone()),
                ("       largest buffer", size(a.max_buffer_bytes)),
                ("       largest binding", size(a.max_binding_bytes)),
                ("       workgroup", format!("{} threads, {memory}", a.max_workgroup_threads)),
                ("       subgroup sizes", format!("{low} to {high}")),
                ("       features", a.features.join(", ")),
            ],
        );
    }
    if devices.adapters.is_empty() {
        text += "no GPU that wgpu can use (Vulkan, Metal or DX12)\n";
    } else if devices.auto == "cpu" {
        text +=
            "A software driver runs only on request (--device gpu): the CPU device is many times faster.\n";
    }
    text
}
