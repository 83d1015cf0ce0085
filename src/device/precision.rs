//! The precision of a device's programs.

use serde::{Deserialize, Serialize};

/// How numbers are rounded between or inside the launches of a program. Weights, their gradients, moments,
/// sums and statistics have 32 bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Precision {
    /// All numbers have 32 bits.
    #[default]
    F32,
    /// On a GPU, the tensors between launches have 16 bits: half the memory and traffic. Kernels compute
    /// in 32.
    F16,
    /// On a processor that has the instructions, the CPU device rounds the factors of products (convolution,
    /// matrix product, attention) to bf16 and multiplies two at a time. Tensors keep 32 bits.
    Bf16,
}

impl Precision {
    /// `f32`, `f16` or `bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Precision::F32 => "f32",
            Precision::F16 => "f16",
            Precision::Bf16 => "bf16",
        }
    }
}
