//! `denoir sample`

use std::path::{Path, PathBuf};

use super::{bar, device, is_picture, note, print};
use crate::checkpoint;
use crate::data::picture::{enlarge, grid};
use crate::error::{Error, Result};
use crate::models::{model_of, params_of};
use crate::run::{Run, save_png};
use crate::sample::{Options, Source};

#[derive(clap::Args)]
pub struct Arguments {
    /// A run folder, or one of its checkpoints
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
    let loaded = if arguments.run.is_file() {
        checkpoint::load(&arguments.run)?
    } else {
        Run::open(&arguments.run)?.newest()?
    };
    let recipe = &loaded.recipe;
    recipe.validate()?;
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
    let is_picture = is_picture(&arguments.out)?;
    if !is_picture {
        std::fs::create_dir_all(&arguments.out).map_err(|e| {
            let message = format!("cannot write into {}", arguments.out.display());
            Error::new(message).hint("choose another --out").caused_by(e)
        })?;
    }

    let params = params_of(recipe);
    let weights = loaded.set("ema", &params.borrow())?;
    let device = device(&arguments.device)?;
    let buffer = device.alloc("parameters", weights.len() * 4)?;
    device.write(&buffer, 0, bytemuck::cast_slice(&weights))?;
    let model = model_of(recipe);
    let (side, channels) = (recipe.image_size, recipe.unet.in_channels);
    let source = Source {
        device: &device,
        model: &model,
        params: &params,
        weights: &buffer,
        recipe,
        image: [side, side, channels],
    };
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
    write(&images, count, source.image, &arguments.out, is_picture)
}

fn write(images: &[f32], count: usize, image: [usize; 3], out: &Path, is_picture: bool) -> Result<()> {
    if is_picture {
        let columns = (count as f64).sqrt().ceil() as usize;
        let picture = grid(images, count, image, columns, if count == 1 { 0 } else { 2 });
        // One sample is the bare image; a grid is for looking at.
        save_png(out, &if count == 1 { picture } else { enlarge(picture, image[0]) })?;
    } else {
        for (i, pixels) in images.chunks_exact(image.iter().product()).enumerate() {
            save_png(&out.join(format!("{i:06}.png")), &grid(pixels, 1, image, 1, 0))?;
        }
    }
    print(&format!("{}\n", out.display()))
}
