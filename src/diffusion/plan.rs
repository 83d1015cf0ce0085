//! A reverse process laid out as linear forms for every step.

use super::linear_form::LinearForm;
use crate::ops::denoising::{self, Row};

/// alpha-bar up to which no classifier guides: of an image that is 1/300 of its noise a trained one knows
/// nothing, and its gradient, which should vanish with the image, would be magnified without bound.
const LEAST_GUIDED: f64 = 1e-5;

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
    /// The logarithm of the variance that the noise's coefficient is multiplied by, `c + h v` of a value `v`
    /// of the model: `[c, h]`.
    pub log_variance: Option<[f64; 2]>,
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

    /// Whether the noise of a step goes by a variance that the model says.
    pub fn learns_variance(&self) -> bool {
        self.steps.iter().any(|step| step.log_variance.is_some())
    }

    /// `[steps, 72]`: what the denoising kernel needs at each step. With `stored_noise` the noise of a step
    /// is found in the slot after the last, and none is drawn on the device.
    pub fn table(&self, stored_noise: bool) -> Vec<f32> {
        let clip = if let Clip::At(bound) = self.clip { bound } else { 0.0 };
        let form = |form: &LinearForm| -> denoising::Form {
            // Where the form has the noise, the kernel has one slot more.
            let mut coefficients = form.0.map(|coefficient| coefficient as f32);
            let noise = std::mem::take(&mut coefficients[LinearForm::NOISE_AT]);
            if stored_noise {
                coefficients[3 + self.slots()] = noise;
            }
            coefficients
        };
        let row = |step: &Step| {
            let keep = std::array::from_fn(|slot| step.keep.get(slot).map(form).unwrap_or_default());
            let sigma = if stored_noise { 0.0 } else { step.next.0[LinearForm::NOISE_AT] as f32 };
            let (t, x0) = (step.t as f32, step.x0.map(|c| c as f32));
            // g, the gradient of ln p(class | x): x0 becomes x0 + (1 - alpha_bar) / sqrt(alpha_bar) g,
            // whatever the model predicts (Dhariwal & Nichol 2021, arXiv:2105.05233, algorithm 2).
            let guide = match step.alpha_bar > LEAST_GUIDED && step.x0[1] != 0.0 {
                true => (1.0 - step.alpha_bar) / step.alpha_bar.sqrt() / step.x0[1],
                false => 0.0,
            };
            let log_variance = step.log_variance.unwrap_or_default().map(|c| c as f32);
            let (clip, guide) = (clip as f32, guide as f32);
            Row { t, x0, clip, sigma, log_variance, guide, next: form(&step.next), keep }.elements()
        };
        self.steps.iter().flat_map(row).collect()
    }

    /// True if all coefficients are finite.
    pub fn is_finite(&self) -> bool {
        let coefficients = self.steps.iter().flat_map(|step| {
            let forms = std::iter::once(&step.next).chain(&step.keep).flat_map(|form| form.0);
            forms.chain(step.x0).chain([step.t])
        });
        coefficients.chain([self.start]).all(f64::is_finite)
    }

    /// The timesteps of the steps.
    pub fn timesteps(&self) -> Vec<f64> {
        self.steps.iter().map(|step| step.t).collect()
    }
}
