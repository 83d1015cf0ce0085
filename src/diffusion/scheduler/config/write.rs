//! The keys of a `scheduler_config.json` that say what a sampler is.

use serde_json::{Value, json};

use super::super::{FinalSigma, Method, Process, Scheduler, Sigmas};
use super::Keys;
use super::classes::*;
use crate::diffusion::plan::Clip;
use crate::diffusion::schedule::Betas;

impl Scheduler {
    /// All keys of its class, as the diffusers library reads them; eta is an argument of its pipelines and is
    /// not part of them.
    pub fn keys(&self) -> Keys {
        let (name, of_method) = self.method.keys();
        let own = CLASSES.iter().find(|(class, _)| *class == name).map_or(&[][..], |(_, own)| own);
        let (clips, bound) = match self.clip {
            Clip::At(bound) => (true, bound),
            _ => (false, 1.0),
        };
        let (dynamic, ratio, most) = match self.clip {
            Clip::Dynamic { ratio, most } => (true, ratio, most),
            _ => (false, 0.995, 1.0),
        };
        let all = json!({
            "timestep_spacing": self.spacing,
            "steps_offset": self.steps_offset,
            CLIP: clips,
            RANGE: bound,
            DYNAMIC: dynamic,
            RATIO: ratio,
            MOST: most,
            KARRAS: self.sigmas == Sigmas::Karras,
            EXPONENTIAL: self.sigmas == Sigmas::Exponential,
            LOW: self.sigma_min,
            HIGH: self.sigma_max,
            FINAL: if self.final_sigma == FinalSigma::Zero { "zero" } else { "sigma_min" },
        });
        let mut keys = Keys::default();
        for some in [self.process.keys(), all, of_method] {
            keys.extend(some);
        }
        keys.0.retain(|key, value| {
            !value.is_null() && (COMMON.contains(&key.as_str()) || own.contains(&key.as_str()))
        });
        keys.0.insert(CLASS.to_owned(), json!(name));
        keys
    }
}

impl Process {
    /// The keys that it is made of.
    pub(super) fn keys(&self) -> Value {
        let mut keys = json!({
            TIMESTEPS: self.timesteps,
            "beta_start": self.beta_start,
            "beta_end": self.beta_end,
            "beta_schedule": self.betas.name().unwrap_or("linear"),
            "prediction_type": self.prediction,
            ZERO_SNR: self.zero_terminal_snr,
        });
        if let Betas::Given(betas) = &self.betas {
            keys["trained_betas"] = json!(betas);
        }
        keys
    }
}

impl Method {
    /// The class, and the keys that only this method has.
    fn keys(&self) -> (&'static str, Value) {
        match self {
            Method::Ddpm { variance } => ("DDPMScheduler", json!({ VARIANCE: variance })),
            Method::Ddim { alpha_to_one, .. } => ("DDIMScheduler", json!({ ONE: alpha_to_one })),
            Method::DdimInverse { alpha_to_one } => ("DDIMInverseScheduler", json!({ ONE: alpha_to_one })),
            Method::Euler { log_linear } => {
                let interpolation = if *log_linear { "log_linear" } else { "linear" };
                ("EulerDiscreteScheduler", json!({ "interpolation_type": interpolation }))
            }
            Method::EulerAncestral => ("EulerAncestralDiscreteScheduler", json!({})),
            Method::Heun => ("HeunDiscreteScheduler", json!({})),
            Method::Lms => ("LMSDiscreteScheduler", json!({})),
            Method::DpmSolver(options) => {
                let mut keys = json!({
                    ORDER: options.order,
                    ALGORITHM: if options.sde { "sde-dpmsolver++" } else { "dpmsolver++" },
                    SOLVER: if options.heun { "heun" } else { "midpoint" },
                    LOWER: options.lower_order_final,
                    "euler_at_final": options.euler_at_final,
                });
                if options.lambda_min.is_finite() {
                    keys[LAMBDA] = json!(options.lambda_min);
                }
                ("DPMSolverMultistepScheduler", keys)
            }
            Method::Pndm { skip_prk, alpha_to_one } => {
                ("PNDMScheduler", json!({ SKIP: skip_prk, ONE: alpha_to_one }))
            }
            Method::UniPc(options) => {
                let keys = json!({
                    ORDER: options.order,
                    SOLVER: if options.bh1 { "bh1" } else { "bh2" },
                    "predict_x0": options.predict_x0,
                    LOWER: options.lower_order_final,
                    "disable_corrector": options.disable_corrector,
                });
                ("UniPCMultistepScheduler", keys)
            }
        }
    }
}
