//! `denoir runs`: every run below a folder, a line each.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::{columns, note, print};
use crate::device::size;
use crate::error::Result;
use crate::names::shown_path;
use crate::recipe::{Recipe, built_in, differences};
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
    let names: BTreeSet<&str> = recipes.iter().flatten().map(|recipe| recipe.name.as_str()).collect();
    let known = built_in().into_iter().filter(|recipe| names.contains(recipe.name.as_str()));
    let known: BTreeMap<String, _> = known.map(|recipe| (recipe.name.clone(), recipe.entries())).collect();
    let all: Vec<_> =
        recipes.iter().map(|recipe| recipe.map(|recipe| (&*recipe.name, recipe.entries()))).collect();
    let mut first: BTreeMap<&str, &Vec<(String, String)>> = BTreeMap::new();
    let mut differing: BTreeMap<&str, BTreeSet<String>> = BTreeMap::new();
    let keys = |a: &[_], b: &[_]| differences(a, b).into_iter().map(|difference| difference.key);
    for (name, entries) in all.iter().flatten() {
        let first = *first.entry(name).or_insert(entries);
        differing.entry(name).or_default().extend(keys(entries, first));
    }
    let own = |(name, entries): &(&str, Vec<(String, String)>)| -> Vec<String> {
        let changed: BTreeSet<String> =
            known.get(*name).map(|theirs| keys(entries, theirs).collect()).unwrap_or_default();
        let differs = |key: &str| differing[name].contains(key);
        // Steps have a column of their own.
        let is_own = |key: &str| key != "steps" && (differs(key) || changed.contains(key));
        let mut own: Vec<_> = entries.iter().filter(|(key, _)| is_own(key)).collect();
        own.sort_by_key(|(key, _)| !differs(key));
        own.into_iter().map(|(key, value)| format!("{key}={value}")).collect()
    };
    all.iter().map(|run| run.as_ref().map(own).unwrap_or_default()).collect()
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
