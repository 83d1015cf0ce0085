//! `scheduler_config.json` of the diffusers library, read and written.
//!
//! A missing key takes the default of its class. Keys that begin with `_` are about the file. A key of the
//! family that the class has no use for is passed over, as the library does: it keeps them when a file is
//! turned from one class into another. Every other key, and every value that is not supported, is refused
//! by name.

use serde_json::{Map, Value, json};

use super::{DpmSolver, FinalSigma, Method, Prediction, Scheduler, Sigmas, Spacing, UniPc};
use crate::diffusion::schedule::{Betas, Precision, Variance};
use crate::diffusion::walk::Clip;
use crate::error::{Error, Result};

/// What the classes are called, and those of their keys that not all of them have.
const CLASSES: [(&str, &[&str]); 10] = [
    ("DDPMScheduler", &["variance_type", CLIP, RANGE, DYNAMIC, RATIO, MOST, ZERO_SNR]),
    ("DDIMScheduler", &[ONE, CLIP, RANGE, DYNAMIC, RATIO, MOST, ZERO_SNR]),
    ("DDIMInverseScheduler", &[ONE, CLIP, RANGE, ZERO_SNR]),
    (
        "EulerDiscreteScheduler",
        &["interpolation_type", KARRAS, EXPONENTIAL, BETA, LOW, HIGH, "timestep_type", FINAL, ZERO_SNR],
    ),
    ("EulerAncestralDiscreteScheduler", &[ZERO_SNR]),
    ("HeunDiscreteScheduler", &[KARRAS, EXPONENTIAL, BETA, CLIP, RANGE]),
    ("LMSDiscreteScheduler", &[KARRAS, EXPONENTIAL, BETA]),
    (
        "DPMSolverMultistepScheduler",
        &[
            ORDER,
            DYNAMIC,
            RATIO,
            MOST,
            "algorithm_type",
            SOLVER,
            LOWER,
            "euler_at_final",
            KARRAS,
            EXPONENTIAL,
            BETA,
            "use_lu_lambdas",
            FLOW,
            "flow_shift",
            FINAL,
            "lambda_min_clipped",
            "variance_type",
            ZERO_SNR,
            SHIFTING,
            "time_shift_type",
        ],
    ),
    ("PNDMScheduler", &["skip_prk_steps", ONE]),
    (
        "UniPCMultistepScheduler",
        &[
            ORDER,
            DYNAMIC,
            RATIO,
            MOST,
            "predict_x0",
            SOLVER,
            LOWER,
            "disable_corrector",
            "solver_p",
            KARRAS,
            EXPONENTIAL,
            BETA,
            FLOW,
            "flow_shift",
            FINAL,
            ZERO_SNR,
            SHIFTING,
            "time_shift_type",
            LOW,
            HIGH,
            "shift_terminal",
        ],
    ),
];

/// Keys that every class has.
const COMMON: [&str; 8] = [
    "num_train_timesteps",
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
];

const CLIP: &str = "clip_sample";
const RANGE: &str = "clip_sample_range";
const DYNAMIC: &str = "thresholding";
const RATIO: &str = "dynamic_thresholding_ratio";
const MOST: &str = "sample_max_value";
const ZERO_SNR: &str = "rescale_betas_zero_snr";
const ONE: &str = "set_alpha_to_one";
const KARRAS: &str = "use_karras_sigmas";
const EXPONENTIAL: &str = "use_exponential_sigmas";
const BETA: &str = "use_beta_sigmas";
const FLOW: &str = "use_flow_sigmas";
const SHIFTING: &str = "use_dynamic_shifting";
const LOW: &str = "sigma_min";
const HIGH: &str = "sigma_max";
const FINAL: &str = "final_sigmas_type";
const ORDER: &str = "solver_order";
const SOLVER: &str = "solver_type";
const LOWER: &str = "lower_order_final";

/// The keys of a file as its class reads them.
struct Reader<'a> {
    class: &'static str,
    own: &'static [&'static str],
    map: &'a Map<String, Value>,
}

