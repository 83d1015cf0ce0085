//! The arguments of `AutoencoderKL` and `VQModel`.

use serde_json::{Value, json};

use super::{Arguments, Model, read, set, take, unsupported};
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
    let (class, latents) = match config.kind {
        VaeKind::Kl => ("AutoencoderKL", json!({"latent_channels": config.latent})),
        VaeKind::Vq => ("VQModel", json!({"latent_channels": config.inner(), "vq_embed_dim": config.latent})),
        VaeKind::Conv | VaeKind::Mlp => {
            return Err("its VAE is one of denoir's own, which diffusers has not".to_owned());
        }
    };
    let mut arguments = defaults(config.kind);
    // Most arguments are keys of the recipe.
    let ours = json!(config);
    for (key, argument) in &mut arguments {
        if let Some(value) = ours.get(key) {
            *argument = value.clone();
        }
    }
    set(&mut arguments, latents);
    let widths = &config.widths;
    let renamed = json!({
        "out_channels": config.in_channels,
        "block_out_channels": widths,
        "scaling_factor": factor,
    });
    set(&mut arguments, renamed);
    for (key, block) in BLOCKS {
        arguments.insert(key.to_owned(), json!(vec![block; widths.len()]));
    }
    Ok((class, arguments))
}

/// The configuration of all arguments but `sample_size`.
pub(super) fn model(mut arguments: Arguments, kind: VaeKind) -> Result<Model, String> {
    let a = &mut arguments;
    let widths: Vec<usize> = take(a, "block_out_channels")?;
    for (key, block) in BLOCKS {
        let types: Vec<String> = take(a, key)?;
        // The first versions wrote a prefix, as for the blocks of a U-Net.
        let known = |t: &String| t.strip_prefix("UNetRes").unwrap_or(t) == block;
        if let Some(other) = types.iter().find(|t| !known(t)) {
            return Err(unsupported(key, other, block));
        }
        if types.len() != widths.len() {
            return Err(format!("{key} names {} blocks for {} levels", types.len(), widths.len()));
        }
    }
    let channels: [usize; 2] = [take(a, "in_channels")?, take(a, "out_channels")?];
    if channels[0] != channels[1] {
        return Err(format!("in_channels is {} and out_channels {}", channels[0], channels[1]));
    }
    let factor: f64 = take(a, "scaling_factor")?;
    if !(factor.is_finite() && factor > 0.0) {
        return Err(format!("scaling_factor is {factor}"));
    }
    take::<bool>(a, "force_upcast")?; // of half precision, which denoir does not have
    let latent_channels: usize = take(a, "latent_channels")?;
    let mut latent = latent_channels;
    if kind == VaeKind::Vq {
        let norm: String = take(a, "norm_type")?;
        if norm != "group" {
            return Err(unsupported("norm_type", &norm, "group"));
        }
        if take(a, "lookup_from_codebook")? {
            return Err("lookup_from_codebook is true, which denoir does not have".to_owned());
        }
        latent = take::<Option<usize>>(a, "vq_embed_dim")?.unwrap_or(latent_channels);
        set(a, json!({"inner_channels": latent_channels, "variational": false}));
    } else {
        if take::<Option<f64>>(a, "shift_factor")?.is_some_and(|shift| shift != 0.0) {
            return Err("shift_factor is not null: denoir only scales latents".to_owned());
        }
        if ["latents_mean", "latents_std"].iter().any(|key| a.remove(*key) != Some(Value::Null)) {
            return Err("latents_mean and latents_std are not null: denoir only scales latents".to_owned());
        }
    }
    set(a, json!({"kind": kind, "in_channels": channels[0], "widths": widths, "latent": latent}));
    Ok(Model::Vae(read(&arguments)?, factor))
}
