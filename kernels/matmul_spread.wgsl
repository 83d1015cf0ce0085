// matmul_spread - matmul.wgsl without workgroup memory: lanes of a subgroup share what they read. For drivers on a CPU.
//
//   y[m,n] = sum_k A[m,k] * B[k,n] + bias[n]      A = a or its transpose, B = b or its transpose
//
// product: eight threads for 64 rows and 32 columns of y, of one item and one part of K: 4 columns each, and every eighth element
// of a column of A, which its neighbours read for it. Many sums for each number that is read, because on such drivers a load
// costs as much as some tens of multiplications, and as much alone as in a vec4. Parts of K are added up by matmul.wgsl.
//
// product_broad: eight threads for 128 rows and 128 columns, of one item, for K and N multiples of 4 and no transpose. The sums
// take 64 KiB then and leave the first-level cache, which costs less than what they save: a number that is read serves 128.
//!include lib/grid.wgsl
//!include lib/product.wgsl
//!include lib/spread.wgsl

const WG: u32 = 8u;

@group(0) @binding(1) var<storage, read> a: array<f32>;
@group(0) @binding(2) var<storage, read> b: array<f32>;
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [N]; anything where has_bias is 0
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

// Rows and columns past the end are computed as the last ones, and not stored: every lane is needed for what it reads.
fn a_row(item: u32, row: u32) -> u32 {
    return item * p.m * p.k + min(row, p.m - 1u) * select(p.k, 1u, p.a_transposed != 0u);
}

fn b_column(item: u32, col: u32) -> u32 {
    return item * p.k * p.n + min(col, p.n - 1u) * select(1u, p.k, p.b_transposed != 0u);
}

fn a_four(row: u32, ka: vec4<u32>, real: vec4<bool>) -> vec4<f32> {
    return select(vec4<f32>(), vec4<f32>(a[row + ka.x], a[row + ka.y], a[row + ka.z], a[row + ka.w]), real);
}

fn store_eight(line: u32, row: u32, col: u32, s: Eight) {
    store_row(line, row, col, s.a);
    store_row(line, row + 1u, col, s.b);
    store_row(line, row + 2u, col, s.c);
    store_row(line, row + 3u, col, s.d);
    store_row(line, row + 4u, col, s.e);
    store_row(line, row + 5u, col, s.f);
    store_row(line, row + 6u, col, s.g);
    store_row(line, row + 7u, col, s.h);
}

fn store_row(line: u32, row: u32, col: u32, sum: vec4<f32>) {
    if row < p.m {
        let at = (line + row) * p.n;
        store_one(at, col, sum.x);
        store_one(at, col + 1u, sum.y);
        store_one(at, col + 2u, sum.z);
        store_one(at, col + 3u, sum.w);
    }
}

fn store_one(at: u32, col: u32, sum: f32) {
    if col < p.n {
        y[at + col] = sum;
    }
}

