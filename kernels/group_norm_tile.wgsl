// group_norm_tile - group_norm.wgsl in tiles: a workgroup has a chunk of rows of 32 channels, of which its threads hold all.
//
// A thread has four neighbouring channels, and of every LINES rows one: subgroups read and write whole cache lines, and what is
// needed twice, as by the sum of squares about the mean, is read once. Where a sample is a single chunk, `whole` and
// `backward_whole` do in one launch what takes three and four; else chunks are put together by group_norm.wgsl.
//
// For channels in fours, groups of 1, 2, 4, 8, 16 or 32 channels, SiLU, ReLU or no activation, and parts of x that are whole
// tiles.
//!include lib/grid.wgsl
//!include lib/norm.wgsl

const HELD: u32 = 8u; // knob: rows that a thread holds, 2 or 8
const QUADS: u32 = 8u; // threads along the channels
const LINES: u32 = 32u; // threads along the rows
const WG: u32 = QUADS * LINES;
const SILU: u32 = 1u; // as in lib/activation.wgsl
const RELU: u32 = 2u;

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>; // [N, P, own]
@group(0) @binding(2) var<storage, read> gamma: array<vec4<f32>>; // [C]
@group(0) @binding(3) var<storage, read> beta: array<vec4<f32>>; // [C]
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>; // [N, P, C]
@group(0) @binding(5) var<storage, read_write> statistics_out: array<f32>; // [N, 3, G]: first, offset, rstd
@group(0) @binding(6) var<storage, read_write> moments: array<vec2<f32>>; // [parts, N, G, chunks]: offset, squares
@group(0) @binding(7) var<storage, read> statistics: array<f32>; // [N, 3, G]
@group(0) @binding(8) var<storage, read> dy: array<vec4<f32>>; // [N, P, C]
@group(0) @binding(9) var<storage, read_write> partial: array<vec2<f32>>; // [N, chunks, C]: dz, dz * xhat
@group(0) @binding(10) var<storage, read_write> sums_out: array<vec4<f32>>; // [N, 2, C]
@group(0) @binding(11) var<storage, read> means: array<vec2<f32>>; // [N, G] of (m0, m1)
@group(0) @binding(12) var<storage, read_write> dx: array<vec4<f32>>; // [N, P, own]
@group(0) @binding(13) var<storage, read> so_far: array<vec4<f32>>; // [N, P, own]; anything where nothing is added

// What a thread has: channels from `own` on of the part and `c` on of all, rows `row`, row + LINES ... before `end`.
struct Tile { n: u32, chunk: u32, own: u32, c: u32, row: u32, end: u32, rows: f32, keeps: bool }

fn tile(group: u32, lane: u32) -> Tile {
    let panels = (p.own + 4u * QUADS - 1u) / (4u * QUADS);
    // Barriers forbid groups past the end to return: they do the last one's work, and keep nothing.
    let id = min(group, p.samples * p.chunks * panels - 1u);
    let block = id / panels;
    let chunk = block % p.chunks;
    let own = (id % panels * QUADS + lane % QUADS) * 4u;
    let begin = chunk * p.chunk_rows;
    let end = min(begin + p.chunk_rows, p.rows);
    // Past the last channel there are no rows.
    return Tile(
        block / p.chunks, chunk, own, p.first + own, begin + lane / QUADS, select(0u, end, own < p.own),
        f32(end - begin), group == id && own < p.own,
    );
}

// A number for each row of a thread, zero for those that it does not have.
struct Held {
    r0: vec4<f32>, r1: vec4<f32>, r2: vec4<f32>, r3: vec4<f32>, r4: vec4<f32>, r5: vec4<f32>, r6: vec4<f32>, r7: vec4<f32>,
}

fn has(t: Tile, i: u32) -> bool {
    return t.row + i * LINES < t.end;
}

fn x_quad(t: Tile, first: vec4<f32>, i: u32) -> vec4<f32> {
    let at = ((t.n * p.rows + t.row + i * LINES) * p.own + t.own) / 4u;
    return select(vec4<f32>(), x[select(0u, at, has(t, i))] - first, has(t, i));
}

