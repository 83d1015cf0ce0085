//! `denoir figure`

mod guidance;
mod schedule;

use std::path::{Path, PathBuf};

use image::RgbImage;

use super::device_args::DeviceArgs;
use super::images::read;
use super::output::{check_folder_of, extension};
use super::{any, any_text, bar, note, note_remarks, note_warnings, number, print, ticks};
use crate::checkpoint;
use crate::codec::Codec;
use crate::data::{Options as DataOptions, open_for_evaluation};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::figures;
use crate::recipe::{Recipe, System};
use crate::run::{Run, save_png};
use crate::sample::{Options, Trained};

/// The figures of the field.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Kind {
    /// Images at rising noise levels
    Forward,
    /// Samples at falling t
    Backward,
    /// Samples; with --with, those of another run from the same noise beside them
    Grid,
    /// Images above reconstructions from latents drawn for them
    Reconstruction,
    /// Images above reconstructions from the means of their latents
    Mean,
    /// Several draws z = mean + sigma eps for each image
    Posterior,
    /// GIF: z = mean + a sigma eps, for a from 0 to 10
    Hallucination,
    /// Latents of two numbers, decoded on a grid
    Manifold,
    /// The predicted x0 at falling t
    Progressive,
    /// Two images noised to t, mixed, and denoised
    Interpolation,
    /// The same for several t
    CoarseToFine,
    /// Samples that share their way until t
    Branches,
    /// The channels of latents as grey images
    Channels,
    /// A sample of each class at each scale of guidance, all columns from the same noise
    Guidance,
    /// beta, alpha_bar and the signal-to-noise ratio over t
    Schedule,
    /// The losses of a run over its steps, or of several
    Loss,
}

impl Kind {
    fn name(self) -> String {
        clap::ValueEnum::to_possible_value(&self).map(|v| v.get_name().to_owned()).unwrap_or_default()
    }

    /// Defaults of `--count` and `--columns`, and the flags that the figure takes besides `--out`, `--size`
    /// and `--device`.
    fn defaults(self) -> (usize, usize, &'static [&'static str]) {
        match self {
            Kind::Forward | Kind::Hallucination | Kind::Channels => (4, 8, &["data", "count", "seed"]),
            Kind::Reconstruction | Kind::Mean => (16, 8, &["data", "count", "seed"]),
            Kind::Backward | Kind::Progressive => (4, 8, &["count", "seed", "steps"]),
            Kind::Grid => (64, 8, &["count", "seed", "steps", "with"]),
            Kind::Posterior => (4, 8, &["data", "count", "seed", "columns"]),
            Kind::Manifold => (20, 8, &["count"]),
            Kind::Interpolation => (3, 11, &["data", "count", "seed", "columns", "steps", "t"]),
            Kind::CoarseToFine => (1, 11, &["data", "count", "seed", "columns", "steps", "t"]),
            Kind::Branches => (4, 8, &["seed", "columns", "steps", "t"]),
            Kind::Guidance => (0, 0, &["count", "seed", "steps", "scale", "classifier", "prompt"]),
            Kind::Schedule => (0, 0, &["data", "seed"]),
            Kind::Loss => (0, 0, &[]),
        }
    }
}

