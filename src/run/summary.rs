//! A run at a glance, from its small files alone: how far it is, how good, and in which state.

use std::fs;
use std::path::{Path, PathBuf};

use super::{EVALUATIONS, METRICS, Metrics, RECIPE, Run, log};
use crate::checkpoint::check_head;
use crate::error::{Error, Result};
use crate::recipe::Recipe;

/// What a run does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    /// A program trains into it.
    Running,
    /// It can be resumed.
    Stopped,
    /// All its steps are done.
    Finished,
    /// Its recipe or its newest checkpoint cannot be read.
    Damaged,
}

impl State {
    /// Of a run with this recipe, if it can be read; steps of its newest checkpoint, and what is wrong.
    pub fn of(run: &Run, recipe: Option<&Recipe>) -> (State, Option<u64>, Option<String>) {
        let newest = run.checkpoints().map(|mut all| all.pop());
        let saved = newest.and_then(|newest| newest.map(|(_, path)| check_head(&path)).transpose());
        let (saved, trouble) = match saved {
            Ok(saved) => (saved, None),
            Err(error) => (None, Some(error.to_string())),
        };
        let is_done = |recipe: &Recipe| saved.is_some_and(|step| step >= recipe.steps);
        let state = match (&trouble, recipe) {
            _ if run.is_running() => State::Running,
            (Some(_), _) | (None, None) => State::Damaged,
            (None, Some(recipe)) if is_done(recipe) => State::Finished,
            _ => State::Stopped,
        };
        (state, saved, trouble)
    }

    pub fn name(self) -> &'static str {
        match self {
            State::Running => "running",
            State::Stopped => "stopped",
            State::Finished => "finished",
            State::Damaged => "damaged",
        }
    }
}

/// The best value on held-out images (or on training images, where there are no others).
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) enum Best {
    /// Lowest loss of a diffusion model, and after how many steps.
    Loss(f64, u64),
    /// Highest PSNR of a VAE in dB, and after how many steps.
    Psnr(f64, u64),
}

/// A run at a glance.
#[derive(Clone, Debug)]
pub(crate) struct Summary {
    pub folder: PathBuf,
    /// `None` where it cannot be read.
    pub recipe: Option<Recipe>,
    pub state: State,
    /// Why it is damaged.
    pub trouble: Option<String>,
    /// The last line of the metrics.
    pub last: Option<Metrics>,
    /// Steps of the newest checkpoint.
    pub saved: Option<u64>,
    pub best: Option<Best>,
    /// Of all files.
    pub bytes: u64,
}

impl Summary {
    /// Of a run, whatever its files hold.
    pub fn of(run: &Run) -> Summary {
        let (recipe, unreadable) = match run.recipe() {
            Ok(recipe) => (Some(recipe), None),
            Err(error) => (None, Some(error.to_string())),
        };
        let (state, saved, cut) = State::of(run, recipe.as_ref());
        let trouble = unreadable.or(cut);
        Summary {
            folder: run.folder().to_owned(),
            recipe,
            state,
            trouble: trouble.filter(|_| state == State::Damaged),
            last: log::last(&run.folder().join(METRICS)),
            saved,
            best: best(run),
            bytes: size(run.folder(), DEEPEST),
        }
    }

    /// Steps done: of the metrics, else of the newest checkpoint.
    pub fn step(&self) -> u64 {
        self.last.as_ref().map(|last| last.step).or(self.saved).unwrap_or(0)
    }
}

fn best(run: &Run) -> Option<Best> {
    let path = run.folder().join(EVALUATIONS);
    let losses = log::lines::<super::HeldOutLoss>(&path).unwrap_or_default();
    let losses = losses.iter().map(|e| (e.held_out_loss, e.step));
    let psnr = log::lines::<super::Evaluation>(&path).unwrap_or_default();
    let psnr = psnr.iter().map(|e| (e.psnr, e.step));
    let lowest = losses.min_by(|a, b| a.0.total_cmp(&b.0)).map(|(loss, step)| Best::Loss(loss, step));
    lowest.or_else(|| psnr.max_by(|a, b| a.0.total_cmp(&b.0)).map(|(psnr, step)| Best::Psnr(psnr, step)))
}

/// Folders below one that are looked into: links could lead in circles, and are not followed.
const DEEPEST: usize = 8;

/// Bytes of the files of a folder.
fn size(folder: &Path, deepest: usize) -> u64 {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let of = |entry: fs::DirEntry| match entry.metadata() {
        Ok(what) if what.is_dir() && deepest > 0 => size(&entry.path(), deepest - 1),
        Ok(what) if what.is_file() => what.len(),
        _ => 0,
    };
    entries.map(of).sum()
}

/// The runs in a folder and below it, by name; a folder that is one itself.
///
/// # Errors
/// When the folder cannot be listed.
pub(crate) fn runs_below(folder: &Path) -> Result<Vec<Run>> {
    fs::read_dir(folder).map_err(|e| {
        Error::new(format!("folder {} cannot be listed", folder.display()))
            .hint("give a folder with runs in it, such as the one that `denoir train --out` named")
            .caused_by(e)
    })?;
    let mut found = Vec::new();
    collect(folder, DEEPEST, &mut found);
    found.sort();
    Ok(found.into_iter().map(|folder| Run { folder }).collect())
}

fn collect(folder: &Path, deepest: usize, found: &mut Vec<PathBuf>) {
    if folder.join(RECIPE).is_file() {
        found.push(folder.to_owned());
    } else if deepest > 0 {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                collect(&entry.path(), deepest - 1, found);
            }
        }
    }
}
