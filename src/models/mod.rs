//! Models: functions that record themselves on a tape.

pub(crate) mod arena;
pub(crate) mod autoencoder;
pub mod classifier;
pub mod clip;
mod clip_config;
pub mod codebook;
pub mod conv_net;
pub mod dit;
mod dit_config;
pub mod gamma;
pub(crate) mod limits;
mod options;
mod transformer;
pub mod unet;
mod unet_config;
pub(crate) mod unet_order;
mod unet_time;
pub mod vae;
mod vae_config;

pub(crate) use options::{Key, config};