#[derive(clap::Args)]
pub struct Arguments {
    kind: Kind,
    /// A run folder, or one of its checkpoints; for schedule also the name of a recipe or of a schedule
    run: PathBuf,
    /// For schedule and loss: others to compare with
    others: Vec<PathBuf>,
    /// Where images come from [default: the held-out part of the run's own data]
    #[arg(long, value_parser = any_text())]
    data: Option<String>,
    /// PNG, or GIF for hallucination [default: KIND.png or KIND.gif]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Images, samples, rows, pairs, or points of a side: what the figure has several of
    #[arg(long, value_parser = number::<usize>(1..=1024))]
    count: Option<usize>,
    /// Columns of interpolation, coarse-to-fine, branches and posterior
    #[arg(long, value_parser = number::<usize>(2..=100))]
    columns: Option<usize>,
    /// Of the noise [default: the run's]; with one, other images are shown than the first
    #[arg(long, value_parser = any::<u64>)]
    seed: Option<u64>,
    /// Least side of a picture in the figure, in pixels; width of a plot [default: 64, plots 480]
    #[arg(long, value_parser = number::<usize>(8..=4096))]
    size: Option<usize>,
    /// Reverse steps [default: those of the run's own pictures]
    #[arg(long, value_parser = any::<usize>)]
    steps: Option<usize>,
    /// Timesteps of interpolation, coarse-to-fine and branches: 100,500
    #[arg(long, value_delimiter = ',', value_parser = any::<usize>)]
    t: Vec<usize>,
    /// Another run for the grid, from the same noise
    #[arg(long, value_name = "RUN")]
    with: Option<PathBuf>,
    /// Scales of guidance [default: 0,1,1.5,2,3,5; 1 is none, 0 without the class; with --classifier
    /// 0,0.5,1,2,4,8, where 0 is none]
    #[arg(long, value_delimiter = ',')]
    scale: Vec<f64>,
    /// Of guidance, for models that see texts: a text for each row
    #[arg(long, value_name = "TEXT")]
    prompt: Vec<String>,
    /// Guide by a classifier of noisy images, a run of `denoir train digits-classifier`
    #[arg(long, value_name = "RUN")]
    classifier: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let kind = arguments.kind;
    let ending = if kind == Kind::Hallucination { "gif" } else { "png" };
    let out = arguments.out.clone().unwrap_or_else(|| format!("{}.{ending}", kind.name()).into());
    if extension(&out) != ending || out.is_dir() {
        return Err(Error::usage(format!("--out {}", out.display()))
            .hint(format!("this figure is written as .{ending}: name such a file")));
    }
    check_folder_of(&out)?;
    arguments.check_flags()?;
    if kind == Kind::Hallucination {
        hallucination(arguments, &out)?;
    } else {
        save_png(&out, &picture(arguments)?)?;
    }
    print(&format!("{}\n", out.display()))
}

/// Most pixels of a figure.
const MOST_PIXELS: u64 = 200_000_000;

/// The recipe of a run folder or checkpoint.
fn recipe_of(path: &Path) -> Result<Recipe> {
    if path.is_file() {
        return Ok(checkpoint::load(path)?.recipe);
    }
    let run = Run::open(path)?;
    let recipe = run.recipe()?;
    // What was learned of a schedule stands in the checkpoints.
    let learned = recipe.learns_schedule() && !run.checkpoints()?.is_empty();
    if learned { Ok(run.newest()?.recipe) } else { Ok(recipe) }
}

impl Arguments {
    /// Refuses a flag that the figure does not take.
    fn check_flags(&self) -> Result<()> {
        let given = [
            ("data", self.data.is_some()),
            ("count", self.count.is_some()),
            ("columns", self.columns.is_some()),
            ("seed", self.seed.is_some()),
            ("steps", self.steps.is_some()),
            ("t", !self.t.is_empty()),
            ("with", self.with.is_some()),
            ("scale", !self.scale.is_empty()),
            ("prompt", !self.prompt.is_empty()),
            ("classifier", self.classifier.is_some()),
        ];
        let compares = matches!(self.kind, Kind::Schedule | Kind::Loss);
        if let (false, Some(other)) = (compares, self.others.first()) {
            return Err(Error::usage(format!("{} takes one run, and {}", self.kind.name(), other.display()))
                .hint("only schedule and loss compare several"));
        }
        match given.iter().find(|(flag, given)| *given && !self.kind.defaults().2.contains(flag)) {
            Some((flag, _)) => Err(Error::usage(format!("--{flag} has no meaning for {}", self.kind.name()))
                .hint("leave it out")),
            None => Ok(()),
        }
    }

    fn count(&self) -> usize {
        self.count.unwrap_or(self.kind.defaults().0)
    }

    fn columns(&self) -> usize {
        self.columns.unwrap_or(self.kind.defaults().1)
    }

    /// Options of sampling: those of the run's own pictures, changed by flags.
    fn options(&self, recipe: &Recipe) -> Result<Options> {
        let mut options = Options::of(recipe)?;
        options.seed = self.seed.unwrap_or(options.seed);
        options.steps = self.steps.unwrap_or(options.steps);
        if options.steps == 0 || options.steps > recipe.timesteps {
            return Err(Error::usage(format!("--steps {}", options.steps))
                .hint(format!("it must be from 1 to {}", recipe.timesteps)));
        }
        if matches!(self.kind, Kind::Interpolation | Kind::CoarseToFine | Kind::Branches) {
            let plan = options.plan()?;
            let draws = plan.steps.iter().any(|step| step.draws);
            // These begin inside the reverse process, and branches differ by their noise.
            if plan.slots() > 0 || self.kind == Kind::Branches && !draws {
                options.scheduler = recipe.sampler("ddpm")?;
            }
        }
        Ok(options)
    }

