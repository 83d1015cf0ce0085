//! PNDM (Liu et al. 2022, arXiv:2202.09778): three Runge-Kutta steps of four evaluations each, then linear
//! multistep of order 4 (PLMS); or PLMS alone, whose first step is made twice.

use super::{Level, Prediction, Scheduler};
use crate::diffusion::linear_form::LinearForm;
use crate::diffusion::plan::{Clip, SamplerPlan, Step};
use crate::diffusion::schedule::Schedule;
use crate::error::{Error, Result};

/// Slots: the last three outputs of the model, newest first; the sample that a step began with; and the
/// weighted sum of a Runge-Kutta step's outputs so far.
const OUTPUTS: usize = 3;
const BEGUN: usize = 3;
const SUM: usize = 4;

/// The steps so far.
struct Walk<'a> {
    scheduler: &'a Scheduler,
    schedule: Schedule,
    /// alpha-bar where there is no timestep any more.
    end: f64,
    /// Outputs that are kept, or were.
    outputs: usize,
    steps: Vec<Step>,
}

impl Walk<'_> {
    fn bar(&self, t: isize) -> f64 {
        usize::try_from(t).map_or(self.end, |t| self.schedule.alpha_bars[t])
    }

    /// Asks the model at `t`, and goes `way` from the sample `x` by `output` (equation 11). `slots`: BEGUN
    /// and SUM after it; `keeps`: the model's output takes a slot too.
    fn step(
        &mut self,
        t: isize,
        way: [isize; 2],
        [x, output]: [LinearForm; 2],
        slots: [LinearForm; 2],
        keeps: bool,
    ) {
        let (precision, prediction) = (self.scheduler.precision, self.scheduler.process.prediction);
        let [bar, bar_to] = way.map(|t| self.bar(t));
        let (at, towards) = (Level::of_bar(bar, precision), Level::of_bar(bar_to, precision));
        let eps = match prediction {
            Prediction::V => at.alpha * output + at.sigma * x,
            _ => output,
        };
        let denominator = bar * towards.sigma + (bar * (1.0 - bar) * bar_to).sqrt();
        let next = (bar_to / bar).sqrt() * x - (bar_to - bar) / denominator * eps;
        let newest = keeps.then_some(LinearForm::OUT);
        let outputs = newest.into_iter().chain((0..OUTPUTS).map(LinearForm::kept)).take(OUTPUTS);
        let (alpha_bar, keep) = (self.bar(t), outputs.chain(slots).collect());
        let x0 = prediction.x0(Level::of_bar(alpha_bar, precision));
        self.steps.push(Step { t: t as f64, alpha_bar, x0, next, keep, draws: false, log_variance: None });
        self.outputs += usize::from(keeps);
    }
}

impl Scheduler {
    pub(super) fn pndm_plan(
        &self,
        skip_prk: bool,
        alpha_to_one: bool,
        n: usize,
        first: usize,
    ) -> Result<SamplerPlan> {
        if self.process.prediction == Prediction::Sample {
            return Err(Error::usage("PNDM works on predictions of the noise or of v")
                .hint("prediction_type sample needs another sampler, ddim for example"));
        }
        if !skip_prk && n < 4 {
            return Err(Error::usage(format!("PNDM in {n} steps"))
                .hint("it begins with Runge-Kutta steps over four timesteps: take 4 or more, or plms"));
        }
        let mut timesteps = self.checked(self.whole_timesteps(n))?;
        timesteps.reverse();
        let timesteps: Vec<isize> = timesteps.into_iter().map(|t| t as isize).collect();
        let stride = (self.process.timesteps / n) as isize;
        let schedule = self.schedule();
        let end = if alpha_to_one { 1.0 } else { schedule.alpha_bars[0] };
        let mut walk = Walk { scheduler: self, schedule, end, outputs: 0, steps: Vec::new() };
        let plms: Vec<isize> = if skip_prk {
            let twice = if n > 1 { vec![timesteps[n - 2]] } else { Vec::new() };
            [&timesteps[..n - 1], &twice, &timesteps[n - 1..]].concat()
        } else {
            runge_kutta(&mut walk, &timesteps, stride)?;
            timesteps[..n - 3].to_vec()
        };
        let (e, begun) = (LinearForm::kept, LinearForm::kept(BEGUN));
        // As in the library, whichever timestep is second is repeated.
        for (i, &t) in plms.iter().rev().skip(first).enumerate() {
            let repeated = skip_prk && i == 1;
            let way = if repeated { [t + stride, t] } else { [t, t - stride] };
            let total = self.process.timesteps;
            if way[0] >= total as isize {
                return Err(Error::usage(format!("PLMS would look beyond timestep {total}"))
                    .hint("choose another spacing or number of steps"));
            }
            let output = match walk.outputs {
                1 if repeated => 0.5 * (LinearForm::OUT + e(0)),
                0 => LinearForm::OUT,
                1 => (3.0 * LinearForm::OUT - e(0)) / 2.0,
                2 => (23.0 * LinearForm::OUT - 16.0 * e(0) + 5.0 * e(1)) / 12.0,
                _ => (55.0 * LinearForm::OUT - 59.0 * e(0) + 37.0 * e(1) - 9.0 * e(2)) / 24.0,
            };
            let x = if repeated { begun } else { LinearForm::X };
            let slots = [if i == 0 { LinearForm::X } else { begun }, LinearForm::ZERO];
            walk.step(t, way, [x, output], slots, !repeated);
        }
        Ok(SamplerPlan { steps: walk.steps, start: 1.0, clip: Clip::None })
    }
}

/// The first three steps, of four evaluations each (equation 13).
fn runge_kutta(walk: &mut Walk, timesteps: &[isize], stride: isize) -> Result<()> {
    let half = stride / 2;
    // Both ends and the middle of each of the last three intervals, falling, each middle and each inner end
    // twice.
    let fine: Vec<isize> = timesteps[timesteps.len() - 4..].iter().flat_map(|&t| [t, t + half]).collect();
    let doubled: Vec<isize> = fine[..fine.len() - 1].iter().flat_map(|&t| [t, t]).collect();
    let visited: Vec<isize> = doubled[1..doubled.len() - 1].iter().rev().copied().collect();
    let (begun, sum) = (LinearForm::kept(BEGUN), LinearForm::kept(SUM));
    for (i, &t) in visited.iter().enumerate() {
        let from = visited[i / 4 * 4];
        let to = if i % 2 == 1 { t } else { t - half };
        if from >= walk.scheduler.process.timesteps as isize {
            return Err(Error::usage("PNDM would look beyond the last timestep").hint("take fewer steps"));
        }
        let (by, slots) = match i % 4 {
            0 => ([LinearForm::X, LinearForm::OUT], [LinearForm::X, LinearForm::OUT / 6.0]),
            3 => ([begun, sum + LinearForm::OUT / 6.0], [begun, LinearForm::ZERO]),
            _ => ([begun, LinearForm::OUT], [begun, sum + LinearForm::OUT / 3.0]),
        };
        walk.step(t, [from, to], by, slots, i % 4 == 0);
    }
    Ok(())
}
