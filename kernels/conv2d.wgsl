// conv2d - cross-correlation of an image with a kernel, as a gather: each output pixel collects its taps.
//
//   y[n,oh,ow,co]   = sum_{kh,kw,ci} x[n, oh*s + kh - top, ow*s + kw - left, ci] * w[kh,kw,ci,co]  (+ bias + shift + residual)
//   dw[kh,kw,ci,co] = sum_{n,oh,ow}  x[n, oh*s + kh - top, ow*s + kw - left, ci] * dy[n,oh,ow,co]
//   dshift[n,co]    = sum_{oh,ow} dy[n,oh,ow,co]          dbias[co] = sum_n dshift[n,co]
//
//   x [N, H, W, Cin]    y, dy, residual [N, OH, OW, Cout]    w, dw [KH, KW, Cin, Cout]    bias [Cout]    shift [N, Cout]
//
// Outside the image x is zero. The time embedding of a residual block is `shift`; its shortcut is `residual`.
//
// gather:     one thread for 4 pixels and one Lane of channels. With flipped weights, it is also backward_x for s = 1; for a
//             larger s, that is conv_transpose2d.wgsl.
// backward_w: one thread for 4 input channels and one Lane of output channels, over a part of the image rows; the parts are
//             added up by sum_parts in a fixed order.
//!include lib/grid.wgsl

const WG: u32 = 64u;
alias Lane = f32; // knob: one channel, or vec4<f32> for four where they divide the channels

