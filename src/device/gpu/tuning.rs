//! The fastest variants of launches on an adapter, as timed, kept on disk: one JSON file for each adapter.
//!
//! The key of a choice is the launch's name and shape class and the text of its kernels. A file of another
//! adapter, driver or wgpu does not apply.

use std::collections::BTreeMap;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::{env, fs};

use serde::{Deserialize, Serialize};

use super::Gpu;
use crate::error::{Error, Result, one_line};
use crate::files;

/// Layout of the file.
const FORMAT: u32 = 1;

/// The key of a choice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(crate) struct Key {
    /// The launch's name: `attention backward`.
    pub launch: String,
    /// The sizes that decide: `1024 queries, 1024 keys, heads of 64, 128 pairs`.
    pub shape_class: String,
    /// Hash of the text of every kernel that its variants compile.
    pub kernels: String,
}

/// The fastest variant.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Choice {
    #[serde(flatten)]
    pub key: Key,
    pub variant: String,
    /// Milliseconds of one launch.
    pub ms: f64,
    /// The variant that runs untuned, and its milliseconds.
    pub default: String,
    pub default_ms: f64,
    /// Variants that may not be chosen.
    pub refused: Vec<Refusal>,
}

/// A variant that did not compile, or does not compute what the default does.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Refusal {
    /// Name of the variant.
    pub variant: String,
    /// The error.
    pub why: String,
}

/// Conditions of the times in a file, besides the kernels.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Stamp {
    format: u32,
    adapter: String,
    driver: String,
    wgpu: String,
    /// Kernels are compiled with the checks that naga injects.
    checked: bool,
}

/// The contents of a tuning file.
#[derive(Serialize, Deserialize)]
pub struct Contents {
    #[serde(flatten)]
    stamp: Stamp,
    choices: Vec<Choice>,
}

