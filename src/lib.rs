pub mod error;
pub mod philox;
