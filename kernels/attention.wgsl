// attention - scaled dot-product attention of several heads; the matrix of weights is never stored.
//
//   s[t,j] = scale * q[t].k[j]     P[t,j] = exp(s[t,j] - lse[t])     lse[t] = log sum_j exp s[t,j]
//   y[t]   = sum_j P[t,j] v[j]     scale = 1/sqrt(D)
//   dS[t,j] = P[t,j] * (dy[t].v[j] - delta[t]) * scale               delta[t] = dy[t].y[t]
//   dq[t]  = sum_j dS[t,j] k[j]    dk[j] = sum_t dS[t,j] q[t]        dv[j] = sum_t P[t,j] dy[t]
//
//   q, y, dq, dy [N,T,heads*D]    k, v, dk, dv [N,S,heads*D]    lse, delta [N,heads,T]    D a multiple of 4
//
// All sums go over all of the other side, or in the causal form (T = S) over pairs with j <= t alone; turns
// in which no row of a workgroup has such a pair are left out.
//
// LANES threads share a row (a query; a key in backward_kv), each with QUADS vec4 of its channels in
// registers, and loop over the rows of the other side four at a time. Other head widths are padded with
// zeros by attention_heads.wgsl first. Reference: Vaswani et al. 2017 (arXiv:1706.03762); the running
// maximum and the backward pass are those of Dao et al. 2022 (arXiv:2205.14135), algorithms 1 and 4.
//!include lib/grid.wgsl

const WG: u32 = 64u;
const LANES: u32 = 1u; // knob: threads that share a row
const QUADS: u32 = 4u; // knob: vec4 of channels that a thread holds
const_assert WG % LANES == 0u;
const_assert QUADS <= 4u;
const ROWS: u32 = WG / LANES;

const LOWEST: f32 = -3.0e38;

