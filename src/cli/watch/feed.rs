//! What is shown of one run: read from its folder, and told from any point on.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant, UNIX_EPOCH};

use serde::Serialize;

use crate::cli::runs::changed;
use crate::names::{shown, shown_path};
use crate::run::{self, Evaluation, Follow, Happened, HeldOutLoss, Metrics, Run, Scalar, State};

/// Most steps that are kept of a run: of a longer one every second, every fourth, and so on.
const MOST_ROWS: usize = 20_000;
/// Most pictures of a run.
const MOST_PICTURES: usize = 2000;
/// How often the small files and the pictures of a run are looked at.
const PAUSE: Duration = Duration::from_secs(1);

/// Numbers of a step, known since a version.
struct Row {
    version: u64,
    step: u64,
    scalars: Vec<Scalar>,
}

/// A picture in the folder of a run.
#[derive(Clone, PartialEq, Eq)]
pub struct Picture {
    /// Of the file, which a request asks for.
    pub name: String,
    pub path: PathBuf,
    /// Of a grid of samples.
    step: Option<u64>,
    modified: u128,
}

/// What seldom changes.
#[derive(Clone, Default, PartialEq, Serialize)]
pub struct Head {
    name: String,
    system: &'static str,
    state: &'static str,
    steps: u64,
    images_of_a_step: u64,
    recipe: String,
    own_keys: Vec<String>,
    /// Tables for people.
    plan: Option<String>,
    profile: Option<String>,
}

/// Columns of numbers, with null where a row has none.
type Columns = BTreeMap<&'static str, Vec<Option<f32>>>;

/// Numbers of several steps.
#[derive(Serialize)]
pub struct Table {
    step: Vec<u64>,
    columns: Columns,
}

/// A picture as the page knows it.
#[derive(Serialize)]
pub struct Shown {
    pub name: String,
    pub step: Option<u64>,
    pub url: String,
    #[serde(skip)]
    pub path: PathBuf,
}

/// What is new of a run.
#[derive(Serialize)]
pub struct Told {
    id: usize,
    /// What was told before holds no more.
    anew: bool,
    /// The last step of the metrics.
    now: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<Head>,
    metrics: Table,
    evaluations: Table,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pictures: Option<Vec<Shown>>,
}

/// A run that is watched.
pub struct Feed {
    id: usize,
    run: Run,
    metrics: Follow,
    evaluations: Follow,
    rows: Vec<Row>,
    /// One of so many lines is kept.
    every: u64,
    lines: u64,
    now: u64,
    evaluated: Vec<Row>,
    head: Head,
    pictures: Vec<Picture>,
    /// Versions of the last changes.
    anew: u64,
    head_at: u64,
    pictures_at: u64,
    changed_at: u64,
    looked: Option<Instant>,
}

impl Feed {
    pub fn new(id: usize, run: Run) -> Feed {
        Feed {
            id,
            metrics: run.follow_metrics(),
            evaluations: run.follow_evaluations(),
            run,
            rows: Vec::new(),
            every: 1,
            lines: 0,
            now: 0,
            evaluated: Vec::new(),
            head: Head::default(),
            pictures: Vec::new(),
            anew: 0,
            head_at: 0,
            pictures_at: 0,
            changed_at: 0,
            looked: None,
        }
    }

    pub fn run(&self) -> &Run {
        &self.run
    }

    /// Reads what is new in the folder, and calls it `version`; whether there is anything.
    pub fn refresh(&mut self, version: u64) -> bool {
        let mut changed = self.read_metrics(version) | self.read_evaluations(version);
        if self.looked.is_none_or(|at| at.elapsed() >= PAUSE) {
            self.looked = Some(Instant::now());
            let (head, pictures) = (head(&self.run), pictures(&self.run));
            if head != self.head {
                (self.head, self.head_at, changed) = (head, version, true);
            }
            if pictures != self.pictures {
                (self.pictures, self.pictures_at, changed) = (pictures, version, true);
            }
        }
        if changed {
            self.changed_at = version;
        }
        changed
    }

    fn read_metrics(&mut self, version: u64) -> bool {
        let mut changed = false;
        let Feed { metrics, rows, every, lines, now, anew, .. } = self;
        metrics.read(|happened| {
            changed = true;
            match happened {
                Happened::Anew => {
                    rows.clear();
                    (*every, *lines, *now, *anew) = (1, 0, 0, version);
                }
                Happened::Line(line) => {
                    let Ok(of_step) = serde_json::from_slice::<Metrics>(line) else { return };
                    *now = of_step.step;
                    if lines.is_multiple_of(*every) {
                        rows.push(Row { version, step: of_step.step, scalars: of_step.scalars() });
                    }
                    *lines += 1;
                    if rows.len() > MOST_ROWS {
                        *every *= 2;
                        let mut number = 0;
                        rows.retain(|_| {
                            number += 1;
                            number % 2 == 1
                        });
                    }
                }
            }
        });
        changed
    }

