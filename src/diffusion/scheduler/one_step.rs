//! DDPM and DDIM, which need nothing but the sample.

use super::{Level, Prediction, Scheduler};
use crate::diffusion::linear_form::LinearForm;
use crate::diffusion::plan::{SamplerPlan, Step};
use crate::diffusion::schedule::{Schedule, Variance};
use crate::error::{Error, Result};

impl Scheduler {
    /// Ho et al. 2020, equation 7.
    pub(super) fn ddpm_plan(&self, variance: Variance, n: usize) -> Result<SamplerPlan> {
        let schedule = self.schedule();
        let timesteps = self.checked(self.whole_timesteps(n))?;
        let step = |(i, &t): (usize, &usize)| {
            let [of_x0, of_x, sigma] = schedule.reverse(t, timesteps.get(i + 1).copied(), variance);
            // The reference draws at the last step too unless it stands at timestep 0.
            let last = schedule.last_deviation(t, variance);
            let sigma = if i + 1 == n && t > 0 { last } else { sigma };
            let noise = sigma * LinearForm::NOISE;
            let next = of_x0 * LinearForm::X0 + of_x * LinearForm::X + noise;
            let mut by_level = self.one_step(t, schedule.alpha_bars[t], next, t > 0);
            if let Some(&prev) = timesteps.get(i + 1) {
                // Of the step that is made, however far it leads (Nichol & Dhariwal's respacing; the
                // diffusers library takes the beta of timestep t for the upper bound all the same).
                let [small, large] = [Variance::FixedSmall, Variance::FixedLarge]
                    .map(|variance| schedule.reverse(t, Some(prev), variance)[2].powi(2));
                by_level.log_variance = variance.of_output([small, large]);
            }
            if self.process.prediction != Prediction::Mean {
                return by_level;
            }
            // The mean of the step to the timestep before, which is the next x itself where that comes next,
            // as in Ho et al.'s code: clipping changes the reported x0 alone.
            let [of_x0, of_x, _] = schedule.reverse(t, t.checked_sub(1), variance);
            let x0 = [-of_x / of_x0, 1.0 / of_x0];
            let adjacent = timesteps.get(i + 1).copied() == t.checked_sub(1);
            Step { x0, next: if adjacent { LinearForm::OUT + noise } else { next }, ..by_level }
        };
        let steps = timesteps.iter().enumerate().map(step).collect();
        Ok(SamplerPlan { steps, start: 1.0, clip: self.clip })
    }

    /// Song et al. 2021, equations 12 and 16.
    pub(super) fn ddim_plan(
        &self,
        eta: f64,
        alpha_to_one: bool,
        reclip: bool,
        n: usize,
    ) -> Result<SamplerPlan> {
        let schedule = self.schedule();
        let keep = |value: f64| self.precision.keep(value);
        let end = if alpha_to_one { 1.0 } else { schedule.alpha_bars[0] };
        let timesteps = self.checked(self.whole_timesteps(n))?;
        let stride = self.process.timesteps / n;
        let step = |&t: &usize| {
            let bar = schedule.alpha_bars[t];
            let before = t.checked_sub(stride).map_or(end, |before| schedule.alpha_bars[before]);
            let (at, to) = (self.level(&schedule, t), Level::of_bar(before, self.precision));
            let variance = keep(1.0 - before) / keep(1.0 - bar) * keep(1.0 - keep(bar / before));
            let sigma = eta * variance.max(0.0).sqrt();
            let eps = if reclip {
                (LinearForm::X - at.alpha * LinearForm::X0) / at.sigma
            } else {
                self.process.prediction.eps(at)
            };
            let towards = (keep(1.0 - before) - sigma * sigma).max(0.0).sqrt();
            let next = to.alpha * LinearForm::X0 + towards * eps + sigma * LinearForm::NOISE;
            self.one_step(t, bar, next, eta > 0.0)
        };
        let steps = timesteps.iter().map(step).collect();
        Ok(SamplerPlan { steps, start: 1.0, clip: self.clip })
    }

    /// DDIM's step the other way: the model is asked at the level that the step leads to.
    pub(super) fn inverse_plan(&self, alpha_to_one: bool, n: usize) -> Result<SamplerPlan> {
        let schedule = self.schedule();
        let first = if alpha_to_one { 1.0 } else { schedule.alpha_bars[0] };
        let mut timesteps = self.checked(self.whole_timesteps(n))?;
        timesteps.reverse();
        let stride = self.process.timesteps / n;
        let step = |&t: &usize| {
            let below = t.checked_sub(stride).map_or(first, |below| schedule.alpha_bars[below]);
            let (at, to) = (Level::of_bar(below, self.precision), self.level(&schedule, t));
            // At the picture itself there is no noise to take a prediction of x0 apart from.
            let eps = match self.process.prediction {
                Prediction::Sample if at.sigma == 0.0 => LinearForm::ZERO,
                prediction => prediction.eps(at),
            };
            self.one_step(t, below, to.alpha * LinearForm::X0 + to.sigma * eps, false)
        };
        let steps = timesteps.iter().map(step).collect();
        Ok(SamplerPlan { steps, start: 1.0, clip: self.clip_if(true, false) })
    }

    fn one_step(&self, t: usize, alpha_bar: f64, next: LinearForm, draws: bool) -> Step {
        let x0 = self.process.prediction.x0(Level::of_bar(alpha_bar, self.precision));
        Step { t: t as f64, alpha_bar, x0, next, keep: Vec::new(), draws, log_variance: None }
    }

    pub(super) fn level(&self, schedule: &Schedule, t: usize) -> Level {
        Level::of_bar(schedule.alpha_bars[t], self.precision)
    }

    /// Timesteps that the model knows.
    pub(super) fn checked(&self, timesteps: Vec<usize>) -> Result<Vec<usize>> {
        match timesteps.iter().find(|&&t| t >= self.process.timesteps) {
            Some(t) => {
                Err(Error::usage(format!("the plan would visit timestep {t} of {}", self.process.timesteps))
                    .hint("lower steps_offset, or take fewer steps"))
            }
            None => Ok(timesteps),
        }
    }
}