@compute @workgroup_size(WG)
fn product(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let across = (p.n + 4u * WG - 1u) / (4u * WG);
    let down = (p.m + 63u) / 64u;
    let flat = p.first_group + flat_group(group, groups);
    let stack = flat / across / down;
    let item = stack / p.parts;
    if item >= p.batch {
        return;
    }
    let part = stack % p.parts;
    let row = flat / across % down * 64u;
    let col = flat % across * 4u * WG + 4u * thread;
    let own = row + subgroup_lane % 8u;
    let a0 = a_row(item, own);
    let a1 = a_row(item, own + 8u);
    let a2 = a_row(item, own + 16u);
    let a3 = a_row(item, own + 24u);
    let a4 = a_row(item, own + 32u);
    let a5 = a_row(item, own + 40u);
    let a6 = a_row(item, own + 48u);
    let a7 = a_row(item, own + 56u);
    let b0 = b_column(item, col);
    let b1 = b_column(item, col + 1u);
    let b2 = b_column(item, col + 2u);
    let b3 = b_column(item, col + 3u);
    let next_a = select(1u, p.m, p.a_transposed != 0u);
    let next_b = select(p.n, 1u, p.b_transposed != 0u);
    var shift = vec4<f32>();
    if p.has_bias != 0u {
        let last = p.n - 1u;
        shift = vec4<f32>(
            bias[min(col, last)], bias[min(col + 1u, last)], bias[min(col + 2u, last)], bias[min(col + 3u, last)],
        );
    }
    let start = Eight(shift, shift, shift, shift, shift, shift, shift, shift);
    var s0 = start;
    var s1 = start;
    var s2 = start;
    var s3 = start;
    var s4 = start;
    var s5 = start;
    var s6 = start;
    var s7 = start;
    let end = min((part + 1u) * p.depth, p.k);
    for (var k = part * p.depth; k < end; k += 4u) {
        // Those past the end count as 0: in a, so that it does not matter what b is.
        let ks = min(vec4<u32>(k, k + 1u, k + 2u, k + 3u), vec4<u32>(end - 1u));
        let ka = ks * next_a;
        let kb = ks * next_b;
        let real = vec4<u32>(k, k + 1u, k + 2u, k + 3u) < vec4<u32>(end);
        let c = Four(
            vec4<f32>(b[b0 + kb.x], b[b1 + kb.x], b[b2 + kb.x], b[b3 + kb.x]),
            vec4<f32>(b[b0 + kb.y], b[b1 + kb.y], b[b2 + kb.y], b[b3 + kb.y]),
            vec4<f32>(b[b0 + kb.z], b[b1 + kb.z], b[b2 + kb.z], b[b3 + kb.z]),
            vec4<f32>(b[b0 + kb.w], b[b1 + kb.w], b[b2 + kb.w], b[b3 + kb.w]),
        );
        s0 = spread(s0, a_four(a0, ka, real), c);
        s1 = spread(s1, a_four(a1, ka, real), c);
        s2 = spread(s2, a_four(a2, ka, real), c);
        s3 = spread(s3, a_four(a3, ka, real), c);
        s4 = spread(s4, a_four(a4, ka, real), c);
        s5 = spread(s5, a_four(a5, ka, real), c);
        s6 = spread(s6, a_four(a6, ka, real), c);
        s7 = spread(s7, a_four(a7, ka, real), c);
    }
    let line = (part * p.batch + item) * p.m;
    store_eight(line, row, col, s0);
    store_eight(line, row + 8u, col, s1);
    store_eight(line, row + 16u, col, s2);
    store_eight(line, row + 24u, col, s3);
    store_eight(line, row + 32u, col, s4);
    store_eight(line, row + 40u, col, s5);
    store_eight(line, row + 48u, col, s6);
    store_eight(line, row + 56u, col, s7);
}

@group(0) @binding(5) var<storage, read> a4: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> b4: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read_write> y4: array<vec4<f32>>;

// Eight rows of 16 columns, which lie 32 apart in fours; and four k of those columns.
struct Broad { a: Eight, b: Eight, c: Eight, d: Eight }
struct Columns { a: Four, b: Four, c: Four, d: Four }

fn spread_broad(sums: Broad, v: vec4<f32>, c: Columns) -> Broad {
    return Broad(spread(sums.a, v, c.a), spread(sums.b, v, c.b), spread(sums.c, v, c.c), spread(sums.d, v, c.d));
}

// First vec4 of a row of a.
fn quad_row(item: u32, row: u32) -> u32 {
    return (item * p.m + min(row, p.m - 1u)) * (p.k / 4u);
}

fn b_four(at: u32, lanes: u32) -> Four {
    return Four(b4[at], b4[at + lanes], b4[at + 2u * lanes], b4[at + 3u * lanes]);
}

fn bias_four(lane: u32) -> Eight {
    var four = vec4<f32>();
    if p.has_bias != 0u {
        four = vec4<f32>(bias[4u * lane], bias[4u * lane + 1u], bias[4u * lane + 2u], bias[4u * lane + 3u]);
    }
    return Eight(four, four, four, four, four, four, four, four);
}

fn store_broad(item: u32, row: u32, lane: u32, s: Broad) {
    store_lane(item, row, lane, s.a);
    store_lane(item, row, lane + WG, s.b);
    store_lane(item, row, lane + 2u * WG, s.c);
    store_lane(item, row, lane + 3u * WG, s.d);
}

fn store_lane(item: u32, row: u32, lane: u32, s: Eight) {
    store_quad(item, row, lane, s.a);
    store_quad(item, row + 1u, lane, s.b);
    store_quad(item, row + 2u, lane, s.c);
    store_quad(item, row + 3u, lane, s.d);
    store_quad(item, row + 4u, lane, s.e);
    store_quad(item, row + 5u, lane, s.f);
    store_quad(item, row + 6u, lane, s.g);
    store_quad(item, row + 7u, lane, s.h);
}

