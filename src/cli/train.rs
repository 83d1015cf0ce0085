//! `denoir train`

mod plan;
mod terminal;

use std::cell::Cell;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::{Duration, Instant};

use self::plan::{describe, describe_pictures};
use super::device_args::DeviceArgs;
use super::opening::FileArgs;
use super::settings::Settings;
use super::signals::Stop;
use super::watch::Place;
use super::{bar, count, note, print, thousands};
use crate::codec::Codec;
use crate::data;
use crate::device::Device;
use crate::diffusers::Unsaid;
use crate::error::{Error, Result, need, quoted};
use crate::group;
use crate::names::path_of;
use crate::recipe::{self, Recipe, System};
use crate::run::{Run, Table};
use crate::train::{DryRun, Ended, Member, Ranks, Resume, Session, codec_of_base, ranks_of, shared_by};
use terminal::Terminal;

#[derive(clap::Args)]
pub struct Arguments {
    /// A recipe's name or a TOML file [default: digits-classes]
    recipe: Option<String>,
    /// Folder of the run [default: the first free of runs/RECIPE, runs/RECIPE-2, ...]
    #[arg(long)]
    out: Option<PathBuf>,
    #[command(flatten)]
    device: DeviceArgs,
    #[command(flatten)]
    settings: Settings,
    /// The trained VAE of latent diffusion: its run, or one of its checkpoints
    #[arg(long, value_name = "RUN", conflicts_with = "resume")]
    vae: Option<PathBuf>,
    /// A model of texts to train on, or to train adapters of, or a word for: a folder of a
    /// StableDiffusionPipeline, or one file of Stable Diffusion
    #[arg(long, value_name = "MODEL", conflicts_with_all = ["resume", "vae"])]
    base: Option<PathBuf>,
    #[command(flatten)]
    file: FileArgs,
    /// Go on with this run
    #[arg(long, value_name = "DIR", conflicts_with_all = ["recipe", "out"])]
    resume: Option<PathBuf>,
    /// Go on though the data is not what the run was trained on so far
    #[arg(long)]
    data_changed: bool,
    /// Keep the learning rate of the last step, whatever the schedule makes of more --steps
    #[arg(long)]
    hold_lr: bool,
    /// Serve a live page of the training, as `denoir watch` does [default: 127.0.0.1:6174, or another free
    /// port]
    #[arg(long, value_name = "ADDR:PORT", num_args = 0..=1, require_equals = true)]
    watch: Option<Option<SocketAddr>>,
    /// Share the training with the other processes that `mpirun -n N denoir train ...` starts; needs Open MPI
    /// or MPICH. The key `shards` says how many can share a batch
    #[arg(long, value_name = "HOW", conflicts_with = "dry_run")]
    distributed: Option<Distributed>,
    /// Print the plan of a step (launches, memory) and what the pictures will cost, and stop
    #[arg(long)]
    dry_run: bool,
}

/// What carries the messages of processes that train together.
#[derive(Clone, Copy, clap::ValueEnum)]
enum Distributed {
    /// MPI, loaded from the system
    Mpi,
}

/// Exit status: that of success, or of the signal that stopped the training.
pub fn run(arguments: &Arguments) -> Result<ExitCode> {
    let Some(Distributed::Mpi) = arguments.distributed else { return run_in(arguments, None) };
    let group = group::open_mpi()?;
    let stop = Stop::listen(group.rank() == 0)?;
    let ranks = Rc::new(Ranks::new(group, waits(stop.clone())));
    let done = run_in(arguments, Some((&ranks, stop.clone())));
    let done =
        if ranks.have_failed() { done } else { ranks.agree(done, |_| Vec::new()).map(|(done, _)| done) };
    // The end of one rank makes mpirun end the others, while the group is ended: the words come before.
    stop.end();
    let status = done.unwrap_or_else(|error| {
        if ranks.leads() {
            note(&error.report());
        }
        ExitCode::from(error.exit_code())
    });
    ranks.end();
    Ok(status)
}

