// matmul_tiled - matmul.wgsl for GPUs: products in tiles that a workgroup shares.
//
//   y[m,n] = sum_k A[m,k] * B[k,n] + bias[n]      A = a or its transpose, B = b or its transpose
//
// A workgroup has a tile of ROWS x COLS of y, of one item and one part of K. Its threads fetch DEPTH columns of A and as many
// rows of B into workgroup memory, where every transpose looks alike, then each multiplies for its own rectangle. Parts of K are
// added up by matmul.wgsl.
//
// product: for N, and whichever of M and K lies along the memory of a or of b, multiples of 4: reads and writes vec4s. Reference:
// Goto & van de Geijn 2008 (doi:10.1145/1356052.1356053).
//!include lib/grid.wgsl
//!include lib/product.wgsl
//!include lib/product_ragged.wgsl
//!include lib/tile.wgsl

@group(0) @binding(1) var<storage, read> a4: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b4: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [N]; anything where has_bias is 0
@group(0) @binding(4) var<storage, read_write> y4: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> a: array<f32>;
@group(0) @binding(6) var<storage, read> b: array<f32>;
@group(0) @binding(7) var<storage, read_write> y: array<f32>;

struct Place { item: u32, part: u32, row: u32, col: u32, begin: u32, end: u32 }

fn place(group: u32) -> Place {
    let across = (p.n + COLS - 1u) / COLS;
    let down = (p.m + ROWS - 1u) / ROWS;
    let stack = group / across / down;
    let begin = stack % p.parts * p.depth;
    return Place(
        stack / p.parts, // past the end for the groups that fill the last row of the grid
        stack % p.parts, group / across % down * ROWS, group % across * COLS, begin, min(begin + p.depth, p.k),
    );
}

// The quad that begins with an element of a; zeros where that lies outside the part.
fn a_quad(inside: bool, i: u32) -> vec4<f32> {
    return select(vec4<f32>(), a4[select(0u, i / 4u, inside)], inside);
}

// What a thread puts into tile_a for the columns from k on.
fn fetch_a(at: Place, k: u32, thread: u32) -> Four {
    let first = k + thread % 4u * 4u;
    var four = Four();
    if p.a_transposed == 0u {
        let row = at.row + thread / 4u;
        let i = (at.item * p.m + row) * p.k + first;
        let inside = first < at.end;
        four.k0 = a_quad(inside & (row < p.m), i);
        if FETCH_A > 1u { four.k1 = a_quad(inside & (row + NEXT_A < p.m), i + NEXT_A * p.k); }
        if FETCH_A > 2u { four.k2 = a_quad(inside & (row + 2u * NEXT_A < p.m), i + 2u * NEXT_A * p.k); }
        if FETCH_A > 3u { four.k3 = a_quad(inside & (row + 3u * NEXT_A < p.m), i + 3u * NEXT_A * p.k); }
    } else {
        let row = at.row + thread / 4u * 4u;
        let i = (at.item * p.k + first) * p.m + row;
        let inside = (thread < ROWS) & (row < p.m);
        four.k0 = a_quad(inside & (first < at.end), i);
        four.k1 = a_quad(inside & (first + 1u < at.end), i + p.m);
        four.k2 = a_quad(inside & (first + 2u < at.end), i + 2u * p.m);
        four.k3 = a_quad(inside & (first + 3u < at.end), i + 3u * p.m);
    }
    return four;
}

// What a thread puts into tile_b. Past the last row of the part it gets that again, which tile_a has zeros for, and past the last
// column that, which nobody stores.
fn fetch_b(at: Place, k: u32, thread: u32) -> Four {
    var four = Four();
    if p.b_transposed == 0u {
        let row = k + thread / QUADS_B;
        let last = at.end - 1u;
        let first = at.item * p.k * p.n + min(at.col + thread % QUADS_B * 4u, p.n - 4u);
        four.k0 = b4[(first + min(row, last) * p.n) / 4u];
        if FETCH_B > 1u { four.k1 = b4[(first + min(row + NEXT_B, last) * p.n) / 4u]; }
        if FETCH_B > 2u { four.k2 = b4[(first + min(row + 2u * NEXT_B, last) * p.n) / 4u]; }
        if FETCH_B > 3u { four.k3 = b4[(first + min(row + 3u * NEXT_B, last) * p.n) / 4u]; }
    } else {
        let col = at.col + thread / 4u * 4u;
        let last = p.n - 1u;
        let first = at.item * p.k * p.n + min(k + thread % 4u * 4u, at.end - 4u);
        four.k0 = b4[(first + min(col, last) * p.k) / 4u];
        four.k1 = b4[(first + min(col + 1u, last) * p.k) / 4u];
        four.k2 = b4[(first + min(col + 2u, last) * p.k) / 4u];
        four.k3 = b4[(first + min(col + 3u, last) * p.k) / 4u];
    }
    return four;
}

fn put(thread: u32, a_four: Four, b_four: Four) {
    if p.a_transposed == 0u { put_a(thread, a_four); } else { put_a_turned(thread, a_four); }
    if p.b_transposed == 0u { put_b(thread, b_four); } else { put_b_turned(thread, b_four); }
}

