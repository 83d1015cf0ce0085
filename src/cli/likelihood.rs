//! `denoir likelihood`

mod autoencoder;
mod flow;

use std::path::{Path, PathBuf};

use serde::Serialize;

use super::device_args::DeviceArgs;
use super::images::read_all;
use super::output::check_folder_of;
use super::{any, any_text, bar, note, note_remarks, note_warnings, number, print_report, ticks};
use crate::codec::Codec;
use crate::data::picture::{from_u8, to_u8};
use crate::data::{choice, numbered, open_for_evaluation};
use crate::diffusion::{Prediction, Variance};
use crate::error::{Error, Result};
use crate::figures::likelihood_curves;
use crate::likelihood::{
    Bound, Cdf, Decoder, Estimate, Process, ReverseVariance, Tally, Term, rate_distortion,
};
use crate::models::unet::Class;
use crate::philox::{Stream, fill_normal};
use crate::recipe::{Recipe, System};
use crate::run::{Run, save_png};
use crate::sample::{Trained, batch_of};
use crate::{checkpoint, diffusers};

#[derive(clap::Args)]
pub struct Arguments {
    /// A run folder, one of its checkpoints, or a folder of the diffusers library
    run: PathBuf,
    /// Where images come from [default: the held-out part of the run's own data]
    #[arg(long, value_parser = any_text())]
    data: Option<String>,
    /// How many images; each takes as many passes of a diffusion model as there are timesteps
    #[arg(long, default_value_t = 64, value_parser = number::<usize>(2..=1_000_000))]
    count: usize,
    /// Of the noise, one draw a timestep and image
    #[arg(long, default_value_t = 0, value_parser = any::<u64>)]
    seed: u64,
    /// Of a VAE: draws of z for each image [default: 64]
    #[arg(long, value_parser = number::<usize>(1..=100_000))]
    draws: Option<usize>,
    /// The density by the probability-flow ODE instead of the bound: an estimate, not a bound of it
    #[arg(long)]
    ode: bool,
    /// Of --ode, each of four evaluations [default: 50]
    #[arg(long, value_parser = number::<usize>(1..=100_000))]
    steps: Option<usize>,
    /// Curves over t and of rate and distortion
    #[arg(long, value_name = "FILE.png")]
    out: Option<PathBuf>,
    /// The normal distribution's integral by OpenAI's tanh, to compare with numbers of its programs
    #[arg(long)]
    tanh: bool,
    /// Do not keep the predicted x0 within [-1, 1]
    #[arg(long)]
    no_clip: bool,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

#[derive(Serialize)]
struct Report {
    /// Of the optimiser.
    data: String,
    images: usize,
    timesteps: usize,
    variance: Variance,
    clipped: bool,
    /// Upper bound of the bits per dimension, and its standard error over images.
    bits_per_dim: f64,
    standard_error: f64,
    /// Its parts: `L_T`, the sum of `L_t` for t >= 1, `L_0`.
    prior: f64,
    steps: f64,
    decoder: f64,
    /// Of the root of the mean squared error of the predicted x0 at t = 0, of 255.
    distortion: f64,
    /// `[T]`: bits of each timestep, mean squared errors of the predicted noise and of the predicted x0.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    bits: Vec<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mse: Vec<f64>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    x0_mse: Vec<f64>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let device = arguments.device.open()?;
    if system_of(&arguments.run)? == System::Vae {
        arguments.check_flags("a VAE", &["draws"])?;
        let codec = Codec::open(&arguments.run, &device)?;
        let Images { spec, images, .. } = arguments.images(codec.recipe(), codec.image()[2])?;
        return autoencoder::autoencoder(arguments, &codec, spec, &images);
    }
    let (what, takes): (_, &[_]) =
        if arguments.ode { ("--ode", &["ode", "steps"]) } else { ("the bound", &["out", "tanh", "no-clip"]) };
    arguments.check_flags(what, takes)?;
    let trained = Trained::open(&arguments.run, &device)?;
    note_remarks(&trained);
    if let Some(path) = &arguments.out {
        check_folder_of(path)?;
    }
    let (recipe, source) = (trained.recipe(), trained.source());
    check(&arguments.run, recipe)?;
    if recipe.self_conditioning {
        note("note: the model is measured without its own estimate, which it sees in samples");
    }
    let images = arguments.images(recipe, source.image()[2])?;
    if arguments.ode {
        return flow::flow(arguments, &trained, images);
    }
    let Images { spec, images, labels } = images;
    let count = labels.len();
    let betas = &recipe.schedule().betas;
    let cdf = if arguments.tanh { Cdf::Tanh } else { Cdf::Exact };
    let clip = recipe.clip_sample > 0.0 && !arguments.no_clip;
    let bound = Bound {
        process: Process::new(betas),
        prediction: recipe.prediction_type,
        clip,
        decoder: Decoder::Levels(cdf),
    };
    // `learned`: what the model says of an element's variance, where it says something.
    let variance = |learned: Option<f32>| match (recipe.variance, learned.map(f64::from)) {
        (Variance::LearnedRange, Some(output)) => ReverseVariance::LearnedRange(output),
        (Variance::Learned, Some(output)) => ReverseVariance::LogVariance(output),
        (Variance::FixedLarge, _) => ReverseVariance::FixedLarge,
        _ => ReverseVariance::FixedSmall,
    };
    let channels = source.image()[2];
    let size: usize = source.image().iter().product();
    let mut predictor = source.predictor(batch_of(recipe, count))?;
    let steps = betas.len();
    let mut tally = Tally::new(steps);
    let progress = bar((count.div_ceil(predictor.batch()) * steps) as u64, "{bar:30} {percent}% {eta} left");
    let mut tick = ticks(&progress);
    let classes = recipe.class_count();
    for (batch, x0) in images.chunks(predictor.batch() * size).enumerate() {
        let first = batch * predictor.batch();
        let here = x0.len() / size;
        let labels = if classes > 0 { &labels[first..first + here] } else { &[][..] };
        let mut terms = vec![vec![Term::default(); steps]; here];
        for t in 0..steps {
            let (signal, noise) = (bound.process.alpha_bar(t).sqrt(), bound.process.noise(t).sqrt());
            let mut x_t = vec![0.0; x0.len()];
            for (i, x_t) in x_t.chunks_exact_mut(size).enumerate() {
                let sample = (first + i) as u32;
                fill_normal(x_t, arguments.seed, Stream::Noise as u32, t as u32, sample, 0);
            }
            for (x_t, x0) in x_t.iter_mut().zip(x0) {
                *x_t = (signal * f64::from(*x0) + noise * f64::from(*x_t)) as f32;
            }
            let out = predictor.predict(&x_t, t as f32, labels)?;
            // Of each pixel first what is predicted, then its variance.
            let width = out.len() / x0.len();
            let each =
                terms.iter_mut().zip(x0.chunks(size)).zip(x_t.chunks(size).zip(out.chunks(width * size)));
            for ((terms, x0), (x_t, out)) in each {
                let of = |i: usize| i / channels * width * channels + i % channels;
                let predicted: Vec<f32> = (0..size).map(|i| out[of(i)]).collect();
                let learned = |i: usize| (width > 1).then(|| out[of(i) + channels]);
                terms[t] = bound.term(t, x0, x_t, &predicted, |i| variance(learned(i)));
            }
            tick()?;
        }
        for (x0, terms) in x0.chunks(size).zip(&terms) {
            tally.add(bound.prior(x0), terms);
        }
    }
    progress.finish_and_clear();
    let Estimate { mean, standard_error, .. } = tally.bits_per_dim();
    if !mean.is_finite() {
        return Err(Error::new("the bound is not a finite number")
            .hint("the model has diverged: train again with a lower lr, or use an older checkpoint"));
    }
    let (terms, prior) = (tally.terms(), tally.prior());
    let bits = |nats: f64| nats / std::f64::consts::LN_2;
    let curve = rate_distortion(prior, &terms);
    if let Some(path) = &arguments.out {
        save_png(path, &likelihood_curves(&bound.process, &terms, &curve, 480))?;
    }
    let of_terms = |of: &dyn Fn(usize, &Term) -> f64| -> Vec<f64> {
        if arguments.json {
            terms.iter().enumerate().map(|(t, term)| of(t, term)).collect()
        } else {
            Vec::new()
        }
    };
    let report = Report {
        data: spec,
        images: count,
        timesteps: steps,
        variance: recipe.variance,
        clipped: clip,
        bits_per_dim: mean,
        standard_error,
        prior: bits(prior),
        steps: bits(terms[1..].iter().map(|term| term.nats).sum()),
        decoder: bits(terms[0].nats),
        distortion: curve[0][1],
        bits: of_terms(&|_, term| bits(term.nats)),
        mse: of_terms(&|t, term| bound.process.snr(t) * term.x0_error),
        x0_mse: of_terms(&|_, term| term.x0_error),
    };
    print_report(&report, arguments.json, describe)
}

/// Images that are measured.
struct Images {
    /// What they are, for the user.
    spec: String,
    /// `[N, H, W, C]`, each value one of 256 levels.
    images: Vec<f32>,
    labels: Vec<u32>,
}

impl Arguments {
    /// Refuses a flag besides those of every model and those that `what` takes.
    fn check_flags(&self, what: &str, takes: &[&str]) -> Result<()> {
        let given = [
            ("draws", self.draws.is_some()),
            ("ode", self.ode),
            ("steps", self.steps.is_some()),
            ("out", self.out.is_some()),
            ("tanh", self.tanh),
            ("no-clip", self.no_clip),
        ];
        match given.iter().find(|(flag, given)| *given && !takes.contains(flag)) {
            Some((flag, _)) => {
                Err(Error::usage(format!("--{flag} has no meaning for {what}")).hint("leave it out"))
            }
            None => Ok(()),
        }
    }