/// What a rank does while it waits. When one dies, mpirun asks the others to end, and kills them a second
/// later: there is time for a line. Those who were asked by somebody else go on waiting.
fn waits(stop: Stop) -> impl Fn(Duration) -> Result<()> {
    const LONG: Duration = Duration::from_millis(600);
    const SAID: &str = "warning: asked to end, and another rank does not answer; if it has died, the run \
                        goes on from its last checkpoint with --resume";
    let asked = Cell::new(None::<Instant>);
    move |waited| {
        if stop.is_end() {
            let since = asked.get().unwrap_or_else(Instant::now);
            asked.set(Some(since));
            if waited > LONG && since.elapsed() > LONG && stop.says() {
                note(SAID);
            }
        }
        Ok(())
    }
}

fn run_in(arguments: &Arguments, together: Option<(&Rc<Ranks>, Stop)>) -> Result<ExitCode> {
    let started = Instant::now();
    let wanted = Resume { data_changed: arguments.data_changed, hold_lr: arguments.hold_lr };
    if arguments.resume.is_none() && wanted != Resume::default() {
        return Err(Error::usage("--data-changed and --hold-lr are for a run that goes on")
            .hint("name it with --resume, or leave them out"));
    }
    if arguments.base.is_none() && arguments.file.unsaid() != Unsaid::default() {
        return Err(Error::usage("--tokenizer and --prediction are for a file that --base names")
            .hint("give --base too, or leave them out; what a run predicts is --set prediction_type=..."));
    }
    let mut recipe = match &arguments.resume {
        Some(folder) => Run::open(folder)?.recipe()?,
        None => recipe::find(arguments.recipe.as_deref().unwrap_or("digits-classes"))?,
    };
    arguments.settings.change(&mut recipe)?;
    recipe.precision = arguments.device.precision().unwrap_or(recipe.precision);
    recipe.check_trainable()?;
    let ranks = together.as_ref().map(|(ranks, _)| *ranks);
    if let Some(ranks) = ranks {
        share(&mut recipe, ranks)?;
    }
    let device = arguments.device.open_in(recipe.precision)?;
    if arguments.dry_run {
        return dry_run(arguments, &recipe, &device);
    }
    let leads = ranks.is_none_or(|ranks| ranks.leads());
    let place = arguments.watch.filter(|_| leads).map(Place::bind).transpose()?;
    let progress = bar(1, "encoding images {bar:30} {pos}/{len} {eta} left");
    let mut noted = None;
    let mut encoded = |done, all| {
        if leads {
            count(&progress, &mut noted, "encoding images", done, all);
        }
    };
    let opened = match &arguments.resume {
        Some(folder) => Session::resume(Run::open(folder)?, &device, recipe, wanted, ranks, &mut encoded),
        None => {
            let (out, vae) = (arguments.out.as_deref(), arguments.vae.as_deref());
            let unsaid = arguments.file.unsaid();
            let base = arguments.base.as_deref().map(|base| (base, &unsaid));
            Session::start(recipe, &device, out, vae, base, ranks, &mut encoded)
        }
    };
    progress.finish_and_clear();
    let stop = together.map(|(_, stop)| stop);
    let mut session = match opened? {
        Member::Leader(session) => session,
        Member::Follower(mut follower) => {
            let stop = stop.unwrap_or_else(|| unreachable!("a rank of several listens"));
            return follower.train(|| stop.is_wanted()).map(|_| ExitCode::SUCCESS);
        }
    };
    if let Some(place) = place {
        note(&format!("watch it at {}", place.url()));
        place.serve_beside(session.run.folder().to_owned())?;
    }
    train(&mut session, &device, stop, started)
}

/// Cuts a batch into as many shards as there are ranks, if the recipe says nothing of shards.
fn share(recipe: &mut Recipe, ranks: &Ranks) -> Result<()> {
    let size = ranks.size();
    if recipe.shards == 1 && size > 1 {
        recipe.shards = size;
        let (batch, hint) = (recipe.batch_size, "start a number of processes that divides batch_size");
        need(batch.is_multiple_of(size), format!("{size} ranks do not divide a batch of {batch}"), hint)?;
        recipe.validate()?;
        if ranks.leads() {
            note(&format!("note: shards = {size}, one for each rank; {}", shared_by(size)));
        }
    }
    let hint = format!("{}; set shards to {size}, or start another number", shared_by(recipe.shards));
    need(
        ranks_of(recipe.shards).contains(&size),
        format!("{size} ranks with shards = {}", recipe.shards),
        hint,
    )
}

