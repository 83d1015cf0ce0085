//! The loss of a diffusion model: which timesteps are drawn, what is predicted, and how its error counts.

use super::batch::{Batch, Loss};
use crate::diffusion::{LossWeight, NoiseLevel, TimestepSampling, Weighting, cumulative, in_holes};
use crate::ops::arithmetic::{add, affine, mul};
use crate::ops::concat::split;
use crate::ops::embedding::embedding;
use crate::ops::loss::{Form, losses};
use crate::ops::noising::gaussian;
use crate::ops::reduce::mean;
use crate::ops::timesteps::{Draw, timesteps};
use crate::ops::variational_bound::variational_bound;
use crate::philox::Stream;
use crate::recipe::{LossKind, Recipe, System};
use crate::state::State;
use crate::tape::Tensor;

#[cfg(test)]
mod learned_tests;
#[cfg(test)]
mod tests;

/// Name of the bound, in bits per dimension, beside the error of the prediction.
pub(super) const BOUND: &str = "bound";

/// Records the loss of one batch of clean samples `x0` (Ho et al. 2020, equation 14, by default; with a
/// learned variance L_hybrid of Nichol & Dhariwal 2021, section 3.1, or their L_vlb). `holes`: a condition
/// with holes, outside of which nothing is to be learnt; `model`: its output for `(x_t, t)`.
pub(super) fn diffusion_loss(
    recipe: &Recipe,
    batch: &Batch,
    x0: &Tensor,
    holes: Option<&Tensor>,
    model: &dyn Fn(&Tensor, &Tensor) -> Tensor,
) -> Loss {
    let (schedule, tape) = (recipe.schedule(), batch.tape());
    let levels = schedule.levels();
    let t = Drawing::of(recipe, &levels).record(batch, x0.dims()[0]);
    let (x_t, target, t) = batch.noised_at(x0, schedule.noising_table(recipe.prediction_type), t.as_ref());
    let (x_t, target) = with_more_noise(recipe, batch, &levels, [x_t, target], &t);
    let output = model(&x_t, &t);
    let [output, target] = match holes {
        Some(holes) => tape.labelled("loss", || [output, target].map(|x| in_holes(&x, holes))),
        None => [output, target],
    };
    tape.labelled("loss", || {
        let rows = levels.iter().map(|level| level.bound(recipe.prediction_type, recipe.variance));
        let Some(rows) = rows.collect::<Option<Vec<_>>>() else {
            return error(recipe, batch, &levels, [&output, &target, &t]);
        };
        let table = rows.into_iter().flatten().map(|c| c as f32).collect();
        let table = batch.constant("bound", [levels.len(), 4], table);
        let alone = recipe.loss == LossKind::Bound;
        let terms = variational_bound(&output, [&target, x0], &t, &table, alone);
        // Each term stands for those of all timesteps.
        let terms = affine(&terms, (levels.len() as f64 / std::f64::consts::LN_2) as f32, 0.0);
        let bound = mean(&terms);
        if alone {
            return Loss::from(bound.clone()).with(BOUND, &bound).with_samples(&terms);
        }
        let channels = x0.shape().last();
        let predicted = split(&output, &[channels, channels]).swap_remove(0);
        let Loss { total, samples, .. } = error(recipe, batch, &levels, [&predicted, &target, &t]);
        let total = add(&total, &affine(&bound, recipe.bound_weight as f32, 0.0));
        Loss { samples, ..Loss::from(total).with(BOUND, &bound) }
    })
}

/// A number for each timestep, as one of each sample `[N, 1]`.
fn by_t(batch: &Batch, name: &'static str, values: impl Iterator<Item = f64>, t: &Tensor) -> Tensor {
    let values: Vec<f32> = values.map(|value| value as f32).collect();
    embedding(&batch.constant(name, [values.len(), 1], values), t)
}

/// `x_t` and the target with noise that the pixels of a channel share (Guttenberg 2023, "Diffusion with
/// offset noise"), and the input's perturbation (Ning et al. 2023, arXiv:2301.11706), if a recipe asks for
/// them.
fn with_more_noise(
    recipe: &Recipe,
    batch: &Batch,
    levels: &[NoiseLevel],
    [mut x_t, mut target]: [Tensor; 2],
    t: &Tensor,
) -> (Tensor, Tensor) {
    let (Recipe { offset_noise, input_perturbation, .. }, shape) = (recipe, x_t.dims().to_vec());
    let mut ones = vec![1; shape.len()];
    ones[0] = shape[0];
    let factor = |name, of: &dyn Fn(&NoiseLevel) -> f64| by_t(batch, name, levels.iter().map(of), t);
    let scaled = |noise: &Tensor, factor: Tensor| mul(noise, &factor.reshape(ones.as_slice()));
    batch.tape().labelled("noising", || {
        if *offset_noise > 0.0 {
            let mut of_channels = ones.clone();
            of_channels[shape.len() - 1] = shape[shape.len() - 1];
            let noise = gaussian(of_channels.as_slice(), Stream::Offset, batch.state());
            let of_x = factor("offset", &|at| offset_noise * at.noise().sqrt());
            let of_target =
                factor("offset_target", &|at| offset_noise * recipe.prediction_type.target(at)[1]);
            x_t = add(&x_t, &scaled(&noise, of_x));
            target = add(&target, &scaled(&noise, of_target));
        }
        if *input_perturbation > 0.0 {
            let noise = gaussian(shape.as_slice(), Stream::Perturb, batch.state());
            let of_x = factor("perturbation", &|at| input_perturbation * at.noise().sqrt());
            x_t = add(&x_t, &scaled(&noise, of_x));
        }
    });
    (x_t, target)
}

