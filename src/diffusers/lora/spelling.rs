//! What a tensor's name says in each of the spellings of a LoRA file.

use super::super::single::Part;

/// Which tensor of an adapter.
#[derive(Clone, Copy)]
pub(super) enum Piece {
    /// A.
    Down,
    /// B.
    Up,
    /// One number, which the rank divides.
    Alpha,
}

/// Before the names of peft's own files.
pub(super) const PEFT: &str = "base_model.model.";

/// Ends of names behind the layer's.
const ENDINGS: [(&str, Piece); 13] = [
    (".lora_A.weight", Piece::Down),
    (".lora_B.weight", Piece::Up),
    (".lora_A.default.weight", Piece::Down),
    (".lora_B.default.weight", Piece::Up),
    (".lora.down.weight", Piece::Down),
    (".lora.up.weight", Piece::Up),
    (".lora_linear_layer.down.weight", Piece::Down),
    (".lora_linear_layer.up.weight", Piece::Up),
    (".lora_down.weight", Piece::Down),
    (".lora_up.weight", Piece::Up),
    // The oldest: the layer and this in one part, `to_q_lora`.
    ("_lora.down.weight", Piece::Down),
    ("_lora.up.weight", Piece::Up),
    (".alpha", Piece::Alpha),
];

const PREFIXES: [(&str, Part); 5] = [
    ("unet.", Part::Unet),
    // ComfyUI's, with the numbers of LDM's blocks.
    ("diffusion_model.", Part::Unet),
    ("text_encoder.", Part::TextEncoder),
    ("lora_unet_", Part::Unet),
    ("lora_te_", Part::TextEncoder),
];

/// Names of attention's layers in the oldest spelling, and those of a U-Net and a text encoder.
const OLDEST: [[&str; 3]; 4] = [
    [".to_q", ".to_q", ".q_proj"],
    [".to_k", ".to_k", ".k_proj"],
    [".to_v", ".to_v", ".v_proj"],
    [".to_out", ".to_out.0", ".out_proj"],
];

/// Component if the name tells it, layer with dots or underscores, and which tensor; `None` for a name in no
/// spelling.
pub(super) fn spelled(name: &str) -> Option<(Option<Part>, String, Piece)> {
    let (ending, piece) = ENDINGS.iter().find(|(ending, _)| name.ends_with(ending))?;
    let name = &name[..name.len() - ending.len()];
    let name = name.strip_prefix(PEFT).unwrap_or(name);
    let with_part = PREFIXES.iter().find_map(|(prefix, part)| Some((*part, name.strip_prefix(prefix)?)));
    let (part, name) = with_part.map_or((None, name), |(part, rest)| (Some(part), rest));
    let mut layer = name.strip_prefix(PEFT).unwrap_or(name).replace(".processor.", ".");
    for [old, of_unet, of_text] in OLDEST {
        let new = if part == Some(Part::TextEncoder) { of_text } else { of_unet };
        if let Some(before) = layer.strip_suffix(old) {
            layer = [before, new].concat();
            break;
        }
    }
    Some((part, layer, *piece))
}

/// Parts of names that are no LoRA for Stable Diffusion 1 or 2, and what they are.
const OTHERS: [(&str, &str); 13] = [
    ("dora_scale", "it is a DoRA, which denoir does not have"),
    ("lora_magnitude_vector", "it is a DoRA, which denoir does not have"),
    (".hada_", "it is a LoHa, which denoir does not have"),
    (".lokr_", "it is a LoKr, which denoir does not have"),
    (".oft_", "it is an OFT, which denoir does not have"),
    (".lora_mid.", "it is a LoCon in Tucker's form, which denoir does not have"),
    (".diff", "it holds whole differences of weights, which denoir does not read"),
    ("lora_te1_", XL),
    ("lora_te2_", XL),
    ("text_encoder_2.", XL),
    ("lora_transformer_", OF_TRANSFORMER),
    ("double_blocks", OF_TRANSFORMER),
    (".lora_embedding_", "it adapts an embedding, which denoir does not do"),
];
const XL: &str = "it is for Stable Diffusion XL, which has two text encoders";
const OF_TRANSFORMER: &str = "it is for a diffusion transformer";

/// What a file with this name is, if it is no LoRA for Stable Diffusion 1 or 2.
pub(super) fn other_method(name: &str) -> Option<&'static str> {
    let whole = name.starts_with("model.diffusion_model.").then_some("it is a whole model and no LoRA");
    let bias = (name.ends_with(".lora_B.bias") || name.ends_with(".lora_up.bias"))
        .then_some("its adapters have biases, which denoir does not have");
    whole.or(bias).or_else(|| Some(OTHERS.iter().find(|(part, _)| name.contains(part))?.1))
}
