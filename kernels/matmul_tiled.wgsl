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

fn a_row_quad(item: u32, row: u32, k: u32, end: u32) -> vec4<f32> {
    if row >= p.m || k >= end {
        return vec4<f32>();
    }
    return a4[((item * p.m + row) * p.k + k) / 4u];
}

fn a_column_quad(item: u32, row: u32, k: u32, end: u32) -> vec4<f32> {
    if row >= p.m || k >= end {
        return vec4<f32>();
    }
    return a4[((item * p.k + k) * p.m + row) / 4u];
}

fn b_row_quad(item: u32, k: u32, col: u32, end: u32) -> vec4<f32> {
    if col >= p.n || k >= end {
        return vec4<f32>();
    }
    return b4[((item * p.k + k) * p.n + col) / 4u];
}

fn b_column_quad(item: u32, k: u32, col: u32, end: u32) -> vec4<f32> {
    if col >= p.n || k >= end {
        return vec4<f32>();
    }
    return b4[((item * p.n + col) * p.k + k) / 4u];
}

fn fetch_a(at: Place, k: u32, thread: u32) {
    let quad = thread % 4u;
    let first = k + 4u * quad;
    if p.a_transposed == 0u {
        for (var i = thread / 4u; i < ROWS; i += WG / 4u) {
            tile_a[i * PITCH_A + quad] = a_row_quad(at.item, at.row + i, first, at.end);
        }
    } else {
        // Four rows of four k at a time, turned over on the way.
        for (var i = thread / 4u * 4u; i < ROWS; i += WG) {
            let row = at.row + i;
            let four = transpose(mat4x4<f32>(
                a_column_quad(at.item, row, first, at.end), a_column_quad(at.item, row, first + 1u, at.end),
                a_column_quad(at.item, row, first + 2u, at.end), a_column_quad(at.item, row, first + 3u, at.end),
            ));
            tile_a[i * PITCH_A + quad] = four[0];
            tile_a[(i + 1u) * PITCH_A + quad] = four[1];
            tile_a[(i + 2u) * PITCH_A + quad] = four[2];
            tile_a[(i + 3u) * PITCH_A + quad] = four[3];
        }
    }
}

fn fetch_b(at: Place, k: u32, thread: u32) {
    if p.b_transposed == 0u {
        for (var i = thread; i < DEPTH * QUADS_B; i += WG) {
            let row = i / QUADS_B;
            let col = i % QUADS_B;
            tile_b[row * PITCH_B + col] = b_row_quad(at.item, k + row, at.col + 4u * col, at.end);
        }
    } else {
        for (var i = thread; i < DEPTH * QUADS_B / 4u; i += WG) {
            let row = i % (DEPTH / 4u) * 4u;
            let quad = i / (DEPTH / 4u);
            let col = at.col + 4u * quad;
            let four = transpose(mat4x4<f32>(
                b_column_quad(at.item, k + row, col, at.end), b_column_quad(at.item, k + row, col + 1u, at.end),
                b_column_quad(at.item, k + row, col + 2u, at.end), b_column_quad(at.item, k + row, col + 3u, at.end),
            ));
            tile_b[row * PITCH_B + quad] = four[0];
            tile_b[(row + 1u) * PITCH_B + quad] = four[1];
            tile_b[(row + 2u) * PITCH_B + quad] = four[2];
            tile_b[(row + 3u) * PITCH_B + quad] = four[3];
        }
    }
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
        workgroupBarrier();
        fetch_a(at, k, thread);
        fetch_b(at, k, thread);
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

// A[row, k] and B[k, col], 0 outside.
fn a_at(item: u32, row: u32, k: u32, end: u32) -> f32 {
    if row >= p.m || k >= end {
        return 0.0;
    }
    return a[item * p.m * p.k + select(row * p.k + k, k * p.m + row, p.a_transposed != 0u)];
}

fn b_at(item: u32, k: u32, col: u32, end: u32) -> f32 {
    if col >= p.n || k >= end {
        return 0.0;
    }
    return b[item * p.k * p.n + select(k * p.n + col, col * p.k + k, p.b_transposed != 0u)];
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
    let quad = thread % 4u;
    var sums = Sums();
    for (var k = at.begin; k < at.end; k += DEPTH) {
        workgroupBarrier();
        for (var i = thread / 4u; i < ROWS; i += WG / 4u) {
            let row = at.row + i;
            let first = k + 4u * quad;
            tile_a[i * PITCH_A + quad] = vec4<f32>(
                a_at(at.item, row, first, at.end), a_at(at.item, row, first + 1u, at.end),
                a_at(at.item, row, first + 2u, at.end), a_at(at.item, row, first + 3u, at.end),
            );
        }
        for (var i = thread; i < DEPTH * QUADS_B; i += WG) {
            let first = k + i / QUADS_B;
            let col = at.col + i % QUADS_B * 4u;
            tile_b[i / QUADS_B * PITCH_B + i % QUADS_B] = vec4<f32>(
                b_at(at.item, first, col, at.end), b_at(at.item, first, col + 1u, at.end),
                b_at(at.item, first, col + 2u, at.end), b_at(at.item, first, col + 3u, at.end),
            );
        }
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

fn store_four(line: u32, col: u32, sum: vec4<f32>) {
    store_one(line, col, sum.x);
    store_one(line, col + 1u, sum.y);
    store_one(line, col + 2u, sum.z);
    store_one(line, col + 3u, sum.w);
}

fn store_one(line: u32, col: u32, sum: f32) {
    if col < p.n {
        var shift = 0.0;
        if p.has_bias != 0u {
            shift = bias[col];
        }
        y[line + col] = sum + shift;
    }
}
