//! All runs that are watched: those that were named, and those that appear below named folders.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use serde::Serialize;

use super::feed::{Feed, Told};
use crate::cli::note;
use crate::error::{Error, Result};
use crate::run::runs_below;

/// Most runs that are watched; a page with more would be of no use.
const MOST_RUNS: usize = 24;
/// How often folders are searched for new runs, and how often runs are read at most.
const SEARCH: Duration = Duration::from_secs(5);
const PAUSE: Duration = Duration::from_millis(150);

/// What is new.
#[derive(Serialize)]
pub struct Update {
    #[serde(skip)]
    pub cursor: String,
    pub runs: Vec<Told>,
}

/// The runs that are watched.
pub struct Feeds {
    folders: Vec<PathBuf>,
    feeds: Vec<Feed>,
    /// Runs beyond the most that are watched.
    left_out: usize,
    /// Of this watching: a page may ask after the program was started again.
    epoch: u128,
    version: u64,
    searched: Instant,
    read: Option<Instant>,
}

impl Feeds {
    /// The runs of folders, which are runs or have runs below them.
    ///
    /// # Errors
    /// When one cannot be listed, or there is no run.
    pub fn open(folders: &[PathBuf]) -> Result<Feeds> {
        let epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
        let mut feeds = Feeds {
            folders: folders.to_vec(),
            feeds: Vec::new(),
            left_out: 0,
            epoch,
            version: 0,
            searched: Instant::now(),
            read: None,
        };
        for folder in folders {
            runs_below(folder)?;
        }
        feeds.search();
        if feeds.feeds.is_empty() {
            let named: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
            return Err(Error::new(format!("no run in {}", named.join(", ")))
                .hint("give a folder made by `denoir train`, or one with such folders in it"));
        }
        if feeds.left_out > 0 {
            let (all, folder) = (MOST_RUNS + feeds.left_out, folders.len());
            let of = if folder == 1 { "the folder has" } else { "the folders have" };
            note(&format!(
                "note: {of} {all} runs, of which the first {MOST_RUNS} are shown: name those to see"
            ));
        }
        Ok(feeds)
    }

    /// Takes up runs that are not watched yet.
    fn search(&mut self) {
        (self.searched, self.left_out) = (Instant::now(), 0);
        for run in self.folders.iter().filter_map(|folder| runs_below(folder).ok()).flatten() {
            let known = self.feeds.iter().any(|feed| feed.run().folder() == run.folder());
            match (known, self.feeds.len() < MOST_RUNS) {
                (true, _) => {}
                (false, true) => self.feeds.push(Feed::new(self.feeds.len(), run)),
                (false, false) => self.left_out += 1,
            }
        }
    }

    /// Reads what is new in the folders.
    fn refresh(&mut self) {
        if self.read.is_some_and(|at| at.elapsed() < PAUSE) {
            return;
        }
        if self.searched.elapsed() >= SEARCH {
            self.search();
        }
        self.read = Some(Instant::now());
        let version = self.version + 1;
        // Each of them is read: `any` would end at the first.
        if self.feeds.iter_mut().fold(false, |changed, feed| feed.refresh(version) | changed) {
            self.version = version;
        }
    }

    /// What is new since a cursor of an earlier update; everything, where there was none.
    pub fn update(&mut self, cursor: Option<&str>) -> Option<Update> {
        self.refresh();
        let known = cursor.and_then(|cursor| cursor.split_once('-'));
        let known = known.filter(|(epoch, _)| *epoch == self.epoch.to_string());
        let since = known.and_then(|(_, version)| version.parse().ok()).unwrap_or(0);
        let runs: Vec<Told> = self.feeds.iter().filter_map(|feed| feed.told(since)).collect();
        (!runs.is_empty()).then(|| Update { cursor: format!("{}-{}", self.epoch, self.version), runs })
    }

    /// Path of a picture that is shown.
    pub fn picture(&self, run: usize, name: &str) -> Option<&Path> {
        self.feeds.get(run)?.picture(name).map(|picture| picture.path.as_path())
    }
}