    /// The timesteps of `--t`; by default fractions of the last one.
    fn times(&self, recipe: &Recipe) -> Result<Vec<usize>> {
        let fractions: &[f64] = match self.kind {
            Kind::Interpolation => &[0.5],
            Kind::CoarseToFine => &[0.125, 0.25, 0.5, 0.75, 1.0],
            _ => &[1.0, 0.75, 0.5, 0.25, 0.1],
        };
        if let Some(t) = self.t.iter().find(|&&t| t >= recipe.timesteps) {
            return Err(Error::usage(format!("--t {t}"))
                .hint(format!("timesteps of this run are 0 to {}", recipe.timesteps - 1)));
        }
        if !self.t.is_empty() {
            return Ok(self.t.clone());
        }
        let last = (recipe.timesteps - 1) as f64;
        Ok(fractions.iter().map(|fraction| (last * fraction).round() as usize).collect())
    }

    /// `count` images for a run, and their labels: of `--data`, or held out from its own, from the first
    /// on; `--seed` shows others.
    fn images(&self, recipe: &Recipe, image: [usize; 3], count: usize) -> Result<(Vec<f32>, Vec<u32>)> {
        let [side, _, channels] = image;
        let spec = self.data.as_deref().unwrap_or(&recipe.data);
        let pictures = DataOptions { image_size: side, ..recipe.pictures(channels) };
        let (data, held_out) = open_for_evaluation(spec, &pictures)?;
        if !held_out {
            note("note: the folder is too small to hold images out");
        }
        let read = read(&*data, self.seed.unwrap_or(0).wrapping_mul(count as u64), count)?;
        note_warnings(&*data);
        Ok(read)
    }

    /// Checks early that a figure of so many pictures of `side` pixels fits in memory.
    fn check_size(&self, pictures: usize, side: usize) -> Result<()> {
        let cell = self.size.unwrap_or(64).next_multiple_of(side.max(1)).max(side);
        let pixels = pictures as u64 * (cell * cell) as u64;
        if pixels > MOST_PIXELS {
            return Err(Error::usage(format!("the figure would have {} million pixels", pixels / 1_000_000))
                .hint("lower --count, --columns or --size"));
        }
        Ok(())
    }
}

fn picture(arguments: &Arguments) -> Result<RgbImage> {
    let path = &arguments.run;
    let width = arguments.size.unwrap_or(480) as u32;
    match arguments.kind {
        Kind::Schedule => schedule::schedules(arguments, width),
        Kind::Loss => {
            let runs: Vec<Run> = std::iter::once(path)
                .chain(&arguments.others)
                .map(|path| run_of(path))
                .collect::<Result<_>>()?;
            if let [run] = &runs[..] { figures::loss(run, width) } else { figures::losses(&runs, width) }
        }
        Kind::Grid => grid(arguments),
        Kind::Guidance => guidance::guidance(arguments),
        Kind::Forward
        | Kind::Backward
        | Kind::Progressive
        | Kind::Interpolation
        | Kind::CoarseToFine
        | Kind::Branches => process(arguments),
        _ => autoencoder(arguments),
    }
}

/// The run that a folder or a checkpoint means.
fn run_of(path: &Path) -> Result<Run> {
    let run = if path.is_file() { Run::of_checkpoint(path) } else { Some(Run::open(path)?) };
    let none = || Error::new(format!("{} is in no run folder", path.display()));
    run.ok_or_else(|| none().hint("give the run: its metrics are needed"))
}

/// Samples of a run; of a VAE, decoded from its prior.
fn grid(arguments: &Arguments) -> Result<RgbImage> {
    let device = arguments.device.open()?;
    let count = arguments.count();
    let one = |path: &Path| -> Result<RgbImage> {
        let recipe = recipe_of(path)?;
        let drawing = if recipe.system == System::Vae {
            if arguments.steps.is_some() {
                return Err(Error::usage(format!("--steps: {} is a VAE, which takes none", path.display()))
                    .hint("leave it out"));
            }
            let codec = Codec::open(path, &device)?;
            arguments.check_size(count, codec.image()[0])?;
            let images = figures::prior(&codec, count, arguments.seed.unwrap_or(recipe.seed))?;
            figures::grid(images, codec.image())
        } else {
            let trained = Trained::open(path, &device)?;
            note_remarks(&trained);
            let (source, options) = (trained.source_of(count, None)?, arguments.options(trained.recipe())?);
            arguments.check_size(count, source.image()[0])?;
            let progress = bar(source.work(&options, count)?, "sampling {bar:30} {percent}% {eta} left");
            let images = source.draw(&options, count, None, ticks(&progress))?;
            progress.finish_and_clear();
            figures::samples(&source, images)
        };
        let title = arguments.with.as_ref().map(|_| path.display().to_string());
        Ok(drawing.titled(title).draw(arguments.size))
    };
    match &arguments.with {
        None => one(&arguments.run),
        Some(other) => {
            // The same noise for both, whatever their recipes say.
            if arguments.seed.is_none() && recipe_of(&arguments.run)?.seed != recipe_of(other)?.seed {
                return Err(
                    Error::usage("the two runs have different seeds").hint("give one for both with --seed")
                );
            }
            Ok(figures::beside(&[one(&arguments.run)?, one(other)?], 24))
        }
    }
}

