//! Folders of the diffusers library: read as recipes and weights, and written. Files of Stable Diffusion,
//! read as such folders; adapters and words, laid over them.

mod component;
pub mod config;
mod export;
mod extras;
mod file;
mod folder;
pub mod inversion;
mod load;
pub mod lora;
pub mod single;
mod text_encoder;

use std::io::Write;
use std::path::Path;

pub use component::Component;
pub(crate) use export::{check_free, write};
pub use extras::Extras;
pub(crate) use extras::fuse_all;
pub use file::{Unsaid, is_file, open_any, open_file, open_vae};
pub use folder::{Folder, is_folder, open};
pub(crate) use text_encoder::put_rows;
pub use text_encoder::{Text, TextEncoder, open_text_encoder, text_params, write_text_encoder};

use crate::checkpoint::write_whole;
use crate::error::{Error, Result};

/// Name of a model's configuration.
const CONFIG: &str = "config.json";
/// Name of a pipeline's list of components.
const INDEX: &str = "model_index.json";
/// Name of a scheduler's configuration.
const SCHEDULER: &str = "scheduler_config.json";
/// Name of a model's weights, without the ending.
const WEIGHTS: &str = "diffusion_pytorch_model";
/// Longest configuration that is read.
const MOST_BYTES: u64 = 1 << 20;

fn wrong(path: &Path, reason: &str) -> Error {
    Error::new(format!("{}: {reason}", path.display()))
        .hint("give a folder of a DDPM or latent diffusion pipeline, or of one of its models")
}

fn make(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).map_err(|e| {
        Error::new(format!("cannot make the folder {}", folder.display())).hint("choose another").caused_by(e)
    })
}

fn write_text(path: &Path, text: &str) -> Result<()> {
    write_whole(path, |file| file.write_all(text.as_bytes()))
}
