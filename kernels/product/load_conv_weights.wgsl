// load_conv_weights - A of the gradient of a convolution's weights: a row is (kh, kw, channel of src), k is a
// pixel of dst.

struct Block { rows: u32, depth: u32, b: u32 }

fn block_of(number: u32) -> Block {
    return Block(select(0u, p.rows, number < p.blocks), p.depth, 0u);
}

fn a_along_rows() -> bool { return true; }

fn b_along_depth() -> bool { return false; }

// Of a tap and a channel, from the first tap's first channel.
fn site_of(block: Block, row: u32) -> vec4<i32> {
    let tap = row / p.src_c;
    let kh = tap / p.kw;
    let kw = tap % p.kw;
    return vec4<i32>(vec4<u32>((kh * p.src_w + kw) * p.src_c + row % p.src_c, kh, kw, row));
}

// k as column, row and sample.
fn digit_sizes(block: Block) -> vec2<u32> { return vec2<u32>(p.dst_w, p.dst_h); }

// The pixel of src under the first tap.
fn step_of(block: Block, k: vec3<u32>) -> vec3<i32> {
    let h = i32(k.y * p.stride + 1u) - i32(p.kh) + p.pad_h;
    let w = i32(k.x * p.stride + 1u) - i32(p.kw) + p.pad_w;
    return vec3<i32>(((i32(k.z * p.src_h) + h) * i32(p.src_w) + w) * i32(p.src_c), h, w);
}