impl Reader<'_> {
    fn refuse(&self, key: &str, hint: impl Into<String>) -> Error {
        let value = self.map.get(key).unwrap_or(&Value::Null);
        Error::new(format!("scheduler_config.json: {key} = {value} of {}", self.class)).hint(hint)
    }

    /// The value of a key, unless it is missing, null, or none of the class.
    fn value(&self, key: &str) -> Option<&Value> {
        let has = self.own.contains(&key) || COMMON.contains(&key);
        self.map.get(key).filter(|value| has && !value.is_null())
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.value(key) {
            None => Ok(None),
            // Python writes them so.
            Some(Value::String(s)) if s == "-inf" || s == "-Infinity" => Ok(Some(f64::NEG_INFINITY)),
            Some(value) => {
                let finite = value.as_f64().filter(|v| v.is_finite());
                finite.map(Some).ok_or_else(|| self.refuse(key, "it must be a number"))
            }
        }
    }

    fn whole(&self, key: &str, default: usize) -> Result<usize> {
        match self.value(key) {
            None => Ok(default),
            Some(value) => {
                let fits = value.as_u64().filter(|&v| v <= 1_000_000);
                fits.map(|v| v as usize)
                    .ok_or_else(|| self.refuse(key, "it must be a whole number up to a million"))
            }
        }
    }

    fn flag(&self, key: &str, default: bool) -> Result<bool> {
        match self.value(key) {
            None => Ok(default),
            Some(value) => value.as_bool().ok_or_else(|| self.refuse(key, "it must be true or false")),
        }
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

    fn betas(&self) -> Result<Betas> {
        match self.value("trained_betas") {
            None => self.word("beta_schedule", &BETAS.map(|(word, betas)| (word, betas()))),
            Some(value) => {
                let bad = || self.refuse("trained_betas", "it must be a list of numbers from 0 to 1");
                let list = value.as_array().ok_or_else(bad)?;
                let number = |v: &Value| v.as_f64().filter(|b| (0.0..=1.0).contains(b));
                let betas: Option<Vec<f64>> = list.iter().map(number).collect();
                betas.filter(|betas| !betas.is_empty()).map(Betas::Given).ok_or_else(bad)
            }
        }
    }

    fn clip(&self, default: bool) -> Result<Clip> {
        if self.flag(DYNAMIC, false)? {
            let (ratio, most) = (self.number(RATIO)?.unwrap_or(0.995), self.number(MOST)?.unwrap_or(1.0));
            if !(0.0..=1.0).contains(&ratio) {
                return Err(self.refuse(RATIO, "it must be from 0 to 1"));
            }
            if most <= 0.0 {
                return Err(self.refuse(MOST, "it must be above 0"));
            }
            return Ok(Clip::Dynamic { ratio, most });
        }
        let bound = self.number(RANGE)?.unwrap_or(1.0);
        if bound <= 0.0 {
            return Err(self.refuse(RANGE, "it must be above 0"));
        }
        Ok(if self.flag(CLIP, default)? { Clip::At(bound) } else { Clip::None })
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
            "DDPMScheduler" => Ok(Method::Ddpm {
                variance: self.word(
                    "variance_type",
                    &[
                        ("fixed_small", Variance::FixedSmall),
                        ("fixed_small_log", Variance::FixedSmall),
                        ("fixed_large", Variance::FixedLarge),
                    ],
                )?,
            }),
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
            "PNDMScheduler" => Ok(Method::Pndm {
                skip_prk: self.flag("skip_prk_steps", false)?,
                alpha_to_one: self.flag(ONE, false)?,
            }),
            "DPMSolverMultistepScheduler" => self.dpm_solver(),
            _ => self.unipc(),
        }
    }

    fn dpm_solver(&self) -> Result<Method> {
        for key in ["use_lu_lambdas", FLOW, SHIFTING, "variance_type"] {
            self.off(key)?;
        }
        // Files of other multistep classes are read as the library reads them.
        let kinds = [("dpmsolver++", false), ("sde-dpmsolver++", true), ("deis", false)];
        let shapes = [("midpoint", false), ("heun", true), ("logrho", false), ("bh1", false), ("bh2", false)];
        Ok(Method::DpmSolver(DpmSolver {
            order: self.order()?,
            sde: self.word("algorithm_type", &kinds)?,
            heun: self.word(SOLVER, &shapes)?,
            lower_order_final: self.flag(LOWER, true)?,
            euler_at_final: self.flag("euler_at_final", false)?,
            lambda_min: self.number("lambda_min_clipped")?.unwrap_or(f64::NEG_INFINITY),
        }))
    }

    fn unipc(&self) -> Result<Method> {
        for key in [FLOW, SHIFTING, "shift_terminal", "solver_p"] {
            self.off(key)?;
        }
        let shapes = [("bh2", false), ("bh1", true), ("midpoint", false), ("heun", false), ("logrho", false)];
        let bad = || self.refuse("disable_corrector", "it must be a list of whole numbers");
        let steps = match self.value("disable_corrector") {
            None => Vec::new(),
            Some(list) => list.as_array().ok_or_else(bad)?.clone(),
        };
        let steps: Option<Vec<usize>> = steps.iter().map(|v| v.as_u64().map(|v| v as usize)).collect();
        Ok(Method::UniPc(UniPc {
            order: self.order()?,
            bh1: self.word(SOLVER, &shapes)?,
            predict_x0: self.flag("predict_x0", true)?,
            lower_order_final: self.flag(LOWER, true)?,
            disable_corrector: steps.ok_or_else(bad)?,
        }))
    }

    fn order(&self) -> Result<usize> {
        match self.whole(ORDER, 2)? {
            order @ 1..=3 => Ok(order),
            _ => Err(self.refuse(ORDER, "it must be 1, 2 or 3")),
        }
    }

    fn scheduler(&self) -> Result<Scheduler> {
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
        let scheduler = Scheduler {
            timesteps: match &betas {
                Betas::Given(betas) => betas.len(),
                _ => self.whole("num_train_timesteps", 1000)?,
            },
            betas,
            beta_start: self.number("beta_start")?.unwrap_or(start),
            beta_end: self.number("beta_end")?.unwrap_or(end),
            zero_terminal_snr: self.flag(ZERO_SNR, false)?,
            prediction: self.word(
                "prediction_type",
                &[
                    ("epsilon", Prediction::Epsilon),
                    ("sample", Prediction::Sample),
                    ("v_prediction", Prediction::V),
                ],
            )?,
            spacing: self.word("timestep_spacing", &spacings)?,
            steps_offset: self.whole("steps_offset", 0)?,
            clip: self.clip(clips)?,
            sigmas: self.sigmas()?,
            sigma_min: self.number(LOW)?,
            sigma_max: self.number(HIGH)?,
            final_sigma: self
                .word(FINAL, &[("zero", FinalSigma::Zero), ("sigma_min", FinalSigma::Lowest)])?,
            precision: Precision::Exact,
            method,
        };
        if scheduler.timesteps == 0 {
            return Err(self.refuse("num_train_timesteps", "it must be at least 1"));
        }
        for (key, value) in [("beta_start", scheduler.beta_start), ("beta_end", scheduler.beta_end)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(self.refuse(key, "it must be from 0 to 1"));
            }
        }
        for (key, value) in [(LOW, scheduler.sigma_min), (HIGH, scheduler.sigma_max)] {
            if value.is_some_and(|v| v <= 0.0) {
                return Err(self.refuse(key, "it must be above 0"));
            }
        }
        let pndm = matches!(scheduler.method, Method::Pndm { .. });
        if pndm && scheduler.prediction == Prediction::Sample {
            return Err(self.refuse("prediction_type", "PNDM knows epsilon and v_prediction"));
        }
        Ok(scheduler)
    }
}

