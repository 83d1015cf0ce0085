// attention - scaled dot-product attention of several heads; the matrix of weights is never stored.
//
//   s[t,j] = scale * q[t].k[j]     P[t,j] = exp(s[t,j] - lse[t])     lse[t] = log sum_j exp s[t,j]
//   y[t]   = sum_j P[t,j] v[j]     scale = 1/sqrt(D)
//   dS[t,j] = P[t,j] * (dy[t].v[j] - delta[t]) * scale               delta[t] = dy[t].y[t]
//   dq[t]  = sum_j dS[t,j] k[j]    dk[j] = sum_t dS[t,j] q[t]        dv[j] = sum_t P[t,j] dy[t]
//
//   q, y, dq, dy [N,T,heads*D]    k, v, dk, dv [N,S,heads*D]    lse, delta [N,heads,T]    D a multiple of 4
//
// LANES threads share a row (a query; a key in backward_kv), each with QUADS vec4 of its channels in
// registers, and walk over the rows of the other side four at a time. Head widths that are no multiple of 4
// are padded with zeros by `pad` first. Reference: Vaswani et al. 2017 (arXiv:1706.03762); the running
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
    n: u32, heads: u32, d: u32, // as given, before padding
    queries: u32, keys: u32,
    scale: f32,
    rows: u32, // of pad and unpad
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
@group(0) @binding(14) var<storage, read> narrow: array<f32>;
@group(0) @binding(15) var<storage, read_write> padded: array<f32>;
@group(0) @binding(16) var<storage, read> wide: array<f32>;
@group(0) @binding(17) var<storage, read_write> unpadded: array<f32>;

// Which row a thread works on, and which channels of it.
struct Place {
    inside: bool,
    n: u32,
    head: u32,
    row: u32, // the last one for threads past the end, which store nothing
    lane: u32, // among the LANES of the row
    stride: u32, // vec4 from row to row
    first: u32, // vec4 of this head in a row
    quads: u32, // vec4 of a head
}

fn place_of(group: u32, thread: u32, rows: u32) -> Place {
    let blocks = (rows + ROWS - 1u) / ROWS;
    let item = group / blocks;
    let row = (group % blocks) * ROWS + thread / LANES;
    var a: Place;
    a.inside = row < rows && item < p.n * p.heads;
    a.n = min(item / p.heads, p.n - 1u);
    a.head = item % p.heads;
    a.row = min(row, rows - 1u);
    a.lane = thread % LANES;
    a.quads = (p.d + 3u) / 4u;
    a.stride = p.heads * a.quads;
    a.first = a.head * a.quads;
    return a;
}

// A thread's channels of one row. Threads without an i-th vec4 read the last one, and count it as zero.
struct Part { a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32> }

// Offsets of the vec4 in a row.
fn columns(a: Place) -> vec4<u32> {
    let i = vec4<u32>(0u, 1u, 2u, 3u) * LANES + a.lane;
    return a.first + min(i, vec4<u32>(a.quads - 1u));
}

// 1 for the vec4 that a thread has, 0 for those past the head's width.
fn owned(a: Place) -> vec4<f32> {
    let i = vec4<u32>(0u, 1u, 2u, 3u) * LANES + a.lane;
    return select(vec4<f32>(0.0), vec4<f32>(1.0), i < vec4<u32>(a.quads));
}

fn scaled(x: Part, s: vec4<f32>) -> Part {
    return Part(x.a * s.x, x.b * s.y, x.c * s.z, x.d * s.w);
}

fn dot_part(x: Part, y: Part) -> f32 {
    var sum = x.a * y.a;
    if QUADS > 1u { sum += x.b * y.b; }
    if QUADS > 2u { sum += x.c * y.c; }
    if QUADS > 3u { sum += x.d * y.d; }
    return (sum.x + sum.y) + (sum.z + sum.w);
}

