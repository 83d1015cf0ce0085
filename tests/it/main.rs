//! The integration tests: one binary, so that it links once.

mod allocations;
mod autoencoder;
mod bench;
mod command_line;
mod engine;
mod folders;
mod golden;
mod golden_diffusers;
mod golden_vae;
mod hostile_files;
mod house;
mod kernels;
mod place;
mod reference;
mod schedulers;
mod training;
mod tuning;
