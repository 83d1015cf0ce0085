//! The files of a run that a line is appended to at each step, or now and then.

use std::fs::{File, OpenOptions, metadata};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::checkpoint::{cannot_write, write_whole};
use crate::error::{Error, Result};
use crate::files;

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
    /// Of a VAE with a codebook: the mean squared distance between latents and codes, before its weights.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codebook: Option<f32>,
    /// And the perplexity of the codes' use in the batch: how many there would be if all were used alike.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f32>,
    /// Of a classifier: how many of 1 it tells right, of noisy images where it is trained on these.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy: Option<f32>,
    /// The same of the samples in each quarter of the timesteps, of which the first has the least noise.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accuracy_by_t: Option<[Option<f32>; 4]>,
    /// Of a diffusion model: the loss without the weights of timesteps, over the samples of the step in each
    /// quarter of the timesteps, of which the first has the least noise; null where there are none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_by_t: Option<[Option<f32>; 4]>,
    /// The same with the weights, where they are not 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weighted_by_t: Option<[Option<f32>; 4]>,
    /// Of a diffusion model that learns its variance: the variational bound, without its last term, in bits
    /// per dimension; of one that learns its noise schedule, the whole bound in continuous time.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bound: Option<f32>,
    /// Factor of the loss in the backward pass, where that is scaled: with precision = f16.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loss_scale: Option<f32>,
    /// How many steps before this one were skipped, because a gradient left the range of 16-bit floats.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub skipped: Option<f32>,
    /// Norm of the gradient before clipping; null where the step was skipped.
    pub grad_norm: Option<f32>,
    /// Learning rate.
    pub lr: f64,
    /// Mean throughput of the run up to here, whether or not it was resumed.
    pub images_per_s: f64,
    /// Seconds of training up to here, whether or not it was resumed.
    pub seconds: f64,
    /// Memory of the process in MB (10^6 bytes), a GPU's own not counted, where the system tells it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_mb: Option<f64>,
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
    /// Of a codebook: the perplexity of its codes' use over all these images.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub perplexity: Option<f64>,
    /// And how many codes they use at all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub codes_used: Option<usize>,
    /// Decibels, averaged over images.
    pub psnr: f64,
    /// Averaged over images.
    pub ssim: f64,
    /// Numbers of a latent whose mean depends on the image, of `units`.
    pub active_units: usize,
    /// Numbers of a latent.
    pub units: usize,
}

/// Another line of `evaluations.jsonl`: the error of a diffusion model's predictions, without the weights of
/// timesteps, by the moving average of its weights.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeldOutLoss {
    /// Steps done.
    pub step: u64,
    /// Number of images, each at one timestep, which with its noise is the same at each step.
    pub images: usize,
    /// False where the data is too small to hold any out: then they are training images.
    pub held_out: bool,
    /// Mean over the images, whose timesteps are spread evenly.
    pub held_out_loss: f64,
    /// The same in each quarter of the timesteps, of which the first has the least noise; null where there
    /// is no image.
    pub held_out_by_t: [Option<f64>; 4],
}

/// A file that lines are appended to. Each is passed to the system when [`Log::line`] returns, so that a
/// killed program loses none.
pub(crate) struct Log {
    file: File,
    path: PathBuf,
}

impl Log {
    /// Opens a file for further lines.
    pub(super) fn open(path: PathBuf) -> Result<Log> {
        // A pipe would wait for a reader.
        let opened = match metadata(&path).is_ok_and(|there| !there.is_file()) {
            true => Err(std::io::Error::other("it is no regular file")),
            false => OpenOptions::new().create(true).append(true).open(&path),
        };
        opened.map(|file| Log { file, path: path.clone() }).map_err(|e| cannot_write(&path, e))
    }

    /// Appends a line.
    pub(crate) fn line(&mut self, line: &impl Serialize) -> Result<()> {
        let mut text = serde_json::to_string(line).unwrap_or_else(|e| unreachable!("plain numbers: {e}"));
        text.push('\n');
        self.file.write_all(text.as_bytes()).map_err(|e| cannot_write(&self.path, e))
    }
}

/// The bytes of a file, which need not be text everywhere; of one that is missing, none.
fn bytes_of(path: &Path) -> Result<Vec<u8>> {
    match files::read(path, u64::MAX) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(|e| {
            Error::new(format!("cannot read {}", path.display())).hint("check its permissions").caused_by(e)
        }),
    }
}

/// The lines of a file that can be read: a crash may have cut the last, a disk damaged one.
pub(super) fn lines<T: DeserializeOwned>(path: &Path) -> Result<Vec<T>> {
    Ok(bytes_of(path)?.split(|&b| b == b'\n').filter_map(|line| serde_json::from_slice(line).ok()).collect())
}

/// Bytes that hold the last line of a file, and others where that is cut off.
const END: u64 = 1 << 16;

/// The last line of a file that can be read, without reading what lies far before it.
pub(super) fn last<T: DeserializeOwned>(path: &Path) -> Option<T> {
    let (mut file, length) = files::open(path).ok()?;
    let from = length.saturating_sub(END);
    let mut end = Vec::new();
    file.seek(SeekFrom::Start(from)).ok()?;
    file.take(END).read_to_end(&mut end).ok()?;
    end.rsplit(|&b| b == b'\n').find_map(|line| serde_json::from_slice(line).ok())
}

/// Drops the lines after `step`, and those that cannot be read.
pub(super) fn truncate(path: &Path, step: u64) -> Result<()> {
    #[derive(Deserialize)]
    struct Step {
        step: u64,
    }
    let bytes = bytes_of(path)?;
    let is_kept = |line: &&[u8]| serde_json::from_slice(line).is_ok_and(|Step { step: at }| at <= step);
    let lines = bytes.split(|&b| b == b'\n').filter(is_kept);
    let kept: Vec<u8> = lines.flat_map(|line| [line, b"\n"]).flatten().copied().collect();
    if kept == bytes { Ok(()) } else { write_whole(path, |file| file.write_all(&kept)) }
}
