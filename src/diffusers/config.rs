//! `config.json` of a model, with every key and the defaults of its class in the reference library.
//!
//! A key that is missing has the class's default, which is not always what a null means; a key that the
//! class does not know is passed over, as there, and told.

use std::collections::BTreeMap;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::models::unet::UNetConfig;
use crate::models::vae::{VaeConfig, VaeKind};

/// What a model is, as our own configurations say it.
#[derive(Clone, Debug, PartialEq)]
pub enum Model {
    UNet(UNetConfig),
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
#[serde(untagged)]
enum Size {
    Square(usize),
    Sides([usize; 2]),
}

/// The arguments of `UNet2DModel`.
#[derive(Serialize, Deserialize)]
#[serde(default)]
struct UNet2DModel {
    sample_size: Option<Size>,
    in_channels: usize,
    out_channels: usize,
    center_input_sample: bool,
    time_embedding_type: String,
    time_embedding_dim: Option<usize>,
    freq_shift: f64,
    flip_sin_to_cos: bool,
    down_block_types: Vec<String>,
    mid_block_type: Option<String>,
    up_block_types: Vec<String>,
    block_out_channels: Vec<usize>,
    layers_per_block: usize,
    mid_block_scale_factor: f64,
    downsample_padding: usize,
    downsample_type: String,
    upsample_type: String,
    dropout: f64,
    act_fn: String,
    /// Null is one head, and a missing key is 8.
    attention_head_dim: Option<usize>,
    norm_num_groups: usize,
    attn_norm_num_groups: Option<usize>,
    norm_eps: f64,
    resnet_time_scale_shift: String,
    add_attention: bool,
    class_embed_type: Option<String>,
    num_class_embeds: Option<usize>,
    num_train_timesteps: Option<usize>,
}

/// The shortest decimal that is this number in f32: 1e-5 and not 9.99999975e-6.
fn decimal(value: f32) -> f64 {
    value.to_string().parse().unwrap_or_else(|_| f64::from(value))
}

const MIDDLE: &str = "UNetMidBlock2D";

impl UNet2DModel {
    fn of(config: &UNetConfig, side: Option<usize>) -> Self {
        let given = |n: usize| (n > 0).then_some(n);
        let c = config.clone();
        UNet2DModel {
            sample_size: side.map(Size::Square),
            in_channels: c.in_channels,
            out_channels: c.out_channels,
            center_input_sample: c.center_input_sample,
            time_embedding_type: "positional".to_owned(),
            time_embedding_dim: given(c.time_embedding_dim),
            freq_shift: c.freq_shift,
            flip_sin_to_cos: c.flip_sin_to_cos,
            down_block_types: c.down_block_types,
            mid_block_type: c.mid_block.then(|| MIDDLE.to_owned()),
            up_block_types: c.up_block_types,
            block_out_channels: c.block_out_channels,
            layers_per_block: c.layers_per_block,
            mid_block_scale_factor: decimal(c.mid_block_scale_factor),
            downsample_padding: c.downsample_padding,
            downsample_type: c.downsample_type,
            upsample_type: c.upsample_type,
            dropout: decimal(c.dropout),
            act_fn: c.act_fn,
            attention_head_dim: given(c.attention_head_dim),
            norm_num_groups: c.norm_num_groups,
            attn_norm_num_groups: given(c.attn_norm_num_groups),
            norm_eps: decimal(c.norm_eps),
            resnet_time_scale_shift: c.resnet_time_scale_shift,
            add_attention: c.add_attention,
            class_embed_type: None,
            num_class_embeds: given(c.num_class_embeds),
            num_train_timesteps: None,
        }
    }

