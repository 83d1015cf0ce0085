// layer_norm - give every row zero mean and unit variance, then scale and shift per channel.
//
//   y  = gain * xhat + shift     xhat = (x - mean) * rstd     rstd = 1/sqrt(var + eps)
//   dx = rstd * (dxhat - mean(dxhat) - xhat * mean(dxhat * xhat))     dxhat = gain * dy, means over a row
//   dscale = sum of dy * xhat     dshift = sum of dy                  over the rows of a set
//
//   x, y, dx, dy [R, C]    scale, shift, dscale, dshift [R / per, C]    statistics [R, 2] of (offset, rstd)
//
// `per` rows in succession form a set, which shares scale and shift: all rows (affine), or those of a sample
// (modulation). gain = scale + `more`: more is 0 for affine, 1 for modulation; without `scaled`, gain = 1 and
// shift = 0.
//
// A mean is kept as its offset from the row's first element, so that a mean far from zero costs no accuracy.
// forward, backward_x: one workgroup per row. sums: one per (set, slice of the set's rows, block of COLUMNS
// channels); where a set has several slices, merge adds them up, one thread per (set, channel).
// References: Ba, Kiros & Hinton 2016 (arXiv:1607.06450); modulation, Peebles & Xie 2023 (arXiv:2212.09748).
//!include lib/grid.wgsl
//!include lib/reduce.wgsl

const WG: u32 = 64u;
const COLUMNS: u32 = 32u; // threads along the channels in `sums`
const LINES: u32 = WG / COLUMNS; // and along the rows

struct Params {
    rows: u32, // R
    channels: u32, // C
    per: u32,
    slice_rows: u32,
    slices: u32, // of a set
    eps: f32,
    scaled: u32, // 1: there are scale and shift
    more: f32,
    accumulate: u32, // 1: dx includes accum
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [R, C]
@group(0) @binding(2) var<storage, read> scale: array<f32>; // [sets, C]; x again without `scaled`
@group(0) @binding(3) var<storage, read> shift: array<f32>; // [sets, C]; x again without `scaled`
@group(0) @binding(4) var<storage, read_write> y: array<f32>; // [R, C]
@group(0) @binding(5) var<storage, read_write> statistics_out: array<vec2<f32>>; // [R]
@group(0) @binding(6) var<storage, read> statistics: array<vec2<f32>>; // [R]
@group(0) @binding(7) var<storage, read> dy: array<f32>; // [R, C]
@group(0) @binding(8) var<storage, read> accum: array<f32>; // [R, C]; x again without `accumulate`
@group(0) @binding(9) var<storage, read_write> dx: array<f32>; // [R, C]
@group(0) @binding(10) var<storage, read_write> dscale: array<f32>; // [sets, slices, C], or of one slice
@group(0) @binding(11) var<storage, read_write> dshift: array<f32>; // as dscale
@group(0) @binding(12) var<storage, read> scale_parts: array<f32>; // [sets, slices, C]
@group(0) @binding(13) var<storage, read> shift_parts: array<f32>; // [sets, slices, C]

fn gain(at: u32) -> f32 {
    if p.scaled == 0u { return 1.0; }
    return scale[at] + p.more;
}

@compute @workgroup_size(WG)
fn forward(thread: Thread) {
    let group = flat_group(thread.group, thread.groups);
    let row = min(group, p.rows - 1u); // past the last one, the last again: barriers forbid to return
    let first = x[row * p.channels];
    let count = f32(p.channels);
    var sum = 0.0;
    for (var c = thread.lane; c < p.channels; c += WG) { sum += x[row * p.channels + c] - first; }
    let mean = block_sum(sum, thread) / count;
    // The second pass also finds what rounding left of the mean (Chan, Golub & LeVeque 1983).
    var rest = vec2<f32>();
    for (var c = thread.lane; c < p.channels; c += WG) {
        let distance = x[row * p.channels + c] - first - mean;
        rest += vec2<f32>(distance, distance * distance);
    }
    let missing = block_sum(rest.x, thread) / count;
    let squares = block_sum(rest.y, thread) / count - missing * missing;
    let offset = mean + missing;
    let rstd = 1.0 / sqrt(max(squares, 0.0) + p.eps);
    if group != row { return; }
    if thread.lane == 0u { statistics_out[row] = vec2<f32>(offset, rstd); }
    let first_gain = row / p.per * p.channels;
    for (var c = thread.lane; c < p.channels; c += WG) {
        var value = (x[row * p.channels + c] - first - offset) * rstd;
        if p.scaled != 0u { value = gain(first_gain + c) * value + shift[first_gain + c]; }
        y[row * p.channels + c] = value;
    }
}

@compute @workgroup_size(WG)
fn backward_x(thread: Thread) {
    let group = flat_group(thread.group, thread.groups);
    let row = min(group, p.rows - 1u);
    let first = x[row * p.channels];
    let found = statistics[row];
    let first_gain = row / p.per * p.channels;
    var sum = vec2<f32>();
    for (var c = thread.lane; c < p.channels; c += WG) {
        let at = row * p.channels + c;
        sum += gain(first_gain + c) * dy[at] * vec2<f32>(1.0, (x[at] - first - found.x) * found.y);
    }
    let means = vec2<f32>(block_sum(sum.x, thread), block_sum(sum.y, thread)) / f32(p.channels);
    if group != row { return; }
    for (var c = thread.lane; c < p.channels; c += WG) {
        let at = row * p.channels + c;
        let xhat = (x[at] - first - found.x) * found.y;
        var value = found.y * (gain(first_gain + c) * dy[at] - means.x - xhat * means.y);
        if p.accumulate != 0u { value += accum[at]; }
        dx[at] = value;
    }
}

var<workgroup> cells: array<vec2<f32>, WG>;

@compute @workgroup_size(WG)
fn sums(thread: Thread) {
    let blocks = (p.channels + COLUMNS - 1u) / COLUMNS;
    let group = flat_group(thread.group, thread.groups);
    let slice = group / blocks; // of all sets
    let number = slice / p.slices; // number of the set
    let c = group % blocks * COLUMNS + thread.lane % COLUMNS;
    let inside = number < p.rows / p.per && c < p.channels;
    let begin = number * p.per + slice % p.slices * p.slice_rows;
    let end = min(begin + p.slice_rows, (number + 1u) * p.per);
    var sum = vec2<f32>();
    for (var row = begin + thread.lane / COLUMNS; row < end && inside; row += LINES) {
        let at = row * p.channels + c;
        let found = statistics[row];
        sum += dy[at] * vec2<f32>((x[at] - x[row * p.channels] - found.x) * found.y, 1.0);
    }
    cells[thread.lane] = sum;
    workgroupBarrier();
    if thread.lane < COLUMNS && inside {
        for (var line = 1u; line < LINES; line++) { sum += cells[line * COLUMNS + thread.lane]; }
        dscale[slice * p.channels + c] = sum.x;
        dshift[slice * p.channels + c] = sum.y;
    }
}

@compute @workgroup_size(WG)
fn merge(thread: Invocation) {
    let i = element(thread, WG);
    if i >= p.rows / p.per * p.channels { return; }
    var at = i / p.channels * p.slices * p.channels + i % p.channels;
    var sum = vec2<f32>();
    for (var slice = 0u; slice < p.slices; slice++) {
        sum += vec2<f32>(scale_parts[at], shift_parts[at]);
        at += p.channels;
    }
    dscale[i] = sum.x;
    dshift[i] = sum.y;
}
