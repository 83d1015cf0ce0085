//! A reverse process laid out as linear forms for every step, and its computation in f64.

use super::linear_form::{LinearForm, SLOTS};
use crate::ops::denoising::{self, Row};

/// Clipping of the predicted clean sample.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub enum Clip {
    /// No clipping.
    #[default]
    None,
    /// It is kept in `[-bound, bound]`.
    At(f64),
    /// With `s` the quantile `ratio` of a sample's absolute values, at least 1 and at most `most`: it is
    /// kept in `[-s, s]` and divided by `s` (Saharia et al. 2022, arXiv:2205.11487, section 2.3).
    Dynamic {
        /// The quantile, 0 to 1.
        ratio: f64,
        /// Largest `s`.
        most: f64,
    },
}

/// One step: one evaluation of the model, and what follows from it.
#[derive(Clone, Debug, PartialEq)]
pub struct Step {
    /// The timestep that the model is given.
    pub t: f64,
    /// alpha-bar of the sample that the model sees: `x = sqrt(alpha_bar) x0 + sqrt(1 - alpha_bar) noise`.
    pub alpha_bar: f64,
    /// The predicted clean sample before it is clipped: coefficients of `x` and of the model's output.
    pub x0: [f64; 2],
    /// The sample of the next step.
    pub next: LinearForm,
    /// The tensors in the slots of the next step.
    pub keep: Vec<LinearForm>,
    /// True if the diffusers library draws noise here, even if it multiplies it by 0.
    pub draws: bool,
}

/// All steps of a reverse process. The sample is the model's input, at unit variance; it is `sqrt(alpha_bar)`
/// times the variable `x0 + sigma noise` of some solvers.
#[derive(Clone, Debug, PartialEq)]
pub struct SamplerPlan {
    /// The steps in order.
    pub steps: Vec<Step>,
    /// Factor of the standard normal noise that sampling starts from.
    pub start: f64,
    /// Clipping of x0 in every step.
    pub clip: Clip,
}

impl SamplerPlan {
    /// Number of tensors that are kept from step to step besides the sample.
    pub fn slots(&self) -> usize {
        self.steps.iter().map(|step| step.keep.len()).max().unwrap_or(0)
    }

    /// `[steps, 72]`: what the denoising kernel needs at each step. With `stored_noise` the noise of a step
    /// is found in the slot after the last, and none is drawn on the device.
    pub fn table(&self, stored_noise: bool) -> Vec<f32> {
        let clip = if let Clip::At(bound) = self.clip { bound } else { 0.0 };
        let noise = self.slots();
        let form = |form: &LinearForm| -> denoising::Form {
            let known = [form.x0, form.x, form.out].into_iter().chain(form.kept);
            let mut coefficients = [0.0; 3 + denoising::SLOTS];
            for (to, coefficient) in coefficients.iter_mut().zip(known) {
                *to = coefficient as f32;
            }
            if stored_noise {
                coefficients[3 + noise] = form.noise as f32;
            }
            coefficients
        };
        let row = |step: &Step| {
            let mut keep = [[0.0; 3 + denoising::SLOTS]; denoising::SLOTS];
            for (to, kept) in keep.iter_mut().zip(&step.keep) {
                *to = form(kept);
            }
            let sigma = if stored_noise { 0.0 } else { step.next.noise as f32 };
            let (t, x0) = (step.t as f32, step.x0.map(|c| c as f32));
            Row { t, x0, clip: clip as f32, sigma, next: form(&step.next), keep }.elements()
        };
        self.steps.iter().flat_map(row).collect()
    }

    /// True if all coefficients are finite.
    pub fn is_finite(&self) -> bool {
        let form = |form: &LinearForm| {
            let known = [form.x0, form.x, form.out, form.noise].into_iter().chain(form.kept);
            known.into_iter().all(f64::is_finite)
        };
        let step = |step: &Step| {
            let whole = step.t.is_finite() && step.x0.iter().all(|c| c.is_finite());
            whole && form(&step.next) && step.keep.iter().all(form)
        };
        self.start.is_finite() && self.steps.iter().all(step)
    }

    /// The timesteps of the steps.
    pub fn timesteps(&self) -> Vec<f64> {
        self.steps.iter().map(|step| step.t).collect()
    }
}

/// The computation of a plan in f64, the reference of the device's steps.
#[derive(Clone, Debug)]
pub struct PlanRunner<'a> {
    plan: &'a SamplerPlan,
    row: usize,
    /// The sample `[N, elements]`, as is each slot.
    pub x: Vec<f64>,
    /// The predicted clean sample of the last step, clipped.
    pub x0: Vec<f64>,
    kept: Vec<Vec<f64>>,
    samples: usize,
}

impl<'a> PlanRunner<'a> {
    /// From `samples` samples `x [N, elements]`, scaled as the model sees them, at row `row` on.
    pub fn new(plan: &'a SamplerPlan, row: usize, x: Vec<f64>, samples: usize) -> Self {
        PlanRunner {
            plan,
            row,
            kept: vec![vec![0.0; x.len()]; plan.slots()],
            x0: vec![0.0; x.len()],
            x,
            samples,
        }
    }

    /// Takes the next step with the model's output and standard normal numbers of `x`'s shape.
    ///
    /// # Panics
    /// After the last one, or when the shapes differ.
    pub fn step(&mut self, out: &[f64], noise: &[f64]) {
        assert!(out.len() == self.x.len() && noise.len() == self.x.len(), "step: shapes differ");
        let step = &self.plan.steps[self.row];
        for ((x0, x), out) in self.x0.iter_mut().zip(&self.x).zip(out) {
            *x0 = step.x0[0] * x + step.x0[1] * out;
        }
        self.clip();
        for (i, (&out, &noise)) in out.iter().zip(noise).enumerate() {
            let (x0, x) = (self.x0[i], self.x[i]);
            let kept: [f64; SLOTS] =
                std::array::from_fn(|slot| self.kept.get(slot).map_or(0.0, |kept| kept[i]));
            self.x[i] = step.next.at(x0, x, out, &kept, noise);
            for (slot, form) in step.keep.iter().enumerate() {
                self.kept[slot][i] = form.at(x0, x, out, &kept, noise);
            }
        }
        self.row += 1;
    }

    fn clip(&mut self) {
        match self.plan.clip {
            Clip::None => {}
            Clip::At(bound) => self.x0.iter_mut().for_each(|x0| *x0 = x0.clamp(-bound, bound)),
            Clip::Dynamic { ratio, most } => {
                for x0 in self.x0.chunks_mut(self.x.len() / self.samples) {
                    let s = quantile(x0, ratio).max(1.0).min(most);
                    x0.iter_mut().for_each(|x0| *x0 = x0.clamp(-s, s) / s);
                }
            }
        }
    }
}

/// The quantile of the absolute values, linear between its neighbours.
fn quantile(values: &[f64], ratio: f64) -> f64 {
    let mut sorted: Vec<f64> = values.iter().map(|v| v.abs()).collect();
    sorted.sort_by(f64::total_cmp);
    let rank = ratio * (sorted.len() - 1) as f64;
    let (low, high) = (sorted[rank.floor() as usize], sorted[rank.ceil() as usize]);
    low + (high - low) * rank.fract()
}
