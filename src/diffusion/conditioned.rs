//! What a model that is told of an image sees: the noisy image and the condition, side by side.

use crate::ops::activation::{Activation, activation};
use crate::ops::arithmetic::{add, affine, mul, sub};
use crate::ops::concat::{concat, split};
use crate::tape::Tensor;

/// What a model sees of samples `x` `[N, H, W, C]`: these, `own`, the x_0 that it predicted before, of the
/// same shape, and a `condition` `[N, H, W, ..]`, side by side. Where a condition with holes,
/// `[N, H, W, C + 1]`, knows the pixels, `x` and `own` have them as they are, without noise (Saharia et al.
/// 2022, arXiv:2111.05826).
#[track_caller]
pub fn seen_by_model(x: &Tensor, own: Option<&Tensor>, condition: Option<(&Tensor, bool)>) -> Tensor {
    let holes = condition.filter(|(_, has_holes)| *has_holes).map(|(condition, _)| condition);
    let filled = |x: &Tensor| match holes {
        Some(condition) => {
            let known = split(condition, &[x.shape().last(), 1]).swap_remove(0);
            add(&in_holes(x, condition), &known)
        }
        None => x.clone(),
    };
    let (x, own) = (filled(x), own.map(filled));
    let parts: Vec<&Tensor> =
        [&x].into_iter().chain(&own).chain(condition.map(|(condition, _)| condition)).collect();
    if parts.len() > 1 { concat(&parts) } else { x }
}

/// `x` `[N, H, W, C]` with zeros where a `condition` with holes, `[N, H, W, C + 1]`, knows the pixel.
#[track_caller]
pub fn in_holes(x: &Tensor, condition: &Tensor) -> Tensor {
    let channels = x.shape().last();
    let pixels = x.elements() / channels;
    let is_known = split(condition, &[channels, 1]).swap_remove(1);
    let is_hole = affine(&is_known, -1.0, 1.0).reshape([pixels, 1]);
    mul(&x.reshape([pixels, channels]), &is_hole).reshape(x.shape().clone())
}

/// `x` clamped to `[-bound, bound]`; 0: as it is.
#[track_caller]
pub fn within(x: &Tensor, bound: f64) -> Tensor {
    if bound == 0.0 {
        return x.clone();
    }
    let bound = bound as f32;
    let [above, below] = [bound, -bound].map(|by| activation(&affine(x, 1.0, by), Activation::Relu));
    affine(&sub(&above, &below), 1.0, -bound)
}