struct Params {
    n: u32, heads: u32, d: u32,
    queries: u32, keys: u32,
    scale: f32,
    causal: u32, // 1: query t sees keys 0..=t alone
    first_group: u32, // of this dispatch
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> q: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> k: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> v: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read_write> y: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> lse: array<f32>;
@group(0) @binding(6) var<storage, read> saved_y: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read> saved_lse: array<f32>;
@group(0) @binding(8) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(9) var<storage, read_write> dq: array<vec4<f32>>;
@group(0) @binding(10) var<storage, read_write> new_delta: array<f32>;
@group(0) @binding(11) var<storage, read> delta: array<f32>;
@group(0) @binding(12) var<storage, read_write> dk: array<vec4<f32>>;
@group(0) @binding(13) var<storage, read_write> dv: array<vec4<f32>>;

// The row of a thread, and its channels of that row.
struct Place {
    inside: bool,
    n: u32,
    pair: u32, // of sample and head
    row: u32, // the last one for threads past the end, which store nothing
    lane: u32, // among the LANES of the row
    stride: u32, // vec4 from row to row
    c: vec4<u32>, // offsets of its vec4 in a row, the head's last one where it has none
    own: vec4<f32>, // 1 for each vec4 that it has, else 0
}

// Workgroups for the rows of one sample and head.
fn blocks_of(rows: u32) -> u32 {
    return (rows + ROWS - 1u) / ROWS;
}

fn number_of(group: Workgroup) -> u32 {
    return p.first_group + flat_group(group.id, group.count);
}

// First row of a workgroup.
fn first_row(group: Workgroup, rows: u32) -> u32 {
    return (number_of(group) % blocks_of(rows)) * ROWS;
}

fn place_of(workgroup: Workgroup, thread: u32, rows: u32) -> Place {
    let group = number_of(workgroup);
    let blocks = blocks_of(rows);
    let row = first_row(workgroup, rows) + thread / LANES;
    let pair = min(group / blocks, p.n * p.heads - 1u);
    let quads = p.d / 4u;
    let lane = thread % LANES;
    let i = vec4<u32>(0u, 1u, 2u, 3u) * LANES + lane;
    return Place(
        row < rows && group / blocks == pair, pair / p.heads, pair, min(row, rows - 1u), lane,
        p.heads * quads, pair % p.heads * quads + min(i, vec4<u32>(quads - 1u)),
        select(vec4<f32>(0.0), vec4<f32>(1.0), i < vec4<u32>(quads)),
    );
}

// First vec4 of a row, of a tensor of so many rows a sample.
fn row_at(at: Place, rows: u32, row: u32) -> u32 {
    return (at.n * rows + row) * at.stride;
}

// A thread's channels of one row.
struct Channels { a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32> }

// Drivers drop the reads of what is left out.
fn channels(a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>) -> Channels {
    let zero = vec4<f32>();
    return Channels(a, select(zero, b, QUADS > 1u), select(zero, c, QUADS > 2u), select(zero, d, QUADS > 3u));
}

fn scaled(x: Channels, s: vec4<f32>) -> Channels {
    return Channels(x.a * s.x, x.b * s.y, x.c * s.z, x.d * s.w);
}

fn partial_dot(x: Channels, y: Channels) -> f32 {
    var sum = x.a * y.a;
    if QUADS > 1u { sum += x.b * y.b; }
    if QUADS > 2u { sum += x.c * y.c; }
    if QUADS > 3u { sum += x.d * y.d; }
    return (sum.x + sum.y) + (sum.z + sum.w);
}

// The same channels of four rows.
struct Four { x0: Channels, x1: Channels, x2: Channels, x3: Channels }

fn partial_dots(x: Channels, y: Four) -> vec4<f32> {
    return vec4<f32>(partial_dot(x, y.x0), partial_dot(x, y.x1), partial_dot(x, y.x2), partial_dot(x, y.x3));
}

// sum + w.x * x0 + w.y * x1 + w.z * x2 + w.w * x3
fn weigh(sum: Channels, w: vec4<f32>, x: Four) -> Channels {
    var s = sum;
    s.a += mat4x4<f32>(x.x0.a, x.x1.a, x.x2.a, x.x3.a) * w;
    if QUADS > 1u { s.b += mat4x4<f32>(x.x0.b, x.x1.b, x.x2.b, x.x3.b) * w; }
    if QUADS > 2u { s.c += mat4x4<f32>(x.x0.c, x.x1.c, x.x2.c, x.x3.c) * w; }
    if QUADS > 3u { s.d += mat4x4<f32>(x.x0.d, x.x1.d, x.x2.d, x.x3.d) * w; }
    return s;
}

// Functions of WGSL cannot take a storage array: one for each.
fn load_q(row: u32, c: vec4<u32>) -> Channels {
    return channels(q[row + c.x], q[row + c.y], q[row + c.z], q[row + c.w]);
}

fn load_k(row: u32, c: vec4<u32>) -> Channels {
    return channels(k[row + c.x], k[row + c.y], k[row + c.z], k[row + c.w]);
}

fn load_v(row: u32, c: vec4<u32>) -> Channels {
    return channels(v[row + c.x], v[row + c.y], v[row + c.z], v[row + c.w]);
}

fn load_y(row: u32, c: vec4<u32>) -> Channels {
    return channels(saved_y[row + c.x], saved_y[row + c.y], saved_y[row + c.z], saved_y[row + c.w]);
}

fn load_dy(row: u32, c: vec4<u32>) -> Channels {
    return channels(dy[row + c.x], dy[row + c.y], dy[row + c.z], dy[row + c.w]);
}

// Keys that a query sees: the first ones.
fn seen_by(query: u32) -> u32 {
    return select(p.keys, min(query + 1u, p.keys), p.causal == 1u);
}

// First query that sees a key.
fn first_to_see(key: u32) -> u32 {
    return select(0u, key, p.causal == 1u);
}

// Four rows of the other side; past the end the last one again.
struct Turn { rows: vec4<u32>, real: vec4<bool>, at: vec4<u32> }

// `real`: the rows that count, begin .. end.
fn turn_of(at: Place, first: u32, rows: u32, begin: u32, end: u32) -> Turn {
    let i = first + vec4<u32>(0u, 1u, 2u, 3u);
    let row = min(i, vec4<u32>(rows - 1u));
    // The difference wraps to a large number before the beginning.
    return Turn(row, i - begin < vec4<u32>(end - begin), (at.n * rows + row) * at.stride);
}

fn four_k(at: vec4<u32>, c: vec4<u32>) -> Four {
    return Four(load_k(at.x, c), load_k(at.y, c), load_k(at.z, c), load_k(at.w, c));
}

fn four_v(at: vec4<u32>, c: vec4<u32>) -> Four {
    return Four(load_v(at.x, c), load_v(at.y, c), load_v(at.z, c), load_v(at.w, c));
}

var<workgroup> cells: array<vec4<f32>, 2u * WG>;

// The sum over the LANES of a row; every thread must call it. `side` alternates between 0 and 1 from call to
// call, so that the cells of one call are still whole while slower threads read them in the next: one
// barrier is enough.
fn row_sum(value: vec4<f32>, thread: u32, side: u32) -> vec4<f32> {
    if LANES == 1u {
        return value;
    }
    cells[side * WG + thread] = value;
    workgroupBarrier();
    let first = side * WG + thread / LANES * LANES;
    var sum = cells[first];
    for (var i = 1u; i < LANES; i++) {
        sum += cells[first + i];
    }
    return sum;
}

// One row of LANES threads for each (n, head, query).
@compute @workgroup_size(WG)
fn forward(group: Workgroup, @builtin(local_invocation_index) thread: u32) {
    let at = place_of(group, thread, p.queries);
    let row = row_at(at, p.queries, at.row);
    let query = scaled(load_q(row, at.c), at.own * p.scale);
    var sum: Channels;
    var top = LOWEST; // largest score so far
    var total = 0.0; // sum of exp(score - top)
    let seen = seen_by(at.row);
    let most = seen_by(first_row(group, p.queries) + ROWS - 1u);
    for (var j = 0u; j < most; j += 4u) {
        let turn = turn_of(at, j, p.keys, 0u, seen);
        let dots = row_sum(partial_dots(query, four_k(turn.at, at.c)), thread, j / 4u % 2u);
        let s = select(vec4<f32>(LOWEST), dots, turn.real);
        let new_top = max(top, max(max(s.x, s.y), max(s.z, s.w)));
        let shrink = exp(top - new_top);
        let w = exp(s - new_top);
        top = new_top;
        total = total * shrink + ((w.x + w.y) + (w.z + w.w));
        sum = weigh(scaled(sum, vec4<f32>(shrink)), w, four_v(turn.at, at.c));
    }
    if !at.inside {
        return;
    }
    if at.own.x > 0.0 { y[row + at.c.x] = sum.a / total; }
    if QUADS > 1u && at.own.y > 0.0 { y[row + at.c.y] = sum.b / total; }
    if QUADS > 2u && at.own.z > 0.0 { y[row + at.c.z] = sum.c / total; }
    if QUADS > 3u && at.own.w > 0.0 { y[row + at.c.w] = sum.d / total; }
    if at.lane == 0u {
        lse[at.pair * p.queries + at.row] = top + log(total);
    }
}

// One row of LANES threads for each (n, head, query). Also leaves delta for backward_kv.
@compute @workgroup_size(WG)
fn backward_q(group: Workgroup, @builtin(local_invocation_index) thread: u32) {
    let at = place_of(group, thread, p.queries);
    let row = row_at(at, p.queries, at.row);
    let query = scaled(load_q(row, at.c), at.own * p.scale);
    let dquery = scaled(load_dy(row, at.c), at.own);
    let row_delta = row_sum(vec4<f32>(partial_dot(dquery, load_y(row, at.c))), thread, 0u).x;
    let row_lse = saved_lse[at.pair * p.queries + at.row];
    var sum: Channels;
    let seen = seen_by(at.row);
    let most = seen_by(first_row(group, p.queries) + ROWS - 1u);
    for (var j = 0u; j < most; j += 4u) {
        let turn = turn_of(at, j, p.keys, 0u, seen);
        let keys = four_k(turn.at, at.c);
        let s = row_sum(partial_dots(query, keys), thread, 1u);
        let dp = row_sum(partial_dots(dquery, four_v(turn.at, at.c)), thread, 0u);
        let ds = exp(s - row_lse) * (dp - row_delta) * p.scale;
        sum = weigh(sum, select(vec4<f32>(0.0), ds, turn.real), keys);
    }
    if !at.inside {
        return;
    }
    if at.own.x > 0.0 { dq[row + at.c.x] = sum.a; }
    if QUADS > 1u && at.own.y > 0.0 { dq[row + at.c.y] = sum.b; }
    if QUADS > 2u && at.own.z > 0.0 { dq[row + at.c.z] = sum.c; }
    if QUADS > 3u && at.own.w > 0.0 { dq[row + at.c.w] = sum.d; }
    if at.lane == 0u {
        new_delta[at.pair * p.queries + at.row] = row_delta;
    }
}

// One row of LANES threads for each (n, head, key).
@compute @workgroup_size(WG)
fn backward_kv(group: Workgroup, @builtin(local_invocation_index) thread: u32) {
    let at = place_of(group, thread, p.keys);
    let row = row_at(at, p.keys, at.row);
    let key = scaled(load_k(row, at.c), at.own * p.scale);
    let value = scaled(load_v(row, at.c), at.own);
    var sum_k: Channels;
    var sum_v: Channels;
    let first = first_to_see(at.row);
    for (var t = first_to_see(first_row(group, p.keys)); t < p.queries; t += 4u) {
        let turn = turn_of(at, t, p.queries, first, p.queries);
        let o = turn.at;
        let queries = Four(load_q(o.x, at.c), load_q(o.y, at.c), load_q(o.z, at.c), load_q(o.w, at.c));
        let dys = Four(load_dy(o.x, at.c), load_dy(o.y, at.c), load_dy(o.z, at.c), load_dy(o.w, at.c));
        let s = row_sum(partial_dots(key, queries), thread, 0u);
        let dp = row_sum(partial_dots(value, dys), thread, 1u);
        let i = at.pair * p.queries + turn.rows;
        let row_lse = vec4<f32>(saved_lse[i.x], saved_lse[i.y], saved_lse[i.z], saved_lse[i.w]);
        let row_delta = vec4<f32>(delta[i.x], delta[i.y], delta[i.z], delta[i.w]);
        let w = select(vec4<f32>(0.0), exp(s - row_lse), turn.real);
        sum_v = weigh(sum_v, w, dys);
        sum_k = weigh(sum_k, w * (dp - row_delta) * p.scale, queries);
    }
    if !at.inside {
        return;
    }
    if at.own.x > 0.0 { dk[row + at.c.x] = sum_k.a; dv[row + at.c.x] = sum_v.a; }
    if QUADS > 1u && at.own.y > 0.0 { dk[row + at.c.y] = sum_k.b; dv[row + at.c.y] = sum_v.b; }
    if QUADS > 2u && at.own.z > 0.0 { dk[row + at.c.z] = sum_k.c; dv[row + at.c.z] = sum_v.c; }
    if QUADS > 3u && at.own.w > 0.0 { dk[row + at.c.w] = sum_k.d; dv[row + at.c.w] = sum_v.d; }
}
