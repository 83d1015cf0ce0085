//! A sampler out of the keys of a `scheduler_config.json`.

use serde_json::{Map, Value, json};

use super::super::{DpmSolver, FinalSigma, Method, Prediction, Process, Scheduler, Sigmas, Spacing, UniPc};
use super::classes::*;
use crate::diffusion::plan::Clip;
use crate::diffusion::schedule::{Betas, Rounding, Variance};
use crate::error::{Error, Result};

/// The keys of a file as its class reads them.
pub(super) struct Reader<'a> {
    pub class: &'static str,
    pub own: &'a [&'static str],
    pub map: &'a Map<String, Value>,
}

impl Reader<'_> {
    pub fn refuse(&self, key: &str, hint: impl Into<String>) -> Error {
        let value = self.map.get(key).unwrap_or(&Value::Null);
        Error::new(format!("{key} = {value} of {}", self.class)).hint(hint)
    }

    /// The value of a key, unless it is missing or none of the class.
    fn value(&self, key: &str) -> Option<&Value> {
        let has = self.own.contains(&key) || COMMON.contains(&key);
        self.map.get(key).filter(|_| has)
    }

    /// The value of a key by `parse`, which must accept it; `None` where the key is missing.
    fn parsed<T>(&self, key: &str, hint: &str, parse: impl Fn(&Value) -> Option<T>) -> Result<Option<T>> {
        self.value(key).map(|value| parse(value).ok_or_else(|| self.refuse(key, hint))).transpose()
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        self.parsed(key, "it must be a number", |v| v.as_f64().filter(|v| v.is_finite()))
    }

    fn positive(&self, key: &str) -> Result<Option<f64>> {
        self.parsed(key, "it must be above 0", |v| v.as_f64().filter(|v| v.is_finite() && *v > 0.0))
    }

    fn fraction(&self, key: &str, default: f64) -> Result<f64> {
        let parse = |v: &Value| v.as_f64().filter(|v| (0.0..=1.0).contains(v));
        Ok(self.parsed(key, "it must be from 0 to 1", parse)?.unwrap_or(default))
    }

    fn whole(&self, key: &str, default: usize) -> Result<usize> {
        let parse = |v: &Value| v.as_u64().filter(|&v| v <= 1_000_000);
        let value = self.parsed(key, "it must be a whole number up to a million", parse)?;
        Ok(value.map_or(default, |v| v as usize))
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.parsed(key, "it must be true or false", Value::as_bool)?.unwrap_or(default))
    }

    /// The meaning of a word; the first of `known` where the key is missing.
    fn word<T: Clone>(&self, key: &str, known: &[(&str, T)]) -> Result<T> {
        let Some(value) = self.value(key) else { return Ok(known[0].1.clone()) };
        let found = known.iter().find(|(word, _)| value.as_str() == Some(word));
        found.map(|(_, meaning)| meaning.clone()).ok_or_else(|| {
            let words: Vec<&str> = known.iter().map(|(word, _)| *word).collect();
            self.refuse(key, format!("denoir knows {}", words.join(", ")))
        })
    }

    /// A key that may stand there as long as it asks for nothing.
    fn off(&self, key: &str) -> Result<()> {
        let asks = self.value(key).is_some_and(|v| *v != json!(false) && *v != json!([]));
        if asks { Err(self.refuse(key, "denoir does not do that")) } else { Ok(()) }
    }

    /// Refuses flow matching and these keys. What would say more about flows has no effect then.
    fn no_flow(&self, more: &[&str]) -> Result<()> {
        for key in [FLOW, SHIFTING].iter().chain(more) {
            self.off(key)?;
        }
        self.number("flow_shift")?;
        self.word("time_shift_type", &[("exponential", ()), ("linear", ())])
    }

    fn betas(&self) -> Result<Betas> {
        let number = |v: &Value| v.as_f64().filter(|b| (0.0..=1.0).contains(b));
        let list = |v: &Value| -> Option<Vec<f64>> { v.as_array()?.iter().map(number).collect() };
        let list = |v: &Value| list(v).filter(|betas| !betas.is_empty());
        if let Some(betas) = self.parsed("trained_betas", "it must be a list of numbers from 0 to 1", list)? {
            return Ok(Betas::Given(betas));
        }
        let known = format!("denoir knows {}", Betas::names().join(", "));
        let named = self.parsed("beta_schedule", &known, |word| Betas::named(word.as_str()?))?;
        Ok(named.unwrap_or(Betas::Linear))
    }

    pub fn variance(&self) -> Result<Variance> {
        self.word(
            VARIANCE,
            &[
                ("fixed_small", Variance::FixedSmall),
                ("fixed_small_log", Variance::FixedSmall),
                ("fixed_large", Variance::FixedLarge),
                ("learned_range", Variance::LearnedRange),
                ("learned", Variance::Learned),
            ],
        )
    }

    /// The bound of `x0` where it is clipped by a constant; 0: none.
    pub fn bound(&self, default: bool) -> Result<f64> {
        let bound = self.positive(RANGE)?.unwrap_or(1.0);
        Ok(if self.flag(CLIP, default)? { bound } else { 0.0 })
    }

    fn clip(&self, default: bool) -> Result<Clip> {
        if self.flag(DYNAMIC, false)? {
            let (ratio, most) = (self.fraction(RATIO, 0.995)?, self.positive(MOST)?.unwrap_or(1.0));
            return Ok(Clip::Dynamic { ratio, most });
        }
        // Without their use these must be numbers all the same.
        self.number(RATIO)?;
        self.number(MOST)?;
        let bound = self.bound(default)?;
        Ok(if bound > 0.0 { Clip::At(bound) } else { Clip::None })
    }

    fn sigmas(&self) -> Result<Sigmas> {
        self.off(BETA)?;
        match (self.flag(KARRAS, false)?, self.flag(EXPONENTIAL, false)?) {
            (false, false) => Ok(Sigmas::Timesteps),
            (true, false) => Ok(Sigmas::Karras),
            (false, true) => Ok(Sigmas::Exponential),
            (true, true) => Err(self.refuse(KARRAS, "use_exponential_sigmas is true as well: choose one")),
        }
    }

    fn method(&self) -> Result<Method> {
        match self.class {
            "DDPMScheduler" => Ok(Method::Ddpm { variance: self.variance()? }),
            "DDIMScheduler" => {
                Ok(Method::Ddim { eta: 0.0, alpha_to_one: self.flag(ONE, true)?, reclip: false })
            }
            "DDIMInverseScheduler" => Ok(Method::DdimInverse { alpha_to_one: self.flag(ONE, true)? }),
            "EulerDiscreteScheduler" => {
                self.word("timestep_type", &[("discrete", ())])?;
                let log_linear =
                    self.word("interpolation_type", &[("linear", false), ("log_linear", true)])?;
                Ok(Method::Euler { log_linear })
            }
            "EulerAncestralDiscreteScheduler" => Ok(Method::EulerAncestral),
            "HeunDiscreteScheduler" => Ok(Method::Heun),
            "LMSDiscreteScheduler" => Ok(Method::Lms),
            "PNDMScheduler" => {
                Ok(Method::Pndm { skip_prk: self.flag(SKIP, false)?, alpha_to_one: self.flag(ONE, false)? })
            }
            "DPMSolverMultistepScheduler" => self.dpm_solver(),
            _ => self.unipc(),
        }
    }

    fn dpm_solver(&self) -> Result<Method> {
        self.no_flow(&["use_lu_lambdas"])?;
        // Of a learned one, the half of the model's output goes unused here.
        self.variance()?;
        // Files of other multistep classes are read as the library reads them.
        let kinds = [("dpmsolver++", false), ("sde-dpmsolver++", true), ("deis", false)];
        let shapes = [("midpoint", false), ("heun", true), ("logrho", false), ("bh1", false), ("bh2", false)];
        Ok(Method::DpmSolver(DpmSolver {
            order: self.order()?,
            sde: self.word(ALGORITHM, &kinds)?,
            heun: self.word(SOLVER, &shapes)?,
            lower_order_final: self.flag(LOWER, true)?,
            euler_at_final: self.flag("euler_at_final", false)?,
            lambda_min: self.number(LAMBDA)?.unwrap_or(f64::NEG_INFINITY),
        }))
    }

    fn unipc(&self) -> Result<Method> {
        self.no_flow(&["shift_terminal", "solver_p"])?;
        let shapes = [("bh2", false), ("bh1", true), ("midpoint", false), ("heun", false), ("logrho", false)];
        let steps = |v: &Value| v.as_array()?.iter().map(|v| v.as_u64().map(|v| v as usize)).collect();
        let steps = self.parsed("disable_corrector", "it must be a list of whole numbers", steps)?;
        Ok(Method::UniPc(UniPc {
            order: self.order()?,
            bh1: self.word(SOLVER, &shapes)?,
            predict_x0: self.flag("predict_x0", true)?,
            lower_order_final: self.flag(LOWER, true)?,
            disable_corrector: steps.unwrap_or_default(),
        }))
    }

    fn order(&self) -> Result<usize> {
        let order = |v: &Value| v.as_u64().filter(|order| (1..=3).contains(order));
        Ok(self.parsed(ORDER, "it must be 1, 2 or 3", order)?.map_or(2, |order| order as usize))
    }

    pub fn scheduler(&self) -> Result<Scheduler> {
        let heun = self.class == "HeunDiscreteScheduler";
        let [start, end] = if heun { [0.000_85, 0.012] } else { [1e-4, 0.02] };
        let betas = self.betas()?;
        let method = self.method()?;
        let mut spacings =
            [("leading", Spacing::Leading), ("linspace", Spacing::Linspace), ("trailing", Spacing::Trailing)];
        if method.has_sigmas() {
            spacings.swap(0, 1);
        }
        let clips = ["DDPMScheduler", "DDIMScheduler", "DDIMInverseScheduler"].contains(&self.class);
        let given = if let Betas::Given(betas) = &betas { Some(betas.len()) } else { None };
        let timesteps = self.whole(TIMESTEPS, given.unwrap_or(1000))?;
        if timesteps == 0 {
            return Err(self.refuse(TIMESTEPS, "it must be at least 1"));
        }
        if let Some(count) = given.filter(|&count| count != timesteps) {
            return Err(self.refuse(TIMESTEPS, format!("trained_betas has {count} numbers")));
        }
        let predictions = [
            ("epsilon", Prediction::Epsilon),
            ("sample", Prediction::Sample),
            ("v_prediction", Prediction::V),
            // None of the library's.
            ("mean", Prediction::Mean),
        ];
        let prediction = self.word("prediction_type", &predictions)?;
        if matches!(method, Method::Pndm { .. }) && prediction == Prediction::Sample {
            return Err(self.refuse("prediction_type", "PNDM knows epsilon and v_prediction"));
        }
        Ok(Scheduler {
            process: Process {
                timesteps,
                betas,
                beta_start: self.fraction("beta_start", start)?,
                beta_end: self.fraction("beta_end", end)?,
                zero_terminal_snr: self.flag(ZERO_SNR, false)?,
                prediction,
            },
            spacing: self.word("timestep_spacing", &spacings)?,
            steps_offset: self.whole("steps_offset", 0)?,
            clip: self.clip(clips)?,
            sigmas: self.sigmas()?,
            sigma_min: self.positive(LOW)?,
            sigma_max: self.positive(HIGH)?,
            final_sigma: self
                .word(FINAL, &[("zero", FinalSigma::Zero), ("sigma_min", FinalSigma::Lowest)])?,
            precision: Rounding::Exact,
            method,
        })
    }
}
