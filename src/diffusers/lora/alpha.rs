//! The alphas of adapters where the file's tensors do not tell them: peft's settings, in the metadata of the
//! file or in the `adapter_config.json` beside it.

use serde_json::{Map, Value};

use super::{METADATA, TEXT_MODEL};
use crate::diffusers::single::Part;
use crate::error::{Error, Result};
use crate::weights::{Weights, read_text};

/// Longest `adapter_config.json` that is read.
const MOST_BYTES: u64 = 1 << 20;

/// Settings whose null peft fails on, whatever the layers.
const NEVER_NULL: [&str; 5] = ["target_modules", "lora_dropout", "bias", "rank_pattern", "alpha_pattern"];

/// peft's settings, or none.
pub(super) struct Alphas {
    settings: Map<String, Value>,
    /// Whether a component stands before each key.
    by_part: bool,
}

impl Alphas {
    /// The settings of a file. peft's own files lie in a folder with theirs.
    pub(super) fn of(weights: &Weights, is_peft: bool) -> Result<Alphas> {
        let wrong = |place: &str| {
            let shown = weights.path().display();
            Error::new(format!("{shown}: its {place} is no JSON object")).hint("save it anew")
        };
        if let Some(text) = weights.notes()?.get(METADATA) {
            let settings = serde_json::from_str(text).map_err(|e| wrong(METADATA).caused_by(e))?;
            return Ok(Alphas { settings, by_part: true });
        }
        let config = weights.path().with_file_name("adapter_config.json");
        if is_peft && config.symlink_metadata().is_ok() {
            let text = read_text(&config, MOST_BYTES)?;
            let settings =
                serde_json::from_str(&text).map_err(|e| wrong("adapter_config.json").caused_by(e))?;
            return Ok(Alphas { settings, by_part: false });
        }
        Ok(Alphas { settings: Map::new(), by_part: true })
    }

    /// alpha / rank of a layer, with rank-stabilised adapters alpha / sqrt(rank); 1 where nothing is said.
    pub(super) fn scale(&self, part: Part, layer: &str, rank: usize) -> std::result::Result<f32, String> {
        let get = |key: &str| match self.by_part {
            true => self.settings.get(&format!("{}.{key}", part.folder())),
            false => self.settings.get(key),
        };
        let is_set = |key: &str| get(key).is_some_and(|value| value.as_bool() == Some(true));
        if is_set("use_dora") {
            return Err("it is a DoRA, which denoir does not have".to_owned());
        }
        // The class of a file of settings, which those of metadata need not say.
        let kind = Some("peft_type").filter(|_| !self.by_part);
        let is_null = |key: &&str| get(key).is_some_and(Value::is_null);
        if let Some(key) = NEVER_NULL.into_iter().chain(kind).find(is_null) {
            return Err(format!("its {key} is null, which peft does not take"));
        }
        // A pattern is a regular expression for the end of a name; scripts write names.
        let layer = layer.trim_start_matches(TEXT_MODEL);
        let of = |all: &str, patterns: &str| {
            let ends =
                |name: &str| layer == name || layer.strip_suffix(name).is_some_and(|l| l.ends_with('.'));
            let named = get(patterns).and_then(Value::as_object).into_iter().flatten();
            let own = named
                .into_iter()
                .find(|(name, _)| ends(name.trim_start_matches(['^']).trim_start_matches(TEXT_MODEL)));
            own.map(|(_, value)| value).or(get(all))
        };
        for (all, patterns) in [("r", "rank_pattern"), ("lora_alpha", "alpha_pattern")] {
            if of(all, patterns).is_some_and(Value::is_null) {
                return Err(format!("its {all} of {layer} is null, which peft does not take"));
            }
        }
        let said = of("r", "rank_pattern").and_then(Value::as_u64);
        if let Some(said) = said.filter(|said| *said != rank as u64) {
            return Err(format!("its metadata says rank {said} of {layer}, and its tensors have {rank}"));
        }
        let Some(alpha) = of("lora_alpha", "alpha_pattern") else { return Ok(1.0) };
        let divisor = if is_set("use_rslora") { (rank as f64).sqrt() } else { rank as f64 };
        let scale = alpha.as_f64().map(|alpha| (alpha / divisor) as f32);
        scale.filter(|scale| scale.is_finite()).ok_or_else(|| format!("its alpha of {layer} is {alpha}"))
    }
}
