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

/// The slots after a step.
struct Slots {
    /// Outputs that are kept.
    outputs: usize,
    begun: LinearForm,
    sum: LinearForm,
}

impl Slots {
    fn new() -> Self {
        Slots { outputs: 0, begun: LinearForm::kept(BEGUN), sum: LinearForm::ZERO }
    }

    /// After a step that keeps its output or does not.
    fn keep(&self, output: bool) -> Vec<LinearForm> {
        let newest = output.then_some(LinearForm::OUT);
        let outputs = newest.into_iter().chain((0..OUTPUTS).map(LinearForm::kept)).take(OUTPUTS);
        outputs.chain([self.begun, self.sum]).collect()
    }
}

struct Context<'a> {
    scheduler: &'a Scheduler,
    schedule: Schedule,
    /// alpha-bar where there is no timestep any more.
    end: f64,
}

impl Context<'_> {
    fn bar(&self, t: isize) -> f64 {
        usize::try_from(t).map_or(self.end, |t| self.schedule.alpha_bars[t])
    }

    /// Equation 11: the sample at `to` from the one at `from` and the noise `eps` between them.
    fn transfer(&self, x: LinearForm, [from, to]: [isize; 2], output: LinearForm) -> LinearForm {
        let precision = self.scheduler.precision;
        let (bar, bar_to) = (self.bar(from), self.bar(to));
        let (at, towards) = (Level::of_bar(bar, precision), Level::of_bar(bar_to, precision));
        let eps = match self.scheduler.process.prediction {
            Prediction::V => at.alpha * output + at.sigma * x,
            _ => output,
        };
        let denominator = bar * towards.sigma + (bar * (1.0 - bar) * bar_to).sqrt();
        (bar_to / bar).sqrt() * x - (bar_to - bar) / denominator * eps
    }

    fn step(&self, t: isize, next: LinearForm, keep: Vec<LinearForm>) -> Step {
        let at = Level::of_bar(self.bar(t), self.scheduler.precision);
        let x0 = self.scheduler.process.prediction.x0(at);
        Step { t: t as f64, alpha_bar: self.bar(t), x0, next, keep, draws: false }
    }
}

impl Scheduler {
    pub(super) fn pndm_plan(&self, skip_prk: bool, alpha_to_one: bool, n: usize) -> Result<SamplerPlan> {
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
        let context = Context { scheduler: self, schedule, end };
        let mut steps = Vec::new();
        let mut slots = Slots::new();
        let plms: Vec<isize> = if skip_prk {
            let twice = if n > 1 { vec![timesteps[n - 2]] } else { Vec::new() };
            [&timesteps[..n - 1], &twice, &timesteps[n - 1..]].concat()
        } else {
            runge_kutta(&context, &timesteps, stride, &mut slots, &mut steps)?;
            timesteps[..n - 3].to_vec()
        };
        for (i, &t) in plms.iter().rev().enumerate() {
            let repeated = skip_prk && i == 1;
            let way = if repeated { [t + stride, t] } else { [t, t - stride] };
            if way[0] >= self.process.timesteps as isize {
                return Err(Error::usage(format!(
                    "PLMS would look beyond timestep {}",
                    self.process.timesteps
                ))
                .hint("choose another spacing or number of steps"));
            }
            let e = LinearForm::kept;
            if !repeated {
                slots.outputs = (slots.outputs + 1).min(4);
            }
            let x = if repeated { LinearForm::kept(BEGUN) } else { LinearForm::X };
            let output = match slots.outputs {
                1 if repeated => 0.5 * (LinearForm::OUT + e(0)),
                1 => LinearForm::OUT,
                2 => (3.0 * LinearForm::OUT - e(0)) / 2.0,
                3 => (23.0 * LinearForm::OUT - 16.0 * e(0) + 5.0 * e(1)) / 12.0,
                _ => (55.0 * LinearForm::OUT - 59.0 * e(0) + 37.0 * e(1) - 9.0 * e(2)) / 24.0,
            };
            slots.begun = if i == 0 { LinearForm::X } else { LinearForm::kept(BEGUN) };
            steps.push(context.step(t, context.transfer(x, way, output), slots.keep(!repeated)));
        }
        Ok(SamplerPlan { steps, start: 1.0, clip: Clip::None })
    }
}

/// The first three steps, of four evaluations each (equation 13).
fn runge_kutta(
    context: &Context,
    timesteps: &[isize],
    stride: isize,
    slots: &mut Slots,
    steps: &mut Vec<Step>,
) -> Result<()> {
    let half = stride / 2;
    // Both ends and the middle of each of the last three intervals, falling, each middle and each inner end
    // twice.
    let fine: Vec<isize> = timesteps[timesteps.len() - 4..].iter().flat_map(|&t| [t, t + half]).collect();
    let doubled: Vec<isize> = fine[..fine.len() - 1].iter().flat_map(|&t| [t, t]).collect();
    let visited: Vec<isize> = doubled[1..doubled.len() - 1].iter().rev().copied().collect();
    for (i, &t) in visited.iter().enumerate() {
        let from = visited[i / 4 * 4];
        let to = if i % 2 == 1 { t } else { t - half };
        if from >= context.scheduler.process.timesteps as isize {
            return Err(Error::usage("PNDM would look beyond the last timestep").hint("take fewer steps"));
        }
        let mut output = LinearForm::OUT;
        let mut x = LinearForm::kept(BEGUN);
        slots.begun = LinearForm::kept(BEGUN);
        match i % 4 {
            0 => {
                (x, slots.begun) = (LinearForm::X, LinearForm::X);
                slots.sum = LinearForm::OUT / 6.0;
                slots.outputs += 1;
            }
            3 => {
                output = LinearForm::kept(SUM) + LinearForm::OUT / 6.0;
                slots.sum = LinearForm::ZERO;
            }
            _ => slots.sum = LinearForm::kept(SUM) + LinearForm::OUT / 3.0,
        }
        steps.push(context.step(t, context.transfer(x, [from, to], output), slots.keep(i % 4 == 0)));
    }
    Ok(())
}
