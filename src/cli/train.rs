//! `denoir train`

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use indicatif::ProgressBar;

use super::device_args::DeviceArgs;
use super::signals::Stop;
use super::{bar, count, named, note, print, table, thousands};
use crate::codec::Codec;
use crate::device::{Device, size};
use crate::error::{Error, Result, quoted};
use crate::recipe::{self, Recipe, Rng, System};
use crate::run::{Evaluation, Metrics, Run};
use crate::train::{DryRun, Ended, Session, Watch};

#[derive(clap::Args)]
pub struct Arguments {
    /// A recipe's name or a TOML file [default: digits]
    recipe: Option<String>,
    /// digits, faces, mnist:DIR, cifar10:DIR or images:DIR
    #[arg(long)]
    data: Option<String>,
    /// Folder of the run [default: the first free of runs/RECIPE, runs/RECIPE-2, ...]
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    /// Steps of the optimiser in all [default: the recipe's]
    #[arg(long)]
    steps: Option<u64>,
    /// Images of a step [default: the recipe's]
    #[arg(long)]
    batch_size: Option<usize>,
    /// The same seed gives the same run [default: the recipe's]
    #[arg(long)]
    seed: Option<u64>,
    /// Of the initial weights: denoir or torch, whose seeds give the weights of a UNet2DModel of the
    /// diffusers library [default: the recipe's]
    #[arg(long, value_parser = named::<Rng>)]
    rng: Option<Rng>,
    /// The trained VAE of latent diffusion: its run, or one of its checkpoints
    #[arg(long, value_name = "RUN", conflicts_with = "resume")]
    vae: Option<PathBuf>,
    /// Go on with this run
    #[arg(long, value_name = "DIR", conflicts_with_all = ["recipe", "out"])]
    resume: Option<PathBuf>,
    /// Override a key of the recipe; may be given several times
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Print the plan of a step (launches, memory) and stop
    #[arg(long)]
    dry_run: bool,
}

impl Arguments {
    fn change(&self, recipe: &mut Recipe) -> Result<()> {
        for assignment in &self.set {
            recipe.set(assignment)?;
        }
        if let Some(data) = &self.data {
            recipe.data.clone_from(data);
        }
        if let Some(steps) = self.steps {
            (recipe.steps, recipe.epochs) = (steps, 0);
        }
        recipe.batch_size = self.batch_size.unwrap_or(recipe.batch_size);
        recipe.seed = self.seed.unwrap_or(recipe.seed);
        recipe.rng = self.rng.unwrap_or(recipe.rng);
        recipe.validate()
    }
}

/// Exit status: that of success, or of the signal that stopped the training.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let started = Instant::now();
    let mut recipe = match &arguments.resume {
        Some(folder) => Run::open(folder)?.recipe()?,
        None => recipe::find(arguments.recipe.as_deref().unwrap_or("digits"))?,
    };
    arguments.change(&mut recipe)?;
    recipe.check_trainable()?;
    let device = arguments.device.open()?;
    if arguments.dry_run {
        return dry_run(arguments, &recipe, &device);
    }
    let progress = bar(1, "encoding images {bar:30} {pos}/{len} {eta} left");
    let mut noted = None;
    let mut encoded = |done, all| count(&progress, &mut noted, "encoding images", done, all);
    let opened = match &arguments.resume {
        Some(folder) => Session::resume(Run::open(folder)?, &device, recipe, &mut encoded),
        None => {
            let (out, vae) = (arguments.out.as_deref(), arguments.vae.as_deref());
            Session::start(recipe, &device, out, vae, &mut encoded)
        }
    };
    progress.finish_and_clear();
    let mut session = opened?;
    if arguments.resume.is_some() && session.run.checkpoints().is_empty() {
        note("note: the run has no checkpoint yet, so it begins at step 1");
    }
    train(&mut session, &device, started)
}

fn dry_run(arguments: &Arguments, recipe: &Recipe, device: &Device) -> Result<ExitCode> {
    let codec = match (recipe.system, &arguments.vae, &arguments.resume) {
        (System::Ldm, Some(vae), _) => Some(Codec::open(vae, device)?),
        (System::Ldm, None, Some(folder)) => Some(Codec::open(folder, device)?),
        (System::Ldm, None, None) => {
            return Err(Error::usage("the plan of latent diffusion depends on its VAE")
                .hint("give a trained one with --vae"));
        }
        (_, Some(_), _) => {
            return Err(Error::usage(format!("{} does not train on latents", recipe.name))
                .hint("leave --vae out, or choose an ldm recipe"));
        }
        _ => None,
    };
    if let Some(codec) = &codec {
        codec.check_fits(recipe)?;
    }
    print(&describe(&DryRun::new(recipe, device, codec.as_ref()), recipe, device))?;
    Ok(ExitCode::SUCCESS)
}

