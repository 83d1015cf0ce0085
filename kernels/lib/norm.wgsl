// norm - sizes of a group norm, or of a part of one. Formulas and shapes as in group_norm.wgsl.

struct Params {
    samples: u32,
    rows: u32, // P
    channels: u32, // C
    channel_groups: u32, // G
    width: u32, // D
    left: u32,
    first: u32, // of the part's channels
    own: u32, // channels of the part
    chunk_rows: u32,
    chunks: u32, // of one sample
    kind: u32,
    eps: f32,
    adds: u32, // 1: backward_x adds what stands in so_far
}

@group(0) @binding(0) var<uniform> p: Params;
