//! The noise schedule that a recipe has trained: how it is recorded in the recipe, and what goes with it.

use super::{LossKind, Recipe, Rng, System};
use crate::diffusion::{Betas, LossWeight, Prediction, TimestepSampling};
use crate::error::{Result, need};
use crate::models::gamma::{Gamma, LearnedSchedule};
use crate::models::unet::TimeEmbedding;
use crate::nn::Params;

/// Most timesteps of a learned schedule, whose betas stand in every checkpoint.
const MOST_TIMESTEPS: usize = 10_000;

impl Recipe {
    /// Whether training learns the noise schedule.
    pub fn learns_schedule(&self) -> bool {
        self.learned_schedule != LearnedSchedule::None
    }

    /// gamma at t = 0 and t = 1, where a learned schedule begins with them.
    pub(crate) fn gamma_ends(&self) -> [f64; 2] {
        [self.gamma_min, self.gamma_max]
    }

    /// The betas of the process. Of a schedule that no step has trained yet: a line of log SNR.
    pub(super) fn betas(&self) -> Betas {
        match &self.beta_schedule {
            Betas::Given(_) => self.beta_schedule.clone(),
            _ if self.learns_schedule() => {
                Betas::Given(Gamma::straight(self.gamma_ends()).betas(self.timesteps))
            }
            _ => self.beta_schedule.clone(),
        }
    }

    /// Writes down the schedule that is learned, as its parameters `flat` say it.
    pub(crate) fn set_learned_schedule(&mut self, params: &Params, flat: &[f32]) {
        if self.learns_schedule() {
            let gamma = Gamma::of(self.learned_schedule, self.gamma_ends(), params, flat);
            self.beta_schedule = Betas::Given(gamma.betas(self.timesteps));
        }
    }

    /// Says what does not go with a learned schedule.
    pub(super) fn validate_learned_schedule(&self) -> Result<()> {
        if !self.learns_schedule() {
            let usual = Recipe::default().gamma_ends();
            return need(
                self.gamma_ends() == usual,
                "gamma_min and gamma_max are the ends of a learned schedule, and none is learned",
                "set learned_schedule = scalar or network, or leave them out",
            );
        }
        let named = format!("learned_schedule is {:?}", self.learned_schedule).to_lowercase();
        let ends = self.gamma_max - self.gamma_min;
        let message = format!("gamma_min is {}, and gamma_max {}", self.gamma_min, self.gamma_max);
        need(ends >= 1.0, message, "-log SNR rises: gamma_max must be larger by 1 or more")?;
        let plain = matches!(self.beta_schedule, Betas::Linear | Betas::Given(_));
        need(
            plain && !self.rescale_betas_zero_snr,
            &named,
            "leave beta_schedule and rescale_betas_zero_snr out",
        )?;
        let pixels = self.system == System::Ddpm;
        need(pixels, &named, "its bound is that of pixels of 256 levels: choose a recipe without a VAE")?;
        let bound = self.loss == LossKind::Mse && self.loss_weight == LossWeight::Simple;
        need(bound, &named, "it has a loss of its own: leave loss and loss_weight out")?;
        let noise = self.prediction_type == Prediction::Epsilon && !self.variance.is_learned();
        need(noise, &named, "the model predicts noise: leave prediction_type, and a learned variance, out")?;
        let sampling = [TimestepSampling::Uniform, TimestepSampling::Stratified];
        let even = sampling.contains(&self.timestep_sampling);
        need(even, &named, "set timestep_sampling = stratified (or uniform)")?;
        let exact = self.offset_noise == 0.0 && self.input_perturbation == 0.0;
        need(exact, &named, "leave offset_noise and input_perturbation at 0")?;
        need(
            self.rng == Rng::Denoir,
            &named,
            "leave rng = denoir: PyTorch's models have no such parameters",
        )?;
        let whole = self.unet.time_embedding_type == TimeEmbedding::Learned;
        need(!whole, &named, "timesteps lie between whole ones: set unet.time_embedding_type = positional")?;
        let message = format!("{named}, and timesteps {}", self.timesteps);
        need(self.timesteps <= MOST_TIMESTEPS, message, format!("choose at most {MOST_TIMESTEPS}"))
    }
}