fn process(arguments: &Arguments) -> Result<RgbImage> {
    let device = arguments.device.open()?;
    let trained = Trained::open(&arguments.run, &device)?;
    note_remarks(&trained);
    let (count, columns, recipe) = (arguments.count(), arguments.columns(), trained.recipe());
    let mixes = !matches!(arguments.kind, Kind::Forward | Kind::Backward | Kind::Progressive);
    if mixes && recipe.condition.is_some() {
        let name = arguments.kind.name();
        return Err(Error::usage(format!(
            "{name} shows what noise decides, and the run draws from conditions"
        ))
        .hint("choose backward or progressive, or a run without a condition"));
    }
    let source = trained.source_of(count, None)?;
    let options = arguments.options(recipe)?;
    let progress = bar(0, "{spinner} step {pos} {elapsed}");
    let mut step = ticks(&progress);
    let images = |count| arguments.images(recipe, source.image(), count);
    arguments.check_size(count * 5 * (columns + 2), source.image()[0])?;
    let times = arguments.times(recipe)?;
    let drawing = match arguments.kind {
        Kind::Forward => figures::forward(&source, &images(count)?.0, options.seed),
        Kind::Backward => figures::backward(&source, &options, count, &mut step),
        Kind::Progressive => figures::progressive(&source, &options, count, &mut step),
        Kind::Interpolation | Kind::CoarseToFine => {
            let (images, labels) = images(2 * count)?;
            figures::interpolation(&source, &options, &images, &labels, &times, columns, &mut step)
        }
        _ => figures::branches(&source, &options, &times, columns, &mut step),
    };
    progress.finish_and_clear();
    Ok(drawing?.draw(arguments.size))
}

/// The VAE of a run and its images.
fn vae_and_images(arguments: &Arguments, device: &Device) -> Result<(Codec, Vec<f32>)> {
    let codec = Codec::open(&arguments.run, device)?;
    let (count, columns) = (arguments.count(), arguments.columns() + 2);
    let frames = if arguments.kind == Kind::Hallucination { 101 } else { 1 };
    arguments.check_size(count * columns * frames, codec.image()[0])?;
    let (images, _) = arguments.images(codec.recipe(), codec.image(), count)?;
    Ok((codec, images))
}

fn autoencoder(arguments: &Arguments) -> Result<RgbImage> {
    let device = arguments.device.open()?;
    if arguments.kind == Kind::Manifold {
        let codec = Codec::open(&arguments.run, &device)?;
        arguments.check_size(arguments.count() * arguments.count(), codec.image()[0])?;
        return Ok(figures::manifold(&codec, arguments.count(), RANGE)?.draw(arguments.size));
    }
    let (codec, images) = vae_and_images(arguments, &device)?;
    let seed = arguments.seed.unwrap_or(codec.recipe().seed);
    let drawing = match arguments.kind {
        Kind::Reconstruction => figures::reconstruction(&codec, &images, seed),
        Kind::Mean => figures::pairs(&codec, &images),
        Kind::Posterior => figures::posterior(&codec, &images, arguments.columns(), seed),
        _ => figures::channels(&codec, &images),
    };
    Ok(drawing?.draw(arguments.size))
}

/// How far the manifold reaches, in standard deviations of the prior.
const RANGE: f32 = 3.0;
/// Largest `a` of the hallucination, and milliseconds of a frame.
const MOST: f32 = 10.0;
const DELAY: u32 = 60;

fn hallucination(arguments: &Arguments, out: &Path) -> Result<()> {
    let device = arguments.device.open()?;
    let (codec, images) = vae_and_images(arguments, &device)?;
    let progress = bar(101, "decoding {bar:30} {pos}/{len}");
    let seed = arguments.seed.unwrap_or(codec.recipe().seed);
    let frames = figures::hallucination(&codec, &images, seed, MOST, &mut ticks(&progress))?;
    progress.finish_and_clear();
    let pictures: Vec<RgbImage> = frames.iter().map(|frame| frame.draw(arguments.size)).collect();
    figures::write_gif(out, &figures::of_one_size(pictures), DELAY)
}
