//! What a model that is told of an image sees: the noisy image and the condition, side by side.

use crate::ops::arithmetic::{add, affine, mul};
use crate::ops::concat::{concat, split};
use crate::tape::Tensor;

/// `x_t` `[N, H, W, C]` joined to its `condition` `[N, H, W, ..]`. Of one with holes, `[N, H, W, C + 1]`,
/// `x_t` has the known pixels as they are, without noise (Saharia et al. 2022, arXiv:2111.05826).
#[track_caller]
pub fn conditioned(x: &Tensor, condition: &Tensor, has_holes: bool) -> Tensor {
    if !has_holes {
        return concat(&[x, condition]);
    }
    let channels = x.shape().last();
    let known = split(condition, &[channels, 1]).swap_remove(0);
    concat(&[&add(&in_holes(x, condition), &known), condition])
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
