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
// gather:     one thread for 4 pixels and one Lane of channels, of the convolution or of its adjoint: backward_x and the
//             transposed convolution, with the weights that `adjoint_weights` makes.
// backward_w: one thread for 4 input channels and one Lane of output channels, over a part of the image rows; the parts are
//             added up by sum_parts in a fixed order. Where there is a bias but no shift, each part ends in a row of its sums of
//             dy, which one thread more a Lane makes; sum_weights gives dw and dbias then, and nobody else reads dy for them.
// upsampled_weights, upsampled_adjoint_weights, upsampled_gradient: between the weights of a convolution of images of twice the
//             size, each pixel repeated, and those of the adjoint that it is.
// Here a thread does everything alone. conv2d_tiled.wgsl shares what is read through workgroup memory, conv2d_spread.wgsl
// through the lanes of a subgroup.
//!include lib/grid.wgsl
//!include lib/conv.wgsl
//!include lib/conv_weights.wgsl

const WG: u32 = 64u;
alias Lane = f32; // knob: one channel, or vec4<f32> for four where they divide the channels
const WIDTH: u32 = 1u; // knob: channels of a Lane

@group(0) @binding(1) var<storage, read> src: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<Lane>;
@group(0) @binding(3) var<storage, read_write> dst: array<Lane>;
@group(0) @binding(4) var<storage, read> bias: array<Lane>;
@group(0) @binding(5) var<storage, read> shift: array<Lane>;
@group(0) @binding(6) var<storage, read> residual: array<Lane>;

fn load(base: i32, c: u32) -> f32 {
    return select(0.0, src[u32(max(base, 0)) + c], base >= 0);
}

fn store(at: Pixel, lanes: u32, lane: u32, sum: Lane) {
    var value = sum;
    if p.has_bias != 0u { value += bias[lane]; }
    if p.has_shift != 0u { value += shift[at.n * lanes + lane]; }
    let i = at.dst * lanes + lane;
    if p.has_residual != 0u { value += residual[i]; }
    dst[i] = value;
}

@compute @workgroup_size(WG)
fn gather(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let lanes = p.dst_c / WIDTH;
    let quads = (most_pixels() + 3u) / 4u;
    let item = (p.first_group + flat_group(group, groups)) * WG + thread;
    let lane = item % lanes;
    let first = item / lanes % quads * 4u;
    let number = item / lanes / quads;
    if number >= residues() {
        return;
    }
    let r = residue(number);
    let pixels = p.n * r.rows * r.cols;
    if first >= pixels {
        return;
    }
    // Past the end the last pixel is computed again and not stored.
    let a0 = pixel(r, first);
    let a1 = pixel(r, min(first + 1u, pixels - 1u));
    let a2 = pixel(r, min(first + 2u, pixels - 1u));
    let a3 = pixel(r, min(first + 3u, pixels - 1u));
    var s0 = Lane();
    var s1 = Lane();
    var s2 = Lane();
    var s3 = Lane();
    var at = r.first * p.src_c * lanes + lane;
    for (var kh = 0u; kh < r.kh; kh++) {
        for (var kw = 0u; kw < r.kw; kw++) {
            let b0 = source(a0, kh, kw);
            let b1 = source(a1, kh, kw);
            let b2 = source(a2, kh, kw);
            let b3 = source(a3, kh, kw);
            for (var c = 0u; c < p.src_c; c++) {
                let wv = w[at];
                s0 += load(b0, c) * wv;
                s1 += load(b1, c) * wv;
                s2 += load(b2, c) * wv;
                s3 += load(b3, c) * wv;
                at += lanes;
            }
        }
    }
    store(a0, lanes, lane, s0);
    if first + 1u < pixels { store(a1, lanes, lane, s1); }
    if first + 2u < pixels { store(a2, lanes, lane, s2); }
    if first + 3u < pixels { store(a3, lanes, lane, s3); }
}

@group(0) @binding(7) var<storage, read> x: array<f32>;
@group(0) @binding(8) var<storage, read> dy: array<Lane>;
@group(0) @binding(9) var<storage, read_write> parts: array<Lane>;

