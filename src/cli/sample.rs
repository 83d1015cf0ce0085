//! `denoir sample`

use std::path::PathBuf;

use super::device_args::DeviceArgs;
use super::output::Target;
use super::{any, bar, named, note, number, ticks};
use crate::diffusion::{self, Method, Sigmas, Spacing};
use crate::error::{Error, Result};
use crate::models::unet::Class;
use crate::recipe::{Recipe, Rng, nearest, whole};
use crate::sample::inversion::{self, InversionConfig};
use crate::sample::{Options, Trained};

#[derive(clap::Args)]
pub struct Arguments {
    /// A run folder, one of its checkpoints, or a folder of the diffusers library
    run: PathBuf,
    /// How many samples
    #[arg(long, default_value_t = 64, value_parser = number::<usize>(1..=100_000))]
    count: usize,
    /// Begin with the noise of a file that `denoir invert` wrote, by ddim in as many steps as it was found in
    #[arg(long, value_name = "FILE", conflicts_with_all = ["count", "rng"])]
    noise: Option<PathBuf>,
    /// The same seed gives the same samples; the recipe's own otherwise
    #[arg(long, value_parser = any::<u64>)]
    seed: Option<u64>,
    /// How to walk back: ddpm (with the recipe's variance), ddpm-small, ddpm-large, ddim, euler, euler-a,
    /// heun, lms, dpmpp-2m, dpmpp-2m-sde, dpmpp-3m, pndm, plms, unipc or unipc-3 [default: the recipe's,
    /// which is ddpm unless it was imported; the folder's own]
    #[arg(long)]
    sampler: Option<String>,
    /// Steps down [default: all timesteps for ddpm, 50 for the others]
    #[arg(long, value_parser = any::<usize>)]
    steps: Option<usize>,
    /// How much noise ddim adds: 0 none, 1 as much as ddpm
    #[arg(long)]
    eta: Option<f64>,
    /// Which timesteps are visited: leading, trailing or linspace [default: the sampler's own]
    #[arg(long, value_parser = named::<Spacing>)]
    spacing: Option<Spacing>,
    /// Noise levels of euler, euler-a, heun, lms, dpmpp and unipc: karras or exponential [default: those of
    /// the timesteps]
    #[arg(long, value_parser = ["karras", "exponential"])]
    sigmas: Option<String>,
    /// Random numbers: denoir's, or those of torch's CPU generator with the reference library's rounding, so
    /// that a seed gives the reference's pictures
    #[arg(long, default_value = "denoir", value_parser = named::<Rng>)]
    rng: Rng,
    /// The class of all samples, for models with classes, by its name or number; all in turn otherwise
    #[arg(long)]
    class: Option<String>,
    /// A grid (FILE.png; the bare image when count is 1), or a folder for a file an image
    #[arg(long, default_value = "samples.png")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
}

impl Arguments {
    fn options(&self, recipe: &Recipe, config: Option<&InversionConfig>) -> Result<Options> {
        let mut scheduler = match (self.sampler.as_deref(), config) {
            // `--sampler ddim` is what --noise means anyway.
            (None | Some("ddim"), Some(config)) => config.options(recipe, "ddim")?.scheduler,
            (Some(name), _) => recipe.sampler(name)?,
            (None, None) => recipe.scheduler()?,
        };
        if !scheduler.draws_samples() {
            return Err(Error::usage("--sampler ddim-inverse goes from a picture to its noise")
                .hint(format!("to draw samples choose {}", diffusion::names().join(", "))));
        }
        if let Some(given) = self.eta {
            let Method::Ddim { eta, .. } = &mut scheduler.method else {
                let own = recipe.scheduler_keys().sampler();
                let sampler = self.sampler.as_ref().unwrap_or(&own);
                return Err(Error::usage(format!("--eta has no meaning for {sampler}"))
                    .hint("it goes with --sampler ddim"));
            };
            if !(0.0..=1.0).contains(&given) {
                return Err(Error::usage(format!("--eta {given}")).hint("it must be from 0 to 1"));
            }
            *eta = given;
        }
        scheduler.spacing = self.spacing.unwrap_or(scheduler.spacing);
        match self.sigmas.as_deref() {
            Some("karras") => scheduler.sigmas = Sigmas::Karras,
            Some(_) => scheduler.sigmas = Sigmas::Exponential,
            None => {}
        }
        let timesteps = recipe.timesteps;
        let usual = || config.map_or_else(|| scheduler.usual_steps(), |config| config.steps);
        let steps = self.steps.unwrap_or_else(usual);
        if steps == 0 || steps > timesteps {
            return Err(
                Error::usage(format!("--steps {steps}")).hint(format!("it must be from 1 to {timesteps}"))
            );
        }
        let seed = self.seed.unwrap_or(recipe.seed);
        let options = Options { seed, steps, scheduler, rng: Rng::Denoir }.with_rng(self.rng);
        // An error appears before the work begins.
        options.scheduler.plan(steps)?;
        Ok(options)
    }
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let device = arguments.device.open()?;
    let trained = Trained::open(&arguments.run, &device)?;
    for remark in trained.remarks() {
        note(&format!("note: {remark}"));
    }
    let recipe = trained.recipe();
    let found = arguments.noise.as_ref().map(|path| inversion::read(path, recipe.diffused())).transpose()?;
    let options = arguments.options(recipe, found.as_ref().map(|(_, config)| config))?;
    let class = match (&arguments.class, &found) {
        (None, Some((_, config))) => config.class,
        (said, _) => class_of(recipe, said.as_deref())?,
    };
    check_class(recipe, class)?;
    // An error appears before the work begins.
    let out = Target::new(&arguments.out)?;
    let source = trained.source();
    let size = recipe.diffused().iter().product::<usize>();
    let count = found.as_ref().map_or(arguments.count, |(noise, _)| noise.len() / size);
    let of_class =
        class.map(|class| format!(" of class {}", describe_class(recipe, class))).unwrap_or_default();
    note(&format!("{count} samples{of_class}, {} steps, on {}", options.steps, device.describe()));
    let progress = bar(source.work(&options, count)?, "sampling {bar:30} {percent}% {eta} left");
    let step = ticks(&progress);
    let images = match &found {
        Some((noise, _)) => source.draw_from(&options, noise, class, step)?,
        None => source.draw(&options, count, class, step)?,
    };
    progress.finish_and_clear();
    out.write(&images, count, source.image())
}