/// What schedules are called.
const BETAS: [(&str, fn() -> Betas); 6] = [
    ("linear", || Betas::Linear),
    ("scaled_linear", || Betas::ScaledLinear),
    ("squaredcos_cap_v2", || Betas::Cosine),
    ("sigmoid", || Betas::Sigmoid),
    ("laplace", || Betas::Laplace),
    ("exp", || Betas::Exponential),
];

impl Scheduler {
    /// The sampler that the text of a `scheduler_config.json` describes.
    ///
    /// # Errors
    /// Names the key that is unknown, of the wrong kind, or asks for what denoir does not do.
    pub fn from_config(json: &str) -> Result<Self> {
        // Python writes infinity as no other JSON does.
        let json = json.replace(": -Infinity", ": \"-inf\"");
        let bad = |cause: &dyn std::fmt::Display| {
            Error::new("scheduler_config.json is not a JSON object").hint("check the file").caused_by(cause)
        };
        let map: Map<String, Value> = serde_json::from_str(&json).map_err(|e| bad(&e))?;
        let named = map.get("_class_name").and_then(Value::as_str).unwrap_or_default();
        let Some((class, own)) = CLASSES.iter().find(|(class, _)| *class == named) else {
            let names: Vec<&str> = CLASSES.iter().map(|(class, _)| *class).collect();
            return Err(Error::new(format!("scheduler_config.json: _class_name is {named:?}"))
                .hint(format!("denoir has {}", names.join(", "))));
        };
        let reader = Reader { class, own, map: &map };
        let family = |key: &str| CLASSES.iter().any(|(_, keys)| keys.contains(&key));
        for (key, value) in &map {
            let known = key.starts_with('_') || COMMON.contains(&key.as_str()) || family(key);
            if !known {
                return Err(reader.refuse(key, "no sampler has such a key"));
            }
            // The library passes over this too, but then the noise is not what the file says.
            if key == ZERO_SNR && !own.contains(&ZERO_SNR) && *value == json!(true) {
                return Err(reader.refuse(key, "this class has no such schedule: choose ddim or euler"));
            }
        }
        reader.scheduler()
    }

