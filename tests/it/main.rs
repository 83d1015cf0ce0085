//! The integration tests: one binary, so that it links once.

mod autoencoder;
mod command_line;
mod engine;
mod golden;
mod house;
mod kernels;
mod training;
