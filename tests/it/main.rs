//! The integration tests: one binary, so that it links once.

mod allocations;
mod around_the_step;
mod autoencoder;
mod bench;
mod command_line;
mod engine;
mod examples;
mod folders;
mod golden;
mod golden_diffusers;
mod golden_unconditional;
mod golden_vae;
mod hostile_files;
mod hostile_folders;
mod house;
mod kernels;
mod own_training;
mod pipelines;
mod place;
mod published_sums;
mod reference;
mod schedulers;
mod source;
mod training;
mod tuning;
mod zip_writer;