fn dy_quad(t: Tile, i: u32) -> vec4<f32> {
    let at = ((t.n * p.rows + t.row + i * LINES) * p.channels + t.c) / 4u;
    return select(vec4<f32>(), dy[select(0u, at, has(t, i))], has(t, i));
}

// x less the groups' first elements, which is exact where values lie close together.
fn held_x(t: Tile, first: vec4<f32>) -> Held {
    var held = Held();
    held.r0 = x_quad(t, first, 0u);
    held.r1 = x_quad(t, first, 1u);
    if HELD > 2u {
        held.r2 = x_quad(t, first, 2u);
        held.r3 = x_quad(t, first, 3u);
        held.r4 = x_quad(t, first, 4u);
        held.r5 = x_quad(t, first, 5u);
        held.r6 = x_quad(t, first, 6u);
        held.r7 = x_quad(t, first, 7u);
    }
    return held;
}

fn held_dy(t: Tile) -> Held {
    var held = Held();
    held.r0 = dy_quad(t, 0u);
    held.r1 = dy_quad(t, 1u);
    if HELD > 2u {
        held.r2 = dy_quad(t, 2u);
        held.r3 = dy_quad(t, 3u);
        held.r4 = dy_quad(t, 4u);
        held.r5 = dy_quad(t, 5u);
        held.r6 = dy_quad(t, 6u);
        held.r7 = dy_quad(t, 7u);
    }
    return held;
}

fn sum_of(h: Held) -> vec4<f32> {
    return ((h.r0 + h.r1) + (h.r2 + h.r3)) + ((h.r4 + h.r5) + (h.r6 + h.r7));
}

fn product_of(a: Held, b: Held) -> vec4<f32> {
    return ((a.r0 * b.r0 + a.r1 * b.r1) + (a.r2 * b.r2 + a.r3 * b.r3))
        + ((a.r4 * b.r4 + a.r5 * b.r5) + (a.r6 * b.r6 + a.r7 * b.r7));
}

fn square_of(t: Tile, x: vec4<f32>, mean: vec4<f32>, i: u32) -> vec4<f32> {
    return select(vec4<f32>(), (x - mean) * (x - mean), has(t, i));
}

fn squares_of(t: Tile, h: Held, mean: vec4<f32>) -> vec4<f32> {
    var sum = square_of(t, h.r0, mean, 0u) + square_of(t, h.r1, mean, 1u);
    if HELD > 2u {
        sum += (square_of(t, h.r2, mean, 2u) + square_of(t, h.r3, mean, 3u))
            + ((square_of(t, h.r4, mean, 4u) + square_of(t, h.r5, mean, 5u))
                + (square_of(t, h.r6, mean, 6u) + square_of(t, h.r7, mean, 7u)));
    }
    return sum;
}

// A number for each channel of the group of each of four, whose quad is `quad` of the row of quads that holds it.
fn first_quad(quad: u32) -> u32 {
    return select(quad, quad / (p.width / 4u) * (p.width / 4u), p.width > 4u);
}

fn spread_first(four: vec4<f32>) -> vec4<f32> {
    if p.width == 1u { return four; }
    if p.width == 2u { return four.xxzz; }
    return four.xxxx;
}

// First elements of the groups of a thread's channels.
fn firsts(t: Tile) -> vec4<f32> {
    let line = t.n * p.rows * p.own / 4u;
    return spread_first(x[line + first_quad(min(t.own, p.own - 4u) / 4u)]);
}

var<workgroup> cells: array<vec4<f32>, WG>;
var<workgroup> more_cells: array<vec4<f32>, WG>;

// Puts the sums over all lines into the first QUADS cells. Every thread must call it.
fn sum_lines(lane: u32, value: vec4<f32>) {
    cells[lane] = value;
    for (var lines = LINES / 2u; lines > 0u; lines /= 2u) {
        workgroupBarrier();
        if lane < lines * QUADS { cells[lane] += cells[lane + lines * QUADS]; }
    }
    workgroupBarrier();
}

fn sum_lines_of_both(lane: u32, value: vec4<f32>, other: vec4<f32>) {
    cells[lane] = value;
    more_cells[lane] = other;
    for (var lines = LINES / 2u; lines > 0u; lines /= 2u) {
        workgroupBarrier();
        if lane < lines * QUADS {
            cells[lane] += cells[lane + lines * QUADS];
            more_cells[lane] += more_cells[lane + lines * QUADS];
        }
    }
    workgroupBarrier();
}

