//! A run folder: the resolved recipe, the metrics, the checkpoints and the pictures.

mod follow;
mod lock;
mod log;
mod record;
mod scalars;
mod summary;
mod tensorboard;

use std::fs;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;

use crate::checkpoint::{self, Loaded, write_whole};
use crate::error::{Error, Result, quoted};
use crate::files;
use crate::recipe::{self, Recipe};

pub(crate) use follow::{Follow, Happened};
pub(crate) use log::Log;
pub use log::{Evaluation, HeldOutLoss, Metrics};
pub(crate) use record::{Batches, DataRecord, Record, going_on, seen};
pub(crate) use scalars::Scalar;
pub(crate) use summary::{Best, State, Summary, runs_below};
pub(crate) use tensorboard::Board;

/// Makes the first free one of `runs/<name>`, `runs/<name>-2`, ..., so that no other program takes it.
fn claim(name: &str) -> Result<PathBuf> {
    let denied =
        |e| Error::new("cannot make a folder in runs").hint("choose another place with --out").caused_by(e);
    fs::create_dir_all("runs").map_err(denied)?;
    let mut number = 1;
    loop {
        let folder =
            Path::new("runs").join(if number == 1 { name.to_owned() } else { format!("{name}-{number}") });
        match fs::create_dir(&folder) {
            Ok(()) => return Ok(folder),
            Err(e) if e.kind() == ErrorKind::AlreadyExists => number += 1,
            Err(e) => return Err(denied(e)),
        }
    }
}

/// The folder of a run.
#[derive(Clone)]
pub struct Run {
    folder: PathBuf,
}

const RECIPE: &str = "recipe.toml";
const RECORD: &str = "data.toml";
const METRICS: &str = "metrics.jsonl";
const EVALUATIONS: &str = "evaluations.jsonl";

/// Tables that a run keeps for people to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Table {
    /// Launches and memory of a step, as `denoir train --dry-run` prints them.
    Plan,
    /// Where the time of a step goes, as `denoir profile` printed it.
    Profile,
}

impl Table {
    fn file(self) -> &'static str {
        match self {
            Table::Plan => "plan.txt",
            Table::Profile => "profile.txt",
        }
    }
}

impl Run {
    /// An error if [`Run::create`] would fail because the folder holds a run.
    pub(crate) fn check_free(wanted: Option<&Path>) -> Result<()> {
        match wanted.filter(|folder| folder.join(RECIPE).exists()) {
            Some(folder) => {
                let shown = folder.display();
                Err(Error::new(format!("{shown} holds a run already")).hint(format!(
                    "go on with `denoir train --resume {}`, or choose another --out",
                    quoted(folder)
                )))
            }
            None => Ok(()),
        }
    }

    /// Makes the folder of a new run, which becomes one when `Run::write_recipe` is called. `wanted`:
    /// where; else the first free of `runs/<name>`, `runs/<name>-2`, ...
    pub(crate) fn create(wanted: Option<&Path>, recipe: &Recipe) -> Result<Run> {
        let folder = match wanted {
            Some(folder) => folder.to_owned(),
            None => claim(&recipe.name)?,
        };
        Run::check_free(Some(&folder))?;
        let run = Run { folder };
        run.make_folders()?;
        Ok(run)
    }

    /// Makes the folders inside, where they are missing.
    pub(crate) fn make_folders(&self) -> Result<()> {
        for part in ["checkpoints", "samples"] {
            fs::create_dir_all(self.folder.join(part)).map_err(|e| {
                Error::new(format!("cannot write into the folder {}", self.folder.display()))
                    .hint("choose another place with --out")
                    .caused_by(e)
            })?;
        }
        Ok(())
    }

    /// Opens the folder of a run.
    ///
    /// # Errors
    /// When it is none.
    pub fn open(folder: &Path) -> Result<Run> {
        if !folder.join(RECIPE).is_file() {
            let what = if folder.exists() { "is not a run" } else { "does not exist" };
            return Err(Error::new(format!("{} {what}", folder.display()))
                .hint("give a folder made by `denoir train`, such as runs/digits"));
        }
        Ok(Run { folder: folder.to_owned() })
    }