/// Progress of tuning.
#[derive(Clone, Copy, Debug)]
pub(crate) enum TuningEvent<'a> {
    /// Launch number `done` of `all` begins.
    Timing { done: usize, all: usize, launch: &'a str },
    /// All launches are timed.
    Done,
    /// A problem that does not stop the work.
    Warning(&'a str),
}

/// The choices of one adapter.
pub(crate) struct Tuning {
    stamp: Stamp,
    /// `None` where the system has no cache folder: choices last as long as the program.
    pub file: Option<PathBuf>,
    /// True if launches without a choice are timed.
    pub times: bool,
    choices: BTreeMap<Key, Choice>,
    on_event: Box<dyn FnMut(TuningEvent) + Send>,
}

impl Tuning {
    /// The choices in the adapter's own file, in the user's cache. `times`: launches that have none are
    /// timed, and remembered; otherwise they run as by default.
    pub(crate) fn in_cache(
        gpu: &Gpu,
        times: bool,
        on_event: impl FnMut(TuningEvent) + Send + 'static,
    ) -> Self {
        let file = cache().map(|folder| folder.join("denoir").join(Stamp::of(gpu).file_name()));
        if let Some(folder) = file.as_deref().and_then(Path::parent) {
            files::remove_leftovers(folder);
        }
        let mut tuning = Tuning::new(gpu, file, times, on_event);
        match tuning.file.as_deref().map(read) {
            Some(Ok(contents)) if contents.stamp == tuning.stamp => tuning.add(contents.choices),
            Some(Err(e)) if e.kind() != io::ErrorKind::NotFound => {
                tuning.warn(&format!("{e}; it is made anew"));
            }
            // Nothing yet, or of another driver.
            _ => {}
        }
        tuning
    }

    /// The choices in `file`, which is made where it does not exist. `times`: as in [`Tuning::in_cache`];
    /// without it the file decides everything, and stays as it is.
    pub(crate) fn in_file(
        gpu: &Gpu,
        file: &Path,
        times: bool,
        on_event: impl FnMut(TuningEvent) + Send + 'static,
    ) -> Result<Self> {
        let mut tuning = Tuning::new(gpu, Some(file.to_owned()), times, on_event);
        let damaged = |e: io::Error| {
            Error::new(format!("cannot read the tuning file {}", file.display()))
                .hint("make it with `denoir tune WORKLOAD --tuning FILE`, or leave --tuning out")
                .caused_by(e)
        };
        match read(file) {
            Ok(Contents { stamp, choices }) if stamp == tuning.stamp => tuning.add(choices),
            Ok(Contents { stamp, .. }) => {
                return Err(Error::new(format!("the tuning file {} is for {stamp}", file.display()))
                    .hint(format!("here is {}: make another file with `denoir tune`", tuning.stamp)));
            }
            Err(e) if times && e.kind() == io::ErrorKind::NotFound => {}
            Err(e) if times && e.kind() == io::ErrorKind::InvalidData => {
                tuning.warn(&format!("{e}; it is made anew"));
            }
            Err(e) => return Err(damaged(e)),
        }
        Ok(tuning)
    }

    fn new(
        gpu: &Gpu,
        file: Option<PathBuf>,
        times: bool,
        on_event: impl FnMut(TuningEvent) + Send + 'static,
    ) -> Self {
        let (stamp, choices, on_event) = (Stamp::of(gpu), BTreeMap::new(), Box::new(on_event));
        Tuning { stamp, file, times, choices, on_event }
    }

    pub(crate) fn find(&self, key: &Key) -> Option<&Choice> {
        self.choices.get(key)
    }

    /// All choices, in the order of their launches.
    pub(crate) fn choices(&self) -> impl Iterator<Item = &Choice> {
        self.choices.values()
    }

    pub(crate) fn emit(&mut self, event: TuningEvent) {
        (self.on_event)(event);
    }

    /// Adds choices, on disk too; an error of the disk is a warning.
    pub(crate) fn remember(&mut self, choices: Vec<Choice>) {
        self.add(choices);
        let Some(file) = self.file.clone() else { return };
        // Another program may have added some in the meantime.
        if let Ok(theirs) = read(&file)
            && theirs.stamp == self.stamp
        {
            for choice in theirs.choices {
                self.choices.entry(choice.key.clone()).or_insert(choice);
            }
        }
        let contents = Contents { stamp: self.stamp.clone(), choices: self.choices().cloned().collect() };
        if let Err(e) = write(&file, &contents) {
            self.warn(&format!("cannot keep the tuning in {}: {e}", file.display()));
        }
    }

    fn warn(&mut self, message: &str) {
        self.emit(TuningEvent::Warning(&format!("warning: {}", one_line(message))));
    }

    fn add(&mut self, choices: Vec<Choice>) {
        self.choices.extend(choices.into_iter().map(|choice| (choice.key.clone(), choice)));
    }
}

impl Stamp {
    fn of(gpu: &Gpu) -> Stamp {
        Stamp {
            format: FORMAT,
            adapter: gpu.name().to_owned(),
            driver: gpu.driver(),
            wgpu: wgpu_version().to_owned(),
            checked: gpu.checked,
        }
    }

    /// `nvidia-h100-vulkan.json`: a name for every adapter, and for builds with checks another.
    fn file_name(&self) -> String {
        let backend = self.driver.rsplit('(').next().unwrap_or_default();
        let text = format!("{} {backend}{}", self.adapter, if self.checked { " checked" } else { "" });
        let words = text.split(|c: char| !c.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
        words.map(str::to_lowercase).collect::<Vec<_>>().join("-") + ".json"
    }
}

impl std::fmt::Display for Stamp {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let checks = if self.checked { ", kernels with checks" } else { "" };
        write!(f, "{}, driver {}, wgpu {}{checks}", self.adapter, self.driver, self.wgpu)
    }
}

impl Contents {
    /// The contents of a file's bytes.
    ///
    /// # Errors
    /// When they are no tuning.
    pub fn parse(bytes: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(bytes)
    }
}

fn read(file: &Path) -> io::Result<Contents> {
    // Far more than the launches of a model could fill.
    const MOST_BYTES: u64 = 16 << 20;
    let named = |e: io::Error| io::Error::new(e.kind(), format!("the tuning file {}: {e}", file.display()));
    Contents::parse(&files::read(file, MOST_BYTES).map_err(named)?).map_err(|e| {
        let what = format!("the tuning file {} is damaged ({e})", file.display());
        io::Error::new(io::ErrorKind::InvalidData, what)
    })
}

fn write(file: &Path, contents: &Contents) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::create_dir_all(folder)?;
    }
    let text = serde_json::to_string_pretty(contents)? + "\n";
    files::replace(file, |out| out.write_all(text.as_bytes()))
}

/// The user's cache folder.
fn cache() -> Option<PathBuf> {
    let folder = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    folder("XDG_CACHE_HOME").or_else(|| {
        if cfg!(windows) {
            folder("LOCALAPPDATA")
        } else {
            let inside = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
            folder("HOME").map(|home| home.join(inside))
        }
    })
}

/// The version of wgpu that was built in, from the lock file: wgpu has no constant for it.
fn wgpu_version() -> &'static str {
    const LOCK: &str = include_str!(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.lock"));
    let after = LOCK.split_once("name = \"wgpu\"\nversion = \"").map_or("unknown", |(_, after)| after);
    after.split('"').next().unwrap_or(after)
}

#[cfg(test)]
mod tests;