fn of_groups(four: vec4<f32>) -> vec4<f32> {
    if p.width == 1u { return four; }
    let pairs = four.xz + four.yw;
    if p.width == 2u { return pairs.xxyy; }
    return vec4<f32>(pairs.x + pairs.y);
}

// Of what stands in the first cells: the sums over the groups of a thread's channels.
fn group_sums(lane: u32) -> vec4<f32> {
    let quad = first_quad(lane % QUADS);
    var sum = cells[quad];
    for (var i = 1u; i < p.width / 4u; i++) { sum += cells[quad + i]; }
    return of_groups(sum);
}

fn more_group_sums(lane: u32) -> vec4<f32> {
    let quad = first_quad(lane % QUADS);
    var sum = more_cells[quad];
    for (var i = 1u; i < p.width / 4u; i++) { sum += more_cells[quad + i]; }
    return of_groups(sum);
}

// Of the groups of a thread's channels, from the rows of a workgroup.
struct Moments { mean: vec4<f32>, squares: vec4<f32> }

fn moments_of(t: Tile, lane: u32, held: Held) -> Moments {
    sum_lines(lane, sum_of(held));
    let mean = group_sums(lane) / (t.rows * f32(p.width));
    workgroupBarrier(); // for the cells
    sum_lines(lane, squares_of(t, held, mean));
    return Moments(mean, group_sums(lane));
}

// Numbers of the groups of four channels from c on.
fn groups_of(c: u32) -> vec4<u32> {
    return (vec4<u32>(c) + vec4<u32>(0u, 1u, 2u, 3u)) / p.width;
}

// Whether the thread, in the first line, has the first channel of the groups of its four.
fn begins(t: Tile, lane: u32) -> vec4<bool> {
    let channels = vec4<u32>(t.c) + vec4<u32>(0u, 1u, 2u, 3u);
    return (channels % p.width == vec4<u32>()) & vec4<bool>(t.keeps & (lane < QUADS));
}

fn put_statistics(n: u32, g: u32, begins: bool, which: u32, value: f32) {
    if begins { statistics_out[(3u * n + which) * p.channel_groups + g] = value; }
}

fn put_statistics_of(t: Tile, lane: u32, which: u32, value: vec4<f32>) {
    let g = groups_of(t.c);
    let begin = begins(t, lane);
    put_statistics(t.n, g.x, begin.x, which, value.x);
    put_statistics(t.n, g.y, begin.y, which, value.y);
    put_statistics(t.n, g.z, begin.z, which, value.z);
    put_statistics(t.n, g.w, begin.w, which, value.w);
}

fn put_moments(t: Tile, g: u32, begins: bool, mean: f32, squares: f32) {
    let part = select(0u, p.samples * p.channel_groups, p.first > 0u);
    if begins { moments[(part + t.n * p.channel_groups + g) * p.chunks + t.chunk] = vec2<f32>(mean, squares); }
}

// The moments of each group in a chunk. One workgroup per (n, chunk, tile), as in every entry.
@compute @workgroup_size(WG)
fn chunk_moments(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = tile(flat_group(group, groups), lane);
    let first = firsts(t);
    let found = moments_of(t, lane, held_x(t, first));
    let g = groups_of(t.c);
    let begin = begins(t, lane);
    put_moments(t, g.x, begin.x, found.mean.x, found.squares.x);
    put_moments(t, g.y, begin.y, found.mean.y, found.squares.y);
    put_moments(t, g.z, begin.z, found.mean.z, found.squares.z);
    put_moments(t, g.w, begin.w, found.mean.w, found.squares.w);
    if t.chunk == 0u { put_statistics_of(t, lane, 0u, first); }
}

// Of the groups of four channels, for each channel.
struct Scales { mean: vec4<f32>, rstd: vec4<f32>, gain: vec4<f32>, shift: vec4<f32> }

