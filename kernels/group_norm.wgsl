// group_norm - give every (sample, group) zero mean and unit variance, scale and shift per channel, activate.
//
//   y    = f(z)      z = gamma[c] * xhat + beta[c]    xhat = (x - mean) * rstd    rstd = 1/sqrt(var + eps)
//   dz   = dy * f'(z)         dgamma[c] = sum of dz * xhat         dbeta[c] = sum of dz
//   dx   = rstd * (gamma[c] * dz - m0 - xhat * m1)   m0, m1 = group means of gamma * dz and gamma * dz * xhat
//
//   x, y, dx, dy [N, P, C]    gamma, beta [C]    statistics [N, 3, G]    sums [N, 2, C] of (dz, dz * xhat)
//   group g holds D = C/G consecutive channels
//
// x may lie in two tensors side by side, [N, P, left] and [N, P, C - left], a group in both. Entries that read x run once for
// each of these parts, for its `own` channels from `first` on; dx lies as x does.
//
// Statistics of a group: its first element, the mean's offset from it, rstd. `x - first` is exact where values lie close
// together, so that a mean far from zero costs no accuracy, and no value is further from the mean than
// sqrt(P*D - 1) deviations (Samuelson 1968). Reference: Wu & He 2018 (arXiv:1803.08494).
//!include lib/grid.wgsl
//!include lib/reduce.wgsl
//!include lib/activation.wgsl
//!include lib/norm.wgsl

const WG: u32 = 256u;
const ITEMS: u32 = 4u; // elements of one thread in the elementwise entries
const COLUMNS: u32 = 32u; // channels of one workgroup in backward_partial and backward_parameters
const LINES: u32 = WG / COLUMNS; // rows that it takes at once

@group(0) @binding(1) var<storage, read> x: array<f32>; // [N, P, own]
@group(0) @binding(2) var<storage, read> gamma: array<f32>; // [C]
@group(0) @binding(3) var<storage, read> beta: array<f32>; // [C]
@group(0) @binding(4) var<storage, read_write> y: array<f32>; // [N, P, C]
@group(0) @binding(5) var<storage, read_write> statistics_out: array<f32>; // [N, 3, G]: first, offset, rstd
@group(0) @binding(6) var<storage, read> head: array<f32>; // [N, P, left], the first part of x
@group(0) @binding(7) var<storage, read_write> moments: array<vec2<f32>>; // [parts, N, G, chunks]: offset, squares
@group(0) @binding(8) var<storage, read> statistics: array<f32>; // [N, 3, G]
@group(0) @binding(9) var<storage, read> so_far: array<f32>; // [N, P, own]; anything where nothing is added
@group(0) @binding(10) var<storage, read> dy: array<f32>; // [N, P, C]
@group(0) @binding(11) var<storage, read_write> partial: array<vec2<f32>>; // [N, chunks, C]: dz, dz * xhat
@group(0) @binding(12) var<storage, read_write> sums_out: array<f32>; // [N, 2, C]
@group(0) @binding(13) var<storage, read> sums: array<f32>; // [N, 2, C]
@group(0) @binding(14) var<storage, read_write> means: array<vec2<f32>>; // [N, G] of (m0, m1)
@group(0) @binding(15) var<storage, read_write> dx: array<f32>; // [N, P, own]
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

// The first element of a group, in whichever part.
fn first_of(n: u32, g: u32) -> f32 {
    let column = g * p.width;
    if column < p.first {
        return head[n * p.rows * p.left + column];
    }
    return x[n * p.rows * p.own + column - p.first];
}

// Channels of a group in part 0 or 1.
fn columns_in(part: u32, g: u32) -> u32 {
    let before = clamp(p.left, g * p.width, (g + 1u) * p.width) - g * p.width;
    return select(p.width - before, before, part == 0u);
}

