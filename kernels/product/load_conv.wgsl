// load_conv - A of a convolution, or of the adjoint of one: a row is a pixel of dst, k is (kh, kw, channel of
// src).
//
// A convolution gathers dst[h,w] from src[h*stride + kh - top, w*stride + kw - left]. In the adjoint of a
// convolution of stride `step`, the tap kh meets row h of dst only where kh and h + pad are equal modulo
// step: the pixels of one residue form an image of their own, which an ordinary convolution with their few
// taps gathers from src. Nothing is multiplied by the zeros that would have to be put between the pixels of
// src. A block is a residue; with a step of 1 there is one, the whole image.
//
// B, the weights [taps, src_c, cols], holds the taps of one residue after those of the other, in the order in
// which the convolution reads them. Reference: Dumoulin & Visin 2016, chapter 4 (arXiv:1603.07285).

struct Block {
    rows: u32, depth: u32, b: u32, // pixels; taps * channels; first element of B
    h0: u32, w0: u32,              // first pixel in dst; the others lie `step` apart
    h: u32, w: u32,                // size of the residue's image
    kh: u32, kw: u32,              // its taps
    top: i32, left: i32,           // rows and columns of zeros before src
}

// Taps along one axis that pixel `at` meets, zeros before the first, and taps of lesser residues.
struct Axis { taps: u32, before: i32, lesser: u32 }

fn axis(at: u32, taps: u32, pad: i32) -> Axis {
    let d = i32(at) + pad;
    let r = u32(d % i32(p.step)); // pad is negative for a step of 1 alone, where this is 0
    let own = select(0u, (taps - r + p.step - 1u) / p.step, r < taps);
    return Axis(own, i32(own) - 1 - d / i32(p.step), taps / p.step * r + min(taps % p.step, r));
}

fn block_of(number: u32) -> Block {
    let across = min(p.step, p.dst_w);
    let h0 = number / across;
    let w0 = number % across;
    let down = axis(h0, p.kh, p.pad_h);
    let along = axis(w0, p.kw, p.pad_w);
    let h = (p.dst_h - min(h0, p.dst_h) + p.step - 1u) / p.step;
    let w = (p.dst_w - w0 + p.step - 1u) / p.step;
    return Block(
        select(0u, p.src_n * h * w, number < p.blocks), down.taps * along.taps * p.src_c,
        (down.lesser * p.kw + down.taps * along.lesser) * p.src_c * p.cols,
        h0, w0, h, w, down.taps, along.taps, down.before, along.before,
    );
}

fn a_along_rows() -> bool { return false; }

fn b_along_depth() -> bool { return false; }

fn site_of(block: Block, row: u32) -> vec4<i32> {
    let line = row / block.w;
    let n = line / block.h;
    let row_h = line % block.h;
    let row_w = row % block.w;
    let h = i32(row_h * p.stride) - block.top;
    let w = i32(row_w * p.stride) - block.left;
    return vec4<i32>(
        ((i32(n * p.src_h) + h) * i32(p.src_w) + w) * i32(p.src_c), h, w,
        i32((n * p.dst_h + block.h0 + row_h * p.step) * p.dst_w + block.w0 + row_w * p.step),
    );
}

// k as channel, kw, kh.
fn digit_sizes(block: Block) -> vec2<u32> { return vec2<u32>(p.src_c, max(block.kw, 1u)); }

fn step_of(block: Block, k: vec3<u32>) -> vec3<i32> {
    return vec3<i32>(vec3<u32>((k.z * p.src_w + k.y) * p.src_c + k.x, k.z, k.y));
}