/// The weighted error of what is predicted.
fn error(
    recipe: &Recipe,
    batch: &Batch,
    levels: &[NoiseLevel],
    [predicted, target, t]: [&Tensor; 3],
) -> Loss {
    let weights = weights(recipe, levels);
    let weights = weights.map(|weights| by_t(batch, "loss_weights", weights.into_iter(), t));
    let form = match recipe.loss {
        LossKind::Mse | LossKind::Bound => Form::Squared,
        LossKind::L1 => Form::Absolute,
        LossKind::Huber => Form::Huber(recipe.huber_delta as f32),
    };
    let losses = losses(form, predicted, target, weights.as_ref());
    Loss::from(losses.mean).with_samples(&losses.each)
}

/// Of the error at each timestep, where they are not all 1.
fn weights(recipe: &Recipe, levels: &[NoiseLevel]) -> Option<Vec<f64>> {
    let Recipe { loss_weight, p2_k, p2_gamma, min_snr_gamma, edm_sigma_data, variance, .. } = *recipe;
    let weighting =
        Weighting { kind: loss_weight, p2_k, p2_gamma, min_snr_gamma, sigma_data: edm_sigma_data, variance };
    let of = |level| weighting.of(recipe.prediction_type, level);
    (loss_weight != LossWeight::Simple).then(|| levels.iter().map(of).collect())
}

/// How a recipe's timesteps are drawn.
struct Drawing {
    draw: Draw,
    /// Of probabilities.
    sums: Option<Vec<f32>>,
}

impl Drawing {
    fn of(recipe: &Recipe, levels: &[NoiseLevel]) -> Drawing {
        let normal = [recipe.timestep_mean, recipe.timestep_std];
        let probabilities = recipe.timestep_sampling.probabilities(levels, normal);
        let spread = recipe.timestep_sampling == TimestepSampling::Stratified;
        let spread_over = spread.then(|| recipe.images_of_a_step() as usize);
        let sums = probabilities.map(|probabilities| cumulative(&probabilities));
        Drawing { draw: Draw { steps: levels.len(), spread_over }, sums }
    }

    /// Those of a batch, unless noising itself draws them.
    fn record(self, batch: &Batch, samples: usize) -> Option<Tensor> {
        if self.sums.is_none() && self.draw.spread_over.is_none() {
            return None;
        }
        let sums = self.sums.map(|sums| batch.constant("timestep_sums", [sums.len()], sums));
        Some(
            batch.tape().labelled("noising", || timesteps(samples, &self.draw, sums.as_ref(), batch.state())),
        )
    }
}

/// The quarters of the timesteps, by which a run's metrics show the losses of samples. The timesteps are not
/// read back: the host draws the same.
pub(super) struct Quarters {
    drawing: Drawing,
    weights: Option<Vec<f64>>,
}

/// Means over the samples of each quarter; `None` where there are none.
pub(super) type ByQuarter = [Option<f32>; 4];

impl Quarters {
    /// `None` for a recipe without timesteps.
    pub fn of(recipe: &Recipe) -> Option<Quarters> {
        let noisy_classes = recipe.system == System::Classifier && recipe.classifier.noisy;
        if !recipe.system.diffuses() && !noisy_classes {
            return None;
        }
        let levels = recipe.schedule().levels();
        Some(Quarters { drawing: Drawing::of(recipe, &levels), weights: weights(recipe, &levels) })
    }

    /// The losses of a step's samples, and with their weights if they have any. `state`: of the step's first
    /// sample.
    pub fn means(&self, state: &State, samples: &[f32]) -> Option<(ByQuarter, Option<ByQuarter>)> {
        let (mut sums, mut counts) = ([[0.0_f64; 4]; 2], [0.0_f64; 4]);
        for (n, &loss) in samples.iter().enumerate() {
            let Drawing { draw, sums: probabilities } = &self.drawing;
            let t = draw.of(state, n as u32, probabilities.as_deref());
            let quarter = 4 * t / draw.steps;
            counts[quarter] += 1.0;
            sums[0][quarter] += f64::from(loss);
            sums[1][quarter] += f64::from(loss) * self.weights.as_ref().map_or(1.0, |weights| weights[t]);
        }
        let mean = |sums: [f64; 4]| -> ByQuarter {
            std::array::from_fn(|q| (counts[q] > 0.0).then(|| (sums[q] / counts[q]) as f32))
        };
        let weighted = self.weights.is_some().then(|| mean(sums[1]));
        (!samples.is_empty()).then(|| (mean(sums[0]), weighted))
    }
}
