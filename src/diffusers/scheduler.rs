//! `scheduler_config.json`, as far as denoir's own process goes: DDPM with equal steps of beta, predicting
//! noise.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::config::VERSION;
use crate::diffusion::Variance;
use crate::recipe::Recipe;

/// The forward process and the reverse step.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Process {
    pub timesteps: usize,
    pub beta_start: f64,
    pub beta_end: f64,
    pub variance: Variance,
    /// Bound of the predicted x_0; 0: none.
    pub clip_sample: f64,
}

/// The arguments of `DDPMScheduler` with its defaults.
#[derive(Serialize, Deserialize)]
#[serde(default)]
struct Ddpm {
    num_train_timesteps: usize,
    beta_start: f64,
    beta_end: f64,
    beta_schedule: String,
    trained_betas: Option<Vec<f64>>,
    variance_type: String,
    clip_sample: bool,
    prediction_type: String,
    thresholding: bool,
    clip_sample_range: f64,
    timestep_spacing: String,
    steps_offset: usize,
    rescale_betas_zero_snr: bool,
}

impl Default for Ddpm {
    fn default() -> Self {
        Ddpm {
            num_train_timesteps: 1000,
            beta_start: 1e-4,
            beta_end: 0.02,
            beta_schedule: "linear".to_owned(),
            trained_betas: None,
            variance_type: "fixed_small".to_owned(),
            clip_sample: true,
            prediction_type: "epsilon".to_owned(),
            thresholding: false,
            clip_sample_range: 1.0,
            timestep_spacing: "leading".to_owned(),
            steps_offset: 0,
            rescale_betas_zero_snr: false,
        }
    }
}

/// The process that a scheduler's configuration describes.
///
/// # Errors
/// Names the key whose value denoir's process does not have.
pub fn process(text: &str) -> Result<Process, String> {
    let map: Map<String, Value> =
        serde_json::from_str(text).map_err(|e| format!("it is no JSON object: {e}"))?;
    let class = map.get("_class_name").and_then(Value::as_str).unwrap_or("DDPMScheduler").to_owned();
    let theirs: Ddpm =
        serde_json::from_value(Value::Object(map)).map_err(|e| format!("a value does not fit: {e}"))?;
    let off = |on: bool| if on { "true" } else { "false" };
    let variance = match theirs.variance_type.as_str() {
        "fixed_large" => Variance::FixedLarge,
        _ => Variance::FixedSmall,
    };
    let kept = [
        ("_class_name", class.as_str(), &["DDPMScheduler"][..]),
        ("beta_schedule", &theirs.beta_schedule, &["linear"]),
        ("prediction_type", &theirs.prediction_type, &["epsilon"]),
        ("variance_type", &theirs.variance_type, &["fixed_small", "fixed_large"]),
        ("timestep_spacing", &theirs.timestep_spacing, &["leading"]),
        ("thresholding", off(theirs.thresholding), &["false"]),
        ("rescale_betas_zero_snr", off(theirs.rescale_betas_zero_snr), &["false"]),
    ];
    if let Some((key, value, known)) = kept.iter().find(|(_, value, known)| !known.contains(value)) {
        return Err(format!("{key} is {value}, which denoir does not have (it has {})", known.join(" and ")));
    }
    if theirs.trained_betas.is_some() || theirs.steps_offset != 0 {
        return Err("trained_betas or steps_offset is set, which denoir does not have".to_owned());
    }
    Ok(Process {
        timesteps: theirs.num_train_timesteps,
        beta_start: theirs.beta_start,
        beta_end: theirs.beta_end,
        variance,
        clip_sample: if theirs.clip_sample { theirs.clip_sample_range } else { 0.0 },
    })
}

/// The text of a `scheduler_config.json` for a recipe's process.
pub fn text_of(recipe: &Recipe) -> String {
    let variance = match recipe.variance {
        Variance::FixedSmall => "fixed_small",
        Variance::FixedLarge => "fixed_large",
    };
    let clips = recipe.clip_sample > 0.0;
    let theirs = Ddpm {
        num_train_timesteps: recipe.timesteps,
        beta_start: recipe.beta_start,
        beta_end: recipe.beta_end,
        variance_type: variance.to_owned(),
        clip_sample: clips,
        clip_sample_range: if clips { recipe.clip_sample } else { 1.0 },
        ..Ddpm::default()
    };
    let mut map = match serde_json::to_value(theirs) {
        Ok(Value::Object(map)) => map,
        other => unreachable!("a struct of plain values: {other:?}"),
    };
    map.insert("_class_name".to_owned(), "DDPMScheduler".into());
    map.insert("_diffusers_version".to_owned(), VERSION.into());
    super::config::pretty(&map)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn processes_that_denoir_has_and_those_it_has_not() {
        let plain = process("{}").unwrap();
        let recipe =
            Recipe { variance: Variance::FixedLarge, clip_sample: 0.0, timesteps: 50, ..Recipe::default() };
        let written = process(&text_of(&recipe)).unwrap();
        assert_eq!(
            written,
            Process { timesteps: 50, variance: Variance::FixedLarge, clip_sample: 0.0, ..plain }
        );
        for (key, value) in [
            ("_class_name", "\"PNDMScheduler\""),
            ("beta_schedule", "\"scaled_linear\""),
            ("prediction_type", "\"v_prediction\""),
            ("variance_type", "\"learned_range\""),
            ("timestep_spacing", "\"trailing\""),
            ("thresholding", "true"),
            ("rescale_betas_zero_snr", "true"),
            ("trained_betas", "[0.1]"),
            ("steps_offset", "1"),
        ] {
            let said = process(&format!("{{\"{key}\": {value}}}")).unwrap_err();
            assert!(said.contains(key), "{key}: {said}");
        }
    }
}
