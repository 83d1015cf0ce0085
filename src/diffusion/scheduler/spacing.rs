//! Which timesteps and which noise levels a walk visits.

use super::{FinalSigma, Method, Scheduler, Sigmas, Spacing};
use crate::diffusion::schedule::{Betas, Rounding, Schedule};

/// `n` numbers from `from` to `to`, both included.
fn linspace(from: f64, to: f64, n: usize) -> impl DoubleEndedIterator<Item = f64> + ExactSizeIterator {
    let last = n.saturating_sub(1).max(1) as f64;
    (0..n).map(move |i| from + (to - from) * (i as f64 / last))
}

/// From `last` down in steps of `stride`, rounded, less 1.
fn trailing(last: usize, stride: f64) -> Vec<f64> {
    let count = (last as f64 / stride).ceil() as usize;
    (0..count).map(|i| (last as f64 - i as f64 * stride).round_ties_even() - 1.0).collect()
}

/// The noise levels and what the model is told at each. `sigmas` has one more than there are timesteps.
pub(super) struct Levels {
    pub sigmas: Vec<f64>,
    pub timesteps: Vec<f64>,
}

impl Scheduler {
    /// Falling whole timesteps of the samplers that walk over them.
    pub(super) fn whole_timesteps(&self, n: usize) -> Vec<usize> {
        let total = self.process.timesteps;
        match self.spacing {
            Spacing::Leading => {
                let stride = total / n;
                (0..n).rev().map(|i| i * stride + self.steps_offset).collect()
            }
            Spacing::Trailing => {
                trailing(total, total as f64 / n as f64).into_iter().map(|t| t as usize).collect()
            }
            Spacing::Linspace => {
                linspace(0.0, (total - 1) as f64, n).rev().map(|t| t.round_ties_even() as usize).collect()
            }
        }
    }

    /// Noise levels of the k-diffusion samplers, which start from the last timestep and may stand between
    /// two.
    pub(super) fn k_levels(&self, schedule: &Schedule, n: usize) -> Levels {
        let total = self.process.timesteps;
        let keep = |value: f64| self.precision.keep(value);
        let mut timesteps: Vec<f64> = match self.spacing {
            Spacing::Linspace => linspace(0.0, (total - 1) as f64, n).rev().map(keep).collect(),
            _ => self.whole_timesteps(n).into_iter().map(|t| t as f64).collect(),
        };
        let table = schedule.sigmas();
        let mut sigmas: Vec<f64> = match self.method {
            Method::Euler { log_linear: true } => {
                linspace(table[total - 1].ln(), table[0].ln(), n + 1).map(f64::exp).collect()
            }
            _ => timesteps.iter().map(|&t| interpolated(&table, t)).collect(),
        };
        let ends = [sigmas[0], sigmas[sigmas.len() - 1]];
        if let Some(chosen) = self.chosen_sigmas(ends, n) {
            timesteps =
                chosen.iter().map(|&sigma| keep(timestep_of(&table, sigma, self.precision))).collect();
            sigmas = chosen;
        }
        sigmas.push(self.last_sigma(table[0]));
        Levels { sigmas: sigmas.into_iter().map(keep).collect(), timesteps }
    }

    /// Noise levels of DPM-Solver++ and UniPC, which leave out the last of `n + 1` timesteps and stand on
    /// whole ones.
    pub(super) fn solver_levels(&self, schedule: &Schedule, n: usize, lambda_min: f64) -> Levels {
        let table = schedule.sigmas();
        // lambda = -ln sigma falls as t rises
        let last = table.iter().filter(|sigma| -sigma.ln() >= lambda_min).count();
        let mut timesteps: Vec<f64> = match self.spacing {
            Spacing::Linspace => {
                let all = linspace(0.0, last.saturating_sub(1) as f64, n + 1).rev();
                all.map(f64::round_ties_even).take(n).collect()
            }
            Spacing::Leading => {
                let stride = last / (n + 1);
                (1..=n).rev().map(|i| (i * stride + self.steps_offset) as f64).collect()
            }
            Spacing::Trailing => trailing(last, self.process.timesteps as f64 / n as f64),
        };
        let unipc = matches!(self.method, Method::UniPc(_));
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&t| interpolated(&table, t)).collect();
        let mut lowest = table[0];
        if let Some(chosen) = self.chosen_sigmas([table[table.len() - 1], table[0]], n) {
            let rounds = self.sigmas == Sigmas::Karras && (unipc || self.process.betas != Betas::Cosine);
            let whole = |t: f64| if rounds { t.round_ties_even() } else { t.trunc() };
            timesteps =
                chosen.iter().map(|&sigma| whole(timestep_of(&table, sigma, self.precision))).collect();
            sigmas = chosen;
            if unipc {
                lowest = sigmas[sigmas.len() - 1];
            }
        }
        sigmas.push(self.last_sigma(lowest));
        Levels { sigmas: sigmas.into_iter().map(|s| self.precision.keep(s)).collect(), timesteps }
    }

    fn last_sigma(&self, lowest: f64) -> f64 {
        match self.final_sigma {
            FinalSigma::Zero => 0.0,
            FinalSigma::Lowest => lowest,
        }
    }

    /// `n` noise levels between the ends (highest first), unless those of the timesteps are wanted.
    fn chosen_sigmas(&self, [high, low]: [f64; 2], n: usize) -> Option<Vec<f64>> {
        const RHO: f64 = 7.0;
        let (high, low) = (self.sigma_max.unwrap_or(high), self.sigma_min.unwrap_or(low));
        match self.sigmas {
            Sigmas::Timesteps => None,
            Sigmas::Karras => {
                let (from, to) = (high.powf(1.0 / RHO), low.powf(1.0 / RHO));
                Some(linspace(0.0, 1.0, n).map(|ramp| (from + ramp * (to - from)).powf(RHO)).collect())
            }
            Sigmas::Exponential => Some(linspace(high.ln(), low.ln(), n).map(f64::exp).collect()),
        }
    }
}

