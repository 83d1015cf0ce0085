//! Samplers with the options and defaults of the diffusers library.
//!
//! A [`Scheduler`] is plain data, read from its `scheduler_config.json` ([`Scheduler::from_config`]) or made
//! from a name. [`Scheduler::plan`] lays the process out for a number of steps. It knows no model.

mod config;
mod dpm_solver;
mod level;
mod one_step;
mod pndm;
mod sigma_space;
mod spacing;
mod unipc;

pub use config::{Keys, Learned, names};
pub(crate) use config::{LIBRARY_VERSION, pretty};
use serde::{Deserialize, Serialize};

use level::Level;

use super::plan::{Clip, SamplerPlan};
pub(in crate::diffusion) use super::prediction::Prediction;
use super::schedule::{Betas, Rounding, Schedule, Variance};
use crate::error::{Error, Result};

/// Choice of the timesteps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Spacing {
    /// Multiples of a whole stride, from 0 up.
    Leading,
    /// From the last timestep down.
    Trailing,
    /// Evenly, both ends included.
    Linspace,
}

/// Choice of the noise levels of solvers over sigma.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Sigmas {
    /// The levels of the timesteps.
    #[default]
    Timesteps,
    /// Karras et al. 2022 (arXiv:2206.00364), equation 5, with rho = 7.
    Karras,
    /// In equal steps of their logarithm.
    Exponential,
}

/// Last noise level of a solver over sigma.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FinalSigma {
    /// No noise.
    #[default]
    Zero,
    /// The schedule's lowest sigma.
    Lowest,
}

/// The solver, with the options that only it has.
#[derive(Clone, Debug, PartialEq)]
pub enum Method {
    /// Ancestral sampling (Ho et al. 2020).
    Ddpm {
        /// Variance of a reverse step.
        variance: Variance,
    },
    /// DDIM (Song et al. 2021, arXiv:2010.02502).
    Ddim {
        /// Share of ancestral sampling's noise, 0 to 1.
        eta: f64,
        /// The last step ends at alpha-bar = 1, otherwise at the first timestep's.
        alpha_to_one: bool,
        /// The noise is computed from the clipped x0.
        reclip: bool,
    },
    /// DDIM in reverse, from a picture to its noise.
    DdimInverse {
        /// The first step begins at alpha-bar = 1, otherwise at the first timestep's.
        alpha_to_one: bool,
    },
    /// Euler's method (Karras et al. 2022, algorithm 2 without churn).
    Euler {
        /// Sigmas in equal steps of their logarithm from end to end.
        log_linear: bool,
    },
    /// Euler's method to a lower level, and noise added back (k-diffusion).
    EulerAncestral,
    /// Heun's method: two evaluations a step (Karras et al. 2022, algorithm 2).
    Heun,
    /// Linear multistep of order 4 (k-diffusion).
    Lms,
    /// DPM-Solver++ of order 1 to 3 (Lu et al. 2022, arXiv:2211.01095).
    DpmSolver(DpmSolver),
    /// Pseudo numerical methods (Liu et al. 2022, arXiv:2202.09778).
    Pndm {
        /// Without the Runge-Kutta steps before linear multistep.
        skip_prk: bool,
        /// As for DDIM.
        alpha_to_one: bool,
    },
    /// UniPC of order 1 to 3 (Zhao et al. 2023, arXiv:2302.04867).
    UniPc(UniPc),
}

/// Options of DPM-Solver++.
#[derive(Clone, Debug, PartialEq)]
pub struct DpmSolver {
    /// 1 to 3.
    pub order: usize,
    /// The stochastic form.
    pub sde: bool,
    /// Of order 2: Heun's instead of the midpoint form.
    pub heun: bool,
    /// The last steps of a plan below 15 steps have a lower order.
    pub lower_order_final: bool,
    /// The last step has order 1.
    pub euler_at_final: bool,
    /// Timesteps whose half log-SNR is below this are left out.
    pub lambda_min: f64,
}

/// Options of UniPC.
#[derive(Clone, Debug, PartialEq)]
pub struct UniPc {
    /// 1 to 3.
    pub order: usize,
    /// B(h) = h instead of exp(h) - 1.
    pub bh1: bool,
    /// Works on predictions of x0 instead of the noise.
    pub predict_x0: bool,
    /// The last steps have a lower order.
    pub lower_order_final: bool,
    /// Indices of the steps whose result the next step does not correct.
    pub disable_corrector: Vec<usize>,
}

