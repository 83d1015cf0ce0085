//! The arguments of the transformers library's `CLIPTextModel`.
//!
//! [`TextConfig`] has them by the same names and with the same defaults. Others say nothing of the model's
//! result: the projection and drop-out of CLIP's own training, numbers of tokens, settings of the library.

use serde_json::{Value, json};

use super::{Arguments, keys_of, object, read, set, unsupported};
use crate::diffusion::pretty;
use crate::models::clip::TextConfig;

/// Keys that say nothing here, and whose null the library fails on all the same: it looks for the end of a
/// text, and checks the two others.
const NEVER_NULL: [&str; 3] = ["eos_token_id", "initializer_factor", "initializer_range"];

/// What the library calls the model.
const KIND: &str = "clip_text_model";

/// Parses the text of the `config.json` of a text encoder, or of a whole CLIP with one inside.
///
/// # Errors
/// Names the key that is wrong, or has no counterpart here.
pub fn text_model(text: &str) -> Result<TextConfig, String> {
    let mut keys = object(text)?;
    need_no_mask(&keys)?;
    if keys.get("text_config") == Some(&Value::Null) {
        return Err("text_config is null: it has no text encoder".to_owned());
    }
    // The first of these counts, as in the library.
    let inside = ["text_config", "text_config_dict"].into_iter().find_map(|key| match keys.remove(key) {
        Some(Value::Object(inside)) => Some(inside),
        _ => None,
    });
    let kind = match &inside {
        // It need not say so again.
        Some(inside) => inside.get("model_type").or(Some(&Value::Null)),
        None => keys.get("model_type"),
    };
    match kind {
        Some(Value::Null) => {}
        Some(Value::String(kind)) if kind == KIND => {}
        Some(Value::String(kind)) => return Err(unsupported("model_type", kind, KIND)),
        _ => return Err("it has no model_type, so the kind of the text encoder is unknown".to_owned()),
    }
    let mut keys = inside.unwrap_or(keys);
    need_no_mask(&keys)?;
    let known = keys_of(&TextConfig::default());
    let never_null = |key: &str| known.contains_key(key) || NEVER_NULL.contains(&key);
    if let Some((key, _)) = keys.iter().find(|(key, value)| value.is_null() && never_null(key)) {
        return Err(format!("{key} is null, and the class has no meaning for it"));
    }
    keys.retain(|key, _| known.contains_key(key));
    read(&keys)
}

/// The pipelines hide padding from a model that says so.
fn need_no_mask(keys: &Arguments) -> Result<(), String> {
    match keys.get("use_attention_mask") {
        Some(Value::Bool(true)) => Err("use_attention_mask is true: denoir's texts see their padding".into()),
        _ => Ok(()),
    }
}

/// The text of a `config.json`, as version 4 of the library writes it. `ends`: the numbers of the tokens that
/// begin, end and pad a text.
pub fn text_of_text_model(config: &TextConfig, ends: [u32; 3]) -> String {
    let mut keys = keys_of(config);
    let [bos, eos, pad] = ends;
    set(
        &mut keys,
        json!({
            "architectures": ["CLIPTextModel"],
            "attention_dropout": 0.0,
            "bos_token_id": bos,
            "eos_token_id": eos,
            "initializer_factor": 1.0,
            "initializer_range": 0.02,
            "model_type": KIND,
            "pad_token_id": pad,
            "torch_dtype": "float32",
        }),
    );
    pretty(&keys)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::clip::HiddenAct;

    #[test]
    fn text_models_alone_and_in_a_whole_clip() {
        let alone = r#"{"model_type": "clip_text_model", "hidden_size": 1024, "hidden_act": "gelu",
                        "layer_norm_eps": 1e-06, "eos_token_id": 2,
                        "use_attention_mask": false, "x": [null]}"#;
        let wanted = TextConfig {
            hidden_size: 1024,
            hidden_act: HiddenAct::Gelu,
            layer_norm_eps: 1e-6,
            ..TextConfig::default()
        };
        assert_eq!(text_model(alone), Ok(wanted.clone()));
        let whole = format!(r#"{{"model_type": "clip", "hidden_size": 3, "text_config": {alone}}}"#);
        assert_eq!(text_model(&whole), Ok(wanted.clone()));
        let twice = r#"{"text_config_dict": {"hidden_size": 7}, "text_config": {"vocab_size": 9}}"#;
        assert_eq!(text_model(twice), Ok(TextConfig { vocab_size: 9, ..TextConfig::default() }));
        let written = text_of_text_model(&wanted, [1, 2, 3]);
        assert_eq!(text_model(&written), Ok(wanted), "{written}");
        assert!(written.contains("\"layer_norm_eps\": 1e-6,"), "{written}");
    }

    #[test]
    fn what_is_another_model_is_named() {
        for (text, wanted) in [
            ("[]", "it is no JSON object"),
            (r#"{"hidden_size": 8}"#, "it has no model_type"),
            (r#"{"model_type": "t5"}"#, r#"model_type is "t5""#),
            (r#"{"model_type": "clip", "text_config": null}"#, "text_config is null"),
            (r#"{"model_type": "clip"}"#, r#"model_type is "clip""#),
            (r#"{"text_config": {"model_type": "bert"}}"#, r#"model_type is "bert""#),
            (
                r#"{"model_type": "clip_text_model", "hidden_act": "gelu_new"}"#,
                "hidden_act does not fit: unknown variant `gelu_new`, expected `quick_gelu` or `gelu`",
            ),
            (r#"{"model_type": "clip_text_model", "hidden_size": null}"#, "hidden_size is null"),
            (
                r#"{"model_type": "clip_text_model", "use_attention_mask": true}"#,
                "use_attention_mask is true",
            ),
            (r#"{"text_config": {}, "use_attention_mask": true}"#, "use_attention_mask is true"),
        ] {
            let said = text_model(text).unwrap_err();
            assert!(said.contains(wanted), "{text}: {said}");
        }
    }
}
