// conv_weights - sizes of the gradient of a convolution's weights, cut into parts of the rows of pixels.

struct WParams {
    n: u32, h: u32, w: u32, cin: u32,
    kh: u32, kw: u32, oh: u32, ow: u32, cout: u32,
    stride: u32, top: u32, left: u32,
    parts: u32, rows: u32, // a part has so many of the n * oh rows of dy
    has_bias: u32, // 1: below its rows of dw a part has the sums of dy, for the gradient of the bias
    first_group: u32, // of this dispatch
}

@group(0) @binding(0) var<uniform> q: WParams;

// Rows of a part, of cout numbers each.
fn part_rows() -> u32 {
    return q.kh * q.kw * q.cin + q.has_bias;
}