/// The process that a model learned to reverse.
#[derive(Clone, Debug, PartialEq)]
pub struct Process {
    /// Number of timesteps, T.
    pub timesteps: usize,
    /// Kind of the schedule.
    pub betas: Betas,
    /// First beta, for the kinds that have it.
    pub beta_start: f64,
    /// Last beta, for the kinds that have it.
    pub beta_end: f64,
    /// The last timestep is pure noise (Lin et al. 2024, arXiv:2305.08891).
    pub zero_terminal_snr: bool,
    /// Meaning of the model's output.
    pub prediction: Prediction,
}

impl Process {
    /// The noise schedule.
    pub fn schedule(&self, precision: Rounding) -> Schedule {
        let plain = Schedule::new(&self.betas, self.timesteps, self.beta_start, self.beta_end, precision);
        if self.zero_terminal_snr { plain.with_zero_terminal_snr() } else { plain }
    }
}

/// A sampler and the process that it reverses.
#[derive(Clone, Debug, PartialEq)]
pub struct Scheduler {
    /// The solver.
    pub method: Method,
    /// The process.
    pub process: Process,
    /// Choice of the timesteps.
    pub spacing: Spacing,
    /// Added to the timesteps of leading spacing.
    pub steps_offset: usize,
    /// Clipping of the predicted clean sample.
    pub clip: Clip,
    /// Choice of the noise levels of solvers over sigma.
    pub sigmas: Sigmas,
    /// Least of the Karras or exponential sigmas, in place of the schedule's.
    pub sigma_min: Option<f64>,
    /// Largest of them.
    pub sigma_max: Option<f64>,
    /// Last noise level of a solver over sigma.
    pub final_sigma: FinalSigma,
    /// Rounding of the tables.
    pub precision: Rounding,
}

impl Scheduler {
    /// Ancestral sampling over a linear schedule; predictions of the noise; `clip` 0: none.
    pub fn ddpm(timesteps: usize, [beta_start, beta_end]: [f64; 2], variance: Variance, clip: f64) -> Self {
        Scheduler {
            method: Method::Ddpm { variance },
            process: Process {
                timesteps,
                betas: Betas::Linear,
                beta_start,
                beta_end,
                zero_terminal_snr: false,
                prediction: Prediction::Epsilon,
            },
            spacing: Spacing::Leading,
            steps_offset: 0,
            clip: if clip > 0.0 { Clip::At(clip) } else { Clip::None },
            sigmas: Sigmas::Timesteps,
            sigma_min: None,
            sigma_max: None,
            final_sigma: FinalSigma::Zero,
            precision: Rounding::Exact,
        }
    }

    /// The noise schedule.
    pub fn schedule(&self) -> Schedule {
        let mut schedule = self.process.schedule(self.precision);
        // At alpha-bar = 0 sigma would be infinite.
        let infinite = self.process.zero_terminal_snr && self.method.has_sigmas();
        if let (true, Some(last)) = (infinite, schedule.alpha_bars.last_mut()) {
            *last = 2.0_f64.powi(-24);
        }
        schedule
    }

    /// The plan for `steps` sampling steps. Heun's and Runge-Kutta steps evaluate the model several times;
    /// each evaluation is a step of the plan.
    ///
    /// # Errors
    /// When the options contradict one another or the number of steps.
    pub fn plan(&self, steps: usize) -> Result<SamplerPlan> {
        self.plan_from(steps, 0)
    }

