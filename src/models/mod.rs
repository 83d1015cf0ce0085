//! Models: functions that record themselves on a tape.

pub mod arena;
pub mod autoencoder;
pub mod unet;
mod unet_config;
pub mod unet_order;
pub mod vae;
