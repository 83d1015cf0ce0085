//! The arguments of `DiTTransformer2DModel`, and of its older name, `Transformer2DModel`.
//!
//! [`DitConfig`] has most by the same names and with the same defaults. `out_channels` may be null there, and
//! `zero_init` is denoir's own; of the others denoir has one value.

use serde_json::{Value, json};

use super::{Arguments, keys_of, read, set, take, unsupported};
use crate::models::dit::DitConfig;

/// The class.
pub(super) const CLASS: &str = "DiTTransformer2DModel";
/// The class of which a DiT was a case. It has other networks too, and other defaults.
pub(super) const OLD_CLASS: &str = "Transformer2DModel";

/// The arguments that denoir has one value of.
fn fixed() -> Value {
    json!({ "attention_bias": true, "norm_type": "ada_norm_zero", "norm_elementwise_affine": false })
}

/// All arguments of a configuration, with a `sample_size` of null.
pub(super) fn arguments(config: &DitConfig) -> Arguments {
    let mut arguments = keys_of(config);
    arguments.remove("zero_init");
    if config.out_channels == 0 {
        arguments.insert("out_channels".to_owned(), Value::Null);
    }
    // Groups that no layer has, and a precision that f32 has anyway.
    set(&mut arguments, json!({ "sample_size": null, "norm_num_groups": 32, "upcast_attention": false }));
    set(&mut arguments, fixed());
    arguments
}

/// As [`arguments`], to be written: `DiTPipeline` fails where `out_channels` is null.
pub(super) fn written(config: &DitConfig) -> Arguments {
    let mut arguments = arguments(config);
    arguments.insert("out_channels".to_owned(), config.out().into());
    arguments
}

/// The configuration of all arguments but `sample_size`.
pub(super) fn config(mut arguments: Arguments) -> Result<DitConfig, String> {
    let a = &mut arguments;
    for key in ["norm_num_groups", "upcast_attention"] {
        a.remove(key);
    }
    let norm: String = take(a, "norm_type")?;
    if norm != "ada_norm_zero" {
        return Err(unsupported("norm_type", &norm, "ada_norm_zero"));
    }
    if !take::<bool>(a, "attention_bias")? {
        return Err("attention_bias is false: denoir's attention has biases".to_owned());
    }
    if take::<bool>(a, "norm_elementwise_affine")? {
        return Err("norm_elementwise_affine is true: denoir's norms here have no weights".to_owned());
    }
    // Null becomes 0, so a 0 would change its meaning.
    match &a["out_channels"] {
        Value::Null => a["out_channels"] = 0.into(),
        zero if *zero == 0 => return Err("out_channels is 0".to_owned()),
        same if *same == a["in_channels"] => a["out_channels"] = 0.into(),
        _ => {}
    }
    read(a)
}

/// All arguments of the older class with its defaults.
pub(super) fn old_defaults() -> Arguments {
    let mut arguments = Arguments::new();
    set(
        &mut arguments,
        json!({
            "num_attention_heads": 16,
            "attention_head_dim": 88,
            "in_channels": null,
            "out_channels": null,
            "num_layers": 1,
            "dropout": 0.0,
            "norm_num_groups": 32,
            "cross_attention_dim": null,
            "attention_bias": false,
            "sample_size": null,
            "num_vector_embeds": null,
            "patch_size": null,
            "activation_fn": "geglu",
            "num_embeds_ada_norm": null,
            "use_linear_projection": false,
            "only_cross_attention": false,
            "double_self_attention": false,
            "upcast_attention": false,
            "norm_type": "layer_norm",
            "norm_elementwise_affine": true,
            "norm_eps": 1e-5,
            "attention_type": "default",
            "caption_channels": null,
            "interpolation_scale": null,
            "use_additional_conditions": null,
        }),
    );
    arguments
}

/// The configuration of the older class's arguments, for images of `side` pixels.
pub(super) fn old_config(mut arguments: Arguments, side: Option<usize>) -> Result<DitConfig, String> {
    let a = &mut arguments;
    // What makes it another network.
    for (key, ours) in [
        ("cross_attention_dim", Value::Null),
        ("num_vector_embeds", Value::Null),
        ("only_cross_attention", false.into()),
        ("double_self_attention", false.into()),
        ("attention_type", "default".into()),
        ("caption_channels", Value::Null),
    ] {
        if a.remove(key) != Some(ours.clone()) {
            return Err(format!("{key} is not {ours}: denoir has the DiT of this class alone"));
        }
    }
    for key in ["use_linear_projection", "use_additional_conditions"] {
        a.remove(key); // which a DiT does not look at
    }
    // Positions are divided by it.
    let scale: Option<f64> = take(a, "interpolation_scale")?;
    let scale = scale.unwrap_or_else(|| side.map_or(1.0, |side| (side / 64).max(1) as f64));
    if scale != 1.0 {
        return Err(format!("its positions are divided by {scale}: denoir has an interpolation_scale of 1"));
    }
    config(arguments)
}