    /// As [`Scheduler::plan`], from sampling step `first` on, for a sample that was noised to its level. A
    /// multistep solver begins there with its lowest order.
    ///
    /// # Errors
    /// As [`Scheduler::plan`], and when no step is left, or the solver must begin at the beginning.
    pub fn plan_from(&self, steps: usize, first: usize) -> Result<SamplerPlan> {
        if steps == 0 || steps > self.process.timesteps {
            return Err(Error::usage(format!("{steps} sampling steps"))
                .hint(format!("choose from 1 to {}", self.process.timesteps)));
        }
        if !self.method.has_sigmas() && self.sigmas != Sigmas::Timesteps {
            return Err(Error::usage("this sampler steps over timesteps, not over sigmas")
                .hint("leave --sigmas out, or choose euler, heun, lms, dpmpp-2m or unipc"));
        }
        let one_step =
            matches!(self.method, Method::Ddpm { .. } | Method::Ddim { .. } | Method::DdimInverse { .. });
        let Process { zero_terminal_snr, prediction, .. } = self.process;
        if one_step && zero_terminal_snr && prediction == Prediction::Epsilon {
            let message = "a schedule that ends in pure noise cannot be left by predicting noise";
            return Err(Error::usage(message)
                .hint("prediction_type must be v_prediction or sample with rescale_betas_zero_snr"));
        }
        if prediction == Prediction::Mean && !matches!(self.method, Method::Ddpm { .. }) {
            return Err(Error::usage(
                "prediction_type = mean: only ancestral sampling walks back by the mean",
            )
            .hint("choose the sampler ddpm, or train a model of epsilon, sample or v_prediction"));
        }
        let mut plan = match &self.method {
            Method::Ddpm { variance } => self.ddpm_plan(*variance, steps),
            Method::Ddim { eta, alpha_to_one, reclip } => self.ddim_plan(*eta, *alpha_to_one, *reclip, steps),
            Method::DdimInverse { alpha_to_one } => self.inverse_plan(*alpha_to_one, steps),
            Method::Euler { .. } => Ok(self.euler_plan(steps)),
            Method::EulerAncestral => Ok(self.ancestral_plan(steps)),
            Method::Heun => Ok(self.heun_plan(steps)),
            Method::Lms => Ok(self.lms_plan(steps)),
            Method::DpmSolver(options) => self.dpm_plan(options, steps, first),
            Method::Pndm { skip_prk: false, .. } if first > 0 => {
                Err(Error::usage("PNDM cannot begin within its Runge-Kutta steps")
                    .hint("choose another sampler, plms or dpmpp-2m for example"))
            }
            Method::Pndm { skip_prk, alpha_to_one } => self.pndm_plan(*skip_prk, *alpha_to_one, steps, first),
            Method::UniPc(options) => self.unipc_plan(options, steps, first),
        }?;
        let skipped = match self.method {
            Method::Heun => 2 * first,
            // It has begun there.
            Method::Pndm { .. } => 0,
            _ => first,
        };
        if skipped >= plan.steps.len() {
            return Err(Error::usage(format!("step {first} of {steps} to begin with"))
                .hint("begin with an earlier one"));
        }
        plan.steps.drain(..skipped);
        if !plan.is_finite() {
            return Err(Error::usage(format!("no such plan in {steps} steps: it would divide by zero"))
                .hint("take another number of steps, another spacing, or another sampler"));
        }
        Ok(plan)
    }

    /// False for a method that leads from samples to noise.
    pub(crate) fn draws_samples(&self) -> bool {
        !matches!(self.method, Method::DdimInverse { .. })
    }

    /// Steps that are usual: all timesteps of ancestral sampling, or as many as an offset leaves; of the
    /// others 50, or half of all.
    pub fn usual_steps(&self) -> usize {
        const USUAL: usize = 50;
        match self.method {
            Method::Ddpm { .. } if self.spacing == Spacing::Leading => {
                self.process.timesteps.saturating_sub(self.steps_offset).max(1)
            }
            Method::Ddpm { .. } => self.process.timesteps,
            // Some visit the ends of so many intervals, which few timesteps have not.
            _ => USUAL.min(self.process.timesteps.div_ceil(2)),
        }
    }

    /// The clipping, for a class that clips by a constant or by quantiles.
    fn clip_if(&self, clips: bool, thresholds: bool) -> Clip {
        match self.clip {
            Clip::At(bound) if clips => Clip::At(bound),
            dynamic @ Clip::Dynamic { .. } if thresholds => dynamic,
            _ => Clip::None,
        }
    }
}

impl Method {
    /// True if it chooses noise levels rather than timesteps.
    fn has_sigmas(&self) -> bool {
        !matches!(
            self,
            Method::Ddpm { .. } | Method::Ddim { .. } | Method::DdimInverse { .. } | Method::Pndm { .. }
        )
    }
}
