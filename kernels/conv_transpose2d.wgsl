// conv_transpose2d - the adjoint of conv2d: upsampling with learned weights, and the gradient of conv2d's input.
//
//   dst[n,oh,ow,co] = sum over kh, kw, ci with  sh*s = oh + top - kh,  sw*s = ow + left - kw,  inside src
//                     of src[n,sh,sw,ci] * w[kh,kw,co,ci]  (+ bias[co])
//
//   dst [N, OH, OW, Cout]    src [N, H, W, Cin]    w [KH, KW, Cout, Cin]    bias [Cout]
//   The gradient of conv2d's input is the same with dst = dx, src = dy and no bias.
//
// The tap kh meets row oh only where kh and oh + top are equal modulo the stride s, so each residue of a row or column has its
// own few taps. A thread walks those alone: nothing is multiplied by the zeros that would have to be put between the pixels of
// src to make this an ordinary convolution.
//
// forward: one thread for one Lane of channels of 4 pixels of a row, s columns apart: they share a residue, hence their taps.
// flip:    one thread per weight; flips the taps and transposes the channels. With such weights the case s = 1 is an ordinary
//          convolution, which conv2d's kernel then does.
//
// Reference: Zeiler et al. 2010 (Deconvolutional Networks); Dumoulin & Visin 2016, chapter 4 (arXiv:1603.07285).
//!include lib/grid.wgsl

const WG: u32 = 64u;
alias Lane = f32; // knob: one channel, or vec4<f32> for four where they divide the channels

struct Params {
    rows: u32, // N * OH
    dst_h: u32, dst_w: u32, dst_lanes: u32,
    src_h: u32, src_w: u32, src_c: u32,
    kh: u32, kw: u32,
    stride: u32, top: u32, left: u32,
    residues: u32, quads: u32, // of a row of dst: residues of its columns, and groups of 4 columns of one residue
    has_bias: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> src: array<f32>;       // [N, H, W, Cin]
@group(0) @binding(2) var<storage, read> w: array<Lane>;        // [KH * KW, Cin, Cout], the last tap first
@group(0) @binding(3) var<storage, read_write> dst: array<Lane>; // [N, OH, OW, Cout]
@group(0) @binding(4) var<storage, read> bias: array<Lane>;     // [Cout]

// First element of column `sw` of the row of src that begins at `row`, or -1.
fn source(row: i32, sw: i32) -> i32 {
    return select(-1, row + sw * i32(p.src_c), sw >= 0 && sw < i32(p.src_w));
}

fn load(base: i32, c: u32) -> f32 {
    return select(0.0, src[u32(max(base, 0)) + c], base >= 0);
}

fn store(row: u32, ow: u32, lane: u32, sum: Lane) {
    if ow < p.dst_w {
        var value = sum;
        if p.has_bias != 0u { value += bias[lane]; }
        dst[(row * p.dst_w + ow) * p.dst_lanes + lane] = value;
    }
}

@compute @workgroup_size(WG)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    // Residues are dealt out last within a row: neighbours in a workgroup mostly walk the same taps.
    let item = flat_group(group, groups) * WG + thread;
    let lane = item % p.dst_lanes;
    var rest = item / p.dst_lanes;
    let quad = rest % p.quads;
    rest /= p.quads;
    let ow = rest % p.residues + quad * 4u * p.stride;
    let row = rest / p.residues;
    if row >= p.rows {
        return;
    }
    var s0 = Lane();
    var s1 = Lane();
    var s2 = Lane();
    var s3 = Lane();
    // The first tap is the residue itself; each further one lies `stride` taps on and meets the pixel of src before.
    let h = row % p.dst_h + p.top;
    var sh = i32(h / p.stride);
    for (var kh = h % p.stride; kh < p.kh; kh += p.stride) {
        if sh >= 0 && sh < i32(p.src_h) {
            let line = (i32(row / p.dst_h * p.src_h) + sh) * i32(p.src_w * p.src_c);
            var sw = i32((ow + p.left) / p.stride);
            for (var kw = (ow + p.left) % p.stride; kw < p.kw; kw += p.stride) {
                let b0 = source(line, sw);
                let b1 = source(line, sw + 1);
                let b2 = source(line, sw + 2);
                let b3 = source(line, sw + 3);
                let flipped_tap = (p.kh - 1u - kh) * p.kw + p.kw - 1u - kw;
                var at = flipped_tap * p.src_c * p.dst_lanes + lane;
                for (var c = 0u; c < p.src_c; c++) {
                    let wv = w[at];
                    s0 += load(b0, c) * wv;
                    s1 += load(b1, c) * wv;
                    s2 += load(b2, c) * wv;
                    s3 += load(b3, c) * wv;
                    at += p.dst_lanes;
                }
                sw -= 1;
            }
        }
        sh -= 1;
    }
    // Columns past the end of the row are not stored.
    store(row, ow, lane, s0);
    store(row, ow + p.stride, lane, s1);
    store(row, ow + 2u * p.stride, lane, s2);
    store(row, ow + 3u * p.stride, lane, s3);
}

struct FlipParams { taps: u32, rows: u32, cols: u32 }

@group(0) @binding(0) var<uniform> q: FlipParams;
@group(0) @binding(5) var<storage, read> weights: array<f32>;       // [taps, rows, cols]
@group(0) @binding(6) var<storage, read_write> flipped: array<f32>; // [taps, cols, rows]

// flipped[taps - 1 - tap, col, row] = weights[tap, row, col]
@compute @workgroup_size(WG)
fn flip(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = flat_group(group, groups) * WG + thread;
    if i < q.taps * q.rows * q.cols {
        let row = i % q.rows;
        let rest = i / q.rows;
        let tap = q.taps - 1u - rest / q.cols;
        flipped[i] = weights[(tap * q.rows + row) * q.cols + rest % q.cols];
    }
}