    fn read_evaluations(&mut self, version: u64) -> bool {
        let mut changed = false;
        let Feed { evaluations, evaluated, anew, .. } = self;
        evaluations.read(|happened| {
            changed = true;
            match happened {
                Happened::Anew => {
                    evaluated.clear();
                    *anew = version;
                }
                Happened::Line(line) => {
                    let loss = serde_json::from_slice::<HeldOutLoss>(line).map(|e| (e.step, e.scalars()));
                    let other = || serde_json::from_slice::<Evaluation>(line).map(|e| (e.step, e.scalars()));
                    if let (Ok((step, scalars)), true) =
                        (loss.or_else(|_| other()), evaluated.len() < MOST_ROWS)
                    {
                        evaluated.push(Row { version, step, scalars });
                    }
                }
            }
        });
        changed
    }

    /// What is new since a version; everything, where what was known then holds no more.
    pub fn told(&self, since: u64) -> Option<Told> {
        if since >= self.changed_at {
            return None;
        }
        let anew = since == 0 || self.anew > since;
        let since = if anew { 0 } else { since };
        Some(Told {
            id: self.id,
            anew,
            now: self.now,
            head: (self.head_at > since).then(|| self.head.clone()),
            metrics: table(&self.rows, since),
            evaluations: table(&self.evaluated, since),
            pictures: (self.pictures_at > since)
                .then(|| self.pictures.iter().map(|p| p.shown(self.id)).collect()),
        })
    }

    /// The picture of a name, which is looked for in the list, never in the folder.
    pub fn picture(&self, name: &str) -> Option<&Picture> {
        self.pictures.iter().find(|picture| picture.name == name)
    }
}

impl Picture {
    fn shown(&self, id: usize) -> Shown {
        // Names of denoir's own pictures need no escapes.
        let url = format!("picture/{id}/{}?v={}", self.name, self.modified);
        Shown { name: self.name.clone(), step: self.step, url, path: self.path.clone() }
    }
}

fn table(rows: &[Row], since: u64) -> Table {
    let rows = &rows[rows.partition_point(|row| row.version <= since)..];
    let mut columns = Columns::new();
    for (place, row) in rows.iter().enumerate() {
        for &(name, number) in &row.scalars {
            let column = columns.entry(name).or_insert_with(|| vec![None; rows.len()]);
            column[place] = Some(number).filter(|number| number.is_finite());
        }
    }
    Table { step: rows.iter().map(|row| row.step).collect(), columns }
}

fn head(run: &Run) -> Head {
    let name = shown_path(run.folder());
    let recipe = run.recipe().ok();
    let state = State::of(run, recipe.as_ref()).0.name();
    let Some(recipe) = recipe else { return Head { name, state, ..Head::default() } };
    Head {
        name,
        state,
        system: recipe.system.name(),
        steps: recipe.steps,
        images_of_a_step: recipe.images_of_a_step(),
        recipe: recipe.to_toml(),
        own_keys: changed(&[Some(&recipe)]).pop().unwrap_or_default(),
        plan: run.table(run::Table::Plan),
        profile: run.table(run::Table::Profile),
    }
}

/// The grids in the order of their steps, and the strips of a run.
fn pictures(run: &Run) -> Vec<Picture> {
    let is_plain = |name: &str| name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b));
    let mut all = Vec::new();
    for (folder, grids) in [(run.folder().join("samples"), true), (run.folder().to_owned(), false)] {
        for entry in fs::read_dir(&folder).into_iter().flatten().flatten() {
            let (name, path) = (shown(&entry.file_name()), entry.path());
            let Some(stem) =
                name.strip_suffix(".png").filter(|stem| !stem.starts_with('.') && is_plain(stem))
            else {
                continue;
            };
            let step = stem.strip_prefix("step-").and_then(|step| step.parse::<u64>().ok());
            let Some(what) = entry.metadata().ok().filter(|what| what.is_file()) else { continue };
            let modified = what.modified().ok().and_then(|at| at.duration_since(UNIX_EPOCH).ok());
            let modified = modified.unwrap_or_default().as_millis();
            if step.is_some() == grids && all.len() < MOST_PICTURES {
                all.push(Picture { name, path, step, modified });
            }
        }
    }
    all.sort_by(|a, b| (a.step, &a.name).cmp(&(b.step, &b.name)));
    all
}
