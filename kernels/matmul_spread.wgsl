// matmul_spread - matmul.wgsl without workgroup memory: lanes of a subgroup share what they read. For drivers on a CPU.
//
//   y[m,n] = sum_k A[m,k] * B[k,n] + bias[n]      A = a or its transpose, B = b or its transpose
//
// product: eight threads for 64 rows and 32 columns of y, of one item and one part of K: 4 columns each, and every eighth element
// of a column of A, which its neighbours read for it. Many sums for each number that is read, because on such drivers a load
// costs as much as some tens of multiplications, and as much alone as in a vec4. Parts of K are added up by matmul.wgsl.
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
        let ka0 = k * next_a;
        let kb0 = k * next_b;
        let c0 = vec4<f32>(b[b0 + kb0], b[b1 + kb0], b[b2 + kb0], b[b3 + kb0]);
        s0 = spread(s0, a[a0 + ka0], c0);
        s1 = spread(s1, a[a1 + ka0], c0);
        s2 = spread(s2, a[a2 + ka0], c0);
        s3 = spread(s3, a[a3 + ka0], c0);
        s4 = spread(s4, a[a4 + ka0], c0);
        s5 = spread(s5, a[a5 + ka0], c0);
        s6 = spread(s6, a[a6 + ka0], c0);
        s7 = spread(s7, a[a7 + ka0], c0);
        let ka1 = min(k + 1u, end - 1u) * next_a;
        let kb1 = min(k + 1u, end - 1u) * next_b;
        let c1 = vec4<f32>(b[b0 + kb1], b[b1 + kb1], b[b2 + kb1], b[b3 + kb1]);
        s0 = spread(s0, select(0.0, a[a0 + ka1], k + 1u < end), c1);
        s1 = spread(s1, select(0.0, a[a1 + ka1], k + 1u < end), c1);
        s2 = spread(s2, select(0.0, a[a2 + ka1], k + 1u < end), c1);
        s3 = spread(s3, select(0.0, a[a3 + ka1], k + 1u < end), c1);
        s4 = spread(s4, select(0.0, a[a4 + ka1], k + 1u < end), c1);
        s5 = spread(s5, select(0.0, a[a5 + ka1], k + 1u < end), c1);
        s6 = spread(s6, select(0.0, a[a6 + ka1], k + 1u < end), c1);
        s7 = spread(s7, select(0.0, a[a7 + ka1], k + 1u < end), c1);
        let ka2 = min(k + 2u, end - 1u) * next_a;
        let kb2 = min(k + 2u, end - 1u) * next_b;
        let c2 = vec4<f32>(b[b0 + kb2], b[b1 + kb2], b[b2 + kb2], b[b3 + kb2]);
        s0 = spread(s0, select(0.0, a[a0 + ka2], k + 2u < end), c2);
        s1 = spread(s1, select(0.0, a[a1 + ka2], k + 2u < end), c2);
        s2 = spread(s2, select(0.0, a[a2 + ka2], k + 2u < end), c2);
        s3 = spread(s3, select(0.0, a[a3 + ka2], k + 2u < end), c2);
        s4 = spread(s4, select(0.0, a[a4 + ka2], k + 2u < end), c2);
        s5 = spread(s5, select(0.0, a[a5 + ka2], k + 2u < end), c2);
        s6 = spread(s6, select(0.0, a[a6 + ka2], k + 2u < end), c2);
        s7 = spread(s7, select(0.0, a[a7 + ka2], k + 2u < end), c2);
        let ka3 = min(k + 3u, end - 1u) * next_a;
        let kb3 = min(k + 3u, end - 1u) * next_b;
        let c3 = vec4<f32>(b[b0 + kb3], b[b1 + kb3], b[b2 + kb3], b[b3 + kb3]);
        s0 = spread(s0, select(0.0, a[a0 + ka3], k + 3u < end), c3);
        s1 = spread(s1, select(0.0, a[a1 + ka3], k + 3u < end), c3);
        s2 = spread(s2, select(0.0, a[a2 + ka3], k + 3u < end), c3);
        s3 = spread(s3, select(0.0, a[a3 + ka3], k + 3u < end), c3);
        s4 = spread(s4, select(0.0, a[a4 + ka3], k + 3u < end), c3);
        s5 = spread(s5, select(0.0, a[a5 + ka3], k + 3u < end), c3);
        s6 = spread(s6, select(0.0, a[a6 + ka3], k + 3u < end), c3);
        s7 = spread(s7, select(0.0, a[a7 + ka3], k + 3u < end), c3);
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
