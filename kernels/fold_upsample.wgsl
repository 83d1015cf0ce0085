// fold_upsample - weights for the small image of a convolution of an image that is upsampled, each pixel
// repeated.
//
//   along either axis:
//   y[o] = sum_k w[k] x[(o + k - pad) / 2] = sum over o = 2i + j + pad + 1 - K of x[i] v[j]
//   v[j] = w[K-1-j] + w[K-j]        dw[k] = dv[K-1-k] + dv[K-k]        (terms outside are 0)
//
//   src [from_h * from_w, rows, cols]    dst [taps, cols, rows]
//   fold: src is w, dst is v; its derivative: dv, dw
//
// One thread for each element of dst. Reference: Shi et al. 2016 (arXiv:1609.07009).
//!include lib/grid.wgsl

const WG: u32 = 64u;

struct Params { kh: u32, kw: u32, from_h: u32, from_w: u32, to_w: u32, rows: u32, cols: u32, count: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> src: array<f32>;
@group(0) @binding(2) var<storage, read_write> dst: array<f32>;

@compute @workgroup_size(WG)
fn fold(thread: Invocation) {
    let i = element(thread, WG);
    if i >= p.count {
        return;
    }
    let row = i % p.rows;
    let col = i / p.rows % p.cols;
    let tap = i / p.rows / p.cols;
    // One past the last tap along either axis.
    let end_h = p.kh - tap / p.to_w + 1u;
    let end_w = p.kw - tap % p.to_w + 1u;
    var sum = 0.0;
    for (var h = max(end_h, 2u) - 2u; h < min(end_h, p.from_h); h++) {
        for (var w = max(end_w, 2u) - 2u; w < min(end_w, p.from_w); w++) {
            sum += src[((h * p.from_w + w) * p.rows + row) * p.cols + col];
        }
    }
    dst[i] = sum;
}
