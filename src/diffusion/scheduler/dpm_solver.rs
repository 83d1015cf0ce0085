//! DPM-Solver++, multistep of order 1 to 3, and its stochastic form (Lu et al. 2022, arXiv:2211.01095).
//!
//! `h` is the step in `lambda = ln(alpha / sigma)`. It is infinite where the walk ends at sigma = 0, which
//! only the first order can do.

use super::{DpmSolver, FinalSigma, Level, Scheduler};
use crate::diffusion::linear_form::LinearForm;
use crate::diffusion::plan::{SamplerPlan, Step};
use crate::error::{Error, Result};

/// Below so many steps the last ones are of lower order.
const FEW: usize = 15;

impl Scheduler {
    pub(super) fn dpm_plan(&self, options: &DpmSolver, n: usize, begin: usize) -> Result<SamplerPlan> {
        let (order, sde) = (options.order, options.sde);
        if !(1..=3).contains(&order) {
            return Err(
                Error::usage(format!("DPM-Solver++ of order {order}")).hint("solver_order is 1, 2 or 3")
            );
        }
        let levels = self.solver_levels(&self.schedule(), n, options.lambda_min);
        let n = levels.timesteps.len();
        let at = |i: usize| Level::of_sigma(levels.sigmas[i]);
        let step = |i: usize| {
            let (from, to) = (at(i), at(i + 1));
            let h = to.lambda() - from.lambda();
            let last = i + 1 == n
                && (options.euler_at_final
                    || options.lower_order_final && n < FEW
                    || self.final_sigma == FinalSigma::Zero);
            let second = i + 2 == n && options.lower_order_final && n < FEW;
            let order = if last {
                1
            } else {
                order.min((i + 1).saturating_sub(begin).max(1)).min(if second { 2 } else { order })
            };
            // Over a stochastic step twice the way is walked, and noise leads back.
            let double = if sde { 2.0 * h } else { h };
            let base = if sde { to.sigma / from.sigma * (-h).exp() } else { to.sigma / from.sigma };
            let noise = if sde { to.sigma * (1.0 - (-2.0 * h).exp()).sqrt() } else { 0.0 };
            // Integrals of exp(lambda) times 1, lambda and lambda^2 / 2 over the step.
            let first = 1.0 - (-double).exp();
            let mut next =
                base * LinearForm::X + to.alpha * first * LinearForm::X0 + noise * LinearForm::NOISE;
            if order > 1 {
                let before = at(i - 1);
                let r0 = (from.lambda() - before.lambda()) / h;
                let slope = (LinearForm::X0 - LinearForm::kept(0)) / r0;
                if order == 2 {
                    let weight = if options.heun { 1.0 - first / double } else { 0.5 * first };
                    next = next + to.alpha * weight * slope;
                } else {
                    let r1 = (before.lambda() - at(i - 2).lambda()) / h;
                    let slope_before = (LinearForm::kept(0) - LinearForm::kept(1)) / r1;
                    let bend = (slope - slope_before) / (r0 + r1);
                    let weight = 1.0 - first / double;
                    let of_bend = if sde {
                        (first - double) / double.powi(2) - 0.5
                    } else {
                        -((double - first) / double.powi(2) - 0.5)
                    };
                    next = next + to.alpha * weight * (slope + r0 * bend) + to.alpha * of_bend * bend;
                }
            }
            Step {
                log_variance: None,
                t: levels.timesteps[i],
                alpha_bar: from.alpha_bar(),
                x0: self.process.prediction.x0(from),
                next,
                keep: [LinearForm::X0, LinearForm::kept(0)][..options.order - 1].to_vec(),
                draws: sde,
            }
        };
        let clip = self.clip_if(false, true);
        Ok(SamplerPlan { steps: (0..n).map(step).collect(), start: 1.0, clip })
    }
}
