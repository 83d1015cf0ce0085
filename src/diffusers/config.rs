//! `config.json` of a model of the diffusers library: the arguments of its class.
//!
//! A missing key has the class's default, and null is what the library makes of None there (`null.rs`). A key
//! that the class does not know is ignored, as in the library, and listed in [`Config::unknown`].

mod dit;
mod null;
mod text;
mod unet;
mod unet_condition;
mod vae;

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

pub use self::text::{text_model, text_of_text_model};
use crate::diffusion::{LIBRARY_VERSION, pretty};
use crate::error::one_line;
use crate::models::dit::DitConfig;
use crate::models::unet::UNetConfig;
use crate::models::vae::{VaeConfig, VaeKind};

/// The configuration of a model in denoir's terms.
#[derive(Clone, Debug, PartialEq)]
pub enum Model {
    /// A `UNet2DModel`, or a `UNet2DConditionModel`.
    UNet(Box<UNetConfig>),
    /// A `DiTTransformer2DModel`, or a `Transformer2DModel` that is the same.
    Dit(Box<DitConfig>),
    /// An `AutoencoderKL` or a `VQModel`, and the factor that its latents are multiplied by.
    Vae(VaeConfig, f64),
}

/// The contents of a `config.json`.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// The model's class and options.
    pub model: Model,
    /// Side in pixels of the square images (or latents) that the model was made for.
    pub side: Option<usize>,
    /// Keys that the class does not know.
    pub unknown: Vec<String>,
}

/// The arguments of a class by name.
type Arguments = Map<String, Value>;

/// Height and width, which may be one number.
#[derive(Deserialize)]
#[serde(untagged, expecting = "a whole number, or two, are expected")]
enum Size {
    Square(usize),
    Sides([usize; 2]),
}

fn unsupported(key: &str, value: &str, known: &str) -> String {
    format!("{key} is {value:?}, which denoir does not have (it has {known})")
}

/// Removes the argument `key`, whose value must be a `T`.
fn take<T: DeserializeOwned>(arguments: &mut Arguments, key: &str) -> Result<T, String> {
    let value = arguments.remove(key).unwrap_or_default();
    serde_json::from_value(value).map_err(|e| format!("{key} does not fit: {e}"))
}

/// A configuration in denoir's terms from its keys.
fn read<T: DeserializeOwned>(keys: &Arguments) -> Result<T, String> {
    T::deserialize(keys).map_err(|e| {
        // The error does not name its key: it is the one that does not fit alone.
        let alone = |(key, value): (&String, &Value)| {
            let e = T::deserialize(&Map::from_iter([(key.clone(), value.clone())])).err()?;
            Some(format!("{key} does not fit: {e}"))
        };
        keys.iter().find_map(alone).unwrap_or_else(|| format!("a value does not fit: {e}"))
    })
}

/// The keys of a configuration of denoir.
fn keys_of(config: &impl Serialize) -> Arguments {
    // Through text, in which an f32 is its shortest decimal: 1e-5 and not 9.99999975e-6.
    let text = serde_json::to_string(config).unwrap_or_else(|e| unreachable!("plain values: {e}"));
    serde_json::from_str(&text).unwrap_or_else(|e| unreachable!("JSON just written: {e}"))
}

/// Numbers that may be null, which are 0 here: one that is 0 would change its meaning.
fn zero_nulls(arguments: &mut Arguments, keys: &[&str]) -> Result<(), String> {
    for &key in keys {
        if arguments[key] == 0 {
            return Err(format!("{key} is 0"));
        }
        if arguments[key].is_null() {
            arguments[key] = 0.into();
        }
    }
    Ok(())
}

/// Sets the arguments in the JSON object `values`.
fn set(arguments: &mut Arguments, values: Value) {
    if let Value::Object(values) = values {
        arguments.extend(values);
    }
}

fn object(text: &str) -> Result<Arguments, String> {
    serde_json::from_str(text).map_err(|e| format!("it is no JSON object: {e}"))
}

