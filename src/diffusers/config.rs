//! `config.json` of a model, with every key and the defaults of its class in the reference library.
//!
//! A key that is missing has the class's default, which is not always what a null means; a key that the
//! class does not know is passed over, as there, and told.

mod unet;
mod vae;

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::models::unet::UNetConfig;
use crate::models::vae::{VaeConfig, VaeKind};
use unet::UNet2DModel;
use vae::{Common, Kl, Vq};

/// What a model is, as our own configurations say it.
#[derive(Clone, Debug, PartialEq)]
pub enum Model {
    UNet(Box<UNetConfig>),
    /// With what its latents are multiplied by.
    Vae(VaeConfig, f64),
}

/// A model's configuration.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub model: Model,
    /// Side of the square images (or latents) that it is for.
    pub side: Option<usize>,
    /// Keys that its class does not know.
    pub unknown: Vec<String>,
}

/// Height and width, which may be one number.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
#[serde(untagged, expecting = "a whole number, or two, are expected")]
enum Size {
    Square(usize),
    Sides([usize; 2]),
}

fn unsupported(key: &str, value: &str, known: &str) -> String {
    format!("{key} is {value:?}, which denoir does not have (it has {known})")
}

/// The arguments of one struct out of the text's keys, all of which it takes note of.
fn arguments<T: DeserializeOwned + Serialize + Default>(
    map: &Map<String, Value>,
    known: &mut Vec<String>,
) -> Result<T, String> {
    if let Ok(Value::Object(all)) = serde_json::to_value(T::default()) {
        known.extend(all.keys().cloned());
    }
    let read = |map: Map<String, Value>| serde_json::from_value::<T>(Value::Object(map));
    read(map.clone()).map_err(|e| {
        // Its key is not said: it is the one that does not fit alone.
        let alone = |(key, value): (&String, &Value)| {
            let e = read(Map::from_iter([(key.clone(), value.clone())])).err()?;
            Some(format!("{key} does not fit: {e}"))
        };
        map.iter().find_map(alone).unwrap_or_else(|| format!("a value does not fit: {e}"))
    })
}

/// A model from the text of its `config.json`.
///
/// # Errors
/// Names the key that is wrong, or has no counterpart here.
pub fn model(text: &str) -> Result<Config, String> {
    let map: Map<String, Value> =
        serde_json::from_str(text).map_err(|e| format!("it is no JSON object: {e}"))?;
    let class = map.get("_class_name").and_then(Value::as_str).unwrap_or_default();
    let mut known = Vec::new();
    let (model, size) = match class {
        "UNet2DModel" => {
            let theirs: UNet2DModel = arguments(&map, &mut known)?;
            let size = theirs.sample_size;
            (Model::UNet(Box::new(theirs.ours()?)), size)
        }
        "AutoencoderKL" => {
            let common: Common = arguments(&map, &mut known)?;
            let kl: Kl = arguments(&map, &mut known)?;
            if kl.shift_factor.is_some_and(|shift| shift != 0.0) {
                return Err("shift_factor is not null: denoir only scales latents".to_owned());
            }
            if kl.latents_mean.is_some() || kl.latents_std.is_some() {
                return Err(
                    "latents_mean and latents_std are not null: denoir only scales latents".to_owned()
                );
            }
            let (size, factor) = (common.sample_size, common.scaling_factor);
            let config = VaeConfig {
                kind: VaeKind::Kl,
                latent: kl.latent_channels,
                use_quant_conv: kl.use_quant_conv,
                use_post_quant_conv: kl.use_post_quant_conv,
                ..common.ours()?
            };
            (Model::Vae(config, factor), size)
        }
        "VQModel" => {
            let common: Common = arguments(&map, &mut known)?;
            let vq: Vq = arguments(&map, &mut known)?;
            if vq.norm_type != "group" {
                return Err(unsupported("norm_type", &vq.norm_type, "group"));
            }
            if vq.lookup_from_codebook {
                return Err("lookup_from_codebook is true, which denoir does not have".to_owned());
            }
            let (size, factor) = (common.sample_size, common.scaling_factor);
            let config = VaeConfig {
                kind: VaeKind::Vq,
                latent: vq.vq_embed_dim.unwrap_or(vq.latent_channels),
                inner_channels: vq.latent_channels,
                num_vq_embeddings: vq.num_vq_embeddings,
                variational: false,
                ..common.ours()?
            };
            (Model::Vae(config, factor), size)
        }
        "" => return Err("it has no _class_name, so nobody knows what it is of".to_owned()),
        other => {
            return Err(unsupported("_class_name", other, "UNet2DModel, AutoencoderKL and VQModel"));
        }
    };
    let side = match size {
        None => None,
        Some(Size::Square(side)) => Some(side),
        Some(Size::Sides([h, w])) if h == w => Some(h),
        Some(Size::Sides([h, w])) => return Err(format!("sample_size is {h}x{w}: denoir has square images")),
    };
    let unknown = map.keys().filter(|key| !key.starts_with('_') && !known.contains(key)).cloned().collect();
    Ok(Config { model, side, unknown })
}

