//! The arguments of `UNet2DConditionModel`.
//!
//! [`UNetConfig`] has them by the same names, but for these: null there is 0 or an empty text here, the
//! middle block is two flags, and `attention_head_dim`, which there is the number of heads, is
//! `transformer_heads`.

use serde_json::{Value, json};

use super::{Arguments, keys_of, read, set, take, unsupported, zero_nulls};
use crate::models::unet::UNetConfig;

/// The class.
pub(super) const CLASS: &str = "UNet2DConditionModel";
/// The middle blocks that denoir has.
const MIDDLES: [&str; 2] = ["UNetMidBlock2DCrossAttn", "UNetMidBlock2D"];
/// Numbers that may be null.
const OPTIONAL: [&str; 4] =
    ["time_embedding_dim", "num_class_embeds", "projection_class_embeddings_input_dim", "encoder_hid_dim"];
/// Arguments that are the same in a [`UNetConfig`].
const SAME: [&str; 20] = [
    "in_channels",
    "out_channels",
    "center_input_sample",
    "flip_sin_to_cos",
    "freq_shift",
    "down_block_types",
    "up_block_types",
    "only_cross_attention",
    "block_out_channels",
    "layers_per_block",
    "downsample_padding",
    "mid_block_scale_factor",
    "dropout",
    "act_fn",
    "norm_num_groups",
    "norm_eps",
    "cross_attention_dim",
    "transformer_layers_per_block",
    "use_linear_projection",
    "resnet_time_scale_shift",
];

/// Arguments of which denoir has the default alone.
fn fixed() -> Value {
    json!({
        "reverse_transformer_layers_per_block": null,
        "num_attention_heads": null,
        "dual_cross_attention": false,
        "addition_embed_type": null,
        "resnet_skip_time_act": false,
        "resnet_out_scale_factor": 1.0,
        "time_embedding_type": "positional",
        "time_embedding_act_fn": null,
        "timestep_post_act": null,
        "time_cond_proj_dim": null,
        "conv_in_kernel": 3,
        "conv_out_kernel": 3,
        "attention_type": "default",
        "class_embeddings_concat": false,
        "mid_block_only_cross_attention": null,
        "cross_attention_norm": null,
    })
}

/// All arguments of the class with their defaults.
pub(super) fn defaults() -> Arguments {
    let mut arguments = Arguments::new();
    let (down, up) = ("CrossAttnDownBlock2D", "CrossAttnUpBlock2D");
    set(
        &mut arguments,
        json!({
            "sample_size": null,
            "in_channels": 4,
            "out_channels": 4,
            "center_input_sample": false,
            "flip_sin_to_cos": true,
            "freq_shift": 0,
            "down_block_types": [down, down, down, "DownBlock2D"],
            "mid_block_type": MIDDLES[0],
            "up_block_types": ["UpBlock2D", up, up, up],
            "only_cross_attention": false,
            "block_out_channels": [320, 640, 1280, 1280],
            "layers_per_block": 2,
            "downsample_padding": 1,
            "mid_block_scale_factor": 1.0,
            "dropout": 0.0,
            "act_fn": "silu",
            "norm_num_groups": 32,
            "norm_eps": 1e-5,
            "cross_attention_dim": 1280,
            "transformer_layers_per_block": 1,
            "encoder_hid_dim": null,
            "encoder_hid_dim_type": null,
            "attention_head_dim": 8,
            "use_linear_projection": false,
            "class_embed_type": null,
            "num_class_embeds": null,
            "upcast_attention": false,
            "resnet_time_scale_shift": "default",
            "time_embedding_dim": null,
            "projection_class_embeddings_input_dim": null,
            "addition_time_embed_dim": null,
            "addition_embed_type_num_heads": 64,
        }),
    );
    set(&mut arguments, fixed());
    arguments
}

/// The arguments of a configuration, with a `sample_size` of null.
pub(super) fn arguments(config: &UNetConfig) -> Arguments {
    let ours = keys_of(config);
    let mut arguments = defaults();
    for key in SAME {
        arguments.insert(key.to_owned(), ours[key].clone());
    }
    for key in OPTIONAL.into_iter().chain(["class_embed_type"]) {
        let none = ours[key] == 0 || ours[key] == "";
        arguments.insert(key.to_owned(), if none { Value::Null } else { ours[key].clone() });
    }
    let middle = match (config.mid_block, config.add_attention) {
        (true, true) => Some(MIDDLES[0]),
        (true, false) => Some(MIDDLES[1]),
        (false, _) => None,
    };
    arguments.insert("mid_block_type".to_owned(), middle.into());
    arguments.insert("attention_head_dim".to_owned(), ours["transformer_heads"].clone());
    if config.encoder_hid_dim > 0 {
        arguments.insert("encoder_hid_dim_type".to_owned(), "text_proj".into());
    }
    arguments
}

/// The configuration of all arguments but `sample_size`.
pub(super) fn config(mut arguments: Arguments) -> Result<UNetConfig, String> {
    let a = &mut arguments;
    let Value::Object(fixed) = fixed() else { unreachable!("an object") };
    for (key, default) in fixed {
        let given = a.remove(&key).unwrap_or_default();
        let same = given == default || given.as_f64().is_some_and(|given| Some(given) == default.as_f64());
        if !same {
            return Err(unsupported(&key, &given.to_string().replace('"', ""), &default.to_string()));
        }
    }
    let class_embed: Option<String> = take(a, "class_embed_type")?;
    let known = ["timestep", "identity", "projection", "simple_projection"];
    if let Some(kind) = class_embed.as_ref().filter(|kind| !known.contains(&kind.as_str())) {
        return Err(unsupported("class_embed_type", kind, &format!("null, {}", known.join(", "))));
    }
    let middle: Option<String> = take(a, "mid_block_type")?;
    if let Some(kind) = middle.as_ref().filter(|kind| !MIDDLES.contains(&kind.as_str())) {
        return Err(unsupported("mid_block_type", kind, &format!("{} or null", MIDDLES.join(", "))));
    }
    let hid_type: Option<String> = take(a, "encoder_hid_dim_type")?;
    match hid_type.as_deref() {
        None => {}
        Some("text_proj") if a["encoder_hid_dim"].is_null() => {
            return Err("encoder_hid_dim is null, and encoder_hid_dim_type \"text_proj\" needs it".to_owned());
        }
        Some("text_proj") => {}
        Some(kind) => return Err(unsupported("encoder_hid_dim_type", kind, "text_proj")),
    }
    let width = "projection_class_embeddings_input_dim";
    if let Some(kind) = class_embed.as_ref().filter(|kind| kind.ends_with("projection") && a[width].is_null())
    {
        return Err(format!("{width} is null, and class_embed_type {kind:?} needs it"));
    }
    zero_nulls(a, &OPTIONAL)?;
    // The library looks at the size of the table only where classes have no other form.
    if class_embed.is_some() {
        a["num_class_embeds"] = 0.into();
    }
    if a["cross_attention_dim"] == 0 {
        return Err("cross_attention_dim is 0".to_owned());
    }
    // Of half precision, and of forms that are refused above.
    for key in ["upcast_attention", "addition_time_embed_dim", "addition_embed_type_num_heads"] {
        a.remove(key);
    }
    let heads: Value = take(a, "attention_head_dim")?;
    set(
        a,
        json!({
            "transformer_heads": heads,
            "class_embed_type": class_embed.unwrap_or_default(),
            "mid_block": middle.is_some(),
            "add_attention": middle.as_deref() != Some(MIDDLES[1]),
        }),
    );
    read(&arguments)
}
