//! The arguments of `UNet2DModel`.
//!
//! [`UNetConfig`] has them by the same names and with the same defaults, but for these: null there is 0 or an
//! empty text here, the middle block has a name there and a flag here, and some keys are denoir's own or of
//! nets that see a text.

use serde_json::Value;

use super::{Arguments, keys_of, read, take, unsupported, zero_nulls};
use crate::models::unet::UNetConfig;

/// The middle block that denoir has.
const MIDDLE: &str = "UNetMidBlock2D";
/// Numbers that may be null.
const OPTIONAL: [&str; 5] = [
    "time_embedding_dim",
    "attention_head_dim",
    "attn_norm_num_groups",
    "num_class_embeds",
    "num_train_timesteps",
];

/// Keys of denoir's own, and of a net that sees a text.
const NOT_THERE: [&str; 9] = [
    "zero_init",
    "fourier_features",
    "projection_class_embeddings_input_dim",
    "cross_attention_dim",
    "encoder_hid_dim",
    "transformer_heads",
    "transformer_layers_per_block",
    "only_cross_attention",
    "use_linear_projection",
];

/// The arguments of a configuration, with a `sample_size` of null.
pub(super) fn arguments(config: &UNetConfig) -> Arguments {
    let mut arguments = keys_of(config);
    let middle = arguments.remove("mid_block") == Some(Value::Bool(true));
    for key in NOT_THERE {
        arguments.remove(key);
    }
    for key in OPTIONAL.into_iter().chain(["class_embed_type"]) {
        if arguments[key] == 0 || arguments[key] == "" {
            arguments[key] = Value::Null;
        }
    }
    arguments.insert("mid_block_type".to_owned(), middle.then_some(MIDDLE).into());
    arguments.insert("sample_size".to_owned(), Value::Null);
    arguments
}

/// The configuration of all arguments but `sample_size`.
pub(super) fn config(mut arguments: Arguments) -> Result<UNetConfig, String> {
    let class_embed: Option<String> = take(&mut arguments, "class_embed_type")?;
    if let Some(kind) = class_embed.as_ref().filter(|kind| !["timestep", "identity"].contains(&kind.as_str()))
    {
        return Err(unsupported("class_embed_type", kind, "null, timestep and identity"));
    }
    let middle: Option<String> = take(&mut arguments, "mid_block_type")?;
    if let Some(kind) = middle.as_ref().filter(|kind| *kind != MIDDLE) {
        return Err(unsupported("mid_block_type", kind, "UNetMidBlock2D or null"));
    }
    zero_nulls(&mut arguments, &OPTIONAL)?;
    // The library looks at the size of the table only where classes have no other form.
    if class_embed.is_some() {
        arguments["num_class_embeds"] = 0.into();
    }
    arguments.insert("class_embed_type".to_owned(), class_embed.unwrap_or_default().into());
    arguments.insert("mid_block".to_owned(), middle.is_some().into());
    read(&arguments)
}
