//! The loss of a diffusion model: which timesteps are drawn, what is predicted, and how its error counts.

use super::batch::{Batch, Loss};
use crate::diffusion::{LossWeight, NoiseLevel, TimestepSampling, Weighting, cumulative};
use crate::ops::embedding::embedding;
use crate::ops::loss::{Form, losses};
use crate::ops::timesteps::{Draw, timesteps};
use crate::recipe::{LossKind, Recipe};
use crate::state::State;
use crate::tape::Tensor;

/// Records the loss of one batch of clean samples `x0` (Ho et al. 2020, equation 14, by default). `model`:
/// its output for `(x_t, t)`.
pub(super) fn diffusion_loss(
    recipe: &Recipe,
    batch: &Batch,
    x0: &Tensor,
    model: &dyn Fn(&Tensor, &Tensor) -> Tensor,
) -> Loss {
    let (schedule, tape) = (recipe.schedule(), batch.tape());
    let levels = schedule.levels();
    let t = Drawing::of(recipe, &levels).record(batch, x0.dims()[0]);
    let (x_t, target, t) = batch.noised_at(x0, schedule.noising_table(recipe.prediction_type), t.as_ref());
    let predicted = model(&x_t, &t);
    tape.labelled("loss", || {
        let weights = weights(recipe, &levels).map(|weights| {
            let weights = weights.into_iter().map(|weight| weight as f32).collect();
            embedding(&batch.constant("loss_weights", [levels.len(), 1], weights), &t)
        });
        let form = match recipe.loss {
            LossKind::Mse => Form::Squared,
            LossKind::L1 => Form::Absolute,
            LossKind::Huber => Form::Huber(recipe.huber_delta as f32),
        };
        let losses = losses(form, &predicted, &target, weights.as_ref());
        Loss::from(losses.mean).with_samples(&losses.each)
    })
}

/// Of the error at each timestep, where they are not all 1.
pub(super) fn weights(recipe: &Recipe, levels: &[NoiseLevel]) -> Option<Vec<f64>> {
    let Recipe { loss_weight, p2_k, p2_gamma, min_snr_gamma, edm_sigma_data, variance, .. } = *recipe;
    let weighting =
        Weighting { kind: loss_weight, p2_k, p2_gamma, min_snr_gamma, sigma_data: edm_sigma_data, variance };
    let of = |level| weighting.of(recipe.prediction_type, level);
    (loss_weight != LossWeight::Simple).then(|| levels.iter().map(of).collect())
}

/// How a recipe's timesteps are drawn.
pub(super) struct Drawing {
    draw: Draw,
    /// Of probabilities.
    sums: Option<Vec<f32>>,
}

impl Drawing {
    pub fn of(recipe: &Recipe, levels: &[NoiseLevel]) -> Drawing {
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

    /// The timestep that a sample of a whole step got.
    pub fn at(&self, state: &State, sample: usize) -> usize {
        self.draw.of(state, sample as u32, self.sums.as_deref())
    }
}
