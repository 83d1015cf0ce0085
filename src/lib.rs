#[cfg(test)]
mod check;
pub mod device;
pub mod error;
pub mod launch;
pub mod matrix;
pub mod ops;
pub mod philox;
pub mod plan;
pub mod program;
pub mod simd;
pub mod state;
pub mod tape;
pub mod tensor;
