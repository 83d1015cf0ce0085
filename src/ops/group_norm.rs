//! Group normalisation with a scale and shift per channel and an activation (Wu & He 2018), of one tensor or
//! of the concatenation of two.

use crate::device::gpu::shader::{Kernel, Knob};
use crate::kernel;
use crate::ops::activation::Activation;
use crate::tape::Tensor;
use crate::tensor::Shape;

mod backward;
mod forward;
mod loops;
mod norm;
#[cfg(test)]
mod tests;

use backward::{backward_parameters, backward_x};
use forward::forward;
use norm::Norm;

macro_rules! knobs {
    ($($kind:literal),+) => { &[$(&[("KIND", $kind), ("HELD", "8u")], &[("KIND", $kind), ("HELD", "32u")]),+] };
}

/// For each activation two sets: for samples of few rows, and for others.
const KNOBS: &[&[Knob]] = knobs!["0u", "1u", "2u", "3u", "4u", "5u", "6u", "7u", "8u", "9u"];

const _: () = assert!(KNOBS.len() == 2 * Activation::ALL.len(), "two sets for each activation");

pub(crate) static KERNEL: Kernel = kernel!("group_norm", KNOBS);

/// `y = f(gamma[c] * (x - mean) / sqrt(var + eps) + beta[c])`, where mean and (biased) variance are those
/// of a sample's group of `C / groups` neighbouring channels. `x [N, .., C]`, `gamma`, `beta [C]`, `y` as
/// `x`.
///
/// The backward pass reads `x` again, and statistics `[N, 2, C]` that the forward pass kept: for each channel
/// its group's mean, as the offset from the channel's first element, and reciprocal deviation.
///
/// # Panics
/// When a shape does not fit, or `groups` does not divide C.
#[track_caller]
pub fn group_norm(
    x: &Tensor,
    gamma: &Tensor,
    beta: &Tensor,
    groups: usize,
    eps: f32,
    activation: Activation,
) -> Tensor {
    group_norm_of(&[x], gamma, beta, groups, eps, activation)
}

/// [`group_norm`] of one tensor, or of the concatenation of two, `[N, .., C1]` and `[N, .., C2]`, along the
/// channels, which is not written to memory. A group may have channels of both.
///
/// # Panics
/// As [`group_norm`].
#[track_caller]
pub fn group_norm_of(
    inputs: &[&Tensor],
    gamma: &Tensor,
    beta: &Tensor,
    groups: usize,
    eps: f32,
    activation: Activation,
) -> Tensor {
    let shapes = inputs.iter().map(|x| x.shape().to_string()).collect::<Vec<_>>().join(" beside ");
    let outer = |x: &Tensor| x.dims().split_last().map(|(_, outer)| outer.to_vec());
    let fit = matches!(inputs.len(), 1 | 2) && inputs.iter().all(|x| x.elements() > 0 && x.dims().len() >= 2);
    assert!(fit && outer(inputs[0]) == outer(inputs[inputs.len() - 1]), "group_norm: x {shapes}");
    let c: usize = inputs.iter().map(|x| x.shape().last()).sum();
    assert!(
        gamma.dims() == [c] && beta.dims() == [c],
        "group_norm: x {shapes} wants gamma and beta [{c}], got {} and {}",
        gamma.shape(),
        beta.shape()
    );
    assert!(
        groups > 0 && c.is_multiple_of(groups),
        "group_norm: {groups} groups do not divide the channels of x {shapes}"
    );
    let dims = inputs[0].dims();
    let (n, p) = (dims[0], dims[1..dims.len() - 1].iter().product());
    let norm = Norm { n, p, c, groups, left: inputs[0].shape().last(), eps, activation };
    let y = Shape::from([&dims[..dims.len() - 1], &[c]].concat().as_slice());
    let reads: Vec<&Tensor> = inputs.iter().copied().chain([gamma, beta]).collect();
    let [y, statistics] = gamma.tape().launch(forward(norm), &reads, [y, [n, 2, c].into()]);
    let statistics = statistics.exact();
    let saved: Vec<Tensor> = reads.iter().copied().chain([&statistics]).cloned().collect();
    gamma.tape().derivative(&reads, &[&y], move |dy| {
        let (inputs, parameters) = saved.split_at(saved.len() - 3);
        let Some(dy) = &dy[0] else { return vec![None; inputs.len() + 2] };
        let tape = dy.tape();
        let reads: Vec<&Tensor> = inputs.iter().chain([dy]).chain(parameters).collect();
        let launch = backward_x(norm, [None; 2]);
        let sums = Shape::from([n, 2, c]);
        let shape = |index: usize| inputs[index].shape().clone();
        let (sums, dx) = if inputs.len() == 1 {
            let [sums, dx] = tape.launch(launch, &reads, [sums, shape(0)]);
            (sums, vec![dx])
        } else {
            let [sums, left, right] = tape.launch(launch, &reads, [sums, shape(0), shape(1)]);
            (sums, vec![left, right])
        };
        let sums = sums.exact();
        let [dgamma, dbeta] = tape.launch(backward_parameters(norm), &[&sums], [[c].into(), [c].into()]);
        dx.into_iter().chain([dgamma, dbeta]).map(Some).collect()
    });
    y
}
