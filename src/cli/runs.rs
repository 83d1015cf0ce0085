//! `denoir runs`: every run below a folder, a line each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{columns, note, print};
use crate::device::size;
use crate::error::Result;
use crate::names::shown_path;
use crate::recipe::{Recipe, built_in};
use crate::run::{Best, Run, State, Summary, runs_below};

#[derive(clap::Args)]
pub struct Arguments {
    /// Folder in which, and below which, runs are looked for
    #[arg(default_value = "runs")]
    folder: PathBuf,
}

/// Keys of a recipe that are named; `denoir diff` names all.
const MOST_KEYS: usize = 4;

pub fn run(arguments: &Arguments) -> Result<()> {
    let runs = runs_below(&arguments.folder)?;
    if runs.is_empty() {
        return print(&format!("no run in {}\n", shown_path(&arguments.folder)));
    }
    let all: Vec<Summary> = runs.iter().map(Summary::of).collect();
    let changed = changed(&all.iter().map(|run| run.recipe.as_ref()).collect::<Vec<_>>());
    let head = ["run", "recipe", "system", "steps", "loss", "held out", "size", "state", "its own keys"];
    let rows = all.iter().zip(changed).map(|(run, changed)| {
        let mut shown: Vec<String> = changed.iter().take(MOST_KEYS).cloned().collect();
        let more = changed.len().saturating_sub(MOST_KEYS);
        shown.extend((more > 0).then(|| format!("and {more} more")));
        let of = |of: &dyn Fn(&Recipe) -> String| run.recipe.as_ref().map_or("-".to_owned(), of);
        vec![
            shown_path(&run.folder),
            of(&|recipe| recipe.name.clone()),
            of(&|recipe| recipe.system.name().to_owned()),
            steps(run),
            loss(run),
            best(run),
            size(run.bytes),
            state(run),
            shown.join(", "),
        ]
    });
    let rows = std::iter::once(head.map(str::to_owned).to_vec()).chain(rows);
    print(&columns(&rows.collect::<Vec<_>>()))?;
    for run in &all {
        if let Some(trouble) = &run.trouble {
            note(&format!("{} is damaged: {trouble}", shown_path(&run.folder)));
        }
    }
    Ok(())
}

/// For each run, the keys whose values are not those of the built-in recipe of its name, and the keys that
/// the runs of its name have different values of; these first.
pub(super) fn changed(recipes: &[Option<&Recipe>]) -> Vec<Vec<String>> {
    let known: BTreeMap<String, Recipe> = built_in().into_iter().map(|r| (r.name.clone(), r)).collect();
    let mut first: BTreeMap<&str, &Recipe> = BTreeMap::new();
    let mut differing: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    for &recipe in recipes.iter().flatten() {
        let first = *first.entry(&recipe.name).or_insert(recipe);
        let keys = recipe.differences(first).into_iter().map(|difference| difference.key);
        differing.entry(&recipe.name).or_default().extend(keys);
    }
    let own = |recipe: &Recipe| -> Vec<String> {
        let differs = |key: &str| differing[&*recipe.name].contains(key);
        let changed = known.get(&recipe.name).map(|theirs| recipe.differences(theirs)).unwrap_or_default();
        let is_changed = |key: &str| changed.iter().any(|difference| difference.key == key);
        // Steps have a column of their own.
        let own = |key: &str| key != "steps" && (differs(key) || is_changed(key));
        let mut all: Vec<_> = recipe.entries().into_iter().filter(|(key, _)| own(key)).collect();
        all.sort_by_key(|(key, _)| !differs(key));
        all.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
    };
    recipes.iter().map(|recipe| recipe.map(own).unwrap_or_default()).collect()
}

pub(super) fn steps(run: &Summary) -> String {
    match &run.recipe {
        Some(recipe) => format!("{}/{}", run.step(), recipe.steps),
        None => run.step().to_string(),
    }
}

pub(super) fn loss(run: &Summary) -> String {
    run.last.as_ref().map_or("-".to_owned(), |last| format!("{:.4}", last.loss))
}

pub(super) fn best(run: &Summary) -> String {
    match run.best {
        Some(Best::Loss(loss, step)) => format!("{loss:.4} at {step}"),
        Some(Best::Psnr(psnr, step)) => format!("{psnr:.2} dB at {step}"),
        None => "-".to_owned(),
    }
}

/// The state, and where a stopped run would go on.
pub(super) fn state(run: &Summary) -> String {
    match (run.state, run.saved) {
        (State::Stopped, Some(step)) if step != run.step() => format!("stopped, saved {step}"),
        (State::Stopped, None) if run.step() > 0 => "stopped, saved 0".to_owned(),
        (state, _) => state.name().to_owned(),
    }
}

/// A run as an argument, with its summary.
pub(super) fn summary(folder: &Path) -> Result<Summary> {
    Run::open(folder).map(|run| Summary::of(&run))
}