fn dry_run(arguments: &Arguments, recipe: &Recipe, device: &Device) -> Result<ExitCode> {
    let mut recipe = recipe.clone();
    if recipe.system == System::Classifier && recipe.classifier.classes == 0 {
        let data = data::open(&recipe.data, &recipe.pictures(recipe.image_channels()))?;
        recipe.classifier.classes = data.classes().len();
        let hint = "a classifier tells two or more apart: choose other data";
        need(recipe.classifier.classes > 1, "the data has no classes", hint)?;
    }
    let of_base = match (&arguments.base, &arguments.resume) {
        (Some(base), _) => Some(codec_of_base(base, &arguments.file.unsaid(), &mut recipe, device)?),
        (None, Some(folder)) if recipe.is_laid_over() => {
            let (base, tokenizer) = (path_of(&recipe.base), Run::open(folder)?.tokenizer_path());
            let unsaid = Unsaid::kept(&base, tokenizer, recipe.prediction_type);
            Some(codec_of_base(&base, &unsaid, &mut recipe, device)?)
        }
        _ => None,
    };
    let recipe = &recipe;
    let codec = match (recipe.system, &arguments.vae, &arguments.resume) {
        _ if of_base.is_some() => of_base,
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

fn train(session: &mut Session, device: &Device, stop: Option<Stop>, started: Instant) -> Result<ExitCode> {
    let (recipe, folder) = (session.recipe.clone(), session.run.folder().display().to_string());
    let parameters = session.trainer().params().borrow().count();
    let first = session.trainer().done();
    let (name, on) = (&recipe.name, device.describe());
    note(&format!("{name} on {on}: {} parameters, into {folder}", thousands(parameters)));
    if let Some(remark) = recipe.remark() {
        note(&format!("note: {remark}"));
    }
    let codec = session.codec().filter(|_| recipe.system == System::Ldm);
    let plan = DryRun::new(&recipe, device, codec);
    if let Err(error) = session.run.write_table(Table::Plan, &describe(&plan, &recipe, device)) {
        note(&format!("warning: {error}"));
    }
    if let Some(cost) = session.picture_cost()? {
        let hint =
            if cost.steps < cost.of_steps as f64 { "" } else { "; --sample-every never leaves them out" };
        note(&format!("pictures: {}{hint}", describe_pictures(&cost, &recipe, Some(cost.of_steps))));
    }
    let stop = stop.map_or_else(|| Stop::listen(true), Ok)?;
    let mut terminal = Terminal::new(first, &recipe, stop);
    let ended = session.train(&mut terminal);
    terminal.bar.finish_and_clear();
    let ended = ended?;
    note(&session.times().describe(started));
    let skipped = session.times().skipped;
    if skipped > 0 {
        note(&format!(
            "warning: {skipped} of these steps changed nothing, until the scale of the loss fitted its \
             gradients"
        ));
    }
    match ended {
        Ended::Done => {
            let plural = if recipe.steps == 1 { "step" } else { "steps" };
            let (steps, name) = (format!("{} {plural}", thousands(recipe.steps as usize)), &recipe.name);
            let next = match recipe.system {
                System::Vae => "figure grid",
                System::Classifier => "figure loss",
                System::Ddpm | System::Ldm => "sample",
            };
            let run = quoted(session.run.folder());
            print(&format!("{name} is trained for {steps} in {run}; next: denoir {next} {run}\n"))?;
            Ok(ExitCode::SUCCESS)
        }
        Ended::Interrupted(step) => {
            let run = quoted(session.run.folder());
            print(&format!("stopped after step {step}; go on with: denoir train --resume {run}\n"))?;
            Ok(ExitCode::from(terminal.stop.status()))
        }
    }
}
