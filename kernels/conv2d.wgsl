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
// The products are those of kernels/product. Here: the weights between a convolution of images of twice the size, each pixel
// repeated, and those of the adjoint that it is; and the sums of dy.
//!include lib/grid.wgsl

const WG: u32 = 64u;

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

// Number of a tap in the order of product/load_conv.wgsl.
fn tap_to(tap: u32) -> u32 {
    let h = turned(tap / f.kw, f.kh);
    let w = turned(tap % f.kw, f.kw);
    return h.lesser * f.kw + h.own * w.lesser + h.at * w.own + w.at;
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

// v, the taps in the order of product/load_conv.wgsl: [kh * kw, rows, cols]. One thread per weight.
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