@compute @workgroup_size(WG)
fn backward_w(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let lanes = q.cout / WIDTH;
    let blocks = (q.cin + 3u) / 4u;
    let item = (q.first_group + flat_group(group, groups)) * WG + thread;
    let lane = item % lanes;
    let of_weights = q.kh * q.kw * blocks;
    var rest = item / lanes % (of_weights + q.has_bias);
    let part = item / lanes / (of_weights + q.has_bias);
    if part >= q.parts {
        return;
    }
    if rest == of_weights {
        // No tap that meets every pixel of dy is sure to exist.
        parts[((part + 1u) * part_rows() - 1u) * lanes + lane] = sum_dy(part, lane, lanes);
        return;
    }
    let ci = rest % blocks * 4u;
    rest /= blocks;
    let kw = rest % q.kw;
    let kh = rest / q.kw;
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
        var at_y = (row * q.ow + from_w) * lanes + lane;
        for (var ow = from_w; ow < to_w; ow++) {
            let dyv = dy[at_y];
            s0 += x[at_x] * dyv;
            s1 += x[at_x + c1] * dyv;
            s2 += x[at_x + c2] * dyv;
            s3 += x[at_x + c3] * dyv;
            at_x += q.stride * q.cin;
            at_y += lanes;
        }
    }
    let out = (part * part_rows() + (kh * q.kw + kw) * q.cin + ci) * lanes + lane;
    parts[out] = s0;
    if c1 == 1u { parts[out + lanes] = s1; }
    if c2 == 2u { parts[out + 2u * lanes] = s2; }
    if c3 == 3u { parts[out + 3u * lanes] = s3; }
}

// Sum of the pixels of a part: row by row, so that no sum is long.
fn sum_dy(part: u32, lane: u32, lanes: u32) -> Lane {
    var sum = Lane();
    let end = min((part + 1u) * q.rows, q.n * q.oh);
    for (var row = part * q.rows; row < end; row++) {
        var along = Lane();
        for (var ow = 0u; ow < q.ow; ow++) {
            along += dy[(row * q.ow + ow) * lanes + lane];
        }
        sum += along;
    }
    return sum;
}

struct FlipParams { kh: u32, kw: u32, rows: u32, cols: u32, step: u32 }

@group(0) @binding(0) var<uniform> f: FlipParams;
@group(0) @binding(12) var<storage, read> weights: array<f32>;       // [kh, kw, rows, cols]
@group(0) @binding(13) var<storage, read_write> made: array<f32>;    // [kh * kw, cols, rows]

// Where the tap k goes along one axis: taps of one residue stay together, in reverse.
struct Turned { lesser: u32, own: u32, at: u32 }

fn turned(k: u32, taps: u32) -> Turned {
    let r = k % f.step;
    let own = (taps - r + f.step - 1u) / f.step;
    return Turned(taps / f.step * r + min(taps % f.step, r), own, own - 1u - k / f.step);
}

// Number of a tap in the order of lib/conv.wgsl.
fn tap_to(tap: u32) -> u32 {
    let h = turned(tap / f.kw, f.kh);
    let w = turned(tap % f.kw, f.kw);
    return h.lesser * f.kw + h.own * w.lesser + h.at * w.own + w.at;
}

// Weights of the adjoint: rows and columns exchanged, and the taps in the order of lib/conv.wgsl. One thread per weight.
@compute @workgroup_size(WG)
fn adjoint_weights(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = flat_group(group, groups) * WG + thread;
    if i < f.kh * f.kw * f.rows * f.cols {
        let row = i % f.rows;
        let col = i / f.rows % f.cols;
        let tap = i / f.rows / f.cols;
        made[(tap_to(tap) * f.cols + col) * f.rows + row] = weights[(tap * f.rows + row) * f.cols + col];
    }
}

