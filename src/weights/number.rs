//! The types of numbers that weight files hold, and those that they are read as.

use ::safetensors::Dtype;
use half::{bf16, f16};

/// Whether numbers of this type can be weights.
pub fn is_float(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F16 | Dtype::BF16 | Dtype::F32 | Dtype::F64)
}

/// A type that weights are read as.
pub(crate) trait Number: bytemuck::Pod + std::fmt::Display + Send + Sync {
    /// Numbers of a type of [`is_float`], little end first.
    fn parsed(dtype: Dtype, bytes: &[u8]) -> Vec<Self>;

    fn is_finite(&self) -> bool;
}

impl Number for f32 {
    fn parsed(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
        widened(dtype, bytes)
    }

    fn is_finite(&self) -> bool {
        f32::is_finite(*self)
    }
}

impl Number for f16 {
    /// # Panics
    /// When they are of another type.
    fn parsed(dtype: Dtype, bytes: &[u8]) -> Vec<f16> {
        assert_eq!(dtype, Dtype::F16, "only halves are read as such");
        bytemuck::pod_collect_to_vec(bytes)
    }

    fn is_finite(&self) -> bool {
        f16::is_finite(*self)
    }
}

/// Numbers of a type of [`is_float`], little end first, as f32: halves are widened exactly, doubles rounded.
fn widened(dtype: Dtype, bytes: &[u8]) -> Vec<f32> {
    let halves = bytes.chunks_exact(2).map(|b| [b[0], b[1]]);
    match dtype {
        Dtype::F16 => halves.map(|half| f16::from_le_bytes(half).to_f32()).collect(),
        Dtype::BF16 => halves.map(|half| bf16::from_le_bytes(half).to_f32()).collect(),
        Dtype::F32 => bytemuck::pod_collect_to_vec(bytes),
        Dtype::F64 => bytemuck::pod_collect_to_vec::<u8, f64>(bytes).iter().map(|&v| v as f32).collect(),
        other => unreachable!("parsers refuse {other:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_type() {
        let halves: Vec<u8> =
            [0x3c00_u16, 0xc000, 0x0001, 0x7bff].iter().flat_map(|h| h.to_le_bytes()).collect();
        assert_eq!(widened(Dtype::F16, &halves), [1.0, -2.0, 2.0_f32.powi(-24), 65504.0]);
        let brains: Vec<u8> = [0x3f80_u16, 0xc000, 0x0001].iter().flat_map(|h| h.to_le_bytes()).collect();
        assert_eq!(widened(Dtype::BF16, &brains), [1.0, -2.0, f32::from_bits(0x1_0000)]);
        assert_eq!(widened(Dtype::F32, &1.5_f32.to_le_bytes()), [1.5]);
        assert_eq!(widened(Dtype::F64, &0.1_f64.to_le_bytes()), [0.1]);
    }
}