fn store_quad(item: u32, row: u32, lane: u32, sum: vec4<f32>) {
    if row < p.m && lane < p.n / 4u {
        y4[(item * p.m + row) * (p.n / 4u) + lane] = sum;
    }
}

@compute @workgroup_size(WG)
fn product_broad(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let lanes = p.n / 4u;
    let quads = p.k / 4u;
    let across = (p.n + 127u) / 128u;
    let down = (p.m + 127u) / 128u;
    let flat = p.first_group + flat_group(group, groups);
    let item = flat / across / down;
    if item >= p.batch {
        return;
    }
    let row = flat / across % down * 128u;
    let lane = flat % across * 4u * WG + thread;
    // As above, what is past the end is computed as the last.
    let l0 = min(lane, lanes - 1u);
    let l1 = min(lane + WG, lanes - 1u);
    let l2 = min(lane + 2u * WG, lanes - 1u);
    let l3 = min(lane + 3u * WG, lanes - 1u);
    let own = row + subgroup_lane % 8u;
    let r0 = quad_row(item, own);
    let r1 = quad_row(item, own + 8u);
    let r2 = quad_row(item, own + 16u);
    let r3 = quad_row(item, own + 24u);
    let r4 = quad_row(item, own + 32u);
    let r5 = quad_row(item, own + 40u);
    let r6 = quad_row(item, own + 48u);
    let r7 = quad_row(item, own + 56u);
    let r8 = quad_row(item, own + 64u);
    let r9 = quad_row(item, own + 72u);
    let r10 = quad_row(item, own + 80u);
    let r11 = quad_row(item, own + 88u);
    let r12 = quad_row(item, own + 96u);
    let r13 = quad_row(item, own + 104u);
    let r14 = quad_row(item, own + 112u);
    let r15 = quad_row(item, own + 120u);
    let start = Broad(bias_four(l0), bias_four(l1), bias_four(l2), bias_four(l3));
    var s0 = start;
    var s1 = start;
    var s2 = start;
    var s3 = start;
    var s4 = start;
    var s5 = start;
    var s6 = start;
    var s7 = start;
    var s8 = start;
    var s9 = start;
    var s10 = start;
    var s11 = start;
    var s12 = start;
    var s13 = start;
    var s14 = start;
    var s15 = start;
    for (var k = 0u; k < quads; k++) {
        let at = (item * p.k + 4u * k) * lanes;
        let c = Columns(b_four(at + l0, lanes), b_four(at + l1, lanes), b_four(at + l2, lanes), b_four(at + l3, lanes));
        s0 = spread_broad(s0, a4[r0 + k], c);
        s1 = spread_broad(s1, a4[r1 + k], c);
        s2 = spread_broad(s2, a4[r2 + k], c);
        s3 = spread_broad(s3, a4[r3 + k], c);
        s4 = spread_broad(s4, a4[r4 + k], c);
        s5 = spread_broad(s5, a4[r5 + k], c);
        s6 = spread_broad(s6, a4[r6 + k], c);
        s7 = spread_broad(s7, a4[r7 + k], c);
        s8 = spread_broad(s8, a4[r8 + k], c);
        s9 = spread_broad(s9, a4[r9 + k], c);
        s10 = spread_broad(s10, a4[r10 + k], c);
        s11 = spread_broad(s11, a4[r11 + k], c);
        s12 = spread_broad(s12, a4[r12 + k], c);
        s13 = spread_broad(s13, a4[r13 + k], c);
        s14 = spread_broad(s14, a4[r14 + k], c);
        s15 = spread_broad(s15, a4[r15 + k], c);
    }
    store_broad(item, row, lane, s0);
    store_broad(item, row + 8u, lane, s1);
    store_broad(item, row + 16u, lane, s2);
    store_broad(item, row + 24u, lane, s3);
    store_broad(item, row + 32u, lane, s4);
    store_broad(item, row + 40u, lane, s5);
    store_broad(item, row + 48u, lane, s6);
    store_broad(item, row + 56u, lane, s7);
    store_broad(item, row + 64u, lane, s8);
    store_broad(item, row + 72u, lane, s9);
    store_broad(item, row + 80u, lane, s10);
    store_broad(item, row + 88u, lane, s11);
    store_broad(item, row + 96u, lane, s12);
    store_broad(item, row + 104u, lane, s13);
    store_broad(item, row + 112u, lane, s14);
    store_broad(item, row + 120u, lane, s15);
}
