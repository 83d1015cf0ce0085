//! `denoir sample`

use std::path::PathBuf;

use super::output::Target;
use super::{bar, device, note};
use crate::error::{Error, Result};
use crate::sample::{Options, Trained};

#[derive(clap::Args)]
pub struct Arguments {
    /// A run folder, one of its checkpoints, or a folder of the diffusers library
    run: PathBuf,
    /// How many samples
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=100_000))]
    count: u32,
    /// The same seed gives the same samples; the recipe's own otherwise
    #[arg(long)]
    seed: Option<u64>,
    /// How to walk back: ddpm (with the recipe's variance), ddpm-small or ddpm-large
    #[arg(long, default_value = "ddpm", value_parser = ["ddpm", "ddpm-small", "ddpm-large"])]
    sampler: String,
    /// Reverse steps; all timesteps otherwise
    #[arg(long)]
    steps: Option<usize>,
    /// The class of all samples, for models with classes; all in turn otherwise
    #[arg(long)]
    class: Option<u32>,
    /// A grid (FILE.png; the bare image when count is 1), or a folder for a file an image
    #[arg(long, default_value = "samples.png")]
    out: PathBuf,
    /// auto, cpu, gpu, gpu:INDEX or gpu:NAME-PART
    #[arg(long, default_value = "auto")]
    device: String,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let device = device(&arguments.device)?;
    let trained = Trained::open(&arguments.run, &device)?;
    for remark in trained.remarks() {
        note(&format!("note: {remark}"));
    }
    let recipe = trained.recipe();
    let timesteps = recipe.timesteps;
    let steps = arguments.steps.unwrap_or(timesteps);
    if steps == 0 || steps > timesteps {
        return Err(
            Error::usage(format!("--steps {steps}")).hint(format!("it must be from 1 to {timesteps}"))
        );
    }
    let classes = recipe.unet.num_class_embeds;
    if let Some(class) = arguments.class.filter(|&c| c as usize >= classes) {
        let hint = if classes == 0 {
            "this model has no classes".to_owned()
        } else {
            format!("it must be below {classes}")
        };
        return Err(Error::usage(format!("--class {class}")).hint(hint));
    }
    // Said before the work begins, not after it.
    let out = Target::new(&arguments.out)?;
    let source = trained.source();
    let mut options = Options { steps, ..Options::of(recipe) };
    options.seed = arguments.seed.unwrap_or(options.seed);
    match arguments.sampler.as_str() {
        "ddpm-small" => options.variance = crate::diffusion::Variance::FixedSmall,
        "ddpm-large" => options.variance = crate::diffusion::Variance::FixedLarge,
        _ => {}
    }
    let count = arguments.count as usize;
    note(&format!("{count} samples, {steps} steps, on {}", device.describe()));
    let progress = bar(source.work(options, count), "sampling {bar:30} {percent}% {eta} left");
    let images = source.draw(options, count, arguments.class, || {
        progress.inc(1);
        Ok(())
    })?;
    progress.finish_and_clear();
    out.write(&images, count, source.image())
}