struct Params {
    n: u32,
    dst_h: u32, dst_w: u32, dst_lanes: u32,
    src_h: u32, src_w: u32, src_c: u32,
    kh: u32, kw: u32,
    stride: i32, top: i32, left: i32, // top and left are negative where flipped weights begin inside the image
    has_bias: u32, has_shift: u32, has_residual: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> src: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<Lane>;
@group(0) @binding(3) var<storage, read_write> dst: array<Lane>;
@group(0) @binding(4) var<storage, read> bias: array<Lane>;
@group(0) @binding(5) var<storage, read> shift: array<Lane>;
@group(0) @binding(6) var<storage, read> residual: array<Lane>;

struct Pixel { n: u32, h: i32, w: i32 }

fn pixel(index: u32) -> Pixel {
    let row = index / p.dst_w;
    return Pixel(row / p.dst_h, i32(row % p.dst_h), i32(index % p.dst_w));
}

// First element of the source pixel of a tap, or -1.
fn source(at: Pixel, kh: i32, kw: i32) -> i32 {
    let h = at.h * p.stride + kh - p.top;
    let w = at.w * p.stride + kw - p.left;
    let inside = h >= 0 && w >= 0 && h < i32(p.src_h) && w < i32(p.src_w);
    return select(-1, ((i32(at.n) * i32(p.src_h) + h) * i32(p.src_w) + w) * i32(p.src_c), inside);
}

fn load(base: i32, c: u32) -> f32 {
    return select(0.0, src[u32(max(base, 0)) + c], base >= 0);
}

fn store(index: u32, at: Pixel, lane: u32, sum: Lane) {
    var value = sum;
    if p.has_bias != 0u { value += bias[lane]; }
    if p.has_shift != 0u { value += shift[at.n * p.dst_lanes + lane]; }
    let i = index * p.dst_lanes + lane;
    if p.has_residual != 0u { value += residual[i]; }
    dst[i] = value;
}

@compute @workgroup_size(WG)
fn gather(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let item = flat_group(group, groups) * WG + thread;
    let lane = item % p.dst_lanes;
    let first = item / p.dst_lanes * 4u;
    let pixels = p.n * p.dst_h * p.dst_w;
    if first >= pixels {
        return;
    }
    // Past the end the last pixel is computed again and not stored.
    let a0 = pixel(first);
    let a1 = pixel(min(first + 1u, pixels - 1u));
    let a2 = pixel(min(first + 2u, pixels - 1u));
    let a3 = pixel(min(first + 3u, pixels - 1u));
    var s0 = Lane();
    var s1 = Lane();
    var s2 = Lane();
    var s3 = Lane();
    for (var kh = 0u; kh < p.kh; kh++) {
        for (var kw = 0u; kw < p.kw; kw++) {
            let b0 = source(a0, i32(kh), i32(kw));
            let b1 = source(a1, i32(kh), i32(kw));
            let b2 = source(a2, i32(kh), i32(kw));
            let b3 = source(a3, i32(kh), i32(kw));
            var at = (kh * p.kw + kw) * p.src_c * p.dst_lanes + lane;
            for (var c = 0u; c < p.src_c; c++) {
                let wv = w[at];
                s0 += load(b0, c) * wv;
                s1 += load(b1, c) * wv;
                s2 += load(b2, c) * wv;
                s3 += load(b3, c) * wv;
                at += p.dst_lanes;
            }
        }
    }
    store(first, a0, lane, s0);
    if first + 1u < pixels { store(first + 1u, a1, lane, s1); }
    if first + 2u < pixels { store(first + 2u, a2, lane, s2); }
    if first + 3u < pixels { store(first + 3u, a3, lane, s3); }
}

struct WParams {
    n: u32, h: u32, w: u32, cin: u32,
    kh: u32, kw: u32, oh: u32, ow: u32, lanes: u32,
    stride: u32, top: u32, left: u32,
    parts: u32, rows: u32,
}

@group(0) @binding(0) var<uniform> q: WParams;
@group(0) @binding(7) var<storage, read> x: array<f32>;
@group(0) @binding(8) var<storage, read> dy: array<Lane>;
@group(0) @binding(9) var<storage, read_write> parts: array<Lane>;

@compute @workgroup_size(WG)
fn backward_w(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let blocks = (q.cin + 3u) / 4u;
    let item = flat_group(group, groups) * WG + thread;
    let lane = item % q.lanes;
    var rest = item / q.lanes;
    let ci = rest % blocks * 4u;
    rest /= blocks;
    let kw = rest % q.kw;
    rest /= q.kw;
    let kh = rest % q.kh;
    let part = rest / q.kh;
    if part >= q.parts {
        return;
    }
    // Channels past the end repeat the last one and are not stored.
    let c1 = min(1u, q.cin - 1u - ci);
    let c2 = min(2u, q.cin - 1u - ci);
    let c3 = min(3u, q.cin - 1u - ci);
    var s0 = Lane();
    var s1 = Lane();
    var s2 = Lane();
    var s3 = Lane();
    let end = min((part + 1u) * q.rows, q.n * q.oh);
    for (var row = part * q.rows; row < end; row++) {
        let n = row / q.oh;
        let ih = i32((row % q.oh) * q.stride + kh) - i32(q.top);
        if ih < 0 || ih >= i32(q.h) {
            continue;
        }
        // Columns ow whose source column ow * stride + kw - left is inside the image.
        let shift_w = i32(kw) - i32(q.left);
        let from_w = select(0u, (u32(-shift_w) + q.stride - 1u) / q.stride, shift_w < 0);
        let room = i32(q.w) - 1 - shift_w;
        let to_w = select(0u, min(q.ow, u32(max(room, 0)) / q.stride + 1u), room >= 0);
        var at_x = ((n * q.h + u32(ih)) * q.w + u32(i32(from_w * q.stride) + shift_w)) * q.cin + ci;
        var at_y = (row * q.ow + from_w) * q.lanes + lane;
        for (var ow = from_w; ow < to_w; ow++) {
            let dyv = dy[at_y];
            s0 += x[at_x] * dyv;
            s1 += x[at_x + c1] * dyv;
            s2 += x[at_x + c2] * dyv;
            s3 += x[at_x + c3] * dyv;
            at_x += q.stride * q.cin;
            at_y += q.lanes;
        }
    }
    let out = (((part * q.kh + kh) * q.kw + kw) * q.cin + ci) * q.lanes + lane;
    parts[out] = s0;
    if c1 == 1u { parts[out + q.lanes] = s1; }
    if c2 == 2u { parts[out + 2u * q.lanes] = s2; }
    if c3 == 3u { parts[out + 3u * q.lanes] = s3; }
}

// `parts` pieces of n numbers are added up for each of `outer`; `stride`: pieces in all (sum_parts), or of a sample (sum_runs).
struct SumParams { n: u32, parts: u32, stride: u32, outer: u32 }

@group(0) @binding(0) var<uniform> r: SumParams;
@group(0) @binding(10) var<storage, read> pieces: array<f32>;
@group(0) @binding(11) var<storage, read_write> total: array<f32>;

// total[outer, n] = sum over parts of pieces[outer, part, n], in order. Also the sums of dy: rows of pixels, then samples.
@compute @workgroup_size(WG)
fn sum_parts(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = flat_group(group, groups) * WG + thread;
    if i < r.n * r.outer {
        let first = i / r.n * r.parts;
        var sum = 0.0;
        var carry = 0.0; // of Kahan's summation: the parts may be many
        for (var part = first; part < min(first + r.parts, r.stride); part++) {
            let term = pieces[part * r.n + i % r.n] - carry;
            let next = sum + term;
            carry = (next - sum) - term;
            sum = next;
        }
        total[i] = sum;
    }
}

// total[sample * runs + run, n] = sum of the pixels of one run of a sample, in order; the last run may be shorter.
@compute @workgroup_size(WG)
fn sum_runs(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = flat_group(group, groups) * WG + thread;
    if i < r.n * r.outer {
        let runs = (r.stride + r.parts - 1u) / r.parts;
        let sample = i / r.n / runs;
        let first = i / r.n % runs * r.parts;
        var sum = 0.0;
        for (var pixel = first; pixel < min(first + r.parts, r.stride); pixel++) {
            sum += pieces[(sample * r.stride + pixel) * r.n + i % r.n];
        }
        total[i] = sum;
    }
}