// First step: mean, and sum of squares about it, of a chunk of rows of one group. One workgroup per (n, g,
// chunk), for the groups that the part has channels of. Two passes, of which the second finds the data in the cache.
@compute @workgroup_size(WG)
fn chunk_moments(thread: Thread) {
    let lowest = p.first / p.width;
    let own_groups = (p.first + p.own + p.width - 1u) / p.width - lowest;
    let id = own_group(thread, p.samples * own_groups * p.chunks);
    let n = id / p.chunks / own_groups;
    let chunk = id % p.chunks;
    let g = lowest + id / p.chunks % own_groups;
    let part = select(0u, 1u, p.first > 0u);
    let width = columns_in(part, g);
    let start = n * p.rows * p.own + max(g * p.width, p.first) - p.first;
    let first = first_of(n, g);
    let row_start = chunk * p.chunk_rows;
    let row_end = min(row_start + p.chunk_rows, p.rows);
    let count = f32((row_end - row_start) * width);

    // The thread's elements, every WG-th one of the chunk, without a division for each.
    let row0 = row_start + thread.lane / width;
    let column0 = thread.lane % width;
    let row_step = WG / width;
    let column_step = WG % width;

    var total = 0.0;
    var row = row0;
    var column = column0;
    while row < row_end {
        total += x[start + row * p.own + column] - first;
        row += row_step;
        column += column_step;
        if column >= width {
            column -= width;
            row += 1u;
        }
    }
    let mean = block_sum(total, thread) / count;

    var squares = 0.0;
    row = row0;
    column = column0;
    while row < row_end {
        let distance = x[start + row * p.own + column] - first - mean;
        squares += distance * distance;
        row += row_step;
        column += column_step;
        if column >= width {
            column -= width;
            row += 1u;
        }
    }
    squares = block_sum(squares, thread);
    if thread.lane == 0u && is_own_group(thread, id) {
        let pair = n * p.channel_groups + g;
        moments[(part * p.samples * p.channel_groups + pair) * p.chunks + chunk] = vec2<f32>(mean, squares);
        if chunk == 0u {
            statistics_out[3u * n * p.channel_groups + g] = first; // both parts of a group write the same
        }
    }
}

// Second step: the chunks and parts of one group put together (Chan, Golub & LeVeque 1979). One thread per (n, g).
@compute @workgroup_size(WG)
fn merge_moments(thread: Thread) {
    let pairs = p.samples * p.channel_groups;
    let pair = flat_group(thread.group, thread.groups) * WG + thread.lane;
    if pair >= pairs {
        return;
    }
    let n = pair / p.channel_groups;
    let g = pair - n * p.channel_groups;
    let all = f32(p.rows);
    var mean = 0.0;
    for (var part = 0u; part < 2u; part++) {
        let share = f32(columns_in(part, g)) / f32(p.width);
        // Of a part without the group there is nothing.
        for (var i = 0u; i < p.chunks && share > 0.0; i++) {
            mean += moments[(part * pairs + pair) * p.chunks + i].x * (rows_of(i) / all * share);
        }
    }
    var squares = 0.0;
    for (var part = 0u; part < 2u; part++) {
        let columns = f32(columns_in(part, g));
        for (var i = 0u; i < p.chunks && columns > 0.0; i++) {
            let chunk = moments[(part * pairs + pair) * p.chunks + i];
            let distance = chunk.x - mean;
            squares += chunk.y + distance * distance * rows_of(i) * columns;
        }
    }
    let out = 3u * n * p.channel_groups + g;
    statistics_out[out + p.channel_groups] = mean;
    statistics_out[out + 2u * p.channel_groups] = 1.0 / sqrt(squares / (all * f32(p.width)) + p.eps);
}

// Rows in a chunk; the last one may be short.
fn rows_of(chunk: u32) -> f32 {
    return f32(min(p.chunk_rows, p.rows - chunk * p.chunk_rows));
}

struct Statistics { first: f32, mean: f32, scale: f32 }