// sum + w.x * x0 + w.y * x1 + w.z * x2 + w.w * x3
fn weigh(sum: Part, w: vec4<f32>, x0: Part, x1: Part, x2: Part, x3: Part) -> Part {
    var s = sum;
    s.a += mat4x4<f32>(x0.a, x1.a, x2.a, x3.a) * w;
    if QUADS > 1u { s.b += mat4x4<f32>(x0.b, x1.b, x2.b, x3.b) * w; }
    if QUADS > 2u { s.c += mat4x4<f32>(x0.c, x1.c, x2.c, x3.c) * w; }
    if QUADS > 3u { s.d += mat4x4<f32>(x0.d, x1.d, x2.d, x3.d) * w; }
    return s;
}

// Functions of WGSL cannot take a storage array: one for each.
fn load_q(row: u32, c: vec4<u32>) -> Part {
    var x: Part;
    x.a = q[row + c.x];
    if QUADS > 1u { x.b = q[row + c.y]; }
    if QUADS > 2u { x.c = q[row + c.z]; }
    if QUADS > 3u { x.d = q[row + c.w]; }
    return x;
}

fn load_k(row: u32, c: vec4<u32>) -> Part {
    var x: Part;
    x.a = k[row + c.x];
    if QUADS > 1u { x.b = k[row + c.y]; }
    if QUADS > 2u { x.c = k[row + c.z]; }
    if QUADS > 3u { x.d = k[row + c.w]; }
    return x;
}

fn load_v(row: u32, c: vec4<u32>) -> Part {
    var x: Part;
    x.a = v[row + c.x];
    if QUADS > 1u { x.b = v[row + c.y]; }
    if QUADS > 2u { x.c = v[row + c.z]; }
    if QUADS > 3u { x.d = v[row + c.w]; }
    return x;
}

fn load_y(row: u32, c: vec4<u32>) -> Part {
    var x: Part;
    x.a = saved_y[row + c.x];
    if QUADS > 1u { x.b = saved_y[row + c.y]; }
    if QUADS > 2u { x.c = saved_y[row + c.z]; }
    if QUADS > 3u { x.d = saved_y[row + c.w]; }
    return x;
}

fn load_dy(row: u32, c: vec4<u32>) -> Part {
    var x: Part;
    x.a = dy[row + c.x];
    if QUADS > 1u { x.b = dy[row + c.y]; }
    if QUADS > 2u { x.c = dy[row + c.z]; }
    if QUADS > 3u { x.d = dy[row + c.w]; }
    return x;
}

var<workgroup> cells: array<vec4<f32>, 2u * WG>;

// The sum over the LANES of a row; every thread must call it. `turn` alternates between 0 and 1 from call to
// call, so that the cells of one call are still whole while slower threads read them in the next: one
// barrier is enough.
fn row_sum(value: vec4<f32>, thread: u32, turn: u32) -> vec4<f32> {
    if LANES == 1u {
        return value;
    }
    cells[turn * WG + thread] = value;
    workgroupBarrier();
    let first = turn * WG + thread / LANES * LANES;
    var sum = cells[first];
    for (var i = 1u; i < LANES; i++) {
        sum += cells[first + i];
    }
    return sum;
}

