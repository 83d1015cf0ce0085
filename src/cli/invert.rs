//! `denoir invert`

use std::path::PathBuf;

use super::device_args::DeviceArgs;
use super::images::Input;
use super::output::check_folder_of;
use super::sample::{check_class, class_of};
use super::{any, bar, named, note, note_remarks, print, ticks};
use crate::diffusion::Spacing;
use crate::error::{Error, Result};
use crate::models::unet::Class;
use crate::sample::Trained;
use crate::sample::inversion::{self, InversionConfig};

#[derive(clap::Args)]
pub struct Arguments {
    /// A run folder, one of its checkpoints, or a folder of the diffusers library
    run: PathBuf,
    #[command(flatten)]
    input: Input,
    /// Steps up, and back down: more are more exact [default: 50]
    #[arg(long, value_parser = any::<usize>)]
    steps: Option<usize>,
    /// Which timesteps are visited: leading, trailing or linspace [default: the model's own]
    #[arg(long, value_parser = named::<Spacing>)]
    spacing: Option<Spacing>,
    /// The class of all images, for models with classes, by its name or number
    #[arg(long)]
    class: Option<String>,
    #[arg(long, default_value = "noise.safetensors")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let out = &arguments.out;
    check_folder_of(out)?;
    inversion::check_replaceable(out)?;
    let device = arguments.device.open()?;
    let trained = Trained::open(&arguments.run, &device)?;
    note_remarks(&trained);
    let recipe = trained.recipe();
    if arguments.class.is_none() && matches!(recipe.class(), Class::Number(_) | Class::Value) {
        return Err(Error::usage("this model has classes").hint("say which with --class"));
    }
    let class = class_of(recipe, arguments.class.as_deref())?;
    check_class(recipe, class)?;
    let scheduler = recipe.sampler("ddim-inverse")?;
    let config = InversionConfig {
        steps: arguments.steps.unwrap_or_else(|| scheduler.usual_steps()),
        spacing: arguments.spacing.unwrap_or(scheduler.spacing),
        class,
    };
    // An error appears before the work begins.
    let options = config.options(recipe, "ddim-inverse")?;
    let (source, shape) = (trained.source(), recipe.diffused());
    let (pixels, numbers) = (source.image().iter().product::<usize>(), shape.iter().product::<usize>());
    let mut images = Vec::new();
    arguments.input.for_each(recipe, source.image(), pixels + 4 * numbers, "reading", |block| {
        images.extend_from_slice(block);
        Ok(())
    })?;
    let count = images.len() / pixels;
    note(&format!("{count} images, {} steps, on {}", config.steps, device.describe()));
    let progress = bar(source.work(&options, count)?, "inverting {bar:30} {percent}% {eta} left");
    let noise = source.invert(&config, &images, ticks(&progress))?;
    progress.finish_and_clear();
    inversion::write(out, &noise, shape, &config)?;
    print(&format!("{}\n", out.display()))
}