    /// The images of `--data`, or those held out from the run's own.
    fn images(&self, recipe: &Recipe, channels: usize) -> Result<Images> {
        let spec = self.data.as_ref().unwrap_or(&recipe.data);
        let (data, held_out) = open_for_evaluation(spec, &recipe.pictures(channels))?;
        let data = numbered(data, &recipe.class_names);
        if !held_out {
            note("warning: the data is too small to hold any out: these are training images");
        }
        let (wanted, names) = (recipe.class_count(), &recipe.class_names);
        if wanted > 0 && (data.classes().len() != wanted || !names.is_empty() && data.classes() != names) {
            return Err(Error::usage(format!("the model has {wanted} classes, and {spec} has others"))
                .hint("give data with the classes that the run was trained on"));
        }
        let spec = if held_out { format!("the held-out part of {spec}") } else { spec.clone() };
        let chosen = choice(&*data, self.count as u64, self.seed);
        let (mut images, labels) = read_all(&*data, chosen.into_iter())?;
        note_warnings(&*data);
        if labels.len() < 2 {
            let message = format!("{spec} has {} images", labels.len());
            return Err(Error::new(message).hint("two or more are needed"));
        }
        // Levels of 8 bits are what is asked for: pictures that were resized lie between them.
        images.iter_mut().for_each(|v| *v = from_u8(to_u8(*v)));
        Ok(Images { spec, images, labels })
    }
}

/// The kind of model that a run, a checkpoint or a folder of the diffusers library holds.
fn system_of(path: &Path) -> Result<System> {
    if diffusers::is_folder(path) {
        return Ok(diffusers::open(path)?.model.recipe.system);
    }
    Ok(if path.is_file() { checkpoint::load(path)?.recipe } else { Run::open(path)?.recipe()? }.system)
}

/// An error for a model whose bound this command does not know.
fn check(run: &Path, recipe: &Recipe) -> Result<()> {
    let refused = |what: &str, hint: &str| Err(Error::usage(format!("{} {what}", run.display())).hint(hint));
    let blind = recipe.rescale_betas_zero_snr && recipe.prediction_type == Prediction::Epsilon;
    match recipe.class() {
        _ if recipe.system == System::Ldm => {
            let hint =
                "their likelihood is a density of latents, which compares with nothing: give a run of pixels";
            refused("diffuses latents", hint)
        }
        _ if recipe.condition.is_some() => {
            refused("draws from conditions, and no likelihood is measured of such", "give a run without")
        }
        Class::Value | Class::Embedding(_) => refused(
            "takes numbers as an image's class, which data does not say",
            "give a run without classes, or with a table of them",
        ),
        _ if recipe.schedule().betas.contains(&0.0) => refused(
            "has a timestep that changes nothing (a beta of 0), which has no bound",
            "give a run whose betas are above 0",
        ),
        _ if blind => refused(
            "predicts noise, which says nothing of the image where its schedule is noise alone",
            "give a run of v_prediction or sample",
        ),
        _ => {
            let times: Vec<f64> = (0..recipe.timesteps).map(|t| t as f64).collect();
            recipe.check_times(&times)
        }
    }
}

fn describe(report: &Report) -> String {
    let Report { data, images, timesteps, variance, clipped, bits_per_dim, standard_error, .. } = report;
    let Report { prior, steps, decoder, distortion, .. } = report;
    let clipped = if *clipped { "clipped" } else { "not clipped" };
    let variance = match variance {
        Variance::FixedSmall => "fixed small",
        Variance::FixedLarge => "fixed large",
        Variance::LearnedRange => "learned between both",
        Variance::Learned => "learned",
    };
    format!(
        "{bits_per_dim:.4} ± {standard_error:.4} bits/dim, an upper bound: {images} images of {data}, \
         {timesteps} timesteps,\nvariance {variance}, x0 {clipped}, weights of the moving average\n\n  L_T  \
         {prior:9.5}  what is left of the image at the end of the process\n  L_t  {steps:9.5}  t from 1 to \
         {}\n  L_0  {decoder:9.5}  256 levels; distortion {distortion:.3} of 255 (RMSE of x0 at \
         t = 0)\n",
        timesteps - 1
    )
}
