//! The order in which the diffusers library makes the layers of a `UNet2DModel` or `UNet2DConditionModel`,
//! and so draws their weights.

/// Parts of names in the order in which the library makes the layers.
const PARTS: [&[&str]; 6] = [
    &[
        "conv_in",
        "time_proj",
        "time_embedding",
        "encoder_hid_proj",
        "class_embedding",
        "down_blocks",
        "mid_block",
        "up_blocks",
        "conv_out",
    ],
    &["resnets", "attentions", "downsamplers", "upsamplers"],
    &["proj_in", "transformer_blocks", "proj_out"],
    &["attn1", "attn2", "ff"],
    &[
        "linear_1",
        "linear_2",
        "conv1",
        "time_emb_proj",
        "conv2",
        "conv_shortcut",
        "to_q",
        "to_k",
        "to_v",
        "to_out",
    ],
    &["weight", "bias"],
];

/// Where a parameter stands: block, number of the block, number of the layer within (samplers last), its
/// kind, in a transformer the part, the block and the layer in that, then layer, weight or bias. Norms draw
/// nothing, so their place does not matter.
pub fn rank(name: &str) -> [usize; 10] {
    let parts: Vec<&str> = name.split('.').collect();
    let place = |known: &[&str]| -> usize {
        parts.iter().find_map(|part| known.iter().position(|k| k == part)).unwrap_or(known.len())
    };
    let [block, kind, part, sublayer, layer, last] = PARTS.map(place);
    // The number that follows a word.
    let number = |word: &str| -> usize {
        let after = parts.iter().position(|part| *part == word).and_then(|at| parts.get(at + 1));
        after.and_then(|number| number.parse().ok()).unwrap_or(0)
    };
    let of_block = PARTS[0].get(block).map_or(0, |word| number(word));
    // A resnet and the attention after it have one number.
    let of_layer = match PARTS[1].get(kind) {
        Some(&("downsamplers" | "upsamplers")) => usize::MAX,
        Some(word) => number(word),
        None => 0,
    };
    let (of_transformer, of_net) = (number("transformer_blocks"), number("net"));
    [block, of_block, of_layer, kind, part, of_transformer, sublayer, of_net, layer, last]
}

#[cfg(test)]
mod tests {
    use super::rank;

    #[test]
    fn layers_in_the_order_of_the_library() {
        let in_order = [
            "conv_in.weight",
            "conv_in.bias",
            "time_proj.weight",
            "time_embedding.linear_1.weight",
            "time_embedding.linear_2.weight",
            "class_embedding.weight",
            "down_blocks.0.resnets.0.conv1.weight",
            "down_blocks.0.resnets.0.time_emb_proj.weight",
            "down_blocks.0.resnets.0.conv2.weight",
            "down_blocks.0.resnets.0.conv_shortcut.weight",
            "down_blocks.0.attentions.0.to_q.weight",
            "down_blocks.0.attentions.0.to_q.bias",
            "down_blocks.0.attentions.0.to_out.0.weight",
            "down_blocks.0.resnets.1.conv1.weight",
            "down_blocks.0.downsamplers.0.conv.weight",
            "down_blocks.1.resnets.0.conv1.weight",
            "mid_block.resnets.0.conv2.bias",
            "mid_block.attentions.0.to_k.weight",
            "mid_block.attentions.1.proj_in.weight",
            "mid_block.attentions.1.proj_in.bias",
            "mid_block.attentions.1.transformer_blocks.0.attn1.to_v.weight",
            "mid_block.attentions.1.transformer_blocks.0.attn2.to_q.weight",
            "mid_block.attentions.1.transformer_blocks.0.attn2.to_out.0.weight",
            "mid_block.attentions.1.transformer_blocks.0.ff.net.0.proj.bias",
            "mid_block.attentions.1.transformer_blocks.0.ff.net.2.weight",
            "mid_block.attentions.1.transformer_blocks.1.attn1.to_q.weight",
            "mid_block.attentions.1.proj_out.weight",
            "mid_block.resnets.2.conv1.weight",
            "up_blocks.0.resnets.0.conv1.weight",
            "up_blocks.0.upsamplers.0.conv.bias",
            "up_blocks.1.attentions.2.to_v.weight",
            "conv_out.weight",
        ];
        for pair in in_order.windows(2) {
            assert!(rank(pair[0]) < rank(pair[1]), "{} before {}", pair[0], pair[1]);
        }
    }
}