@compute @workgroup_size(WG)
fn product(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = place(p.first_group + flat_group(group, groups));
    if at.item >= p.batch {
        return;
    }
    let x = thread % TX;
    let down = thread / TX;
    var sums = Sums();
    for (var k = at.begin; k < at.end; k += DEPTH) {
        let b_four = fetch_b(at, k, thread);
        let a_four = fetch_a(at, k, thread);
        workgroupBarrier();
        put(thread, a_four, b_four);
        workgroupBarrier();
        multiply_tiles(&sums, x, down);
    }
    let row = at.row + down;
    let col = at.col + 4u * x;
    store_row(at, row, col, sums.a0, sums.b0);
    store_row(at, row + TY, col, sums.a1, sums.b1);
    store_row(at, row + 2u * TY, col, sums.a2, sums.b2);
    store_row(at, row + 3u * TY, col, sums.a3, sums.b3);
    if HIGH == 8u {
        store_row(at, row + 4u * TY, col, sums.a4, sums.b4);
        store_row(at, row + 5u * TY, col, sums.a5, sums.b5);
        store_row(at, row + 6u * TY, col, sums.a6, sums.b6);
        store_row(at, row + 7u * TY, col, sums.a7, sums.b7);
    }
}

fn store_row(at: Place, row: u32, col: u32, left: vec4<f32>, right: vec4<f32>) {
    if row < p.m {
        let line = ((at.part * p.batch + at.item) * p.m + row) * p.n;
        store_quad(line, col, left);
        if BROAD == 8u { store_quad(line, col + 4u * TX, right); }
    }
}

fn store_quad(line: u32, col: u32, sum: vec4<f32>) {
    if col < p.n {
        var shift = vec4<f32>();
        if p.has_bias != 0u {
            shift = vec4<f32>(bias[col], bias[col + 1u], bias[col + 2u], bias[col + 3u]);
        }
        y4[(line + col) / 4u] = sum + shift;
    }
}

fn fetch_a_ragged(at: Place, k: u32, thread: u32) -> Four {
    let first = k + thread % 4u * 4u;
    let row = at.row + thread / 4u;
    var four = Four();
    four.k0 = a_ragged(at.item, row, first, at.end);
    if FETCH_A > 1u { four.k1 = a_ragged(at.item, row + NEXT_A, first, at.end); }
    if FETCH_A > 2u { four.k2 = a_ragged(at.item, row + 2u * NEXT_A, first, at.end); }
    if FETCH_A > 3u { four.k3 = a_ragged(at.item, row + 3u * NEXT_A, first, at.end); }
    return four;
}

fn fetch_b_ragged(at: Place, k: u32, thread: u32) -> Four {
    let row = k + thread / QUADS_B;
    let col = at.col + thread % QUADS_B * 4u;
    var four = Four();
    four.k0 = b_ragged(at.item, row, col, at.end);
    if FETCH_B > 1u { four.k1 = b_ragged(at.item, row + NEXT_B, col, at.end); }
    if FETCH_B > 2u { four.k2 = b_ragged(at.item, row + 2u * NEXT_B, col, at.end); }
    if FETCH_B > 3u { four.k3 = b_ragged(at.item, row + 3u * NEXT_B, col, at.end); }
    return four;
}

// For any sizes, element by element; the tiles are the same.
@compute @workgroup_size(WG)
fn product_ragged(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = place(p.first_group + flat_group(group, groups));
    if at.item >= p.batch {
        return;
    }
    let x = thread % TX;
    let down = thread / TX;
    var sums = Sums();
    for (var k = at.begin; k < at.end; k += DEPTH) {
        let a_four = fetch_a_ragged(at, k, thread);
        let b_four = fetch_b_ragged(at, k, thread);
        workgroupBarrier();
        put_a(thread, a_four);
        put_b(thread, b_four);
        workgroupBarrier();
        multiply_tiles(&sums, x, down);
    }
    let row = at.row + down;
    let col = at.col + 4u * x;
    store_row_ragged(at, row, col, sums.a0, sums.b0);
    store_row_ragged(at, row + TY, col, sums.a1, sums.b1);
    store_row_ragged(at, row + 2u * TY, col, sums.a2, sums.b2);
    store_row_ragged(at, row + 3u * TY, col, sums.a3, sums.b3);
    if HIGH == 8u {
        store_row_ragged(at, row + 4u * TY, col, sums.a4, sums.b4);
        store_row_ragged(at, row + 5u * TY, col, sums.a5, sums.b5);
        store_row_ragged(at, row + 6u * TY, col, sums.a6, sums.b6);
        store_row_ragged(at, row + 7u * TY, col, sums.a7, sums.b7);
    }
}

fn store_row_ragged(at: Place, row: u32, col: u32, left: vec4<f32>, right: vec4<f32>) {
    if row < p.m {
        let line = ((at.part * p.batch + at.item) * p.m + row) * p.n;
        store_four(line, col, left);
        if BROAD == 8u { store_four(line, col + 4u * TX, right); }
    }
}