fn class_name(arguments: &Arguments) -> Option<&str> {
    arguments.get("_class_name").and_then(Value::as_str)
}

/// Parses the text of a `config.json`.
///
/// # Errors
/// Names the key that is wrong, or has no counterpart here.
pub fn model(text: &str) -> Result<Config, String> {
    let map = object(text)?;
    let class = class_name(&map).unwrap_or_default().to_owned();
    let mut arguments = match &*class {
        "UNet2DModel" => unet::arguments(&UNetConfig::default()),
        unet_condition::CLASS => unet_condition::defaults(),
        "AutoencoderKL" => vae::defaults(VaeKind::Kl),
        "VQModel" => vae::defaults(VaeKind::Vq),
        dit::CLASS => dit::arguments(&DitConfig::default()),
        dit::OLD_CLASS => dit::old_defaults(),
        "" => return Err("it has no _class_name, so the class of the model is unknown".to_owned()),
        other => {
            let known = "UNet2DModel, UNet2DConditionModel, DiTTransformer2DModel, AutoencoderKL and VQModel";
            return Err(unsupported("_class_name", other, known));
        }
    };
    let mut unknown = Vec::new();
    for (key, value) in map.iter().filter(|(key, _)| !key.starts_with('_')) {
        match arguments.get_mut(key) {
            Some(argument) if value.is_null() => *argument = null::meaning(&class, key, argument, &map)?,
            Some(argument) => *argument = value.clone(),
            None => unknown.push(key.clone()),
        }
    }
    let side = match take(&mut arguments, "sample_size")? {
        None => None,
        Some(Size::Square(side)) => Some(side),
        Some(Size::Sides([h, w])) if h == w => Some(h),
        Some(Size::Sides([h, w])) => return Err(format!("sample_size is {h}x{w}: denoir has square images")),
    };
    let model = match &*class {
        "UNet2DModel" => Model::UNet(Box::new(unet::config(arguments)?)),
        unet_condition::CLASS => Model::UNet(Box::new(unet_condition::config(arguments)?)),
        dit::CLASS => Model::Dit(Box::new(dit::config(arguments)?)),
        dit::OLD_CLASS => Model::Dit(Box::new(dit::old_config(arguments, side)?)),
        "VQModel" => vae::model(arguments, VaeKind::Vq)?,
        _ => vae::model(arguments, VaeKind::Kl)?,
    };
    Ok(Config { model, side, unknown })
}

/// The text of a `config.json`. `side`: of the images (or latents) of the model, in pixels.
///
/// # Errors
/// When the diffusers library has no such model.
pub fn text_of(model: &Model, side: usize) -> Result<String, String> {
    let (class, mut arguments) = match model {
        Model::UNet(config) if config.sees_text() => {
            (unet_condition::CLASS, unet_condition::arguments(config))
        }
        Model::UNet(config) => ("UNet2DModel", unet::arguments(config)),
        Model::Dit(config) => (dit::CLASS, dit::written(config)),
        Model::Vae(config, factor) => vae::arguments(config, *factor)?,
    };
    arguments.insert("sample_size".to_owned(), side.into());
    arguments.insert("_class_name".to_owned(), class.into());
    arguments.insert("_diffusers_version".to_owned(), LIBRARY_VERSION.into());
    Ok(pretty(&arguments))
}

/// What a `model_index.json` says of a pipeline.
pub struct Index {
    /// Its class.
    pub class: String,
    /// The class of each component by name.
    pub components: BTreeMap<String, String>,
    /// Names of the model's classes by their numbers, from 0 on; none where it does not name them all.
    pub labels: Vec<String>,
}

