// attention_products - the softmax of rows of scores and its derivative, between the matrix products of
// attention.
//
//   P[t,j]  = exp(scale * s[t,j] - lse[t])      lse[t] = log sum_j exp(scale * s[t,j])
//   dS[t,j] = P[t,j] * (dP[t,j] - sum_j P[t,j] dP[t,j]) * scale
//
//   s = q k^T, which becomes P, and dP = dy v^T, which becomes dS [N*heads,T,S]    lse [N*heads,T]
//
// The products are those of product/: y = P v, dq = dS k, dk = dS^T q, dv = P^T dy.
// In the causal form only keys j <= t are seen: the others have a P and dS of 0.
//
// attention.wgsl, which names the symbols, never stores a matrix of T x S; this does, and has products at
// full speed instead. LANES threads share a row; each has every LANES-th key.
//!include lib/grid.wgsl

const WG: u32 = 64u;
const LANES: u32 = 1u; // knob: threads that share a row
const_assert 0u == (WG % LANES);
const ROWS: u32 = WG / LANES;

const LOWEST: f32 = -3.0e38;

struct Params {
    rows: u32, keys: u32, // all rows of scores
    scale: f32,
    causal: u32, // 1: query t sees keys 0..=t alone
    first_group: u32, // of this dispatch
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> weights: array<f32>; // s, then P
@group(0) @binding(2) var<storage, read_write> lse: array<f32>;
@group(0) @binding(3) var<storage, read> saved_lse: array<f32>;
@group(0) @binding(4) var<storage, read_write> dscores: array<f32>; // dP, then dS

// Row of a thread, the last one for threads past the end, which store nothing; its first score; the
// thread's number among the LANES; and how many keys the row sees.
struct Place { inside: bool, row: u32, first: u32, lane: u32, seen: u32 }

fn place_of(thread: Invocation) -> Place {
    let row = (p.first_group + flat_group(thread.group, thread.groups)) * ROWS + thread.lane / LANES;
    let within = min(row, p.rows - 1u);
    // A head has as many rows as keys there.
    let seen = select(p.keys, within % p.keys + 1u, p.causal == 1u);
    return Place(row < p.rows, within, within * p.keys, thread.lane % LANES, seen);
}

var<workgroup> cells: array<vec2<f32>, WG>;

@compute @workgroup_size(WG)
fn softmax(thread: Invocation) {
    let at = place_of(thread);
    var top = LOWEST; // largest score so far
    var total = 0.0; // sum of exp(score - top)
    for (var j = at.lane; j < at.seen; j += LANES) {
        let score = p.scale * weights[at.first + j];
        let new_top = max(top, score);
        total = total * exp(top - new_top) + exp(score - new_top);
        top = new_top;
    }
    if LANES > 1u {
        cells[thread.lane] = vec2<f32>(top, total);
        workgroupBarrier();
        let first = thread.lane / LANES * LANES;
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
    var j = at.lane;
    for (; j < at.seen; j += LANES) {
        weights[at.first + j] = exp(p.scale * weights[at.first + j] - top) / total;
    }
    for (; j < p.keys; j += LANES) {
        weights[at.first + j] = 0.0;
    }
    if at.lane == 0u {
        lse[at.row] = top + log(total);
    }
}

@compute @workgroup_size(WG)
fn softmax_backward(thread: Invocation) {
    let at = place_of(thread);
    let norm = saved_lse[at.row];
    // Large scores leave few places of lse behind the point: the sum of the weights is not 1, and is divided
    // out.
    var mean = 0.0; // of dP, with the weights
    var total = 0.0; // of the weights
    for (var j = at.lane; j < at.seen; j += LANES) {
        let weight = exp(p.scale * weights[at.first + j] - norm);
        mean += weight * dscores[at.first + j];
        total += weight;
    }
    if LANES > 1u {
        cells[thread.lane] = vec2<f32>(mean, total);
        workgroupBarrier();
        let first = thread.lane / LANES * LANES;
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
    var j = at.lane;
    for (; j < at.seen; j += LANES) {
        let weight = exp(p.scale * weights[at.first + j] - norm) / total;
        weights[at.first + j] = weight;
        dscores[at.first + j] = weight * (dscores[at.first + j] - mean) * p.scale;
    }
    for (; j < p.keys; j += LANES) {
        weights[at.first + j] = 0.0;
        dscores[at.first + j] = 0.0;
    }
}
