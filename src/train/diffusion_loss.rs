//! The loss of a diffusion model: which timesteps are drawn, what is predicted, and how its error counts.

use super::batch::{Batch, Loss};
use super::captions::sample_weights;
use crate::diffusion::{LossWeight, NoiseLevel, TimestepSampling, Weighting, cumulative, in_holes};
use crate::ops::arithmetic::{add, affine, mul};
use crate::ops::concat::split;
use crate::ops::embedding::embedding;
use crate::ops::loss::{Form, losses};
use crate::ops::loss_history::{record_losses, timestep_law};
use crate::ops::noising::gaussian;
use crate::ops::reduce::mean;
use crate::ops::timesteps::{Draw, timesteps};
use crate::ops::variational_bound::variational_bound;
use crate::philox::Stream;
use crate::recipe::{LossKind, Recipe, System};
use crate::tape::Tensor;

#[cfg(test)]
mod learned_tests;
#[cfg(test)]
mod tests;

/// Name of the bound, in bits per dimension, beside the error of the prediction.
pub(super) const BOUND: &str = "bound";

/// Records the loss of one batch of clean samples `x0` (Ho et al. 2020, equation 14, by default; with a
/// learned variance L_hybrid of Nichol & Dhariwal 2021, section 3.1, or their L_vlb). `history`: of the
/// losses that timesteps are drawn by, if they are; `holes`: a condition with holes, outside of which nothing
/// is to be learnt; `model`: its output for `(x_t, t)`.
pub(super) fn diffusion_loss(
    recipe: &Recipe,
    batch: &Batch,
    x0: &Tensor,
    [history, holes]: [Option<&Tensor>; 2],
    model: &dyn Fn(&Tensor, &Tensor) -> Tensor,
) -> Loss {
    let (schedule, tape) = (recipe.schedule(), batch.tape());
    let levels = schedule.levels();
    let law = history.map(|history| tape.labelled("noising", || timestep_law(history)));
    let drawing = Drawing::of(recipe, &levels);
    let t = drawing.record(batch, x0.dims()[0], law.as_ref().map(|[sums, _]| sums));
    let (x_t, target, t) = batch.noised_at(x0, schedule.noising_table(recipe.prediction_type), t.as_ref());
    let (x_t, target) = with_more_noise(recipe, batch, &levels, [x_t, target], &t);
    let output = model(&x_t, &t);
    let [output, target] = match holes {
        Some(holes) => tape.labelled("loss", || [output, target].map(|x| in_holes(&x, holes))),
        None => [output, target],
    };
    tape.labelled("loss", || {
        // What makes up for timesteps that are drawn more often than others.
        let mut drawn = law.map(|[_, weights]| embedding(&weights, &t).exact());
        if recipe.keeps_prior() {
            let own = batch.input(sample_weights(recipe));
            drawn = Some(drawn.map_or(own.clone(), |drawn| mul(&drawn, &own)));
        }
        let n = t.elements();
        let each_weighted = |each: &Tensor| drawn.as_ref().map(|drawn| mul(each, &drawn.reshape([n])));
        let rows = levels.iter().map(|level| level.bound(recipe.prediction_type, recipe.variance));
        // The bound's part of each sample's loss, beside its error.
        let mut more = None;
        let (loss, each) = match rows.collect::<Option<Vec<_>>>() {
            None => error(recipe, batch, &levels, [&output, &target, &t], drawn.as_ref()),
            Some(rows) => {
                let table = rows.into_iter().flatten().map(|c| c as f32).collect();
                let table = batch.constant("bound", [levels.len(), 4], table);
                let alone = recipe.loss == LossKind::Bound;
                let terms = variational_bound(&output, [&target, x0], &t, &table, alone);
                // Each term stands for those of all timesteps.
                let terms = affine(&terms, (levels.len() as f64 / std::f64::consts::LN_2) as f32, 0.0);
                let bound = mean(each_weighted(&terms).as_ref().unwrap_or(&terms));
                if alone {
                    (Loss::from(bound.clone()).with(BOUND, &bound), terms)
                } else {
                    let channels = x0.shape().last();
                    let predicted = split(&output, &[channels, channels]).swap_remove(0);
                    let (loss, each) =
                        error(recipe, batch, &levels, [&predicted, &target, &t], drawn.as_ref());
                    let share = recipe.bound_weight as f32;
                    more = history.map(|_| affine(&terms, share, 0.0));
                    let total = add(&loss.total, &affine(&bound, share, 0.0));
                    (Loss::from(total).with(BOUND, &bound), each)
                }
            }
        };
        if let Some(history) = history {
            let weights =
                weights(recipe, &levels).map(|of| by_t(batch, "history_weights", of.into_iter(), &t));
            let weighted = weights.map_or(each.clone(), |weights| mul(&each, &weights.reshape([n])));
            record_losses(history, &t, &more.map_or(weighted.clone(), |more| add(&weighted, &more)));
        }
        let part = 1.0 / levels.len() as f32;
        loss.with_samples(&each, &affine(&t, part, 0.5 * part))
    })
}

