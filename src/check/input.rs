//! What an op is checked on.

use half::f16;

#[derive(Clone)]
pub(super) enum Input {
    /// Differentiable values.
    Values(Vec<usize>, Vec<f32>),
    /// Values that no gradient is asked of.
    Fixed(Vec<usize>, Vec<f32>),
    Words(Vec<usize>, Vec<u32>),
}

impl Input {
    /// Fits 16 bits, but for vectors, which have 32.
    pub fn rounded(&self) -> Input {
        let round = |values: &[f32]| values.iter().map(|&v| to_half_and_back(v)).collect();
        match self {
            Input::Values(shape, values) if shape.len() >= 2 => Input::Values(shape.clone(), round(values)),
            Input::Fixed(shape, values) if shape.len() >= 2 => Input::Fixed(shape.clone(), round(values)),
            other => other.clone(),
        }
    }

    pub fn is_finite(&self) -> bool {
        match self {
            Input::Values(_, values) | Input::Fixed(_, values) => values.iter().all(|v| v.is_finite()),
            Input::Words(..) => true,
        }
    }
}

pub(super) fn to_half_and_back(v: f32) -> f32 {
    f16::from_f32(v).to_f32()
}
