//! `denoir web`

use std::path::PathBuf;

use super::output::make_empty_folder;
use super::{any, named, note, note_remarks, number, print, thousands};
use crate::device::{Device, Precision, size};
use crate::error::{Error, Result, need, quoted};
use crate::sample::{Options, Trained};
use crate::web::{self, Offer};

#[derive(clap::Args)]
pub struct Arguments {
    /// A run folder, one of its checkpoints, or a folder of the diffusers library
    run: PathBuf,
    /// A new folder, which any web server can serve
    #[arg(long, default_value = "site")]
    out: PathBuf,
    /// Samples that the page draws together
    #[arg(long, default_value_t = 4, value_parser = number::<usize>(1..=64))]
    count: usize,
    /// A sampler to offer beside the run's own, as for `denoir sample`
    #[arg(long, default_value = "ddim")]
    sampler: String,
    /// Its steps, the numbers that the page is to offer; it begins with the first
    #[arg(long, value_delimiter = ',', default_values_t = OFFERED, value_parser = any::<usize>)]
    steps: Vec<usize>,
    /// Weights as 16-bit floats: half as much to load, and numbers that differ in the fourth digit. A GPU has
    /// them as f32
    #[arg(long)]
    f16: bool,
    /// f32; or f16, 16 bits for the tensors between kernels: about half of a GPU's memory beside the weights
    #[arg(long, default_value = "f32", value_parser = named::<Precision>)]
    precision: Precision,
}

/// The numbers of steps that a page offers by default, as far as the model has so many timesteps.
const OFFERED: [usize; 4] = [50, 20, 10, 100];

pub fn run(arguments: &Arguments) -> Result<()> {
    let is_there = arguments.precision != Precision::Bf16;
    need(is_there, "bf16 is a precision of the CPU device, and a page has a GPU", "use f32 or f16")?;
    let device = Device::open("cpu")?;
    let trained = Trained::open(&arguments.run, &device)?;
    note_remarks(&trained);
    let recipe = trained.recipe();
    web::check(&trained)?;
    let own = Options::of(recipe)?;
    let mut walks = Vec::new();
    // A recipe whose process it cannot walk back is offered its own sampler alone.
    let asked = arguments.sampler != "ddim" || recipe.sampler("ddim").is_ok();
    for (i, &steps) in arguments.steps.iter().enumerate().filter(|_| asked) {
        let most = recipe.timesteps;
        let hint = format!("give at most {most}, the timesteps that it was trained with");
        need(steps <= most || arguments.steps.len() > 1, format!("--steps {steps}"), hint)?;
        if steps > most && arguments.steps != OFFERED {
            note(&format!("note: --steps {steps} is left out: the model has {most} timesteps"));
        }
        if steps > most || arguments.steps[..i].contains(&steps) {
            continue;
        }
        let scheduler = recipe.sampler(&arguments.sampler)?;
        if !scheduler.draws_samples() {
            return Err(Error::usage(format!("--sampler {} draws no samples", arguments.sampler))
                .hint("choose one of `denoir sample --help`"));
        }
        walks.push((arguments.sampler.clone(), Options { scheduler, steps, ..own.clone() }));
    }
    let name = recipe.scheduler_keys().sampler();
    let steps = own.scheduler.usual_steps();
    if !walks.iter().any(|(walk, options)| *walk == name && options.steps == steps) {
        walks.push((name, Options { steps, ..own }));
    }
    let out = &arguments.out;
    let is_new = !out.exists();
    make_empty_folder(out)?;
    let Arguments { count, f16: half, precision, .. } = *arguments;
    let offer = Offer { count, walks, half, precision };
    let written = web::write(out, &trained, &offer).inspect_err(|_| {
        // Where nothing was written, nothing stays; a folder with files in it is not removed so.
        let _ = is_new.then(|| std::fs::remove_dir(out));
    })?;
    note(&format!(
        "{} dispatches a step by {} kernel files, {} of weights, {} on the GPU",
        thousands(written.dispatches),
        written.kernels,
        size(written.weights),
        size(written.memory)
    ));
    let server = format!("python3 -m http.server --bind 127.0.0.1 --directory {} 8000", quoted(out));
    note(&format!("look at it with `{server}` and http://127.0.0.1:8000"));
    print(&format!("{}\n", out.display()))
}
