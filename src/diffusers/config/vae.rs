//! The arguments of `AutoencoderKL` and `VQModel`.

use serde_json::{Value, json};

use super::{Arguments, Model, set, take, unsupported};
use crate::models::vae::{VaeConfig, VaeKind};

/// The blocks that denoir has, by the argument that lists them.
const BLOCKS: [(&str, &str); 2] =
    [("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")];

/// All arguments of the class with their defaults.
pub(super) fn defaults(kind: VaeKind) -> Arguments {
    let mut arguments = Arguments::new();
    set(
        &mut arguments,
        json!({
            "in_channels": 3,
            "out_channels": 3,
            "down_block_types": [BLOCKS[0].1],
            "up_block_types": [BLOCKS[1].1],
            "block_out_channels": [64],
            "layers_per_block": 1,
            "act_fn": "silu",
            "norm_num_groups": 32,
            "sample_size": 32,
            "scaling_factor": 0.18215,
            "mid_block_add_attention": true,
        }),
    );
    let own = match kind {
        VaeKind::Vq => json!({
            "latent_channels": 3,
            "num_vq_embeddings": 256,
            "vq_embed_dim": null,
            "norm_type": "group",
            "lookup_from_codebook": false,
            "force_upcast": false,
        }),
        _ => json!({
            "latent_channels": 4,
            "shift_factor": null,
            "latents_mean": null,
            "latents_std": null,
            "force_upcast": true,
            "use_quant_conv": true,
            "use_post_quant_conv": true,
        }),
    };
    set(&mut arguments, own);
    arguments
}

/// The class of a configuration and its arguments.
pub(super) fn arguments(config: &VaeConfig, factor: f64) -> Result<(&'static str, Arguments), String> {
    let (class, own) = match config.kind {
        VaeKind::Kl => (
            "AutoencoderKL",
            json!({
                "latent_channels": config.latent,
                "use_quant_conv": config.use_quant_conv,
                "use_post_quant_conv": config.use_post_quant_conv,
            }),
        ),
        VaeKind::Vq => {
            let inner = if config.inner_channels == 0 { config.latent } else { config.inner_channels };
            let own = json!({
                "latent_channels": inner,
                "vq_embed_dim": config.latent,
                "num_vq_embeddings": config.num_vq_embeddings,
            });
            ("VQModel", own)
        }
        VaeKind::Conv | VaeKind::Mlp => {
            return Err("its VAE is one of denoir's own, which diffusers has not".to_owned());
        }
    };
    let mut arguments = defaults(config.kind);
    set(&mut arguments, own);
    set(
        &mut arguments,
        json!({
            "in_channels": config.in_channels,
            "out_channels": config.in_channels,
            "block_out_channels": config.widths,
            "layers_per_block": config.layers_per_block,
            "act_fn": config.act_fn,
            "norm_num_groups": config.norm_num_groups,
            "scaling_factor": factor,
            "mid_block_add_attention": config.mid_block_add_attention,
        }),
    );
    for (key, block) in BLOCKS {
        arguments.insert(key.to_owned(), json!(vec![block; config.widths.len()]));
    }
    Ok((class, arguments))
}

/// The configuration of all arguments but `sample_size`.
pub(super) fn model(mut arguments: Arguments, kind: VaeKind) -> Result<Model, String> {
    let a = &mut arguments;
    let widths: Vec<usize> = take(a, "block_out_channels")?;
    for (key, block) in BLOCKS {
        let types: Vec<String> = take(a, key)?;
        if let Some(other) = types.iter().find(|t| *t != block) {
            return Err(unsupported(key, other, block));
        }
        if types.len() != widths.len() {
            return Err(format!("{key} names {} blocks for {} levels", types.len(), widths.len()));
        }
    }
    let [in_channels, out_channels]: [usize; 2] = [take(a, "in_channels")?, take(a, "out_channels")?];
    if in_channels != out_channels {
        return Err(format!("in_channels is {in_channels} and out_channels {out_channels}"));
    }
    let factor: f64 = take(a, "scaling_factor")?;
    if !(factor.is_finite() && factor > 0.0) {
        return Err(format!("scaling_factor is {factor}"));
    }
    take::<bool>(a, "force_upcast")?; // of half precision, which denoir does not have
    let latent_channels = take(a, "latent_channels")?;
    let common = VaeConfig {
        kind,
        in_channels,
        widths,
        latent: latent_channels,
        norm_num_groups: take(a, "norm_num_groups")?,
        layers_per_block: take(a, "layers_per_block")?,
        act_fn: take(a, "act_fn")?,
        mid_block_add_attention: take(a, "mid_block_add_attention")?,
        ..VaeConfig::default()
    };
    let config = if kind == VaeKind::Vq {
        let norm: String = take(a, "norm_type")?;
        if norm != "group" {
            return Err(unsupported("norm_type", &norm, "group"));
        }
        if take(a, "lookup_from_codebook")? {
            return Err("lookup_from_codebook is true, which denoir does not have".to_owned());
        }
        VaeConfig {
            latent: take::<Option<usize>>(a, "vq_embed_dim")?.unwrap_or(latent_channels),
            inner_channels: latent_channels,
            num_vq_embeddings: take(a, "num_vq_embeddings")?,
            variational: false,
            ..common
        }
    } else {
        if take::<Option<f64>>(a, "shift_factor")?.is_some_and(|shift| shift != 0.0) {
            return Err("shift_factor is not null: denoir only scales latents".to_owned());
        }
        if ["latents_mean", "latents_std"].iter().any(|key| a.remove(*key) != Some(Value::Null)) {
            return Err("latents_mean and latents_std are not null: denoir only scales latents".to_owned());
        }
        VaeConfig {
            use_quant_conv: take(a, "use_quant_conv")?,
            use_post_quant_conv: take(a, "use_post_quant_conv")?,
            ..common
        }
    };
    Ok(Model::Vae(config, factor))
}
