//! Folders of the diffusers library: read as recipes and weights, and written.

pub mod config;
mod export;
mod folder;
pub mod inversion;
mod load;
pub mod lora;
pub mod single;
mod text_encoder;

pub(crate) use export::{check_free, write};
pub use folder::{Component, Folder, Text, is_folder, open};
pub use text_encoder::{TextEncoder, open_text_encoder, text_params, write_text_encoder};

/// Name of a model's configuration.
const CONFIG: &str = "config.json";
/// Name of a pipeline's list of components.
const INDEX: &str = "model_index.json";
/// Name of a scheduler's configuration.
const SCHEDULER: &str = "scheduler_config.json";
/// Name of a model's weights, without the ending.
const WEIGHTS: &str = "diffusion_pytorch_model";