/// Parses the text of a `model_index.json`.
///
/// # Errors
/// When the text is no JSON object, or names no class.
pub fn index(text: &str) -> Result<Index, String> {
    let map = object(text)?;
    let Some(class) = class_name(&map).map(str::to_owned) else {
        return Err("it has no _class_name, so the class of the pipeline is unknown".to_owned());
    };
    // [library, class]; with nulls it is a component that is absent. Other values are a pipeline's settings.
    let component = |(name, value): (String, Value)| match value.as_array().map(Vec::as_slice) {
        Some([Value::String(_), Value::String(class)]) => Some((name, class.clone())),
        _ => None,
    };
    // Which the library does not take for absent.
    let no_class = |value: &Value| match value.as_array().map(Vec::as_slice) {
        Some([library, class]) => !library.is_null() && class.is_null(),
        _ => value.is_null(),
    };
    let optional = ["safety_checker", "feature_extractor", "image_encoder"];
    let mut of_text = optional.iter().filter(|_| class.starts_with("StableDiffusion"));
    if let Some(name) = of_text.find(|name| map.get(**name).is_some_and(no_class)) {
        return Err(format!("its {name} is {}, and [null, null] is none", map[*name]));
    }
    let named = map.get("id2label").and_then(Value::as_object);
    let unnamed = named.and_then(|named| named.iter().find(|(_, label)| label.is_null()));
    if let (Some((number, _)), "DiTPipeline") = (unnamed, &*class) {
        return Err(format!("its id2label says null of {}", one_line(number)));
    }
    let label = |number: usize| Some(named?.get(&number.to_string())?.as_str()?.to_owned());
    let labels = (0..named.map_or(0, Map::len)).map(label).collect::<Option<_>>().unwrap_or_default();
    Ok(Index { class, components: map.into_iter().filter_map(component).collect(), labels })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::models::unet::{Class, DownBlock};

    #[test]
    fn missing_keys_have_the_defaults_of_the_class_and_null_is_not_missing() {
        let unet = |text: &str| match model(text).unwrap() {
            Config { model: Model::UNet(config), .. } => *config,
            other => panic!("{other:?}"),
        };
        assert_eq!(unet(r#"{"_class_name": "UNet2DModel"}"#), UNetConfig::default());
        let one_head =
            unet(r#"{"_class_name": "UNet2DModel", "attention_head_dim": null, "mid_block_type": null}"#);
        assert_eq!((one_head.attention_head_dim, one_head.mid_block), (0, false));
        let classes =
            unet(r#"{"_class_name": "UNet2DModel", "class_embed_type": "timestep", "num_class_embeds": 9}"#);
        assert_eq!(classes.class(), Class::Value);
        let old = unet(
            r#"{"_class_name": "UNet2DModel",
                "down_block_types": ["UNetResAttnDownBlock2D", "DownBlock2D"]}"#,
        );
        assert_eq!(old.down_block_types, [DownBlock::Attention, DownBlock::Plain]);

        let kl =
            model(r#"{"_class_name": "AutoencoderKL", "latents_std": null, "decay": 1, "_x": 2}"#).unwrap();
        let Model::Vae(config, factor) = &kl.model else { panic!("{kl:?}") };
        assert_eq!((config.kind, config.latent, &config.widths[..]), (VaeKind::Kl, 4, &[64][..]));
        assert_eq!((*factor, kl.side, &kl.unknown[..]), (0.18215, Some(32), &["decay".to_owned()][..]));
        let vq = model(r#"{"_class_name": "VQModel", "vq_embed_dim": 7}"#).unwrap();
        let Model::Vae(config, _) = &vq.model else { panic!("{vq:?}") };
        assert_eq!((config.latent, config.inner_channels, config.num_vq_embeddings), (7, 3, 256));
    }

    #[test]
    fn what_is_written_is_read_as_it_was() {
        for text in [
            r#"{"_class_name": "UNet2DModel", "sample_size": 8, "attention_head_dim": null,
                "norm_eps": 1e-6}"#,
            r#"{"_class_name": "UNet2DModel", "sample_size": 8, "time_embedding_type": "fourier"}"#,
            r#"{"_class_name": "UNet2DModel", "sample_size": 8, "class_embed_type": "identity",
                "time_embedding_type": "learned", "num_train_timesteps": 9}"#,
            r#"{"_class_name": "UNet2DConditionModel", "sample_size": 64}"#,
            r#"{"_class_name": "UNet2DConditionModel", "sample_size": 96, "mid_block_type": "UNetMidBlock2D",
                "attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "encoder_hid_dim": 12,
                "only_cross_attention": [true, true, false, false], "use_linear_projection": true,
                "class_embed_type": "projection", "projection_class_embeddings_input_dim": 6}"#,
            r#"{"_class_name": "DiTTransformer2DModel", "sample_size": 8, "out_channels": 8,
                "norm_eps": 1e-6}"#,
            r#"{"_class_name": "Transformer2DModel", "norm_type": "ada_norm_zero", "num_attention_heads": 6,
                "attention_head_dim": 72, "in_channels": 3, "num_embeds_ada_norm": 10, "patch_size": 4,
                "sample_size": 8, "attention_bias": true, "activation_fn": "gelu",
                "norm_elementwise_affine": false}"#,
            r#"{"_class_name": "AutoencoderKL", "use_quant_conv": false, "sample_size": [64, 64]}"#,
            r#"{"_class_name": "VQModel", "vq_embed_dim": 7, "mid_block_add_attention": false}"#,
        ] {
            let once = model(text).unwrap();
            let written = text_of(&once.model, once.side.unwrap()).unwrap();
            assert_eq!(model(&written).unwrap(), once, "{written}");
        }
    }

    #[test]
    fn what_has_no_counterpart_is_named() {
        for (class, rest, wanted) in [
            ("UNet2DModel", r#""class_embed_type": "projection""#, "class_embed_type is \"projection\""),
            ("UNet2DModel", r#""num_train_timesteps": 0"#, "num_train_timesteps is 0"),
            ("UNet2DModel", r#""mid_block_type": "UNetMidBlock2DCrossAttn""#, "mid_block_type is"),
            ("UNet2DModel", r#""attention_head_dim": 0"#, "attention_head_dim is 0"),
            ("UNet2DModel", r#""sample_size": [8, 16]"#, "sample_size is 8x16"),
            ("UNet2DModel", r#""in_channels": -1"#, "in_channels does not fit"),
            ("UNet2DModel", r#""sample_size": 1e300"#, "sample_size does not fit"),
            ("UNet2DConditionModel", r#""addition_embed_type": "text_time""#, "addition_embed_type is"),
            ("UNet2DConditionModel", r#""time_cond_proj_dim": 256"#, "time_cond_proj_dim is"),
            (
                "UNet2DConditionModel",
                r#""mid_block_type": "UNetMidBlock2DSimpleCrossAttn""#,
                "mid_block_type",
            ),
            ("UNet3DConditionModel", r#""x": 1"#, "_class_name is \"UNet3DConditionModel\""),
            ("DiTTransformer2DModel", r#""norm_type": "layer_norm""#, "norm_type is \"layer_norm\""),
            ("DiTTransformer2DModel", r#""attention_bias": false"#, "attention_bias is false"),
            ("DiTTransformer2DModel", r#""activation_fn": "geglu""#, "activation_fn does not fit"),
            ("DiTTransformer2DModel", r#""out_channels": 0"#, "out_channels is 0"),
            ("DiTTransformer2DModel", r#""num_embeds_ada_norm": null"#, "num_embeds_ada_norm is null"),
            ("Transformer2DModel", r#""norm_num_groups": 8"#, "norm_type is \"layer_norm\""),
            ("AutoencoderKL", r#""shift_factor": 0.1"#, "shift_factor"),
            ("AutoencoderKL", r#""down_block_types": ["AttnDownEncoderBlock2D"]"#, "AttnDownEncoderBlock2D"),
            ("VQModel", r#""norm_type": "spatial""#, "norm_type is \"spatial\""),
        ] {
            let said = model(&format!(r#"{{"_class_name": "{class}", {rest}}}"#)).unwrap_err();
            assert!(said.contains(wanted), "should say {wanted:?}: {said}");
        }
        assert!(model("{}").unwrap_err().contains("no _class_name"));
        assert!(model("[]").unwrap_err().contains("no JSON object"));
    }
}
