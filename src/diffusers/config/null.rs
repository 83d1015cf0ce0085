//! What null means in a `config.json`, where a key's default is no answer: as the library takes None.

use serde_json::{Map, Value};

use super::{dit, unet_condition};

/// The value that null stands for in place of this argument of a class, whose default is given. `map`: the
/// whole file.
///
/// # Errors
/// Names the key where the library fails, or makes another network.
pub(super) fn meaning(
    class: &str,
    key: &str,
    default: &Value,
    map: &Map<String, Value>,
) -> Result<Value, String> {
    const CONDITION: &str = unet_condition::CLASS;
    let time = map.get("time_embedding_type").and_then(Value::as_str);
    let refused = || Err(format!("{key} is null, and the class has no meaning for it"));
    match (class, key) {
        // No heads of their own; no middle block.
        ("UNet2DModel", "attention_head_dim" | "mid_block_type") | (CONDITION, "mid_block_type") => {
            Ok(Value::Null)
        }
        // Whatever is not "resnet".
        ("UNet2DModel", "downsample_type" | "upsample_type") => Ok("conv".into()),
        // Nothing looks at it there.
        ("UNet2DModel", "freq_shift") if !matches!(time, None | Some("positional")) => Ok(default.clone()),
        ("VQModel", "sample_size") => Ok(Value::Null),
        (CONDITION, "attention_type" | "resnet_out_scale_factor" | "addition_embed_type_num_heads")
        | (dit::CLASS | dit::OLD_CLASS, "norm_num_groups")
        | (dit::OLD_CLASS, "attention_type") => Ok(default.clone()),
        // A list, one for each level, is what it is made into.
        (CONDITION, "only_cross_attention") => refused(),
        // Positions are made for it.
        (dit::CLASS | dit::OLD_CLASS, "sample_size") => refused(),
        _ => match default {
            Value::Null => Ok(Value::Null),
            Value::Bool(_) => Ok(false.into()),
            _ => refused(),
        },
    }
}