    /// The run that a checkpoint lies in.
    pub(crate) fn of_checkpoint(path: &Path) -> Option<Run> {
        let folder = path.canonicalize().ok()?.parent()?.parent()?.to_owned();
        folder.join(RECIPE).is_file().then_some(Run { folder })
    }

    /// Path of the folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The recipe of the folder.
    ///
    /// # Errors
    /// When the file is not a recipe.
    pub fn recipe(&self) -> Result<Recipe> {
        let path = self.folder.join(RECIPE);
        let text = files::read_text(&path, recipe::MOST_BYTES)
            .map_err(|e| Error::new(format!("cannot read {}", path.display())).caused_by(e))?;
        recipe::parse(&text, &path.display().to_string()).map_err(Error::in_a_file)
    }

    /// Writes the recipe: of a new run, or anew, after a resumed run changed it.
    pub(crate) fn write_recipe(&self, recipe: &Recipe) -> Result<()> {
        write_whole(&self.folder.join(RECIPE), |file| file.write_all(recipe.to_toml().as_bytes()))
    }

    pub(crate) fn write_table(&self, table: Table, text: &str) -> Result<()> {
        write_whole(&self.folder.join(table.file()), |file| file.write_all(text.as_bytes()))
    }

    /// A table, if the run has it.
    pub(crate) fn table(&self, table: Table) -> Option<String> {
        const MOST: u64 = 1 << 20;
        let bytes = files::read(&self.folder.join(table.file()), MOST).ok()?;
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Path of the checkpoint after `step` steps.
    pub(crate) fn checkpoint_path(&self, step: u64) -> PathBuf {
        self.folder.join("checkpoints").join(format!("step-{step:08}.safetensors"))
    }

    /// Where a latent diffusion run keeps its VAE.
    pub(crate) fn vae_path(&self) -> PathBuf {
        self.folder.join("vae.safetensors")
    }

    /// Where a run of a model that sees texts keeps its tokenizer.
    pub(crate) fn tokenizer_path(&self) -> PathBuf {
        self.folder.join("tokenizer")
    }

    /// Where a run keeps a text encoder that it does not train, as a folder of its library.
    pub(crate) fn text_encoder_path(&self) -> PathBuf {
        self.folder.join("text_encoder")
    }

    /// Where a latent diffusion run keeps what it encoded.
    pub(crate) fn latents_path(&self) -> PathBuf {
        self.folder.join("latents.safetensors")
    }

    /// The checkpoints' steps and paths, oldest first.
    ///
    /// # Errors
    /// When their folder is there and cannot be listed.
    pub fn checkpoints(&self) -> Result<Vec<(u64, PathBuf)>> {
        let folder = self.folder.join("checkpoints");
        let unreadable = |e| {
            Error::new(format!("folder {} cannot be listed", folder.display()))
                .hint("check its permissions")
                .caused_by(e)
        };
        let mut found = Vec::new();
        match fs::read_dir(&folder) {
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            entries => {
                for entry in entries.map_err(unreadable)? {
                    let path = entry.map_err(unreadable)?.path();
                    found.extend(checkpoint::step_of(&path).map(|step| (step, path)));
                }
            }
        }
        found.sort();
        Ok(found)
    }

    /// Loads the newest checkpoint.
    pub(crate) fn newest(&self) -> Result<Loaded> {
        match self.checkpoints()?.last() {
            Some((_, path)) => checkpoint::load(path),
            None => Err(Error::new(format!("{} holds no checkpoint yet", self.folder.display()))
                .hint(format!("begin it again with `denoir train --resume {}`", quoted(&self.folder)))),
        }
    }

    /// The checkpoint that a path means, the newest of a run or itself, and the run that it lies in.
    pub(crate) fn checkpoint_of(path: &Path) -> Result<(Loaded, Option<Run>)> {
        if path.is_file() {
            return Ok((checkpoint::load(path)?, Run::of_checkpoint(path)));
        }
        let run = Run::open(path)?;
        Ok((run.newest()?, Some(run)))
    }

    /// Deletes all but the newest `keep` checkpoints.
    ///
    /// # Errors
    /// When one cannot be deleted; all others are.
    pub(crate) fn prune(&self, keep: usize) -> Result<()> {
        let all = self.checkpoints()?;
        let old = &all[..all.len().saturating_sub(keep)];
        let mut done = Ok(());
        for (_, path) in old {
            match fs::remove_file(path) {
                Err(e) if e.kind() != ErrorKind::NotFound => {
                    done = Err(Error::new(format!("cannot delete {}", path.display()))
                        .hint("delete it by hand")
                        .caused_by(e));
                }
                _ => {}
            }
        }
        done
    }

    /// What the run has recorded of its data; a run of denoir 0.1.0, or one that ended at once, has not.
    pub(crate) fn record(&self) -> Result<Option<Record>> {
        Record::read(&self.folder.join(RECORD))
    }

    /// Records what the run is trained on.
    pub(crate) fn write_record(&self, record: &Record) -> Result<()> {
        record.write(&self.folder.join(RECORD))
    }

    /// Begins a file for TensorBoard, of a session after `done` steps.
    pub(crate) fn board(&self, done: u64, recipe: &Recipe) -> Result<Board> {
        Board::create(&self.folder, done, &recipe.to_toml())
    }

    /// Opens the metrics for further lines.
    pub(crate) fn log(&self) -> Result<Log> {
        Log::open(self.folder.join(METRICS))
    }

    /// Appends to the evaluations.
    pub(crate) fn log_evaluation(&self, line: &impl Serialize) -> Result<()> {
        Log::open(self.folder.join(EVALUATIONS))?.line(line)
    }

    /// The metrics, as far as they can be read: a crash may have cut the last line.
    ///
    /// # Errors
    /// When the file is there and cannot be read.
    pub fn metrics(&self) -> Result<Vec<Metrics>> {
        log::lines(&self.folder.join(METRICS))
    }

    /// The held-out losses of a diffusion model, as far as they can be read.
    ///
    /// # Errors
    /// As [`Run::metrics`].
    pub fn held_out_losses(&self) -> Result<Vec<HeldOutLoss>> {
        log::lines(&self.folder.join(EVALUATIONS))
    }

    /// The evaluations of a VAE, as far as they can be read.
    ///
    /// # Errors
    /// As [`Run::metrics`].
    pub fn evaluations(&self) -> Result<Vec<Evaluation>> {
        log::lines(&self.folder.join(EVALUATIONS))
    }

    /// The metrics, line by line while they are written.
    pub(crate) fn follow_metrics(&self) -> Follow {
        Follow::new(self.folder.join(METRICS))
    }

    /// The evaluations, line by line while they are written.
    pub(crate) fn follow_evaluations(&self) -> Follow {
        Follow::new(self.folder.join(EVALUATIONS))
    }

    /// Drops the metrics and evaluations after `step`, which a resumed run writes anew.
    ///
    /// # Errors
    /// When they cannot be read, or the folder cannot be written.
    pub fn truncate_metrics(&self, step: u64) -> Result<()> {
        [METRICS, EVALUATIONS].iter().try_for_each(|file| log::truncate(&self.folder.join(file), step))
    }

    /// Saves a picture in the run folder.
    pub(crate) fn picture(&self, name: &str, picture: &image::RgbImage) -> Result<PathBuf> {
        let path = self.folder.join(name);
        save_png(&path, picture)?;
        Ok(path)
    }
}

/// Saves a picture (an `RgbImage`, a `GrayImage`) as PNG, whole or not at all.
///
/// # Errors
/// When the folder cannot be written.
pub fn save_png(path: &Path, picture: &(impl Clone + Into<image::DynamicImage>)) -> Result<()> {
    let picture: image::DynamicImage = picture.clone().into();
    let mut bytes = std::io::Cursor::new(Vec::new());
    picture
        .write_to(&mut bytes, image::ImageFormat::Png)
        .map_err(|e| Error::new(format!("cannot encode {}", path.display())).caused_by(e))?;
    write_whole(path, |file| file.write_all(bytes.get_ref()))
}
