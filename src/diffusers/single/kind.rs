//! What a file is that is no Stable Diffusion 1 or 2, and what in one is nothing to a sampler.

use std::collections::BTreeMap;

use super::UNET;

/// Parts of names, and what a file is that has such a name. The first that is found is told.
const OTHERS: [(&str, &str); 25] = [
    ("lora_unet_", LORA),
    ("lora_te", LORA),
    (".lora_A.", LORA),
    (".lora_down.", LORA),
    (".lora.down.", LORA),
    ("_lora.down.", LORA),
    (".hada_w1_a", LORA),
    (".lokr_w", LORA),
    ("control_model.", CONTROL),
    ("controlnet_cond_embedding.", CONTROL),
    ("string_to_param", EMBEDDING),
    ("emb_params", EMBEDDING),
    ("conditioner.embedders.", "it is Stable Diffusion XL"),
    ("label_emb.0.0.", "it is Stable Diffusion XL, or an unCLIP model"),
    ("label_emb.weight", "it is an upscaler"),
    ("low_scale_model.", "it is an upscaler"),
    ("noise_augmentor.", "it is an unCLIP model"),
    ("depth_model.", "it is a depth-to-image model"),
    ("joint_blocks.", "it is Stable Diffusion 3"),
    ("double_blocks.", "it is Flux, or of its kind"),
    ("double_stream_modulation_img.", "it is Flux, or of its kind"),
    ("motion_modules.", "it is a motion module of AnimateDiff"),
    ("temporal_transformer.", "it is a motion module of AnimateDiff"),
    ("time_stack.", "it is Stable Video Diffusion"),
    ("text_encoders.", "it is a model with several text encoders"),
];
const LORA: &str = "it is a LoRA file, which is used on top of a model";
const CONTROL: &str = "it is a ControlNet";
const EMBEDDING: &str = "it is an embedding of textual inversion, which is used on top of a model";

/// What a file is that has no place here.
pub(super) fn other_kind(all: &BTreeMap<&str, &[usize]>) -> Option<String> {
    let known = OTHERS.iter().find(|(part, _)| all.keys().any(|name| name.contains(part)));
    if let Some((_, what)) = known {
        return Some((*what).to_owned());
    }
    let begins = |prefix: &str| all.keys().any(|name| name.starts_with(prefix));
    if begins(UNET) {
        return None;
    }
    let what = if begins("down_blocks.") || begins("encoder.down_blocks.") {
        "it is one model of a diffusers folder: give the folder, which has its config.json"
    } else if begins("text_model.encoder.") || begins("transformer.resblocks.") {
        "it is a text encoder alone"
    } else if begins("encoder.down.") || begins("first_stage_model.") {
        "it is a VAE alone"
    } else if begins("cond_stage_model.") || begins("model_ema.") {
        return Some(format!("it has no U-Net: none of its names begins with {UNET}"));
    } else {
        let first = all.keys().next().map_or("nothing".to_owned(), |name| format!("{name}, ..."));
        return Some(format!("it is no Stable Diffusion model: it holds {first}"));
    };
    Some(what.to_owned())
}

/// Buffers of the training code: schedules of the noise, positions, masks.
const BUFFERS: [&str; 16] = [
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
    "logvar",
    "lvlb_weights",
    "scale_factor",
    "cond_stage_model.attn_mask",
];

/// Tensors of a whole Stable Diffusion that no picture needs: the moving average's twins, losses, the half
/// of CLIP that sees pictures, and what is computed anew.
pub(super) fn is_ignored(name: &str) -> bool {
    let of_text = name
        .strip_prefix("cond_stage_model.")
        .and_then(|rest| ["transformer.", "model."].iter().find_map(|prefix| rest.strip_prefix(prefix)));
    let ignored_text = of_text.is_some_and(|rest| {
        let unused = format!("transformer.resblocks.{}.", super::UNUSED_LAYER);
        ["vision_model.", "visual.", "visual_projection", "text_projection", unused.as_str()]
            .iter()
            .any(|prefix| rest.starts_with(prefix))
            || ["logit_scale", "attn_mask"].contains(&rest)
            || rest.ends_with("embeddings.position_ids")
    });
    let prefixes = ["model_ema.", "first_stage_model.loss.", "vae.loss.", "embedding_manager."];
    ignored_text || BUFFERS.contains(&name) || prefixes.iter().any(|prefix| name.starts_with(prefix))
}
