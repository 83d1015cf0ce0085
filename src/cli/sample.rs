//! `denoir sample`

use std::path::PathBuf;

use super::on::On;
use super::output::Target;
use super::{bar, note};
use crate::diffusion::{self, Method, Sigmas, Spacing};
use crate::error::{Error, Result};
use crate::models::unet::Class;
use crate::recipe::{Recipe, Rng};
use crate::sample::{Options, Trained};

/// Steps of a sampler that is made for few.
const USUAL_STEPS: usize = 50;

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
    /// How to walk back: ddpm (with the recipe's variance), ddpm-small, ddpm-large, ddim, euler, euler-a, heun,
    /// lms, dpmpp-2m, dpmpp-2m-sde, dpmpp-3m, pndm, plms, unipc or unipc-3
    #[arg(long, default_value = "ddpm")]
    sampler: String,
    /// Steps down [default: all timesteps for ddpm, 50 for the others]
    #[arg(long)]
    steps: Option<usize>,
    /// How much noise ddim adds: 0 none, 1 as much as ddpm
    #[arg(long)]
    eta: Option<f64>,
    /// Which timesteps are visited: leading, trailing or linspace [default: the sampler's own]
    #[arg(long, value_parser = ["leading", "trailing", "linspace"])]
    spacing: Option<String>,
    /// Noise levels of euler, euler-a, heun, lms, dpmpp and unipc: karras or exponential [default: those of the
    /// timesteps]
    #[arg(long, value_parser = ["karras", "exponential"])]
    sigmas: Option<String>,
    /// Random numbers: denoir's, or those of torch's CPU generator with the reference library's rounding, so
    /// that a seed gives the reference's pictures
    #[arg(long, default_value = "denoir", value_parser = ["denoir", "torch"])]
    rng: String,
    /// The class of all samples, for models with classes; all in turn otherwise
    #[arg(long)]
    class: Option<u32>,
    /// A grid (FILE.png; the bare image when count is 1), or a folder for a file an image
    #[arg(long, default_value = "samples.png")]
    out: PathBuf,
    #[command(flatten)]
    on: On,
}

impl Arguments {
    fn options(&self, recipe: &Recipe) -> Result<Options> {
        let mut scheduler = recipe.scheduler().named(&self.sampler)?;
        if matches!(scheduler.method, Method::DdimInverse { .. }) {
            return Err(Error::usage("--sampler ddim-inverse goes from a picture to its noise")
                .hint(format!("to draw samples choose {}", diffusion::names().join(", "))));
        }
        match (self.eta, &mut scheduler.method) {
            (None, _) => {}
            (Some(given), Method::Ddim { eta, .. }) if (0.0..=1.0).contains(&given) => *eta = given,
            (Some(given), Method::Ddim { .. }) => {
                return Err(Error::usage(format!("--eta {given}")).hint("it must be from 0 to 1"));
            }
            (Some(_), _) => {
                return Err(Error::usage(format!("--eta has no meaning for {}", self.sampler))
                    .hint("it goes with --sampler ddim"));
            }
        }
        match self.spacing.as_deref() {
            Some("leading") => scheduler.spacing = Spacing::Leading,
            Some("trailing") => scheduler.spacing = Spacing::Trailing,
            Some(_) => scheduler.spacing = Spacing::Linspace,
            None => {}
        }
        match self.sigmas.as_deref() {
            Some("karras") => scheduler.sigmas = Sigmas::Karras,
            Some(_) => scheduler.sigmas = Sigmas::Exponential,
            None => {}
        }
        let timesteps = recipe.timesteps;
        let usual = match scheduler.method {
            Method::Ddpm { .. } => timesteps,
            _ => USUAL_STEPS.min(timesteps),
        };
        let steps = self.steps.unwrap_or(usual);
        if steps == 0 || steps > timesteps {
            return Err(
                Error::usage(format!("--steps {steps}")).hint(format!("it must be from 1 to {timesteps}"))
            );
        }
        let rng = if self.rng == "torch" { Rng::Torch } else { Rng::Denoir };
        let seed = self.seed.unwrap_or(recipe.seed);
        let options = Options { seed, steps, scheduler, rng: Rng::Denoir }.with_rng(rng);
        // Said before the work begins, not after it.
        options.scheduler.walk(steps)?;
        Ok(options)
    }
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let device = arguments.on.open()?;
    let trained = Trained::open(&arguments.run, &device)?;
    for remark in trained.remarks() {
        note(&format!("note: {remark}"));
    }
    let recipe = trained.recipe();
    let options = arguments.options(recipe)?;
    let bad = |class, hint: String| Err(Error::usage(format!("--class {class}")).hint(hint));
    match (recipe.unet.class(), arguments.class) {
        (Class::Number(classes), Some(class)) if class as usize >= classes => {
            return bad(class, format!("it must be below {classes}"));
        }
        (Class::None, Some(class)) => return bad(class, "this model has no classes".to_owned()),
        _ => {}
    }
    // Said before the work begins, not after it.
    let out = Target::new(&arguments.out)?;
    let source = trained.source();
    let count = arguments.count as usize;
    note(&format!("{count} samples, {} steps, on {}", options.steps, device.describe()));
    let progress = bar(source.work(&options, count)?, "sampling {bar:30} {percent}% {eta} left");
    let images = source.draw(&options, count, arguments.class, || {
        progress.inc(1);
        Ok(())
    })?;
    progress.finish_and_clear();
    out.write(&images, count, source.image())
}
