// group_norm - give every (sample, group) zero mean and unit variance, scale and shift per channel, activate.
//
//   y    = f(z)      z = gamma[c] * xhat + beta[c]    xhat = (x - mean) * rstd    rstd = 1/sqrt(var + eps)
//   dz   = dy * f'(z)         dgamma[c] = sum of dz * xhat         dbeta[c] = sum of dz
//   dx   = rstd * (gamma[c] * dz - m0 - xhat * m1)   m0, m1 = group means of gamma * dz and gamma * dz * xhat
//
//   x, y, dx, dy [N, P, C]    gamma, beta [C]    offset, rstd [N, G]    sums [N, 2, C] of (dz, dz * xhat)
//   group g holds D = C/G consecutive channels
//
// The mean is kept as its offset from the group's first element: `x - first` is exact where values lie close
// together, so that a mean far from zero costs no accuracy, and no value is further from the mean than
// sqrt(P*D - 1) deviations (Samuelson 1968). Reference: Wu & He 2018 (arXiv:1803.08494).
//!include lib/grid.wgsl
//!include lib/reduce.wgsl
//!include lib/activation.wgsl

const WG: u32 = 256u;
const ITEMS: u32 = 4u; // elements of one thread in the elementwise entries
const COLUMNS: u32 = 32u; // channels of one workgroup in backward_partial and backward_parameters
const LINES: u32 = WG / COLUMNS; // rows that it takes at once

