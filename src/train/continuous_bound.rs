//! The loss of a variational diffusion model: the bound in continuous time, by which its noise schedule is
//! trained too (Kingma et al. 2021, arXiv:2107.00630).

use std::f64::consts::{LN_2, TAU};

use super::batch::{Batch, Loss};
use super::diffusion_loss::{BOUND, Drawing};
use crate::models::gamma::{Recorded, gamma};
use crate::ops::activation::{Activation, activation};
use crate::ops::arithmetic::{add, affine, mul, sub};
use crate::ops::cross_entropy::cross_entropy;
use crate::ops::loss::{Form, bce_with_logits, losses};
use crate::ops::noising::gaussian;
use crate::ops::reduce::{mean, sum};
use crate::philox::Stream;
use crate::recipe::Recipe;
use crate::tape::Tensor;

#[cfg(test)]
mod tests;

/// Records the bound of one batch of images `x0 [N, ..]` in bits per dimension (equations 4, 11 and 15): what
/// the diffusion costs, `gamma'(t) / 2 |eps - eps_hat|^2` at one t of each image, and what is left of the
/// image at the end and of the noise at the beginning. `parameters`: of the schedule. `model`: its output
/// for `(z_t, t)`; it is told `t T - 1`, so that it is an ordinary model at the timesteps of the schedule as
/// a list of T betas.
///
/// Learned ends are trained by the bound. What lies between does not change it, but its variance, by which it
/// is trained (section 4.2 and appendix I.2): the gradient of a squared loss L^2 is 2 L times that of L.
pub(super) fn continuous_bound(
    recipe: &Recipe,
    parameters: &[Tensor],
    batch: &Batch,
    x0: &Tensor,
    model: &dyn Fn(&Tensor, &Tensor) -> Tensor,
) -> Loss {
    let (tape, n) = (batch.tape(), x0.dims()[0]);
    let (drawing, ends) = (Drawing::of(recipe, &[]), recipe.gamma_ends());
    let (t, at, eps, z) = tape.labelled("noising", || {
        // In the middle of each part of (0, 1), which an f32 holds exactly.
        let part = 1.0 / drawing.steps() as f32;
        let t = affine(&drawing.timesteps(batch, n), part, 0.5 * part).reshape([n, 1]);
        let at = gamma(recipe.learned_schedule, ends, parameters, &t);
        let [signal, noise] = [affine(&at.gamma, -1.0, 0.0), at.gamma.clone()]
            .map(|of| activation(&of, Activation::RootSigmoid));
        let eps = gaussian(x0.shape().clone(), Stream::Noise, batch.state());
        let z = add(&mul(x0, &signal), &mul(&eps, &noise));
        (t, at, eps, z)
    });
    let output = model(&z, &affine(&t.reshape([n]), recipe.timesteps as f32, -1.0));
    tape.labelled("loss", || {
        let Recorded { gamma, slope, ends: learned } = at;
        let difference = sub(&eps, &output);
        let weight = affine(&slope, (0.5 / LN_2) as f32, 0.0);
        let diffusion = mean(&mul(&mul(&difference, &difference), &weight));
        let each = mul(&losses(Form::Squared, &output, &eps, None).each.reshape([n, 1]), &weight);
        let ends = learned.unwrap_or_else(|| {
            for x in [&gamma, &slope] {
                let each = each.clone();
                tape.hook(x, move |dy| mul(dy, &affine(&each, 2.0, 0.0)));
            }
            [("gamma_min", ends[0]), ("gamma_max", ends[1])]
                .map(|(name, end)| batch.constant(name, [1], vec![end as f32]))
        });
        let [first, last] = &ends;
        let total = add(&add(&diffusion, &prior(x0, last)), &reconstruction(batch, x0, first));
        Loss::from(total.clone())
            .with(BOUND, &total)
            .with_samples(&each.reshape([n]), &affine(&t.reshape([n]), 1.0, 0.0))
    })
}

/// `KL(q(z_1 | x) || N(0, 1))`, bits per dimension, a mean over the batch; `last`: gamma at t = 1. The mean
/// of `(a^2 x^2 + b^2 - ln b^2 - 1) / 2` with `a^2 = 1 - b^2`.
fn prior(x0: &Tensor, last: &Tensor) -> Tensor {
    let signal = activation(&affine(last, -1.0, 0.0), Activation::Sigmoid);
    let surplus = mul(&affine(&mean(&mul(x0, x0)), 1.0, -1.0), &signal);
    let one = affine(last, 0.0, 1.0);
    // -ln sigmoid(gamma)
    affine(&add(&surplus, &bce_with_logits(last, &one, None)), (0.5 / LN_2) as f32, 0.0)
}

/// From one level of a pixel to the next, in [-1, 1].
const LEVEL: f64 = 2.0 / 255.0;
/// Nodes of the trapezoidal rule over the noise, and the distance between them.
const NODES: usize = 129;
const STRIDE: f64 = 0.125;

/// `-ln p(x | z_0)`, bits per dimension, a mean over the batch and over the noise; `first`: gamma at t = 0.
/// The probability of each of 256 levels x_k is proportional to `exp(-(z_0 / a - x_k)^2 exp(-gamma) / 2)`
/// (appendix H), where `z_0 / a = x + eps exp(gamma / 2)`. It depends on x by how many levels there are on
/// either side: for all between the outermost, as many as there can be are counted, which is no less. Levels
/// lie 2 / 255 from one another here, and 2 / 256 in the paper. (A chain of T timesteps, as `denoir
/// likelihood` measures it, ends at t = 1/T with a Gaussian around what the model predicts there instead.)
fn reconstruction(batch: &Batch, x0: &Tensor, first: &Tensor) -> Tensor {
    let node = |i: usize| (i as f64 - (NODES / 2) as f64) * STRIDE;
    let density = |e: f64| (-0.5 * e * e).exp() * STRIDE / TAU.sqrt();
    let weights =
        batch.constant("noise_weights", [NODES], (0..NODES).map(|i| density(node(i)) as f32).collect());
    let right = batch.zeros_u32("right_level", NODES);
    let between = activation(&affine(first, -0.5, 0.0), Activation::Exp);
    // Of the levels that many steps away; the right one first.
    let nats = |names: [&'static str; 2], steps: Vec<f64>| {
        let k = steps.len();
        let steps = steps.into_iter().map(|steps| (steps * LEVEL) as f32).collect();
        let away = mul(&batch.constant(names[0], [k], steps), &between);
        let noise = (0..NODES).flat_map(|i| std::iter::repeat_n(node(i) as f32, k)).collect();
        let noise = batch.constant(names[1], [NODES, k], noise);
        let logits = affine(&mul(&add(&noise, &affine(&away, 0.5, 0.0)), &away), -1.0, 0.0);
        let [losses, _] = cross_entropy(&logits, &right);
        sum(&mul(&losses, &weights))
    };
    let up = || (0..256).map(f64::from);
    let inner = nats(["levels", "noise_of_levels"], up().chain(up().skip(1).map(|k| -k)).collect());
    let outer = nats(["levels_above", "noise_of_levels_above"], up().collect());
    // 1 for an outermost level, 0 from the next one on.
    let size = add(&activation(x0, Activation::Relu), &activation(&affine(x0, -1.0, 0.0), Activation::Relu));
    let is_outer = affine(&size, (1.0 / LEVEL) as f32, (1.0 - 1.0 / LEVEL) as f32);
    let outermost = mean(&activation(&is_outer, Activation::Relu));
    let nats = add(&inner, &mul(&sub(&outer, &inner), &outermost));
    affine(&nats, (1.0 / LN_2) as f32, 0.0)
}