/// A number for each timestep, as one of each sample `[N, 1]`.
pub(super) fn by_t(
    batch: &Batch,
    name: &'static str,
    values: impl Iterator<Item = f64>,
    t: &Tensor,
) -> Tensor {
    let values: Vec<f32> = values.map(|value| value as f32).collect();
    embedding(&batch.constant(name, [values.len(), 1], values), t).exact()
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

/// The weighted error of what is predicted, and that of each sample without its weight. `drawn`: more
/// weights, of the samples `[N, 1]`.
fn error(
    recipe: &Recipe,
    batch: &Batch,
    levels: &[NoiseLevel],
    [predicted, target, t]: [&Tensor; 3],
    drawn: Option<&Tensor>,
) -> (Loss, Tensor) {
    let weights = weights(recipe, levels);
    let weights = weights.map(|weights| by_t(batch, "loss_weights", weights.into_iter(), t));
    let weights = match (weights, drawn) {
        (Some(weights), Some(drawn)) => Some(mul(&weights, drawn)),
        (weights, drawn) => weights.or_else(|| drawn.cloned()),
    };
    let form = match recipe.loss {
        LossKind::Mse | LossKind::Bound => Form::Squared,
        LossKind::L1 => Form::Absolute,
        LossKind::Huber => Form::Huber(recipe.huber_delta as f32),
    };
    let losses = losses(form, predicted, target, weights.as_ref());
    (Loss::from(losses.mean), losses.each)
}

/// Of the error at each timestep, where they are not all 1.
fn weights(recipe: &Recipe, levels: &[NoiseLevel]) -> Option<Vec<f64>> {
    let Recipe { loss_weight, p2_k, p2_gamma, min_snr_gamma, edm_sigma_data, variance, .. } = *recipe;
    let weighting =
        Weighting { kind: loss_weight, p2_k, p2_gamma, min_snr_gamma, sigma_data: edm_sigma_data, variance };
    let of = |level| weighting.of(recipe.prediction_type, level);
    (loss_weight != LossWeight::Simple).then(|| levels.iter().map(of).collect())
}

/// Parts of [0, 1] that a learned schedule's times are drawn from: as many as an f32 tells apart.
const CONTINUOUS: usize = 1 << 23;

/// How a recipe's timesteps are drawn.
pub(super) struct Drawing {
    draw: Draw,
    /// Of probabilities.
    sums: Option<Vec<f32>>,
}

impl Drawing {
    /// `levels`: of the schedule, where that is not learned.
    pub fn of(recipe: &Recipe, levels: &[NoiseLevel]) -> Drawing {
        let normal = [recipe.timestep_mean, recipe.timestep_std];
        let probabilities = recipe.timestep_sampling.probabilities(levels, normal);
        let spread = recipe.timestep_sampling == TimestepSampling::Stratified;
        let spread_over = spread.then(|| recipe.images_of_a_step() as usize);
        let sums = probabilities.map(|probabilities| cumulative(&probabilities));
        let steps = if recipe.learns_schedule() { CONTINUOUS } else { levels.len() };
        Drawing { draw: Draw { steps, spread_over }, sums }
    }

    /// Those of a batch, unless noising itself draws them. `sums`: of probabilities that a step finds out.
    fn record(&self, batch: &Batch, samples: usize, sums: Option<&Tensor>) -> Option<Tensor> {
        let tape = batch.tape();
        if let Some(sums) = sums {
            let drawn = || timesteps(samples, &self.draw, Some(sums), batch.state());
            return Some(tape.labelled("noising", drawn));
        }
        let evenly = self.sums.is_none() && self.draw.spread_over.is_none();
        (!evenly).then(|| tape.labelled("noising", || self.timesteps(batch, samples)))
    }

    /// How many timesteps there are.
    pub fn steps(&self) -> usize {
        self.draw.steps
    }

    /// That of one sample of a step, on the host.
    #[cfg(test)]
    pub fn draw(&self, state: &crate::state::State, sample: u32) -> usize {
        self.draw.of(state, sample, self.sums.as_deref())
    }

    /// Those of a batch, whole numbers `[samples]`.
    pub fn timesteps(&self, batch: &Batch, samples: usize) -> Tensor {
        let sums = self.sums.as_ref();
        let sums = sums.map(|sums| batch.constant("timestep_sums", [sums.len()], sums.clone()));
        timesteps(samples, &self.draw, sums.as_ref(), batch.state())
    }
}

/// The quarters of the timesteps, by which a run's metrics show the losses of samples.
pub(super) struct Quarters {
    /// Of timesteps, where they are not all 1.
    weights: Option<Vec<f64>>,
}

/// The quarter that a time in [0, 1) lies in.
pub(super) fn quarter_of(time: f64) -> usize {
    ((4.0 * time) as usize).min(3)
}

/// Means over the samples of each quarter; `None` where there are none.
pub(super) type ByQuarter = [Option<f32>; 4];

impl Quarters {
    /// `None` for a recipe without timesteps.
    pub fn of(recipe: &Recipe) -> Option<Quarters> {
        let noisy_classes = recipe.system == System::Classifier && recipe.classifier.noisy;
        let has_times = recipe.system.diffuses() || noisy_classes;
        has_times.then(|| Quarters { weights: weights(recipe, &recipe.schedule().levels()) })
    }

    /// The losses of a step's samples at their `times`, and with their weights if they have any.
    pub fn means(&self, samples: &[f32], times: &[f32]) -> Option<(ByQuarter, Option<ByQuarter>)> {
        let (mut sums, mut counts) = ([[0.0_f64; 4]; 2], [0.0_f64; 4]);
        for (&loss, &time) in samples.iter().zip(times) {
            let (quarter, loss) = (quarter_of(f64::from(time)), f64::from(loss));
            let weight = |weights: &Vec<f64>| {
                weights[((f64::from(time) * weights.len() as f64) as usize).min(weights.len() - 1)]
            };
            counts[quarter] += 1.0;
            sums[0][quarter] += loss;
            sums[1][quarter] += loss * self.weights.as_ref().map_or(1.0, weight);
        }
        let mean = |sums: [f64; 4]| -> ByQuarter {
            std::array::from_fn(|q| (counts[q] > 0.0).then(|| (sums[q] / counts[q]) as f32))
        };
        let weighted = self.weights.is_some().then(|| mean(sums[1]));
        (!samples.is_empty()).then(|| (mean(sums[0]), weighted))
    }
}