/// The text of a `config.json`. `side`: of the images (or latents) of the model.
///
/// # Errors
/// When the reference library has no such model.
pub fn text_of(model: &Model, side: usize) -> Result<String, String> {
    let (class, parts) = match model {
        Model::UNet(config) => ("UNet2DModel", vec![value_of(&UNet2DModel::of(config, Some(side)))]),
        Model::Vae(config, factor) => {
            let common = value_of(&Common::of(config, side, *factor));
            match config.kind {
                VaeKind::Kl => {
                    let kl = Kl {
                        latent_channels: config.latent,
                        use_quant_conv: config.use_quant_conv,
                        use_post_quant_conv: config.use_post_quant_conv,
                        ..Kl::default()
                    };
                    ("AutoencoderKL", vec![common, value_of(&kl)])
                }
                VaeKind::Vq => {
                    let inner =
                        if config.inner_channels == 0 { config.latent } else { config.inner_channels };
                    let vq = Vq {
                        latent_channels: inner,
                        vq_embed_dim: Some(config.latent),
                        num_vq_embeddings: config.num_vq_embeddings,
                        ..Vq::default()
                    };
                    ("VQModel", vec![common, value_of(&vq)])
                }
                VaeKind::Conv | VaeKind::Mlp => {
                    return Err("its VAE is one of denoir's own, which diffusers has not".to_owned());
                }
            }
        }
    };
    let mut map: Map<String, Value> = parts.into_iter().flatten().collect();
    map.insert("_class_name".to_owned(), class.into());
    map.insert("_diffusers_version".to_owned(), VERSION.into());
    Ok(pretty(&map))
}

/// Of the library whose names and defaults these are.
pub const VERSION: &str = "0.42.1";

fn value_of(part: &impl Serialize) -> Map<String, Value> {
    match serde_json::to_value(part) {
        Ok(Value::Object(map)) => map,
        other => unreachable!("a struct of plain values: {other:?}"),
    }
}

/// Indented text, as the library writes it.
pub fn pretty(value: &impl Serialize) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_else(|e| unreachable!("plain values: {e}"));
    text + "\n"
}

/// The class of a pipeline from its `model_index.json`, and its parts: name and class.
///
/// # Errors
/// When it is no such index.
pub fn index(text: &str) -> Result<(Option<String>, BTreeMap<String, String>), String> {
    let map: Map<String, Value> =
        serde_json::from_str(text).map_err(|e| format!("it is no JSON object: {e}"))?;
    let class = map.get("_class_name").and_then(Value::as_str).map(str::to_owned);
    let mut parts = BTreeMap::new();
    for (name, value) in map {
        // [library, class]; [null, null] is a part that is not there. The rest are a pipeline's settings.
        if let Some([_, Value::String(class)]) = value.as_array().map(Vec::as_slice) {
            parts.insert(name, class.clone());
        }
    }
    Ok((class, parts))
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
            r#"{"_class_name": "UNet2DModel", "down_block_types": ["UNetResAttnDownBlock2D", "DownBlock2D"]}"#,
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
            r#"{"_class_name": "UNet2DModel", "sample_size": 8, "attention_head_dim": null, "norm_eps": 1e-6}"#,
            r#"{"_class_name": "UNet2DModel", "sample_size": 8, "time_embedding_type": "fourier"}"#,
            r#"{"_class_name": "UNet2DModel", "sample_size": 8, "class_embed_type": "identity",
                "time_embedding_type": "learned", "num_train_timesteps": 9}"#,
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
            (
                "UNet2DModel",
                r#""class_embed_type": "projection""#,
                "class_embed_type does not fit: unknown variant `projection`",
            ),
            ("UNet2DModel", r#""num_train_timesteps": 0"#, "num_train_timesteps is 0"),
            ("UNet2DModel", r#""mid_block_type": "UNetMidBlock2DCrossAttn""#, "mid_block_type is"),
            ("UNet2DModel", r#""attention_head_dim": 0"#, "attention_head_dim is 0"),
            ("UNet2DModel", r#""sample_size": [8, 16]"#, "sample_size is 8x16"),
            ("UNet2DModel", r#""in_channels": -1"#, "in_channels does not fit"),
            ("UNet2DModel", r#""sample_size": 1e300"#, "sample_size does not fit"),
            ("UNet2DConditionModel", r#""x": 1"#, "_class_name is \"UNet2DConditionModel\""),
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
