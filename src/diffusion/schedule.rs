//! The noise schedule of DDPM in f64, and the tables that the noising and denoising kernels read.
//!
//! Notation of Ho, Jain & Abbeel 2020 (arXiv:2006.11239): `x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 -
//! alpha_bar_t) eps`.

use serde::{Deserialize, Serialize};

use crate::ops::denoising::Row;

/// Variance of the reverse step, both of which Ho et al. found to work alike.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Variance {
    /// The posterior's, beta-tilde: the lower bound.
    FixedSmall,
    /// beta: the upper bound.
    FixedLarge,
}

/// Noise levels of the forward process.
#[derive(Clone, Debug)]
pub struct Schedule {
    pub betas: Vec<f64>,
    /// Products of `1 - beta` up to and with each timestep.
    pub alpha_bars: Vec<f64>,
}

impl Schedule {
    /// `steps` betas from `start` to `end` in equal steps.
    pub fn linear(steps: usize, start: f64, end: f64) -> Self {
        let last = steps.saturating_sub(1).max(1) as f64;
        let betas: Vec<f64> = (0..steps).map(|i| start + (end - start) * i as f64 / last).collect();
        let product = |so_far: &mut f64, beta: &f64| {
            *so_far *= 1.0 - beta;
            Some(*so_far)
        };
        let alpha_bars = betas.iter().scan(1.0, product).collect();
        Schedule { betas, alpha_bars }
    }

    /// Number of timesteps, T.
    pub fn steps(&self) -> usize {
        self.betas.len()
    }

    /// `[T, 2]`: `sqrt(alpha_bar)` and `sqrt(1 - alpha_bar)`, for the noising kernel.
    pub fn noising_table(&self) -> Vec<f32> {
        self.alpha_bars.iter().flat_map(|a| [a.sqrt() as f32, (1.0 - a).sqrt() as f32]).collect()
    }

    /// The timesteps of a reverse process of `n` steps, falling: multiples of `T / n` (the reference
    /// library's "leading").
    pub fn respaced(&self, n: usize) -> Vec<usize> {
        let stride = self.steps() / n.clamp(1, self.steps());
        (0..n.clamp(1, self.steps())).rev().map(|i| i * stride).collect()
    }

    /// Coefficients of the step from timestep `t` to the next lower one `prev` (none: to the end):
    /// those of x_0 and x_t in the posterior's mean, and the standard deviation of the noise (Ho et al.,
    /// equations 6 and 7).
    pub fn reverse(&self, t: usize, prev: Option<usize>, variance: Variance) -> [f64; 3] {
        let alpha_bar = self.alpha_bars[t];
        let before = prev.map_or(1.0, |p| self.alpha_bars[p]);
        let alpha = alpha_bar / before;
        let beta = 1.0 - alpha;
        let of_x0 = before.sqrt() * beta / (1.0 - alpha_bar);
        let of_xt = alpha.sqrt() * (1.0 - before) / (1.0 - alpha_bar);
        let small = (1.0 - before) / (1.0 - alpha_bar) * beta;
        let sigma = match (prev, variance) {
            (None, _) => 0.0,
            (_, Variance::FixedSmall) => small.max(1e-20).sqrt(),
            (_, Variance::FixedLarge) => beta.sqrt(),
        };
        [of_x0, of_xt, sigma]
    }

    /// `[timesteps, 8]`: what the denoising kernel needs at each of the falling `timesteps`. `clip`: bound
    /// of the predicted x_0; none: unbounded.
    pub fn denoising_table(&self, timesteps: &[usize], variance: Variance, clip: Option<f64>) -> Vec<f32> {
        let mut table = Vec::with_capacity(timesteps.len() * Row::COLUMNS);
        for (i, &t) in timesteps.iter().enumerate() {
            let [of_x0, of_xt, sigma] = self.reverse(t, timesteps.get(i + 1).copied(), variance);
            let alpha_bar = self.alpha_bars[t];
            let row = Row {
                r0: (1.0 / alpha_bar).sqrt() as f32,
                r1: (1.0 / alpha_bar - 1.0).sqrt() as f32,
                coef_x0: of_x0 as f32,
                coef_x: of_xt as f32,
                sigma: sigma as f32,
                clip: clip.unwrap_or(0.0) as f32,
                t: t as f32,
            };
            table.extend(row.elements());
        }
        table
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Published in the reference library's documentation of the linear schedule.
    #[test]
    fn alpha_bars_of_the_linear_schedule() {
        let schedule = Schedule::linear(1000, 1e-4, 0.02);
        for (t, wanted) in [
            (0, 0.9999),
            (1, 0.999_780_092),
            (249, 0.524_085_374),
            (499, 0.078_587_242_9),
            (749, 0.003_350_550_44),
            (999, 4.035_829_77e-5),
        ] {
            let err = (schedule.alpha_bars[t] - wanted).abs() / wanted;
            assert!(err <= 2e-9, "alpha_bar[{t}] = {}, wanted {wanted}", schedule.alpha_bars[t]);
        }
    }

    #[test]
    fn the_last_step_ends_at_x0_without_noise() {
        let schedule = Schedule::linear(1000, 1e-4, 0.02);
        for variance in [Variance::FixedSmall, Variance::FixedLarge] {
            let [x0, xt, sigma] = schedule.reverse(0, None, variance);
            assert!((x0 - 1.0).abs() <= 1e-12 && xt.abs() <= 1e-12 && sigma == 0.0, "{x0} {xt} {sigma}");
        }
    }

    #[test]
    fn respacing() {
        let schedule = Schedule::linear(1000, 1e-4, 0.02);
        assert_eq!(schedule.respaced(10), [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]);
        assert_eq!(schedule.respaced(1000).first(), Some(&999));
        assert_eq!(schedule.respaced(300).first(), Some(&897));
        assert_eq!(schedule.respaced(5000).len(), 1000);
    }
}