// One row of LANES threads for each (n, head, query).
@compute @workgroup_size(WG)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let a = place_of(p.first_group + flat_group(group, groups), thread, p.queries);
    let c = columns(a);
    let own = owned(a);
    let query = scaled(load_q((a.n * p.queries + a.row) * a.stride, c), own * p.scale);
    let base = a.n * p.keys * a.stride;
    let last = p.keys - 1u;
    var sum: Part;
    var top = LOWEST; // largest score so far
    var total = 0.0; // sum of exp(score - top)
    var turn = 0u;
    for (var j = 0u; j < p.keys; j += 4u) {
        // Keys past the end are read as the last one, with the weight 0.
        let at = base + min(vec4<u32>(j, j + 1u, j + 2u, j + 3u), vec4<u32>(last)) * a.stride;
        let partial = vec4<f32>(
            dot_part(query, load_k(at.x, c)), dot_part(query, load_k(at.y, c)),
            dot_part(query, load_k(at.z, c)), dot_part(query, load_k(at.w, c)),
        );
        let real = vec4<u32>(j, j + 1u, j + 2u, j + 3u) <= vec4<u32>(last);
        let s = select(vec4<f32>(LOWEST), row_sum(partial, thread, turn), real);
        turn = 1u - turn;
        let new_top = max(top, max(max(s.x, s.y), max(s.z, s.w)));
        let shrink = exp(top - new_top);
        let w = exp(s - new_top);
        top = new_top;
        total = total * shrink + ((w.x + w.y) + (w.z + w.w));
        sum = scaled(sum, vec4<f32>(shrink));
        sum = weigh(sum, w, load_v(at.x, c), load_v(at.y, c), load_v(at.z, c), load_v(at.w, c));
    }
    if !a.inside {
        return;
    }
    let out = (a.n * p.queries + a.row) * a.stride;
    if own.x > 0.0 { y[out + c.x] = sum.a / total; }
    if QUADS > 1u && own.y > 0.0 { y[out + c.y] = sum.b / total; }
    if QUADS > 2u && own.z > 0.0 { y[out + c.z] = sum.c / total; }
    if QUADS > 3u && own.w > 0.0 { y[out + c.w] = sum.d / total; }
    if a.lane == 0u {
        lse[(a.n * p.heads + a.head) * p.queries + a.row] = top + log(total);
    }
}

// One row of LANES threads for each (n, head, query). Also leaves delta for backward_kv.
@compute @workgroup_size(WG)
fn backward_q(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let a = place_of(p.first_group + flat_group(group, groups), thread, p.queries);
    let c = columns(a);
    let own = owned(a);
    let at_query = (a.n * p.queries + a.row) * a.stride;
    let query = scaled(load_q(at_query, c), own * p.scale);
    let slope = scaled(load_dy(at_query, c), own);
    let here = row_sum(vec4<f32>(dot_part(slope, load_y(at_query, c))), thread, 0u).x;
    let in_lse = (a.n * p.heads + a.head) * p.queries + a.row;
    let norm = saved_lse[in_lse];
    let base = a.n * p.keys * a.stride;
    let last = p.keys - 1u;
    var sum: Part;
    for (var j = 0u; j < p.keys; j += 4u) {
        let at = base + min(vec4<u32>(j, j + 1u, j + 2u, j + 3u), vec4<u32>(last)) * a.stride;
        let k0 = load_k(at.x, c);
        let k1 = load_k(at.y, c);
        let k2 = load_k(at.z, c);
        let k3 = load_k(at.w, c);
        let s = row_sum(
            vec4<f32>(
                dot_part(query, k0), dot_part(query, k1), dot_part(query, k2), dot_part(query, k3),
            ), thread, 1u);
        let dp = row_sum(
            vec4<f32>(
                dot_part(slope, load_v(at.x, c)), dot_part(slope, load_v(at.y, c)),
                dot_part(slope, load_v(at.z, c)), dot_part(slope, load_v(at.w, c)),
            ), thread, 0u);
        let real = vec4<u32>(j, j + 1u, j + 2u, j + 3u) <= vec4<u32>(last);
        let w = select(vec4<f32>(0.0), exp(s - norm) * (dp - here) * p.scale, real);
        sum = weigh(sum, w, k0, k1, k2, k3);
    }
    if !a.inside {
        return;
    }
    if own.x > 0.0 { dq[at_query + c.x] = sum.a; }
    if QUADS > 1u && own.y > 0.0 { dq[at_query + c.y] = sum.b; }
    if QUADS > 2u && own.z > 0.0 { dq[at_query + c.z] = sum.c; }
    if QUADS > 3u && own.w > 0.0 { dq[at_query + c.w] = sum.d; }
    if a.lane == 0u {
        new_delta[in_lse] = here;
    }
}

