//! Models: functions that record themselves on a tape.

pub mod arena;
pub mod autoencoder;
mod options;
pub mod unet;
mod unet_config;
pub mod unet_order;
pub mod vae;
mod vae_config;
