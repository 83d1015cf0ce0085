// group_norm - give every (sample, group) zero mean and unit variance, scale and shift per channel, activate.
//
//   y  = f(z)    z = gamma[c] * xhat + beta[c]    xhat = (x - mean) * rstd    rstd = 1/sqrt(var + eps)
//   dz = dy * f'(z)      dgamma[c] = sum of dz * xhat     dbeta[c] = sum of dz
//   dx = rstd * (gamma[c] * dz - m0 - xhat * m1)    m0, m1 = group means of gamma * dz and gamma * dz * xhat
//
//   x, y, dx, dy [N, P, C]    gamma, beta [C]
//   statistics [N, 2, C] of (offset, rstd)    sums [N, 2, C] of (dz, dz * xhat)
//   group g holds D = C/G consecutive channels
//
// x may be the concatenation of two inputs, [N, P, left] and [N, P, C - left]. Entries that read x run once
// for each input, for its `own` channels from `first` on; dx is laid out as x is.
//
// A workgroup has a tile: a chunk of at most HELD * LINES rows of COLUMNS channels, whose elements its
// threads hold in registers. Where one tile has all rows of its groups, `whole` and `backward_whole` are one
// launch each. Else the sums of each chunk and channel are merged by one workgroup per (n, g), and the
// elements are read again.
//
// A mean is kept as its offset from the channel's first element. `x - x[n, 0, c]` is exact where values lie
// close together, so that a mean far from zero costs no accuracy, and no value is further from the mean than
// sqrt(P*D - 1) deviations (Samuelson 1968). Reference: Wu & He 2018 (arXiv:1803.08494).
//!include lib/grid.wgsl
//!include lib/reduce.wgsl
//!include lib/activation.wgsl

const HELD: u32 = 32u; // knob: rows that a thread holds
const KIND: u32 = 1u; // knob: the activation; a choice at run time would be compiled for each held row
const COLUMNS: u32 = 32u; // threads along the channels
const LINES: u32 = 8u; // threads along the rows
const WG: u32 = COLUMNS * LINES;