fn sigmoid(z: vec4<f32>) -> vec4<f32> {
    // exp of negative numbers only: it cannot overflow.
    let e = exp(-abs(z));
    return select(e, vec4<f32>(1.0), z >= vec4<f32>()) / (1.0 + e);
}

fn put_y(t: Tile, s: Scales, x: vec4<f32>, i: u32) {
    if has(t, i) && t.keeps {
        var z = s.gain * ((x - s.mean) * s.rstd) + s.shift;
        if p.kind == SILU { z *= sigmoid(z); }
        if p.kind == RELU { z = max(z, vec4<f32>()); }
        y[((t.n * p.rows + t.row + i * LINES) * p.channels + t.c) / 4u] = z;
    }
}

fn put_all_y(t: Tile, s: Scales, h: Held) {
    put_y(t, s, h.r0, 0u);
    put_y(t, s, h.r1, 1u);
    if HELD > 2u {
        put_y(t, s, h.r2, 2u);
        put_y(t, s, h.r3, 3u);
        put_y(t, s, h.r4, 4u);
        put_y(t, s, h.r5, 5u);
        put_y(t, s, h.r6, 6u);
        put_y(t, s, h.r7, 7u);
    }
}

// The whole forward pass of samples of a single chunk.
@compute @workgroup_size(WG)
fn whole(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = tile(flat_group(group, groups), lane);
    let first = firsts(t);
    let held = held_x(t, first);
    let found = moments_of(t, lane, held);
    let rstd = 1.0 / sqrt(found.squares / (t.rows * f32(p.width)) + p.eps);
    put_statistics_of(t, lane, 0u, first);
    put_statistics_of(t, lane, 1u, found.mean);
    put_statistics_of(t, lane, 2u, rstd);
    let quad = min(t.c, p.channels - 4u) / 4u;
    put_all_y(t, Scales(found.mean, rstd, gamma[quad], beta[quad]), held);
}

// What statistics tell of the groups of a thread's channels.
fn statistics_of(t: Tile, which: u32) -> vec4<f32> {
    let g = min(groups_of(t.c), vec4<u32>(p.channel_groups - 1u));
    let at = (3u * t.n + which) * p.channel_groups;
    if p.width >= 4u { return vec4<f32>(statistics[at + g.x]); }
    return vec4<f32>(statistics[at + g.x], statistics[at + g.y], statistics[at + g.z], statistics[at + g.w]);
}

fn scales_of(t: Tile) -> Scales {
    let quad = min(t.c, p.channels - 4u) / 4u;
    return Scales(statistics_of(t, 1u), statistics_of(t, 2u), gamma[quad], beta[quad]);
}

@compute @workgroup_size(WG)
fn normalise(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = tile(flat_group(group, groups), lane);
    put_all_y(t, scales_of(t), held_x(t, statistics_of(t, 0u)));
}

// xhat and dz of a thread's rows, from what it holds of x and dy.
fn xhat_of(s: Scales, x: vec4<f32>) -> vec4<f32> {
    return (x - s.mean) * s.rstd;
}

fn xhats(s: Scales, h: Held) -> Held {
    return Held(
        xhat_of(s, h.r0), xhat_of(s, h.r1), xhat_of(s, h.r2), xhat_of(s, h.r3),
        xhat_of(s, h.r4), xhat_of(s, h.r5), xhat_of(s, h.r6), xhat_of(s, h.r7),
    );
}

fn dz_of(s: Scales, xhat: vec4<f32>, dy: vec4<f32>) -> vec4<f32> {
    let z = s.gain * xhat + s.shift;
    if p.kind == SILU {
        let sig = sigmoid(z);
        return dy * (sig * (1.0 + z * (1.0 - sig)));
    }
    if p.kind == RELU { return select(vec4<f32>(), dy, z > vec4<f32>()); }
    return dy;
}

fn dzs(s: Scales, xhat: Held, dy: Held) -> Held {
    var dz = dy;
    dz.r0 = dz_of(s, xhat.r0, dy.r0);
    dz.r1 = dz_of(s, xhat.r1, dy.r1);
    if HELD > 2u {
        dz.r2 = dz_of(s, xhat.r2, dy.r2);
        dz.r3 = dz_of(s, xhat.r3, dy.r3);
        dz.r4 = dz_of(s, xhat.r4, dy.r4);
        dz.r5 = dz_of(s, xhat.r5, dy.r5);
        dz.r6 = dz_of(s, xhat.r6, dy.r6);
        dz.r7 = dz_of(s, xhat.r7, dy.r7);
    }
    return dz;
}

