// attention_products - what attention by matrix products needs beside them: the softmax of rows, and its
// derivative.
//
//   P[t,j]  = exp(scale * s[t,j] - lse[t])     lse[t] = log sum_j exp(scale * s[t,j])     s = q k^T, which becomes P
//   dS[t,j] = P[t,j] * (dP[t,j] - sum_j P[t,j] dP[t,j]) * scale                           dP = dy v^T, which becomes dS
//
//   s, dP [N*heads,T,S]    lse [N*heads,T]    whole [N,rows,heads*D]    parts [N,heads,rows,D]
//
// The products are those of product/: y = P v, dq = dS k, dk = dS^T q, dv = P^T dy.
// attention.wgsl, which names the symbols, never stores a matrix of T x S; this does, and has products at
// full speed instead.
//
// softmax, slopes: LANES threads a row; each has every LANES-th key. take_heads gives each head a matrix of
// its own, give_heads puts them back: one thread for each element.
//!include lib/grid.wgsl

const WG: u32 = 64u;
const LANES: u32 = 1u; // knob: threads that share a row
const_assert 0u == (WG % LANES);
const ROWS: u32 = WG / LANES;

const LOWEST: f32 = -3.0e38;

struct Params {
    rows: u32, keys: u32, // all rows of scores
    heads: u32, side: u32, d: u32, count: u32, // of take_heads and give_heads: rows of a sample, elements
    scale: f32,
    first_group: u32, // of this dispatch
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> weights: array<f32>; // s, then P
@group(0) @binding(2) var<storage, read_write> lse: array<f32>;
@group(0) @binding(3) var<storage, read> saved_lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> weights_slopes: array<f32>; // dP, then dS
@group(0) @binding(5) var<storage, read> whole: array<f32>;
@group(0) @binding(6) var<storage, read_write> parts: array<f32>;
@group(0) @binding(7) var<storage, read> saved_parts: array<f32>;
@group(0) @binding(8) var<storage, read_write> whole_out: array<f32>;

// Row of a thread, the last one for threads past the end, which store nothing; and its place among the LANES.
struct Place { inside: bool, row: u32, first: u32, lane: u32 }

fn place_of(group: u32, thread: u32) -> Place {
    let row = group * ROWS + thread / LANES;
    let within = min(row, p.rows - 1u);
    return Place(row < p.rows, within, within * p.keys, thread % LANES);
}

var<workgroup> cells: array<vec2<f32>, WG>;

@compute @workgroup_size(WG)
fn softmax(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = place_of(p.first_group + flat_group(group, groups), thread);
    var top = LOWEST; // largest score so far
    var total = 0.0; // sum of exp(score - top)
    for (var j = at.lane; j < p.keys; j += LANES) {
        let score = p.scale * weights[at.first + j];
        let new_top = max(top, score);
        total = total * exp(top - new_top) + exp(score - new_top);
        top = new_top;
    }
    if LANES > 1u {
        cells[thread] = vec2<f32>(top, total);
        workgroupBarrier();
        let first = thread / LANES * LANES;
        top = LOWEST;
        for (var i = 0u; i < LANES; i++) {
            top = max(top, cells[first + i].x);
        }
        total = 0.0;
        for (var i = 0u; i < LANES; i++) {
            total += cells[first + i].y * exp(cells[first + i].x - top);
        }
    }
    if !at.inside {
        return;
    }
    for (var j = at.lane; j < p.keys; j += LANES) {
        weights[at.first + j] = exp(p.scale * weights[at.first + j] - top) / total;
    }
    if at.lane == 0u {
        lse[at.row] = top + log(total);
    }
}

@compute @workgroup_size(WG)
fn slopes(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = place_of(p.first_group + flat_group(group, groups), thread);
    let norm = saved_lse[at.row];
    // Large scores leave little of lse behind the point: what the weights come to is not 1, and is divided
    // out.
    var mean = 0.0; // of dP, with the weights
    var total = 0.0; // of the weights
    for (var j = at.lane; j < p.keys; j += LANES) {
        let weight = exp(p.scale * weights[at.first + j] - norm);
        mean += weight * weights_slopes[at.first + j];
        total += weight;
    }
    if LANES > 1u {
        cells[thread] = vec2<f32>(mean, total);
        workgroupBarrier();
        let first = thread / LANES * LANES;
        mean = 0.0;
        total = 0.0;
        for (var i = 0u; i < LANES; i++) {
            mean += cells[first + i].x;
            total += cells[first + i].y;
        }
    }
    mean /= total;
    if !at.inside {
        return;
    }
    for (var j = at.lane; j < p.keys; j += LANES) {
        let weight = exp(p.scale * weights[at.first + j] - norm) / total;
        weights[at.first + j] = weight;
        weights_slopes[at.first + j] = weight * (weights_slopes[at.first + j] - mean) * p.scale;
    }
}

// Where element i of parts lies in whole.
fn in_whole(i: u32) -> u32 {
    let line = i / p.d; // (n * heads + head) * side + row
    let pair = line / p.side;
    let n = pair / p.heads;
    return ((n * p.side + line - pair * p.side) * p.heads + pair - n * p.heads) * p.d + i - line * p.d;
}

@compute @workgroup_size(WG)
fn take_heads(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = (p.first_group + flat_group(group, groups)) * WG + thread;
    if i < p.count {
        parts[i] = whole[in_whole(i)];
    }
}

@compute @workgroup_size(WG)
fn give_heads(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = (p.first_group + flat_group(group, groups)) * WG + thread;
    if i < p.count {
        whole_out[in_whole(i)] = saved_parts[i];
    }
}
