//! A run folder: the resolved recipe, the metrics, the checkpoints and the pictures.

use std::fs::{self, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkpoint::{self, Loaded, cannot_write, write_whole};
use crate::error::{Error, Result, quoted};
use crate::files::{self, remove_leftovers};
use crate::recipe::{self, Recipe};

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
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => number += 1,
            Err(e) => return Err(denied(e)),
        }
    }
}

/// One line of `metrics.jsonl`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Metrics {
    /// Steps done, this one included.
    pub step: u64,
    /// Mean over the batch.
    pub loss: f32,
    /// Of a VAE: the reconstruction term of the loss.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reconstruction: Option<f32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    /// Of a VAE: the divergence, before its weight.
    pub kl: Option<f32>,
    /// Norm of the gradient before clipping.
    pub grad_norm: f32,
    /// Learning rate.
    pub lr: f64,
    /// Throughput since the last line.
    pub images_per_s: f64,
    /// Seconds of training since this command began.
    pub seconds: f64,
    /// Milliseconds of the last batch on the GPU's own clock, where it has one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub device_ms: Option<f64>,
}

/// One line of `evaluations.jsonl`: a VAE on held-out images where there are any, through the means of
/// their latents.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Evaluation {
    /// Steps done.
    pub step: u64,
    /// Number of images.
    pub images: usize,
    /// False where the data is too small to hold any out: then they are training images.
    pub held_out: bool,
    /// As in the loss: summed over the pixels of an image, averaged over images.
    pub reconstruction: f64,
    /// Summed over the numbers of a latent, averaged over images; an autoencoder has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kl: Option<f64>,
    /// Decibels, averaged over images.
    pub psnr: f64,
    /// Averaged over images.
    pub ssim: f64,
    /// Numbers of a latent whose mean depends on the image, of `units`.
    pub active_units: usize,
    /// Numbers of a latent.
    pub units: usize,
}

/// A file that lines are appended to. Each is passed to the system when [`Log::line`] returns, so that a
/// killed program loses none.
pub(crate) struct Log {
    file: fs::File,
    path: PathBuf,
}

impl Log {
    /// Appends a line.
    pub(crate) fn line(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string(line).unwrap_or_else(|e| unreachable!("plain numbers: {e}"));
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|e| cannot_write(&self.path, e))
    }
}

/// The folder of a run.
#[derive(Clone)]
pub struct Run {
    folder: PathBuf,
}

const RECIPE: &str = "recipe.toml";
const METRICS: &str = "metrics.jsonl";
const EVALUATIONS: &str = "evaluations.jsonl";

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

    /// Keeps other programs from training into this folder, as long as the result lives; removes what killed
    /// ones left half written.
    pub(crate) fn lock(&self) -> Result<fs::File> {
        let path = self.folder.join(".lock");
        let shown = self.folder.display();
        let file = fs::File::create(&path).map_err(|e| {
            Error::new(format!("cannot write into {shown}")).hint("choose another --out").caused_by(e)
        })?;
        match file.try_lock() {
            Err(fs::TryLockError::WouldBlock) => {
                Err(Error::new(format!("another denoir is training into {shown}"))
                    .hint("wait for it, or choose another --out"))
            }
            Ok(()) => {
                for part in ["", "checkpoints", "samples"] {
                    remove_leftovers(&self.folder.join(part));
                }
                Ok(file)
            }
            // Not every file system has locks.
            Err(fs::TryLockError::Error(_)) => Ok(file),
        }
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

    /// Path of the checkpoint after `step` steps.
    pub(crate) fn checkpoint_path(&self, step: u64) -> PathBuf {
        self.folder.join("checkpoints").join(format!("step-{step:08}.safetensors"))
    }

    /// Where a latent diffusion run keeps its VAE.
    pub(crate) fn vae_path(&self) -> PathBuf {
        self.folder.join("vae.safetensors")
    }

    /// Where a latent diffusion run keeps what it encoded.
    pub(crate) fn latents_path(&self) -> PathBuf {
        self.folder.join("latents.safetensors")
    }

    /// The checkpoints' steps and paths, oldest first.
    pub fn checkpoints(&self) -> Vec<(u64, PathBuf)> {
        let Ok(entries) = fs::read_dir(self.folder.join("checkpoints")) else { return Vec::new() };
        let mut found: Vec<(u64, PathBuf)> =
            entries.flatten().filter_map(|e| Some((checkpoint::step_of(&e.path())?, e.path()))).collect();
        found.sort();
        found
    }

    /// Loads the newest checkpoint.
    pub(crate) fn newest(&self) -> Result<Loaded> {
        match self.checkpoints().last() {
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
    pub(crate) fn prune(&self, keep: usize) {
        let all = self.checkpoints();
        for (_, path) in &all[..all.len().saturating_sub(keep)] {
            let _ = fs::remove_file(path);
        }
    }

    /// Opens the metrics for further lines.
    pub(crate) fn log(&self) -> Result<Log> {
        self.appending(METRICS)
    }

    /// Appends to the evaluations.
    pub(crate) fn log_evaluation(&self, line: &Evaluation) -> Result<()> {
        self.appending(EVALUATIONS)?.line(line)
    }

    fn appending(&self, file: &str) -> Result<Log> {
        let path = self.folder.join(file);
        // A pipe would wait for a reader.
        let special = fs::metadata(&path).is_ok_and(|there| !there.is_file());
        let opened = match special {
            true => Err(std::io::Error::other("it is no regular file")),
            false => OpenOptions::new().create(true).append(true).open(&path),
        };
        opened.map(|file| Log { file, path: path.clone() }).map_err(|e| cannot_write(&path, e))
    }

    /// The metrics, as far as they can be read: a crash may have cut the last line.
    pub fn metrics(&self) -> Vec<Metrics> {
        self.lines(METRICS)
    }

    /// The evaluations, as far as they can be read.
    pub fn evaluations(&self) -> Vec<Evaluation> {
        self.lines(EVALUATIONS)
    }

    fn lines<T: serde::de::DeserializeOwned>(&self, file: &str) -> Vec<T> {
        let text = files::read_text(&self.folder.join(file), u64::MAX).unwrap_or_default();
        text.lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
    }

    /// Drops the metrics and evaluations after `step`, which a resumed run writes anew.
    ///
    /// # Errors
    /// When the folder cannot be written.
    pub fn truncate_metrics(&self, step: u64) -> Result<()> {
        for file in [METRICS, EVALUATIONS] {
            let path = self.folder.join(file);
            let Ok(text) = files::read_text(&path, u64::MAX) else { continue };
            let step_of = |l: &str| serde_json::from_str::<serde_json::Value>(l).ok()?.get("step")?.as_u64();
            let keep = text.lines().filter(|l| step_of(l).is_some_and(|s| s <= step));
            let kept: String = keep.flat_map(|l| [l, "\n"]).collect();
            write_whole(&path, |file| file.write_all(kept.as_bytes()))?;
        }
        Ok(())
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
