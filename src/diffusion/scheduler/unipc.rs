//! UniPC, multistep of order 1 to 3 (Zhao et al. 2023, arXiv:2302.04867): each step corrects the last one
//! with the prediction that it needs anyway, then predicts the next.

use super::{FinalSigma, Level, Scheduler, UniPc};
use crate::diffusion::linear_form::LinearForm;
use crate::diffusion::plan::{SamplerPlan, Step};
use crate::error::{Error, Result};

/// A step from one level to another, for predictor and corrector.
struct Update<'a> {
    options: &'a UniPc,
    from: Level,
    to: Level,
    /// The levels before `from`, newest first, as far as the order needs them.
    before: &'a [Level],
}

impl Update<'_> {
    /// From the sample `x` and the predictions `m` at `from` and the levels before; `next`: at `to`, for the
    /// corrector.
    fn apply(&self, x: LinearForm, m: &[LinearForm], next: Option<LinearForm>) -> LinearForm {
        let (to, from) = (self.to, self.from);
        let h = to.lambda() - from.lambda();
        let order = self.before.len() + 1;
        let hh = if self.options.predict_x0 { -h } else { h };
        let phi1 = hh.exp_m1();
        let b_h = if self.options.bh1 { hh } else { phi1 };
        let (on_x, on_m) = if self.options.predict_x0 {
            (to.sigma / from.sigma, to.alpha)
        } else {
            (to.alpha / from.alpha, to.sigma)
        };
        let mut rks: Vec<f64> = self.before.iter().map(|b| (b.lambda() - from.lambda()) / h).collect();
        let differences: Vec<LinearForm> =
            rks.iter().zip(&m[1..]).map(|(rk, mi)| (*mi - m[0]) / *rk).collect();
        rks.push(1.0);
        let mut phi = phi1 / hh - 1.0;
        let (mut factorial, mut b) = (1.0, Vec::new());
        for i in 1..=order {
            b.push(phi * factorial / b_h);
            factorial *= (i + 1) as f64;
            phi = phi / hh - 1.0 / factorial;
        }
        let rows = |size: usize| -> Vec<Vec<f64>> {
            (0..size).map(|power| rks[..size].iter().map(|rk| rk.powi(power as i32)).collect()).collect()
        };
        let weights = match (&next, order) {
            (None, 1) => Vec::new(),
            (None, 2) | (Some(_), 1) => vec![0.5],
            (None, _) => solve(rows(order - 1), b[..order - 1].to_vec()),
            (Some(_), _) => solve(rows(order), b),
        };
        let mut sum = LinearForm::ZERO;
        for (weight, difference) in weights.iter().zip(&differences) {
            sum = sum + *weight * *difference;
        }
        if let (Some(next), Some(weight)) = (next, weights.last()) {
            sum = sum + *weight * (next - m[0]);
        }
        let first = on_x * x - on_m * phi1 * m[0];
        // At sigma = 0, which only the first order reaches, B(h) may be infinite.
        if weights.is_empty() { first } else { first - on_m * b_h * sum }
    }
}

impl Scheduler {
    pub(super) fn unipc_plan(&self, options: &UniPc, n: usize, begin: usize) -> Result<SamplerPlan> {
        let order = options.order;
        if !(1..=3).contains(&order) {
            return Err(Error::usage(format!("UniPC of order {order}")).hint("solver_order is 1, 2 or 3"));
        }
        let to_zero = self.final_sigma == FinalSigma::Zero;
        if to_zero && (!options.predict_x0 || !options.lower_order_final && order > 1 && n > 1) {
            return Err(Error::usage("this form of UniPC cannot end at sigma = 0")
                .hint("final_sigmas_type must be sigma_min, or predict_x0 and lower_order_final true"));
        }
        let levels = self.solver_levels(&self.schedule(), n, f64::NEG_INFINITY);
        let n = levels.timesteps.len();
        let at: Vec<Level> = levels.sigmas.iter().map(|&sigma| Level::of_sigma(sigma)).collect();
        // The `count` levels before level i, newest first.
        let before =
            |i: usize, count: usize| -> Vec<Level> { (1..=count).map(|back| at[i - back]).collect() };
        let order_at = |i: usize| {
            let most = if options.lower_order_final { order.min(n - i) } else { order };
            most.min((i + 1).saturating_sub(begin).max(1))
        };
        let step = |i: usize| {
            let prediction =
                if options.predict_x0 { LinearForm::X0 } else { self.process.prediction.eps(at[i]) };
            let kept = (0..order).map(LinearForm::kept);
            let mut x = LinearForm::X;
            if i > begin && !options.disable_corrector.contains(&(i - 1)) {
                let earlier = before(i - 1, order_at(i - 1) - 1);
                let update = Update { options, from: at[i - 1], to: at[i], before: &earlier };
                let m: Vec<LinearForm> = kept.clone().collect();
                x = update.apply(LinearForm::kept(order), &m, Some(prediction));
            }
            let m: Vec<LinearForm> = std::iter::once(prediction).chain(kept).take(order).collect();
            let earlier = before(i, order_at(i) - 1);
            let update = Update { options, from: at[i], to: at[i + 1], before: &earlier };
            let next = update.apply(x, &m, None);
            let keep = m.into_iter().chain([x]).collect();
            let x0 = self.process.prediction.x0(at[i]);
            let (t, alpha_bar) = (levels.timesteps[i], at[i].alpha_bar());
            Step { t, alpha_bar, x0, next, keep, draws: false, log_variance: None }
        };
        let clip = self.clip_if(false, options.predict_x0);
        Ok(SamplerPlan { steps: (0..n).map(step).collect(), start: 1.0, clip })
    }
}

/// Solves `a x = b` by Gauss's elimination with pivoting.
fn solve(mut a: Vec<Vec<f64>>, mut b: Vec<f64>) -> Vec<f64> {
    let n = b.len();
    for column in 0..n {
        let largest = |x: &usize, y: &usize| a[*x][column].abs().total_cmp(&a[*y][column].abs());
        let pivot = (column..n).max_by(largest).unwrap_or(column);
        a.swap(column, pivot);
        b.swap(column, pivot);
        for row in column + 1..n {
            let factor = a[row][column] / a[column][column];
            for k in column..n {
                a[row][k] -= factor * a[column][k];
            }
            b[row] -= factor * b[column];
        }
    }
    for row in (0..n).rev() {
        let known: f64 = (row + 1..n).map(|k| a[row][k] * b[k]).sum();
        b[row] = (b[row] - known) / a[row][row];
    }
    b
}

#[cfg(test)]
mod tests {
    use super::solve;

    #[test]
    fn a_system_that_needs_pivoting() {
        let a = vec![vec![0.0, 2.0, 1.0], vec![1.0, -1.0, 0.0], vec![3.0, 0.5, -2.0]];
        let x = solve(a, vec![7.0, -1.0, -2.0]);
        for (got, wanted) in x.iter().zip([1.0, 2.0, 3.0]) {
            assert!((got - wanted).abs() <= 1e-12, "{x:?}");
        }
    }
}