/// The number of the class that `--class` says, by number or by one of the names that training recorded.
pub fn class_of(recipe: &Recipe, said: Option<&str>) -> Result<Option<u32>> {
    let Some(said) = said else { return Ok(None) };
    let names = &recipe.class_names;
    let of_name = |name: &str| names.iter().position(|known| known == name).map(|place| place as u32);
    let of_number = |number: &str| whole(number).ok().and_then(|number| u32::try_from(number).ok());
    let is_class = |number: u32| matches!(recipe.class(), Class::Number(all) if (number as usize) < all);
    let (number, named) = match said.split_once(':') {
        Some(("number", number)) if of_name(said).is_none() => (of_number(number), None),
        Some(("name", name)) if of_name(said).is_none() => (None, of_name(name)),
        _ => (of_number(said), of_name(said)),
    };
    match (number, named) {
        (Some(number), Some(named)) if number != named && is_class(number) => Err(Error::usage(format!(
            "--class {said} is the name of class {named} and the number of class {}",
            describe_class(recipe, number)
        ))
        .hint(format!("write --class name:{said} or --class number:{said}"))),
        (_, Some(class)) | (Some(class), None) => Ok(Some(class)),
        (None, None) => {
            Err(Error::usage(format!("--class {said}: no class is called so")).hint(known(recipe, said)))
        }
    }
}

/// What can be said instead of a class that is not known.
fn known(recipe: &Recipe, said: &str) -> String {
    const MOST: usize = 20;
    let names = &recipe.class_names;
    match (recipe.class(), names.len()) {
        (Class::None, _) => "this model has no classes".to_owned(),
        (_, 0) => "the names of its classes are not known here: give a number".to_owned(),
        (_, all) => {
            let near = nearest(said, names.iter().map(String::as_str));
            let near = near.map(|near| format!("did you mean {near}? ")).unwrap_or_default();
            let more = if all > MOST { format!(" and {} more", all - MOST) } else { String::new() };
            format!("{near}the classes are {}{more}", names[..all.min(MOST)].join(", "))
        }
    }
}

/// A class's number, and its name where that is another.
fn describe_class(recipe: &Recipe, class: u32) -> String {
    match recipe.class_names.get(class as usize) {
        Some(name) if *name != class.to_string() => format!("{class} ({name})"),
        _ => class.to_string(),
    }
}

/// Checks that the model has such a class.
pub fn check_class(recipe: &Recipe, class: Option<u32>) -> Result<()> {
    let bad = |class, hint: String| Err(Error::usage(format!("--class {class}")).hint(hint));
    match (recipe.class(), class) {
        (Class::Number(classes), Some(class)) if class as usize >= classes => {
            bad(class, format!("it must be below {classes}"))
        }
        (Class::None, Some(class)) => bad(class, "this model has no classes".to_owned()),
        _ => Ok(()),
    }
}
