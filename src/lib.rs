//! denoir.
#[cfg(test)]
mod check;
pub mod checkpoint;
pub mod cli;
pub mod data;
pub mod device;
pub mod diffusion;
pub mod error;
pub mod launch;
pub mod matrix;
pub mod models;
pub mod nn;
pub mod ops;
pub mod optim;
pub mod philox;
pub mod plan;
pub mod program;
pub mod recipe;
pub mod run;
pub mod sample;
pub mod simd;
pub mod state;
pub mod tape;
pub mod tensor;
pub mod train;