    fn ours(self) -> Result<UNetConfig, String> {
        if self.time_embedding_type != "positional" {
            return Err(unsupported("time_embedding_type", &self.time_embedding_type, "positional"));
        }
        if let Some(kind) = &self.class_embed_type {
            return Err(unsupported("class_embed_type", kind, "null, with num_class_embeds"));
        }
        if let Some(kind) = self.mid_block_type.as_ref().filter(|kind| *kind != MIDDLE) {
            return Err(unsupported("mid_block_type", kind, "UNetMidBlock2D or null"));
        }
        // What is null there is 0 here, so 0 there would change its meaning.
        let numbers = [
            ("time_embedding_dim", self.time_embedding_dim),
            ("attention_head_dim", self.attention_head_dim),
            ("attn_norm_num_groups", self.attn_norm_num_groups),
            ("num_class_embeds", self.num_class_embeds),
        ];
        if let Some((key, _)) = numbers.iter().find(|(_, n)| *n == Some(0)) {
            return Err(format!("{key} is 0"));
        }
        Ok(UNetConfig {
            in_channels: self.in_channels,
            out_channels: self.out_channels,
            center_input_sample: self.center_input_sample,
            time_embedding_dim: self.time_embedding_dim.unwrap_or(0),
            freq_shift: self.freq_shift,
            flip_sin_to_cos: self.flip_sin_to_cos,
            down_block_types: self.down_block_types,
            mid_block: self.mid_block_type.is_some(),
            up_block_types: self.up_block_types,
            block_out_channels: self.block_out_channels,
            layers_per_block: self.layers_per_block,
            mid_block_scale_factor: self.mid_block_scale_factor as f32,
            downsample_padding: self.downsample_padding,
            downsample_type: self.downsample_type,
            upsample_type: self.upsample_type,
            dropout: self.dropout as f32,
            act_fn: self.act_fn,
            attention_head_dim: self.attention_head_dim.unwrap_or(0),
            norm_num_groups: self.norm_num_groups,
            attn_norm_num_groups: self.attn_norm_num_groups.unwrap_or(0),
            norm_eps: self.norm_eps as f32,
            resnet_time_scale_shift: self.resnet_time_scale_shift,
            add_attention: self.add_attention,
            num_class_embeds: self.num_class_embeds.unwrap_or(0),
            zero_init: false,
        })
    }
}

impl Default for UNet2DModel {
    fn default() -> Self {
        // Ours has the same defaults, by the same names.
        UNet2DModel::of(&UNetConfig::default(), None)
    }
}

/// The arguments that `AutoencoderKL` and `VQModel` share.
#[derive(Serialize, Deserialize)]
#[serde(default)]
struct Common {
    in_channels: usize,
    out_channels: usize,
    down_block_types: Vec<String>,
    up_block_types: Vec<String>,
    block_out_channels: Vec<usize>,
    layers_per_block: usize,
    act_fn: String,
    norm_num_groups: usize,
    sample_size: Option<Size>,
    scaling_factor: f64,
    mid_block_add_attention: bool,
}

impl Default for Common {
    fn default() -> Self {
        Common {
            in_channels: 3,
            out_channels: 3,
            down_block_types: vec![ENCODER_BLOCK.to_owned()],
            up_block_types: vec![DECODER_BLOCK.to_owned()],
            block_out_channels: vec![64],
            layers_per_block: 1,
            act_fn: "silu".to_owned(),
            norm_num_groups: 32,
            sample_size: Some(Size::Square(32)),
            scaling_factor: 0.18215,
            mid_block_add_attention: true,
        }
    }
}

const ENCODER_BLOCK: &str = "DownEncoderBlock2D";
const DECODER_BLOCK: &str = "UpDecoderBlock2D";

impl Common {
    fn of(config: &VaeConfig, side: usize, scaling_factor: f64) -> Self {
        let levels = config.widths.len();
        Common {
            in_channels: config.in_channels,
            out_channels: config.in_channels,
            down_block_types: vec![ENCODER_BLOCK.to_owned(); levels],
            up_block_types: vec![DECODER_BLOCK.to_owned(); levels],
            block_out_channels: config.widths.clone(),
            layers_per_block: config.layers_per_block,
            act_fn: config.act_fn.clone(),
            norm_num_groups: config.norm_num_groups,
            sample_size: Some(Size::Square(side)),
            scaling_factor,
            mid_block_add_attention: config.mid_block_add_attention,
        }
    }

