//! The classes of the diffusers library and the keys of their `scheduler_config.json`.

use serde_json::{Map, Value, json};

use crate::error::{Error, Result};

/// The classes, and those of their keys that not all of them have.
#[rustfmt::skip] // One key a line would be unreadable.
pub(super) const CLASSES: [(&str, &[&str]); 10] = [
    ("DDPMScheduler", &[VARIANCE, CLIP, RANGE, DYNAMIC, RATIO, MOST, ZERO_SNR]),
    ("DDIMScheduler", &[ONE, CLIP, RANGE, DYNAMIC, RATIO, MOST, ZERO_SNR]),
    ("DDIMInverseScheduler", &[ONE, CLIP, RANGE, ZERO_SNR]),
    ("EulerDiscreteScheduler", &["interpolation_type", KARRAS, EXPONENTIAL, BETA, LOW, HIGH, "timestep_type",
        FINAL, ZERO_SNR]),
    ("EulerAncestralDiscreteScheduler", &[ZERO_SNR]),
    ("HeunDiscreteScheduler", &[KARRAS, EXPONENTIAL, BETA, CLIP, RANGE]),
    ("LMSDiscreteScheduler", &[KARRAS, EXPONENTIAL, BETA]),
    ("DPMSolverMultistepScheduler", &[ORDER, DYNAMIC, RATIO, MOST, ALGORITHM, SOLVER, LOWER, "euler_at_final",
        KARRAS, EXPONENTIAL, BETA, "use_lu_lambdas", FLOW, "flow_shift", FINAL, LAMBDA, VARIANCE, ZERO_SNR,
        SHIFTING, "time_shift_type"]),
    ("PNDMScheduler", &[SKIP, ONE]),
    ("UniPCMultistepScheduler", &[ORDER, DYNAMIC, RATIO, MOST, "predict_x0", SOLVER, LOWER,
        "disable_corrector", "solver_p", KARRAS, EXPONENTIAL, BETA, FLOW, "flow_shift", FINAL, ZERO_SNR,
        SHIFTING, "time_shift_type", LOW, HIGH, "shift_terminal"]),
];

/// Keys that are true or false; null is false.
#[rustfmt::skip]
pub(super) const FLAGS: [&str; 14] = [CLIP, DYNAMIC, ZERO_SNR, ONE, KARRAS, EXPONENTIAL, BETA, FLOW, SHIFTING,
    LOWER, SKIP, "use_lu_lambdas", "euler_at_final", "predict_x0"];

/// Other keys that may be null, which means the same as a missing key.
pub(super) const NULLABLE: [&str; 7] =
    ["trained_betas", LOW, HIGH, "shift_terminal", "solver_p", VARIANCE, "timestep_type"];

/// Keys of the process whose defaults differ between classes.
pub(super) const CLASS_DEFAULTS: [&str; 4] = ["beta_start", "beta_end", CLIP, RANGE];

/// Keys that every class has.
pub(super) const COMMON: [&str; 8] = [
    TIMESTEPS,
    "beta_start",
    "beta_end",
    "beta_schedule",
    "trained_betas",
    "prediction_type",
    "timestep_spacing",
    "steps_offset",
];

pub(super) const CLIP: &str = "clip_sample";
pub(super) const RANGE: &str = "clip_sample_range";
pub(super) const DYNAMIC: &str = "thresholding";
pub(super) const RATIO: &str = "dynamic_thresholding_ratio";
pub(super) const MOST: &str = "sample_max_value";
pub(super) const ZERO_SNR: &str = "rescale_betas_zero_snr";
pub(super) const ONE: &str = "set_alpha_to_one";
pub(super) const KARRAS: &str = "use_karras_sigmas";
pub(super) const EXPONENTIAL: &str = "use_exponential_sigmas";
pub(super) const BETA: &str = "use_beta_sigmas";
pub(super) const FLOW: &str = "use_flow_sigmas";
pub(super) const SHIFTING: &str = "use_dynamic_shifting";
pub(super) const LOW: &str = "sigma_min";
pub(super) const HIGH: &str = "sigma_max";
pub(super) const FINAL: &str = "final_sigmas_type";
pub(super) const ORDER: &str = "solver_order";
pub(super) const SOLVER: &str = "solver_type";
pub(super) const LOWER: &str = "lower_order_final";
pub(super) const VARIANCE: &str = "variance_type";
pub(super) const ALGORITHM: &str = "algorithm_type";
pub(super) const SKIP: &str = "skip_prk_steps";
pub(super) const TIMESTEPS: &str = "num_train_timesteps";
pub(super) const LAMBDA: &str = "lambda_min_clipped";
pub(super) const CLASS: &str = "_class_name";

/// A name on the command line, its class, and the keys that it sets.
type Named = (&'static str, &'static str, fn() -> Value);

const NAMES: [Named; 16] = [
    ("ddpm", "DDPMScheduler", || json!({})),
    ("ddpm-small", "DDPMScheduler", || json!({ VARIANCE: "fixed_small" })),
    ("ddpm-large", "DDPMScheduler", || json!({ VARIANCE: "fixed_large" })),
    ("ddim", "DDIMScheduler", || json!({})),
    ("euler", "EulerDiscreteScheduler", || json!({})),
    ("euler-a", "EulerAncestralDiscreteScheduler", || json!({})),
    ("heun", "HeunDiscreteScheduler", || json!({})),
    ("lms", "LMSDiscreteScheduler", || json!({})),
    ("dpmpp-2m", "DPMSolverMultistepScheduler", || json!({ ORDER: 2, ALGORITHM: "dpmsolver++" })),
    ("dpmpp-2m-sde", "DPMSolverMultistepScheduler", || json!({ ORDER: 2, ALGORITHM: "sde-dpmsolver++" })),
    ("dpmpp-3m", "DPMSolverMultistepScheduler", || json!({ ORDER: 3, ALGORITHM: "dpmsolver++" })),
    ("pndm", "PNDMScheduler", || json!({ SKIP: false })),
    ("plms", "PNDMScheduler", || json!({ SKIP: true })),
    ("unipc", "UniPCMultistepScheduler", || json!({ ORDER: 2 })),
    ("unipc-3", "UniPCMultistepScheduler", || json!({ ORDER: 3 })),
    ("ddim-inverse", "DDIMInverseScheduler", || json!({})),
];

/// Names of the samplers that draw samples, on the command line and in recipes.
pub fn names() -> Vec<&'static str> {
    NAMES[..NAMES.len() - 1].iter().map(|(name, ..)| *name).collect()
}

/// The name on the command line of a sampler of this class: the first one whose keys `has` does not
/// contradict, or else the class's first.
pub(super) fn name_of(class: &str, has: &Map<String, Value>) -> Option<&'static str> {
    let of_class = || NAMES.iter().filter(|(_, of, _)| *of == class);
    let fits = |keys: Value| {
        let mut keys = keys.as_object().into_iter().flatten();
        keys.all(|(key, value)| has.get(key).is_none_or(|said| said == value))
    };
    of_class().find(|(.., keys)| fits(keys())).or_else(|| of_class().next()).map(|(name, ..)| *name)
}

/// The class of a name and the keys that it sets.
pub(super) fn sampler_named(name: &str) -> Result<(&'static str, Value)> {
    match NAMES.iter().find(|(known, ..)| *known == name) {
        Some((_, class, keys)) => Ok((class, keys())),
        None => Err(Error::usage(format!("no sampler called {name:?}"))
            .hint(format!("choose {}", names().join(", ")))),
    }
}