struct Params {
    samples: u32,
    rows: u32, // P
    channels: u32, // C
    channel_groups: u32, // G
    width: u32, // D
    chunk_rows: u32,
    chunks: u32, // of one sample
    kind: u32,
    eps: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>; // [N, P, C]
@group(0) @binding(2) var<storage, read> gamma: array<f32>; // [C]
@group(0) @binding(3) var<storage, read> beta: array<f32>; // [C]
@group(0) @binding(4) var<storage, read_write> y: array<f32>; // [N, P, C]
@group(0) @binding(5) var<storage, read_write> offset_out: array<f32>; // [N, G]
@group(0) @binding(6) var<storage, read_write> rstd_out: array<f32>; // [N, G]
@group(0) @binding(7) var<storage, read_write> moments: array<vec2<f32>>; // [N, G, chunks]: offset, squares
@group(0) @binding(8) var<storage, read> offset: array<f32>; // [N, G]
@group(0) @binding(9) var<storage, read> rstd: array<f32>; // [N, G]
@group(0) @binding(10) var<storage, read> dy: array<f32>; // [N, P, C]
@group(0) @binding(11) var<storage, read_write> partial: array<vec2<f32>>; // [N, chunks, C]: dz, dz * xhat
@group(0) @binding(12) var<storage, read_write> sums_out: array<f32>; // [N, 2, C]
@group(0) @binding(13) var<storage, read> sums: array<f32>; // [N, 2, C]
@group(0) @binding(14) var<storage, read_write> means: array<vec2<f32>>; // [N, G] of (m0, m1)
@group(0) @binding(15) var<storage, read_write> dx: array<f32>; // [N, P, C]
@group(0) @binding(16) var<storage, read_write> dgamma: array<f32>; // [C]
@group(0) @binding(17) var<storage, read_write> dbeta: array<f32>; // [C]

// Number of the workgroup where barriers forbid those past the end to return: they do the last one's work,
// and keep nothing.
fn own_group(thread: Thread, count: u32) -> u32 {
    return min(flat_group(thread.group, thread.groups), count - 1u);
}

fn is_own_group(thread: Thread, id: u32) -> bool {
    return flat_group(thread.group, thread.groups) == id;
}

// First step: mean, and sum of squares about it, of a chunk of rows of one group. One workgroup per (n, g,
// chunk). Two passes, of which the second finds the data in the cache.
@compute @workgroup_size(WG)
fn chunk_moments(thread: Thread) {
    let id = own_group(thread, p.samples * p.channel_groups * p.chunks);
    let pair = id / p.chunks; // n * G + g
    let chunk = id - pair * p.chunks;
    let n = pair / p.channel_groups;
    let g = pair - n * p.channel_groups;
    let start = n * p.rows * p.channels + g * p.width;
    let first = x[start];
    let row_start = chunk * p.chunk_rows;
    let row_end = min(row_start + p.chunk_rows, p.rows);
    let count = f32((row_end - row_start) * p.width);

    // The thread's elements, every WG-th one of the chunk, without a division for each.
    let row0 = row_start + thread.lane / p.width;
    let column0 = thread.lane % p.width;
    let row_step = WG / p.width;
    let column_step = WG % p.width;

    var total = 0.0;
    var row = row0;
    var column = column0;
    while row < row_end {
        total += x[start + row * p.channels + column] - first;
        row += row_step;
        column += column_step;
        if column >= p.width {
            column -= p.width;
            row += 1u;
        }
    }
    let mean = block_sum(total, thread) / count;

    var squares = 0.0;
    row = row0;
    column = column0;
    while row < row_end {
        let distance = x[start + row * p.channels + column] - first - mean;
        squares += distance * distance;
        row += row_step;
        column += column_step;
        if column >= p.width {
            column -= p.width;
            row += 1u;
        }
    }
    squares = block_sum(squares, thread);
    if thread.lane == 0u && is_own_group(thread, id) {
        moments[id] = vec2<f32>(mean, squares);
    }
}

// Second step: the chunks of one group put together (Chan, Golub & LeVeque 1979). One thread per (n, g).
@compute @workgroup_size(WG)
fn merge_moments(thread: Thread) {
    let pair = flat_group(thread.group, thread.groups) * WG + thread.lane;
    if pair >= p.samples * p.channel_groups {
        return;
    }
    let all = f32(p.rows);
    var mean = 0.0;
    for (var i = 0u; i < p.chunks; i++) {
        mean += moments[pair * p.chunks + i].x * (rows_of(i) / all);
    }
    var squares = 0.0;
    for (var i = 0u; i < p.chunks; i++) {
        let chunk = moments[pair * p.chunks + i];
        let distance = chunk.x - mean;
        squares += chunk.y + distance * distance * rows_of(i) * f32(p.width);
    }
    offset_out[pair] = mean;
    rstd_out[pair] = 1.0 / sqrt(squares / (all * f32(p.width)) + p.eps);
}

// Rows in a chunk; the last one may be short.
fn rows_of(chunk: u32) -> f32 {
    return f32(min(p.chunk_rows, p.rows - chunk * p.chunk_rows));
}

// What an elementwise thread does: up to ITEMS elements of one channel of one sample, `step` apart, so that it reads only once
// what belongs to the channel. `at` is `end` where there is nothing to do.
struct Walk {
    at: u32, step: u32, end: u32, pair: u32, // n * groups + g
    first: f32, mean: f32, scale: f32, gain: f32, shift: f32,
}

fn walk(thread: Thread) -> Walk {
    let size = p.rows * p.channels;
    let step = (p.rows + ITEMS - 1u) / ITEMS * p.channels;
    let blocks = (step + WG - 1u) / WG;
    let id = flat_group(thread.group, thread.groups);
    let n = min(id / blocks, p.samples - 1u);
    let at = (id - n * blocks) * WG + thread.lane;
    let column = at % p.channels;
    let g = column / p.width;
    let base = n * size;
    let end = base + size;
    let pair = n * p.channel_groups + g;
    return Walk(
        select(end, base + at, at < step), step, end, pair,
        x[base + g * p.width], offset[pair], rstd[pair], gamma[column], beta[column],
    );
}

fn normalised(w: Walk, x: f32) -> f32 {
    return (x - w.first - w.mean) * w.scale;
}

// Third step: ITEMS elements a thread, workgroups do not cross samples.
@compute @workgroup_size(WG)
fn normalise(thread: Thread) {
    let w = walk(thread);
    for (var at = w.at; at < w.end; at += w.step) {
        y[at] = activate(p.kind, w.gain * normalised(w, x[at]) + w.shift);
    }
}

var<workgroup> cells: array<vec2<f32>, WG>;

// First step: sums of dz and dz * xhat over a chunk of rows. One workgroup per (n, chunk, COLUMNS channels).
@compute @workgroup_size(WG)
fn backward_partial(thread: Thread) {
    let panels = (p.channels + COLUMNS - 1u) / COLUMNS;
    let id = own_group(thread, p.samples * p.chunks * panels);
    let block = id / panels; // n * chunks + chunk
    let n = block / p.chunks;
    let row_start = (block - n * p.chunks) * p.chunk_rows;
    let row_end = min(row_start + p.chunk_rows, p.rows);
    let c = (id - block * panels) * COLUMNS + thread.lane % COLUMNS;
    var part = vec2<f32>(0.0);
    if c < p.channels {
        let g = c / p.width;
        let pair = n * p.channel_groups + g;
        let base = n * p.rows * p.channels;
        let first = x[base + g * p.width];
        let mean = offset[pair];
        let scale = rstd[pair];
        let gain = gamma[c];
        let shift = beta[c];
        for (var row = row_start + thread.lane / COLUMNS; row < row_end; row += LINES) {
            let at = base + row * p.channels + c;
            let xhat = (x[at] - first - mean) * scale;
            let dz = dy[at] * activate_slope(p.kind, gain * xhat + shift);
            part += vec2<f32>(dz, dz * xhat);
        }
    }
    cells[thread.lane] = part;
    workgroupBarrier();
    if thread.lane < COLUMNS && c < p.channels && is_own_group(thread, id) {
        for (var line = 1u; line < LINES; line++) {
            part += cells[line * COLUMNS + thread.lane];
        }
        partial[block * p.channels + c] = part;
    }
}

// Second step: the chunks summed. One thread per (n, c).
@compute @workgroup_size(WG)
fn backward_sums(thread: Thread) {
    let i = flat_group(thread.group, thread.groups) * WG + thread.lane;
    if i >= p.samples * p.channels {
        return;
    }
    let n = i / p.channels;
    let c = i - n * p.channels;
    var total = vec2<f32>(0.0);
    for (var chunk = 0u; chunk < p.chunks; chunk++) {
        total += partial[(n * p.chunks + chunk) * p.channels + c];
    }
    sums_out[2u * n * p.channels + c] = total.x;
    sums_out[(2u * n + 1u) * p.channels + c] = total.y;
}

// Third step: the two means that dx needs. One thread per (n, g).
@compute @workgroup_size(WG)
fn backward_means(thread: Thread) {
    let pair = flat_group(thread.group, thread.groups) * WG + thread.lane;
    if pair >= p.samples * p.channel_groups {
        return;
    }
    let n = pair / p.channel_groups;
    let first = (pair - n * p.channel_groups) * p.width;
    var total = vec2<f32>(0.0);
    for (var c = first; c < first + p.width; c++) {
        let at = 2u * n * p.channels + c;
        total += gamma[c] * vec2<f32>(sums[at], sums[at + p.channels]);
    }
    means[pair] = total / (f32(p.rows) * f32(p.width));
}

// Fourth step: as normalise.
@compute @workgroup_size(WG)
fn backward_x(thread: Thread) {
    let w = walk(thread);
    let slopes = means[w.pair];
    for (var at = w.at; at < w.end; at += w.step) {
        let xhat = normalised(w, x[at]);
        let dz = dy[at] * activate_slope(p.kind, w.gain * xhat + w.shift);
        dx[at] = w.scale * (w.gain * dz - slopes.x - xhat * slopes.y);
    }
}

// dgamma and dbeta from the sums. One workgroup per COLUMNS channels.
@compute @workgroup_size(WG)
fn backward_parameters(thread: Thread) {
    let id = own_group(thread, (p.channels + COLUMNS - 1u) / COLUMNS);
    let c = id * COLUMNS + thread.lane % COLUMNS;
    var part = vec2<f32>(0.0);
    if c < p.channels {
        for (var n = thread.lane / COLUMNS; n < p.samples; n += LINES) {
            part += vec2<f32>(sums[2u * n * p.channels + c], sums[(2u * n + 1u) * p.channels + c]);
        }
    }
    cells[thread.lane] = part;
    workgroupBarrier();
    if thread.lane < COLUMNS && c < p.channels && is_own_group(thread, id) {
        for (var line = 1u; line < LINES; line++) {
            part += cells[line * COLUMNS + thread.lane];
        }
        dbeta[c] = part.x;
        dgamma[c] = part.y;
    }
}