    fn ours(self) -> Result<VaeConfig, String> {
        let levels = self.block_out_channels.len();
        for (key, types, block) in [
            ("down_block_types", &self.down_block_types, ENCODER_BLOCK),
            ("up_block_types", &self.up_block_types, DECODER_BLOCK),
        ] {
            if let Some(other) = types.iter().find(|t| *t != block) {
                return Err(unsupported(key, other, block));
            }
            if types.len() != levels {
                return Err(format!("{key} names {} blocks for {levels} levels", types.len()));
            }
        }
        if self.in_channels != self.out_channels {
            return Err(format!(
                "in_channels is {} and out_channels {}",
                self.in_channels, self.out_channels
            ));
        }
        if !(self.scaling_factor.is_finite() && self.scaling_factor > 0.0) {
            return Err(format!("scaling_factor is {}", self.scaling_factor));
        }
        Ok(VaeConfig {
            in_channels: self.in_channels,
            widths: self.block_out_channels,
            norm_num_groups: self.norm_num_groups,
            layers_per_block: self.layers_per_block,
            act_fn: self.act_fn,
            mid_block_add_attention: self.mid_block_add_attention,
            ..VaeConfig::default()
        })
    }
}

/// What `AutoencoderKL` has besides.
#[derive(Serialize, Deserialize)]
#[serde(default)]
struct Kl {
    latent_channels: usize,
    shift_factor: Option<f64>,
    latents_mean: Option<Vec<f64>>,
    latents_std: Option<Vec<f64>>,
    /// Of half precision, which there is none of here.
    force_upcast: bool,
    use_quant_conv: bool,
    use_post_quant_conv: bool,
}

impl Default for Kl {
    fn default() -> Self {
        Kl {
            latent_channels: 4,
            shift_factor: None,
            latents_mean: None,
            latents_std: None,
            force_upcast: true,
            use_quant_conv: true,
            use_post_quant_conv: true,
        }
    }
}

/// What `VQModel` has besides.
#[derive(Serialize, Deserialize)]
#[serde(default)]
struct Vq {
    latent_channels: usize,
    num_vq_embeddings: usize,
    vq_embed_dim: Option<usize>,
    norm_type: String,
    lookup_from_codebook: bool,
    force_upcast: bool,
}

impl Default for Vq {
    fn default() -> Self {
        Vq {
            latent_channels: 3,
            num_vq_embeddings: 256,
            vq_embed_dim: None,
            norm_type: "group".to_owned(),
            lookup_from_codebook: false,
            force_upcast: false,
        }
    }
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
    serde_json::from_value(Value::Object(map.clone())).map_err(|e| format!("a value does not fit: {e}"))
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
            (Model::UNet(theirs.ours()?), size)
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

    #[test]
    fn missing_keys_have_the_defaults_of_the_class_and_null_is_not_missing() {
        let unet = |text: &str| match model(text).unwrap() {
            Config { model: Model::UNet(config), .. } => config,
            other => panic!("{other:?}"),
        };
        assert_eq!(unet(r#"{"_class_name": "UNet2DModel"}"#), UNetConfig::default());
        let one_head =
            unet(r#"{"_class_name": "UNet2DModel", "attention_head_dim": null, "mid_block_type": null}"#);
        assert_eq!((one_head.attention_head_dim, one_head.mid_block), (0, false));

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
            ("UNet2DModel", r#""time_embedding_type": "fourier""#, "time_embedding_type is \"fourier\""),
            ("UNet2DModel", r#""class_embed_type": "timestep""#, "class_embed_type is \"timestep\""),
            ("UNet2DModel", r#""attention_head_dim": 0"#, "attention_head_dim is 0"),
            ("UNet2DModel", r#""sample_size": [8, 16]"#, "sample_size is 8x16"),
            ("UNet2DModel", r#""in_channels": -1"#, "a value does not fit"),
            ("UNet2DModel", r#""in_channels": 1e30"#, "a value does not fit"),
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