fn statistics_of(n: u32, g: u32) -> Statistics {
    let at = 3u * n * p.channel_groups + g;
    return Statistics(statistics[at], statistics[at + p.channel_groups], statistics[at + 2u * p.channel_groups]);
}

fn normalised(stats: Statistics, x: f32) -> f32 {
    return (x - stats.first - stats.mean) * stats.scale;
}

// What an elementwise thread does: up to ITEMS elements of one channel of one sample, `step` apart, so that it reads only once
// what belongs to the channel. `at` is `end` where there is nothing to do. `beside`, `stride`: the same in y and dy.
struct Walk {
    at: u32, step: u32, end: u32,
    beside: u32, stride: u32,
    pair: u32, // n * groups + g
    stats: Statistics, gain: f32, shift: f32,
}

fn walk(thread: Thread) -> Walk {
    let size = p.rows * p.own;
    let stride = (p.rows + ITEMS - 1u) / ITEMS;
    let step = stride * p.own;
    let blocks = (step + WG - 1u) / WG;
    let id = flat_group(thread.group, thread.groups);
    let n = min(id / blocks, p.samples - 1u);
    let at = (id - n * blocks) * WG + thread.lane;
    let row = at / p.own;
    let column = p.first + at - row * p.own;
    let g = column / p.width;
    let end = n * size + size;
    return Walk(
        select(end, n * size + at, at < step), step, end,
        (n * p.rows + row) * p.channels + column, stride * p.channels,
        n * p.channel_groups + g, statistics_of(n, g), gamma[column], beta[column],
    );
}

// Third step: ITEMS elements a thread, workgroups do not cross samples.
@compute @workgroup_size(WG)
fn normalise(thread: Thread) {
    let w = walk(thread);
    var beside = w.beside;
    for (var at = w.at; at < w.end; at += w.step) {
        y[beside] = activate(p.kind, w.gain * normalised(w.stats, x[at]) + w.shift);
        beside += w.stride;
    }
}

var<workgroup> cells: array<vec2<f32>, WG>;

// First step: sums of dz and dz * xhat over a chunk of rows. One workgroup per (n, chunk, COLUMNS channels).
@compute @workgroup_size(WG)
fn backward_partial(thread: Thread) {
    let panels = (p.own + COLUMNS - 1u) / COLUMNS;
    let id = own_group(thread, p.samples * p.chunks * panels);
    let block = id / panels; // n * chunks + chunk
    let n = block / p.chunks;
    let row_start = (block - n * p.chunks) * p.chunk_rows;
    let row_end = min(row_start + p.chunk_rows, p.rows);
    let own = (id - block * panels) * COLUMNS + thread.lane % COLUMNS;
    let c = p.first + own;
    var part = vec2<f32>(0.0);
    if own < p.own {
        let stats = statistics_of(n, c / p.width);
        let gain = gamma[c];
        let shift = beta[c];
        for (var row = row_start + thread.lane / COLUMNS; row < row_end; row += LINES) {
            let line = n * p.rows + row;
            let xhat = normalised(stats, x[line * p.own + own]);
            let dz = dy[line * p.channels + c] * activate_slope(p.kind, gain * xhat + shift);
            part += vec2<f32>(dz, dz * xhat);
        }
    }
    cells[thread.lane] = part;
    workgroupBarrier();
    if thread.lane < COLUMNS && own < p.own && is_own_group(thread, id) {
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
    var beside = w.beside;
    for (var at = w.at; at < w.end; at += w.step) {
        let xhat = normalised(w.stats, x[at]);
        let dz = dy[beside] * activate_slope(p.kind, w.gain * xhat + w.shift);
        var value = w.stats.scale * (w.gain * dz - slopes.x - xhat * slopes.y);
        if p.adds != 0u { value += so_far[at]; }
        dx[at] = value;
        beside += w.stride;
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