// Sums of dz and dz * xhat over a chunk.
@compute @workgroup_size(WG)
fn backward_partial(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = tile(flat_group(group, groups), lane);
    let s = scales_of(t);
    let dy_held = held_dy(t);
    let xhat = xhats(s, held_x(t, statistics_of(t, 0u)));
    let dz = dzs(s, xhat, dy_held);
    sum_lines_of_both(lane, sum_of(dz), product_of(dz, xhat));
    if lane < QUADS && t.keeps {
        let at = (t.n * p.chunks + t.chunk) * p.channels + t.c;
        let sums = cells[lane];
        let products = more_cells[lane];
        partial[at] = vec2<f32>(sums.x, products.x);
        partial[at + 1u] = vec2<f32>(sums.y, products.y);
        partial[at + 2u] = vec2<f32>(sums.z, products.z);
        partial[at + 3u] = vec2<f32>(sums.w, products.w);
    }
}

struct Means { m0: vec4<f32>, m1: vec4<f32> }

fn put_dx(t: Tile, s: Scales, m: Means, xhat: vec4<f32>, dz: vec4<f32>, i: u32) {
    if has(t, i) && t.keeps {
        let at = ((t.n * p.rows + t.row + i * LINES) * p.own + t.own) / 4u;
        var value = s.rstd * (s.gain * dz - m.m0 - xhat * m.m1);
        if p.adds != 0u { value += so_far[at]; }
        dx[at] = value;
    }
}

fn put_all_dx(t: Tile, s: Scales, m: Means, xhat: Held, dz: Held) {
    put_dx(t, s, m, xhat.r0, dz.r0, 0u);
    put_dx(t, s, m, xhat.r1, dz.r1, 1u);
    if HELD > 2u {
        put_dx(t, s, m, xhat.r2, dz.r2, 2u);
        put_dx(t, s, m, xhat.r3, dz.r3, 3u);
        put_dx(t, s, m, xhat.r4, dz.r4, 4u);
        put_dx(t, s, m, xhat.r5, dz.r5, 5u);
        put_dx(t, s, m, xhat.r6, dz.r6, 6u);
        put_dx(t, s, m, xhat.r7, dz.r7, 7u);
    }
}

@compute @workgroup_size(WG)
fn backward_x(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = tile(flat_group(group, groups), lane);
    let s = scales_of(t);
    let dy_held = held_dy(t);
    let xhat = xhats(s, held_x(t, statistics_of(t, 0u)));
    let g = t.n * p.channel_groups + min(groups_of(t.c), vec4<u32>(p.channel_groups - 1u));
    let m0 = vec4<f32>(means[g.x].x, means[g.y].x, means[g.z].x, means[g.w].x);
    let m1 = vec4<f32>(means[g.x].y, means[g.y].y, means[g.z].y, means[g.w].y);
    put_all_dx(t, s, Means(m0, m1), xhat, dzs(s, xhat, dy_held));
}

// The whole backward pass but for the parameters' gradients, of samples of a single chunk.
@compute @workgroup_size(WG)
fn backward_whole(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = tile(flat_group(group, groups), lane);
    let s = scales_of(t);
    let dy_held = held_dy(t);
    let xhat = xhats(s, held_x(t, statistics_of(t, 0u)));
    let dz = dzs(s, xhat, dy_held);
    sum_lines_of_both(lane, sum_of(dz), product_of(dz, xhat));
    if lane < QUADS {
        if t.keeps {
            sums_out[(2u * t.n * p.channels + t.c) / 4u] = cells[lane];
            sums_out[((2u * t.n + 1u) * p.channels + t.c) / 4u] = more_cells[lane];
        }
        cells[lane] *= s.gain;
        more_cells[lane] *= s.gain;
    }
    workgroupBarrier();
    let count = t.rows * f32(p.width);
    put_all_dx(t, s, Means(group_sums(lane) / count, more_group_sums(lane) / count), xhat, dz);
}