struct Params {
    samples: u32,
    rows: u32, // P
    channels: u32, // C
    width: u32, // D
    first: u32, // of the input's channels
    own: u32, // channels of the input
    chunk_rows: u32,
    chunks: u32, // of one sample
    eps: f32,
    accumulate: u32, // 1: dx includes accum
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [N, P, own]
@group(0) @binding(2) var<storage, read> gamma: array<f32>; // [C]
@group(0) @binding(3) var<storage, read> beta: array<f32>; // [C]
@group(0) @binding(4) var<storage, read_write> y: array<f32>; // [N, P, C]
@group(0) @binding(5) var<storage, read_write> statistics_out: array<f32>; // [N, 2, C]
@group(0) @binding(6) var<storage, read_write> moments: array<vec2<f32>>; // [N, chunks, C]: offset, squares
@group(0) @binding(7) var<storage, read> statistics: array<f32>; // [N, 2, C]
@group(0) @binding(8) var<storage, read> accum: array<f32>; // [N, P, own]; unused without `accumulate`
@group(0) @binding(9) var<storage, read> dy: array<f32>; // [N, P, C]
@group(0) @binding(10) var<storage, read_write> partials: array<vec2<f32>>; // [N, chunks, C]: dz, dz * xhat
@group(0) @binding(11) var<storage, read_write> sums_out: array<f32>; // [N, 2, C]
@group(0) @binding(12) var<storage, read> sums: array<f32>; // [N, 2, C]
@group(0) @binding(13) var<storage, read_write> means: array<vec2<f32>>; // [N, G] of (m0, m1)
@group(0) @binding(14) var<storage, read_write> dx: array<f32>; // [N, P, own]
@group(0) @binding(15) var<storage, read_write> dgamma: array<f32>; // [C]
@group(0) @binding(16) var<storage, read_write> dbeta: array<f32>; // [C]

// A thread's elements of a tile: rows row, row + LINES ... before `end` of channel `own` of the input, which
// is `c` of all. Barriers forbid threads without work to return: past the last channel or workgroup they
// repeat the last one, and `keeps` is false.
struct Tile { n: u32, chunk: u32, own: u32, c: u32, row: u32, end: u32, rows: f32, keeps: bool }

fn tile(thread: Thread) -> Tile {
    let panels = (p.own + COLUMNS - 1u) / COLUMNS;
    let group = flat_group(thread.group, thread.groups);
    let id = min(group, p.samples * p.chunks * panels - 1u);
    let block = id / panels;
    let chunk = block % p.chunks;
    let column = id % panels * COLUMNS + thread.lane % COLUMNS;
    let own = min(column, p.own - 1u);
    let begin = chunk * p.chunk_rows;
    let end = min(begin + p.chunk_rows, p.rows);
    return Tile(
        block / p.chunks, chunk, own, p.first + own, begin + thread.lane / COLUMNS, end, f32(end - begin),
        group == id && column < p.own,
    );
}

fn has(t: Tile, i: u32) -> bool {
    return t.row + i * LINES < t.end;
}

// A tile's elements, zero for rows past its end. Reads without a branch between them are under way together.
alias Held = array<f32, HELD>;

// x less the channel's first element.
fn held_x(t: Tile, first: f32) -> Held {
    var held: Held;
    for (var i = 0u; i < HELD; i++) {
        let at = (t.n * p.rows + t.row + i * LINES) * p.own + t.own;
        held[i] = select(0.0, x[select(0u, at, has(t, i))] - first, has(t, i));
    }
    return held;
}

fn held_dy(t: Tile) -> Held {
    var held: Held;
    for (var i = 0u; i < HELD; i++) {
        let at = (t.n * p.rows + t.row + i * LINES) * p.channels + t.c;
        held[i] = select(0.0, dy[select(0u, at, has(t, i))], has(t, i));
    }
    return held;
}

var<workgroup> cells: array<vec2<f32>, WG>;

// Sums over the lines of a workgroup, for the thread's column. Every thread must call it, as group_sum.
fn line_sum(lane: u32, value: vec2<f32>) -> vec2<f32> {
    workgroupBarrier(); // for reads of the last sums
    cells[lane] = value;
    for (var lines = LINES / 2u; lines > 0u; lines /= 2u) {
        workgroupBarrier();
        if lane < lines * COLUMNS { cells[lane] += cells[lane + lines * COLUMNS]; }
    }
    workgroupBarrier();
    return cells[lane % COLUMNS];
}

// Sums over the channels of the thread's group, which a tile has all of.
fn group_sum(lane: u32, value: vec2<f32>) -> vec2<f32> {
    workgroupBarrier();
    cells[lane] = value;
    workgroupBarrier();
    var sum = vec2<f32>();
    let begin = lane / p.width * p.width;
    for (var i = 0u; i < p.width; i++) { sum += cells[begin + i]; }
    return sum;
}

// Mean, and sum of squares about it, of a thread's channel over the rows of the tile.
fn channel_moments(t: Tile, lane: u32, held: Held) -> vec2<f32> {
    var sum = 0.0;
    for (var i = 0u; i < HELD; i++) { sum += held[i]; }
    let mean = line_sum(lane, vec2<f32>(sum, 0.0)).x / t.rows;
    var squares = 0.0;
    for (var i = 0u; i < HELD; i++) {
        squares += select(0.0, (held[i] - mean) * (held[i] - mean), has(t, i));
    }
    return vec2<f32>(mean, line_sum(lane, vec2<f32>(squares, 0.0)).x);
}

fn first_element(t: Tile) -> f32 {
    return x[t.n * p.rows * p.own + t.own];
}

@compute @workgroup_size(WG)
fn chunk_moments(thread: Thread) {
    let t = tile(thread);
    let first = first_element(t);
    let found = channel_moments(t, thread.lane, held_x(t, first));
    if thread.lane < COLUMNS && t.keeps {
        moments[(t.n * p.chunks + t.chunk) * p.channels + t.c] = found;
        if t.chunk == 0u { statistics_out[2u * t.n * p.channels + t.c] = first; } // for merge_moments
    }
}

fn chunk_size(chunk: u32) -> f32 {
    return f32(min(p.chunk_rows, p.rows - chunk * p.chunk_rows));
}

// The chunks and channels of one (n, g) put together (Chan, Golub & LeVeque 1979). One workgroup for each.
@compute @workgroup_size(WG)
fn merge_moments(thread: Thread) {
    let groups = p.channels / p.width;
    let group = flat_group(thread.group, thread.groups);
    let n = min(group / groups, p.samples - 1u);
    let c = group % groups * p.width;
    let at = 2u * n * p.channels + c; // where chunk_moments put the channels' first elements
    let origin = statistics_out[at];
    let count = f32(p.rows) * f32(p.width);
    var sum = 0.0;
    for (var i = thread.lane; i < p.chunks * p.width; i += WG) {
        let found = moments[(n * p.chunks + i / p.width) * p.channels + c + i % p.width];
        sum += (statistics_out[at + i % p.width] - origin + found.x) * chunk_size(i / p.width);
    }
    let mean = block_sum(sum, thread) / count; // from the origin
    sum = 0.0;
    for (var i = thread.lane; i < p.chunks * p.width; i += WG) {
        let found = moments[(n * p.chunks + i / p.width) * p.channels + c + i % p.width];
        let distance = statistics_out[at + i % p.width] - origin + found.x - mean;
        sum += found.y + distance * distance * chunk_size(i / p.width);
    }
    let rstd = 1.0 / sqrt(block_sum(sum, thread) / count + p.eps);
    storageBarrier(); // the first elements were read
    for (var i = thread.lane; i < p.width && group < p.samples * groups; i += WG) {
        statistics_out[at + i] = mean - (statistics_out[at + i] - origin);
        statistics_out[at + p.channels + i] = rstd;
    }
}

// A thread's channel in one sample.
struct Affine { offset: f32, rstd: f32, gain: f32, shift: f32 }

fn affine(t: Tile) -> Affine {
    let at = 2u * t.n * p.channels + t.c;
    return Affine(statistics[at], statistics[at + p.channels], gamma[t.c], beta[t.c]);
}

fn put_y(t: Tile, a: Affine, held: Held) {
    for (var i = 0u; i < HELD; i++) {
        if has(t, i) && t.keeps {
            let xhat = (held[i] - a.offset) * a.rstd;
            let at = (t.n * p.rows + t.row + i * LINES) * p.channels + t.c;
            y[at] = activate(KIND, a.gain * xhat + a.shift);
        }
    }
}

@compute @workgroup_size(WG)
fn normalise(thread: Thread) {
    let t = tile(thread);
    put_y(t, affine(t), held_x(t, first_element(t)));
}

// All of the forward pass, where a tile has all rows of its groups.
@compute @workgroup_size(WG)
fn whole(thread: Thread) {
    let t = tile(thread);
    let first = first_element(t);
    let held = held_x(t, first);
    let found = channel_moments(t, thread.lane, held);
    let count = t.rows * f32(p.width);
    // Means as offsets from the first element of the group's first channel.
    let from_origin = first - x[t.n * p.rows * p.own + t.own - t.c % p.width];
    let mean = group_sum(thread.lane, vec2<f32>(from_origin + found.x, 0.0)).x / f32(p.width);
    let distance = from_origin + found.x - mean;
    let squares = group_sum(thread.lane, vec2<f32>(found.y + distance * distance * t.rows, 0.0)).x;
    let a = Affine(mean - from_origin, 1.0 / sqrt(squares / count + p.eps), gamma[t.c], beta[t.c]);
    if thread.lane < COLUMNS && t.keeps {
        let at = 2u * t.n * p.channels + t.c;
        statistics_out[at] = a.offset;
        statistics_out[at + p.channels] = a.rstd;
    }
    put_y(t, a, held);
}

// xhat and dz of a tile's elements.
struct Gradients { xhat: Held, dz: Held }

fn gradients(t: Tile, a: Affine) -> Gradients {
    var g = Gradients(held_x(t, first_element(t)), held_dy(t));
    for (var i = 0u; i < HELD; i++) {
        g.xhat[i] = (g.xhat[i] - a.offset) * a.rstd;
        g.dz[i] *= activate_derivative(KIND, a.gain * g.xhat[i] + a.shift);
    }
    return g;
}

// Sums of dz and dz * xhat over the rows of a tile.
fn channel_sums(lane: u32, g: Gradients) -> vec2<f32> {
    var sum = vec2<f32>();
    for (var i = 0u; i < HELD; i++) { sum += g.dz[i] * vec2<f32>(1.0, g.xhat[i]); }
    return line_sum(lane, sum);
}

fn put_dx(t: Tile, a: Affine, m: vec2<f32>, g: Gradients) {
    for (var i = 0u; i < HELD; i++) {
        if has(t, i) && t.keeps {
            let at = (t.n * p.rows + t.row + i * LINES) * p.own + t.own;
            var value = a.rstd * (a.gain * g.dz[i] - m.x - g.xhat[i] * m.y);
            if p.accumulate != 0u { value += accum[at]; }
            dx[at] = value;
        }
    }
}

@compute @workgroup_size(WG)
fn backward_partials(thread: Thread) {
    let t = tile(thread);
    let sum = channel_sums(thread.lane, gradients(t, affine(t)));
    if thread.lane < COLUMNS && t.keeps {
        partials[(t.n * p.chunks + t.chunk) * p.channels + t.c] = sum;
    }
}

// The chunks summed, and from the sums the means that dx needs. One workgroup per (n, g).
@compute @workgroup_size(WG)
fn backward_merge(thread: Thread) {
    let groups = p.channels / p.width;
    let group = flat_group(thread.group, thread.groups);
    let n = min(group / groups, p.samples - 1u);
    let keeps = group < p.samples * groups;
    let begin = group % groups * p.width;
    var mean = vec2<f32>();
    for (var c = begin + thread.lane; c < begin + p.width; c += WG) {
        var sum = vec2<f32>();
        for (var chunk = 0u; chunk < p.chunks; chunk++) {
            sum += partials[(n * p.chunks + chunk) * p.channels + c];
        }
        if keeps {
            sums_out[2u * n * p.channels + c] = sum.x;
            sums_out[(2u * n + 1u) * p.channels + c] = sum.y;
        }
        mean += gamma[c] * sum;
    }
    mean = vec2<f32>(block_sum(mean.x, thread), block_sum(mean.y, thread)) / (f32(p.rows) * f32(p.width));
    if thread.lane == 0u && keeps { means[group] = mean; }
}

@compute @workgroup_size(WG)
fn backward_x(thread: Thread) {
    let t = tile(thread);
    let a = affine(t);
    put_dx(t, a, means[(t.n * p.channels + t.c) / p.width], gradients(t, a));
}

// All of the backward pass but for the parameters' gradients, where a tile has all rows of its groups.
@compute @workgroup_size(WG)
fn backward_whole(thread: Thread) {
    let t = tile(thread);
    let a = affine(t);
    let g = gradients(t, a);
    let sum = channel_sums(thread.lane, g);
    if thread.lane < COLUMNS && t.keeps {
        sums_out[2u * t.n * p.channels + t.c] = sum.x;
        sums_out[(2u * t.n + 1u) * p.channels + t.c] = sum.y;
    }
    put_dx(t, a, group_sum(thread.lane, a.gain * sum) / (t.rows * f32(p.width)), g);
}

// dgamma and dbeta: the sums over samples. One workgroup per COLUMNS channels.
@compute @workgroup_size(WG)
fn backward_parameters(thread: Thread) {
    let c = flat_group(thread.group, thread.groups) * COLUMNS + thread.lane % COLUMNS;
    var sum = vec2<f32>();
    for (var n = thread.lane / COLUMNS; n < p.samples && c < p.channels; n += LINES) {
        sum += vec2<f32>(sums[2u * n * p.channels + c], sums[(2u * n + 1u) * p.channels + c]);
    }
    sum = line_sum(thread.lane, sum);
    if thread.lane < COLUMNS && c < p.channels {
        dbeta[c] = sum.x;
        dgamma[c] = sum.y;
    }
}