/// The table between its whole timesteps.
fn interpolated(table: &[f64], t: f64) -> f64 {
    let low = (t.floor().max(0.0) as usize).min(table.len() - 1);
    let high = (low + 1).min(table.len() - 1);
    table[low] + (table[high] - table[low]) * (t - low as f64)
}

/// The timestep of a noise level: the inverse, between logarithms. High up, where those lie close together,
/// it shows what they are rounded to.
fn timestep_of(table: &[f64], sigma: f64, precision: Rounding) -> f64 {
    let log = |at: usize| precision.keep(table[at].ln());
    let wanted = sigma.max(1e-10).ln();
    let below = (0..table.len()).rposition(|at| log(at) <= wanted).unwrap_or(0);
    let below = below.min(table.len().saturating_sub(2));
    let (low, high) = (log(below), log((below + 1).min(table.len() - 1)));
    below as f64 + ((low - wanted) / precision.keep(low - high)).clamp(0.0, 1.0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::diffusion::{Scheduler, Variance};

    /// The reference library's timesteps, for T = 1000.
    #[test]
    fn timesteps_of_each_spacing() {
        let ddpm = Scheduler::ddpm(1000, [1e-4, 0.02], Variance::FixedSmall, 1.0);
        let ends = |spacing, n| {
            let all = Scheduler { spacing, ..ddpm.clone() }.whole_timesteps(n);
            assert_eq!(all.len(), n);
            [all[0], all[1], all[2], all[n - 1]]
        };
        assert_eq!(ends(Spacing::Leading, 10), [900, 800, 700, 0]);
        assert_eq!(ends(Spacing::Leading, 50), [980, 960, 940, 0]);
        assert_eq!(ends(Spacing::Leading, 300), [897, 894, 891, 0]);
        assert_eq!(ends(Spacing::Trailing, 10), [999, 899, 799, 99]);
        assert_eq!(ends(Spacing::Trailing, 50), [999, 979, 959, 19]);
        assert_eq!(ends(Spacing::Linspace, 10), [999, 888, 777, 0]);
        assert_eq!(ends(Spacing::Linspace, 50), [999, 979, 958, 0]);
        let of_solver = |spacing, n| -> Vec<f64> {
            let scheduler = Scheduler { spacing, ..ddpm.named("dpmpp-2m").unwrap() };
            scheduler.solver_levels(&scheduler.schedule(), n, f64::NEG_INFINITY).timesteps
        };
        let ends = |all: Vec<f64>| [all[0], all[1], all[all.len() - 1]];
        assert_eq!(ends(of_solver(Spacing::Linspace, 10)), [999.0, 899.0, 100.0]);
        assert_eq!(ends(of_solver(Spacing::Linspace, 50)), [999.0, 979.0, 20.0]);
        assert_eq!(ends(of_solver(Spacing::Leading, 10)), [900.0, 810.0, 90.0]);
        assert_eq!(ends(of_solver(Spacing::Leading, 50)), [950.0, 931.0, 19.0]);
        let euler = ddpm.named("euler").unwrap();
        assert_eq!(euler.k_levels(&euler.schedule(), 10).timesteps[..3], [999.0, 888.0, 777.0]);
    }

    #[test]
    fn a_timestep_is_found_again_by_its_sigma() {
        let scheduler = Scheduler::ddpm(1000, [1e-4, 0.02], Variance::FixedSmall, 1.0);
        let table = scheduler.schedule().sigmas();
        for t in [0, 1, 500, 998, 999] {
            assert!((timestep_of(&table, table[t], Rounding::Exact) - t as f64).abs() <= 1e-9, "{t}");
        }
    }
}