    /// The text of a `scheduler_config.json` that the diffusers library reads as this sampler; eta is an
    /// argument of its pipelines and is not part of it.
    pub fn to_config(&self) -> String {
        let class = match self.method {
            Method::Ddpm { .. } => 0,
            Method::Ddim { .. } => 1,
            Method::DdimInverse { .. } => 2,
            Method::Euler { .. } => 3,
            Method::EulerAncestral => 4,
            Method::Heun => 5,
            Method::Lms => 6,
            Method::DpmSolver(_) => 7,
            Method::Pndm { .. } => 8,
            Method::UniPc(_) => 9,
        };
        let (name, own) = CLASSES[class];
        let word = BETAS.iter().find(|(_, betas)| betas() == self.betas).map(|(word, _)| *word);
        let given = match &self.betas {
            Betas::Given(betas) => json!(betas),
            _ => Value::Null,
        };
        let (clips, bound) = match self.clip {
            Clip::At(bound) => (true, bound),
            _ => (false, 1.0),
        };
        let (dynamic, ratio, most) = match self.clip {
            Clip::Dynamic { ratio, most } => (true, ratio, most),
            _ => (false, 0.995, 1.0),
        };
        let mut all = json!({
            "num_train_timesteps": self.timesteps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": word.unwrap_or("linear"),
            "trained_betas": given,
            "prediction_type": match self.prediction {
                Prediction::Epsilon => "epsilon",
                Prediction::Sample => "sample",
                Prediction::V => "v_prediction",
            },
            "timestep_spacing": match self.spacing {
                Spacing::Leading => "leading",
                Spacing::Trailing => "trailing",
                Spacing::Linspace => "linspace",
            },
            "steps_offset": self.steps_offset,
            CLIP: clips,
            RANGE: bound,
            DYNAMIC: dynamic,
            RATIO: ratio,
            MOST: most,
            ZERO_SNR: self.zero_terminal_snr,
            KARRAS: self.sigmas == Sigmas::Karras,
            EXPONENTIAL: self.sigmas == Sigmas::Exponential,
            LOW: self.sigma_min,
            HIGH: self.sigma_max,
            FINAL: if self.final_sigma == FinalSigma::Zero { "zero" } else { "sigma_min" },
        });
        let of_method = self.method.config();
        if let (Some(all), Some(method)) = (all.as_object_mut(), of_method.as_object()) {
            all.extend(method.clone());
            all.retain(|key, _| COMMON.contains(&key.as_str()) || own.contains(&key.as_str()));
            all.insert("_class_name".to_owned(), json!(name));
            all.insert("_diffusers_version".to_owned(), json!("0.42.1"));
        }
        let mut text = serde_json::to_string_pretty(&all)
            .unwrap_or_else(|e| unreachable!("numbers and words are JSON: {e}"));
        text.push('\n');
        text
    }
}

impl Method {
    /// The keys that only this method has.
    fn config(&self) -> Value {
        match self {
            Method::Ddpm { variance } => {
                json!({"variance_type": match variance {
                    Variance::FixedSmall => "fixed_small",
                    Variance::FixedLarge => "fixed_large",
                }})
            }
            Method::Ddim { alpha_to_one, .. } | Method::DdimInverse { alpha_to_one } => {
                json!({ONE: alpha_to_one})
            }
            Method::Euler { log_linear } => {
                json!({"interpolation_type": if *log_linear { "log_linear" } else { "linear" }})
            }
            Method::EulerAncestral | Method::Heun | Method::Lms => json!({}),
            Method::DpmSolver(options) => {
                let mut keys = json!({
                    ORDER: options.order,
                    "algorithm_type": if options.sde { "sde-dpmsolver++" } else { "dpmsolver++" },
                    SOLVER: if options.heun { "heun" } else { "midpoint" },
                    LOWER: options.lower_order_final,
                    "euler_at_final": options.euler_at_final,
                });
                if options.lambda_min.is_finite() {
                    keys["lambda_min_clipped"] = json!(options.lambda_min);
                }
                keys
            }
            Method::Pndm { skip_prk, alpha_to_one } => {
                json!({"skip_prk_steps": skip_prk, ONE: alpha_to_one})
            }
            Method::UniPc(options) => json!({
                ORDER: options.order,
                SOLVER: if options.bh1 { "bh1" } else { "bh2" },
                "predict_x0": options.predict_x0,
                LOWER: options.lower_order_final,
                "disable_corrector": options.disable_corrector,
            }),
        }
    }
}