// One row of LANES threads for each (n, head, key).
@compute @workgroup_size(WG)
fn backward_kv(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let a = place_of(p.first_group + flat_group(group, groups), thread, p.keys);
    let c = columns(a);
    let own = owned(a);
    let at_key = (a.n * p.keys + a.row) * a.stride;
    let key = scaled(load_k(at_key, c), own * p.scale);
    let value = scaled(load_v(at_key, c), own);
    let base = a.n * p.queries * a.stride;
    let in_lse = (a.n * p.heads + a.head) * p.queries;
    let last = p.queries - 1u;
    var sum_k: Part;
    var sum_v: Part;
    for (var t = 0u; t < p.queries; t += 4u) {
        let row = min(vec4<u32>(t, t + 1u, t + 2u, t + 3u), vec4<u32>(last));
        let at = base + row * a.stride;
        let q0 = load_q(at.x, c);
        let q1 = load_q(at.y, c);
        let q2 = load_q(at.z, c);
        let q3 = load_q(at.w, c);
        let d0 = load_dy(at.x, c);
        let d1 = load_dy(at.y, c);
        let d2 = load_dy(at.z, c);
        let d3 = load_dy(at.w, c);
        let s = row_sum(
            vec4<f32>(
                dot_part(key, q0), dot_part(key, q1), dot_part(key, q2), dot_part(key, q3),
            ), thread, 0u);
        let dp = row_sum(
            vec4<f32>(
                dot_part(value, d0), dot_part(value, d1), dot_part(value, d2), dot_part(value, d3),
            ), thread, 1u);
        let i = in_lse + row;
        let norm = vec4<f32>(saved_lse[i.x], saved_lse[i.y], saved_lse[i.z], saved_lse[i.w]);
        let there = vec4<f32>(delta[i.x], delta[i.y], delta[i.z], delta[i.w]);
        let real = vec4<u32>(t, t + 1u, t + 2u, t + 3u) <= vec4<u32>(last);
        let w = select(vec4<f32>(0.0), exp(s - norm), real);
        sum_v = weigh(sum_v, w, d0, d1, d2, d3);
        sum_k = weigh(sum_k, w * (dp - there) * p.scale, q0, q1, q2, q3);
    }
    if !a.inside {
        return;
    }
    if own.x > 0.0 { dk[at_key + c.x] = sum_k.a; dv[at_key + c.x] = sum_v.a; }
    if QUADS > 1u && own.y > 0.0 { dk[at_key + c.y] = sum_k.b; dv[at_key + c.y] = sum_v.b; }
    if QUADS > 2u && own.z > 0.0 { dk[at_key + c.z] = sum_k.c; dv[at_key + c.z] = sum_v.c; }
    if QUADS > 3u && own.w > 0.0 { dk[at_key + c.w] = sum_k.d; dv[at_key + c.w] = sum_v.d; }
}

// padded [rows, heads, D up to a multiple of 4] = narrow [rows, heads, D] and zeros. One thread for each
// element.
@compute @workgroup_size(WG)
fn pad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = (p.first_group + flat_group(group, groups)) * WG + thread;
    let width = (p.d + 3u) / 4u * 4u;
    if i < p.rows * p.heads * width {
        let channel = i % width;
        var value = 0.0;
        if channel < p.d {
            value = narrow[i / width * p.d + channel];
        }
        padded[i] = value;
    }
}

// The inverse of pad.
@compute @workgroup_size(WG)
fn unpad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = (p.first_group + flat_group(group, groups)) * WG + thread;
    if i < p.rows * p.heads * p.d {
        unpadded[i] = wide[i / p.d * ((p.d + 3u) / 4u * 4u) + i % p.d];
    }
}