fn train(session: &mut Session, device: &Device, started: Instant) -> Result<ExitCode> {
    let (recipe, folder) = (session.recipe.clone(), session.run.folder().display().to_string());
    let parameters = session.trainer().params().borrow().count();
    let first = session.trainer().done();
    let (name, on) = (&recipe.name, device.describe());
    note(&format!("{name} on {on}: {} parameters, into {folder}", thousands(parameters)));
    if let Some(remark) = recipe.unet.remark().filter(|_| recipe.system != System::Vae) {
        note(&format!("note: {remark}"));
    }
    let mut terminal = Terminal::new(first, recipe.steps)?;
    let ended = session.train(&mut terminal);
    terminal.bar.finish_and_clear();
    let ended = ended?;
    note(&session.times().describe(started));
    match ended {
        Ended::Done => {
            print(&format!("{folder}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Ended::Interrupted(step) => {
            let run = quoted(session.run.folder());
            print(&format!("stopped after step {step}; go on with: denoir train --resume {run}\n"))?;
            Ok(ExitCode::from(terminal.stop.status()))
        }
    }
}

/// Progress on the terminal, or a line now and then where standard error is no terminal.
struct Terminal {
    bar: ProgressBar,
    stop: Stop,
    /// A running mean of the loss, which is noisy from step to step.
    loss: Option<f32>,
    steps: u64,
    spoke: Instant,
}

impl Terminal {
    fn new(first: u64, steps: u64) -> Result<Self> {
        let stop = Stop::listen()?;
        let bar = bar(steps, "{bar:30} {pos}/{len} {msg} {eta} left");
        bar.set_position(first);
        bar.reset_eta();
        Ok(Terminal { bar, stop, loss: None, steps, spoke: Instant::now() })
    }
}

impl Watch for Terminal {
    fn step(&mut self, m: &Metrics) {
        let loss = self.loss.map_or(m.loss, |mean| 0.95 * mean + 0.05 * m.loss);
        self.loss = Some(loss);
        self.bar.set_position(m.step);
        self.bar.set_message(format!("loss {loss:.4}  {:.0} images/s ", m.images_per_s));
        let is_due = m.step == 1 || m.step == self.steps || self.spoke.elapsed().as_secs() >= 10;
        if self.bar.is_hidden() && is_due {
            self.spoke = Instant::now();
            note(&format!("step {}/{}  loss {loss:.4}  {:.1} images/s", m.step, self.steps, m.images_per_s));
        }
    }

    fn doing(&mut self, what: Option<&str>) {
        if let Some(what) = what {
            self.bar.set_message(format!("{what} "));
        }
        self.bar.tick();
    }

    fn evaluated(&mut self, e: &Evaluation) {
        let of = if e.held_out { "held-out" } else { "training" };
        let kl = e.kl.map(|kl| format!("KL {kl:.2}  ")).unwrap_or_default();
        self.message(&format!(
            "step {}, {} {of} images: reconstruction {:.2}  {kl}PSNR {:.2} dB  SSIM {:.3}  \
             active {}/{} latent units",
            e.step, e.images, e.reconstruction, e.psnr, e.ssim, e.active_units, e.units
        ));
    }

    fn message(&mut self, line: &str) {
        self.bar.suspend(|| note(line));
    }

    fn interrupted(&self) -> bool {
        self.stop.is_wanted()
    }
}

fn describe(plan: &DryRun, recipe: &Recipe, device: &Device) -> String {
    let (shared, separate) = (size(plan.activation_bytes_shared), size(plan.activation_bytes_separate));
    let saved = size(plan.activation_bytes_kept.saturating_sub(plan.activation_bytes_shared));
    let (repeated, [operations, bytes]) = (thousands(plan.repeated), plan.repeated_percent);
    let state = plan.parameter_bytes + plan.gradient_bytes + plan.optimiser_bytes;
    let copied = size(plan.parameter_bytes + plan.optimiser_bytes);
    let limit = match device {
        Device::Gpu(gpu) => format!("{} allows {}", gpu.name(), size(gpu.max_binding())),
        Device::Cpu(_) => "the CPU device has no limit".to_owned(),
    };
    let cost = format!("{operations:.0} % more operations and {bytes:.0} % more bytes moved");
    table(
        28,
        &[
            ("recipe", recipe.name.clone()),
            ("device", device.describe()),
            ("parameters", thousands(plan.parameters)),
            ("launches per step", thousands(plan.launches)),
            ("parameter bytes", size(plan.parameter_bytes)),
            ("gradient bytes", size(plan.gradient_bytes)),
            ("optimiser bytes", format!("{} (two moments and the EMA copy)", size(plan.optimiser_bytes))),
            ("activation bytes", format!("{shared} with sharing, {separate} without")),
            ("recomputed", format!("{repeated} launches, {cost}, which saves {saved}")),
            ("in all", size(state + plan.activation_bytes_shared)),
            ("while saving", format!("{copied} more (a copy of parameters, moments and EMA)")),
            ("largest binding", format!("{}, {limit}", size(plan.largest_binding))),
        ],
    )
}