// A convolution of an image whose pixels stand for 2 x 2 each is the adjoint of a convolution with a stride of 2 and one row and
// column of taps more, f.kh x f.kw in all:
//
//   y[o] = sum_k w[k] x[(o + k - pad) / 2] = sum over o = 2i + j + pad + 2 - kh of x[i] v[j]      v[j] = w[kh-1-j] + w[kh-2-j]
//
// along either axis. So what a pixel would be multiplied by twice is added up before; `at`: number of the two channels.
fn upsampled_weight(tap: u32, at: u32) -> f32 {
    let last_h = f.kh - 1u - tap / f.kw;
    let last_w = f.kw - 1u - tap % f.kw;
    var sum = 0.0;
    for (var h = max(last_h, 1u) - 1u; h < min(last_h + 1u, f.kh - 1u); h++) {
        for (var w = max(last_w, 1u) - 1u; w < min(last_w + 1u, f.kw - 1u); w++) {
            sum += weights[(h * (f.kw - 1u) + w) * f.rows * f.cols + at];
        }
    }
    return sum;
}

// v, the taps in the order of lib/conv.wgsl: [kh * kw, rows, cols]. One thread per weight.
@compute @workgroup_size(WG)
fn upsampled_weights(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = flat_group(group, groups) * WG + thread;
    let plane = f.rows * f.cols;
    if i < f.kh * f.kw * plane {
        let tap = i / plane;
        made[tap_to(tap) * plane + i % plane] = upsampled_weight(tap, i % plane);
    }
}

// v for the gradient of the image: rows and columns exchanged, the taps in their own order. One thread per weight.
@compute @workgroup_size(WG)
fn upsampled_adjoint_weights(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = flat_group(group, groups) * WG + thread;
    if i < f.kh * f.kw * f.rows * f.cols {
        let row = i % f.rows;
        let col = i / f.rows % f.cols;
        made[i] = upsampled_weight(i / f.rows / f.cols, row * f.cols + col);
    }
}

// dw [(kh - 1) * (kw - 1), rows, cols] of the gradient of v, [kh * kw, cols, rows]. One thread per weight.
@compute @workgroup_size(WG)
fn upsampled_gradient(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = flat_group(group, groups) * WG + thread;
    if i < (f.kh - 1u) * (f.kw - 1u) * f.rows * f.cols {
        let row = i % f.rows;
        let col = i / f.rows % f.cols;
        let tap = i / f.rows / f.cols;
        // The lesser of the two of v that have this one, along either axis.
        let h = f.kh - 2u - tap / (f.kw - 1u);
        let w = f.kw - 2u - tap % (f.kw - 1u);
        let plane = f.rows * f.cols;
        let at = (h * f.kw + w) * plane + col * f.rows + row;
        let below = at + f.kw * plane;
        made[(tap * f.rows + row) * f.cols + col] =
            (weights[at] + weights[at + plane]) + (weights[below] + weights[below + plane]);
    }
}

// `parts` pieces of n numbers are added up for each of `outer`; `stride`: pieces in all (sum_parts), or of a sample (sum_runs).
struct SumParams { n: u32, parts: u32, stride: u32, outer: u32 }

@group(0) @binding(0) var<uniform> r: SumParams;
@group(0) @binding(10) var<storage, read> pieces: array<f32>;
@group(0) @binding(11) var<storage, read_write> total: array<f32>;

// Sum of so many pieces, `step` numbers apart, in order.
fn sum_pieces(first: u32, count: u32, step: u32) -> f32 {
    var sum = 0.0;
    var carry = 0.0; // of Kahan's summation: the pieces may be many
    for (var piece = 0u; piece < count; piece++) {
        let term = pieces[first + piece * step] - carry;
        let next = sum + term;
        carry = (next - sum) - term;
        sum = next;
    }
    return sum;
}

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
        total[i] = sum_pieces(first * r.n + i % r.n, min(r.parts, r.stride - first), r.n);
    }
}

// Each of `parts` pieces has the numbers of dw, and then those of dbias.
struct JointParams { weights: u32, channels: u32, parts: u32 }

@group(0) @binding(0) var<uniform> j: JointParams;
@group(0) @binding(14) var<storage, read_write> dw: array<f32>;
@group(0) @binding(15) var<storage, read_write> dbias: array<f32>;

// As sum_parts, of both gradients. One thread per number.
@compute @workgroup_size(WG)
fn sum_weights(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = flat_group(group, groups) * WG + thread;
    let size = j.weights + j.channels;
    if i < size {
        let sum = sum_pieces(i, j.parts, size);
        if i < j.weights {
            dw[i] = sum;
        } else {
            dbias[i - j.weights] = sum;
        }
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
