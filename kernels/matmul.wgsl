// matmul - matrix products, one for each batch item, with an optional bias per column.
//
//   y[m,n] = sum_k A[m,k] * B[k,n] + bias[n]      A = a or its transpose, B = b or its transpose
//   dbias[n] = sum over rows of dy[row,n]
//
//   a [batch,M,K] or [batch,K,M]    b [batch,K,N] or [batch,N,K]    y [batch,M,N]    bias, dbias [N]
//
// product: one thread for each 4 x 4 tile of y, TX x TY threads a workgroup, one workgroup for each (batch,
// part of K, tile). Long sums over few elements of y are cut into `parts` of `depth` to fill the GPU: then y
// is the scratch [parts,batch,M,N] and sum_parts adds the parts in their order. No workgroup memory:
// neighbours meet in the cache; matmul_tiled.wgsl and matmul_spread.wgsl share what is read. Reference:
// Goto & van de Geijn 2008 (doi:10.1145/1356052.1356053), of which this is the innermost tile.
//!include lib/grid.wgsl
//!include lib/product.wgsl
//!include lib/product_ragged.wgsl

const TX: u32 = 16u; // knob: threads of a workgroup along N, 4 columns each
const TY: u32 = 16u; // knob: threads of a workgroup along M, 4 rows each
const WG: u32 = 256u;
const_assert WG >= (TX * TY);

const COLUMNS: u32 = 64u; // columns that a workgroup of column_sum_parts takes, WG / COLUMNS threads each
const LANES: u32 = WG / COLUMNS;

@group(0) @binding(1) var<storage, read> a4: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> b4: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read> bias: array<f32>; // [N]; anything where has_bias is 0
@group(0) @binding(4) var<storage, read_write> y4: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> a: array<f32>;
@group(0) @binding(6) var<storage, read> b: array<f32>;
@group(0) @binding(7) var<storage, read_write> y: array<f32>;
@group(0) @binding(8) var<storage, read> part_sums: array<f32>; // [parts, count of y]
@group(0) @binding(9) var<storage, read> dy: array<f32>; // [rows, N]
@group(0) @binding(10) var<storage, read_write> column_parts: array<f32>; // [parts, N]

// What one thread computes: rows row..row+4 and columns col..col+4 of one item, summed over k_begin..k_end.
struct Tile { item: u32, part: u32, row: u32, col: u32, k_begin: u32, k_end: u32 }

fn tile_of(group: u32, lane: u32) -> Tile {
    let across = (p.n + 4u * TX - 1u) / (4u * TX);
    let down = (p.m + 4u * TY - 1u) / (4u * TY);
    let stack = group / across / down;
    var t: Tile;
    t.col = 4u * ((group % across) * TX + lane % TX);
    t.row = 4u * ((group / across) % down * TY + lane / TX);
    t.part = stack % p.parts;
    t.item = stack / p.parts; // past the end for the groups that fill the last row of the grid
    t.k_begin = t.part * p.depth;
    t.k_end = min(t.k_begin + p.depth, p.k);
    return t;
}

// For K and N, and M if a is transposed, that are multiples of 4: every load and store is a vec4.
@compute @workgroup_size(WG)
fn product(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = tile_of(p.first_group + flat_group(group, groups), lane);
    if (t.item >= p.batch) | (t.row >= p.m) | (t.col >= p.n) | (lane >= TX * TY) {
        return;
    }
    // Rows past the end are computed as the last row, and not stored.
    let r0 = t.row;
    let r1 = min(t.row + 1u, p.m - 1u);
    let r2 = min(t.row + 2u, p.m - 1u);
    let r3 = min(t.row + 3u, p.m - 1u);
    let a_item = t.item * (p.m * p.k / 4u);
    let b_item = t.item * (p.k * p.n / 4u);
    let m4 = p.m / 4u;
    let n4 = p.n / 4u;
    let k4 = p.k / 4u;
    var sum = mat4x4<f32>(); // column i is row i of the tile
    for (var k = t.k_begin; k < t.k_end; k += 4u) {
        var ta: mat4x4<f32>; // column i: A[row + i, k..k+4]
        if p.a_transposed != 0u {
            let i = a_item + k * m4 + t.row / 4u;
            ta = transpose(mat4x4<f32>(a4[i], a4[i + m4], a4[i + 2u * m4], a4[i + 3u * m4]));
        } else {
            let i = a_item + k / 4u;
            ta = mat4x4<f32>(a4[i + r0 * k4], a4[i + r1 * k4], a4[i + r2 * k4], a4[i + r3 * k4]);
        }
        var tb: mat4x4<f32>; // column i: B[k + i, col..col+4]
        if p.b_transposed != 0u {
            let i = b_item + t.col * k4 + k / 4u;
            tb = transpose(mat4x4<f32>(b4[i], b4[i + k4], b4[i + 2u * k4], b4[i + 3u * k4]));
        } else {
            let i = b_item + k * n4 + t.col / 4u;
            tb = mat4x4<f32>(b4[i], b4[i + n4], b4[i + 2u * n4], b4[i + 3u * n4]);
        }
        sum += tb * ta; // column i: the sum over the four k of A[row + i, k] * B[k, col..col+4]
    }
    var shift = vec4<f32>();
    if p.has_bias != 0u {
        shift = vec4<f32>(bias[t.col], bias[t.col + 1u], bias[t.col + 2u], bias[t.col + 3u]);
    }
    let out = ((t.part * p.batch + t.item) * p.m + t.row) * n4 + t.col / 4u;
    y4[out] = sum[0] + shift;
    if t.row + 1u < p.m { y4[out + n4] = sum[1] + shift; }
    if t.row + 2u < p.m { y4[out + 2u * n4] = sum[2] + shift; }
    if t.row + 3u < p.m { y4[out + 3u * n4] = sum[3] + shift; }
}

// For any sizes, element by element.
@compute @workgroup_size(WG)
fn product_ragged(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let t = tile_of(p.first_group + flat_group(group, groups), lane);
    if (t.item >= p.batch) | (t.row >= p.m) | (t.col >= p.n) | (lane >= TX * TY) {
        return;
    }
    var sum = mat4x4<f32>();
    for (var k = t.k_begin; k < t.k_end; k += 4u) {
        let ta = mat4x4<f32>(
            a_ragged(t.item, t.row, k, t.k_end), a_ragged(t.item, t.row + 1u, k, t.k_end),
            a_ragged(t.item, t.row + 2u, k, t.k_end), a_ragged(t.item, t.row + 3u, k, t.k_end),
        );
        let tb = mat4x4<f32>(
            b_ragged(t.item, k, t.col, t.k_end), b_ragged(t.item, k + 1u, t.col, t.k_end),
            b_ragged(t.item, k + 2u, t.col, t.k_end), b_ragged(t.item, k + 3u, t.col, t.k_end),
        );
        sum += tb * ta;
    }
    let item = (t.part * p.batch + t.item) * p.m;
    store_ragged(item, t.row, t.col, sum[0]);
    store_ragged(item, t.row + 1u, t.col, sum[1]);
    store_ragged(item, t.row + 2u, t.col, sum[2]);
    store_ragged(item, t.row + 3u, t.col, sum[3]);
}

fn store_ragged(item: u32, row: u32, col: u32, value: vec4<f32>) {
    if row < p.m { store_four((item + row) * p.n, col, value); }
}

// One thread for each element of y.
@compute @workgroup_size(WG)
fn sum_parts(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (p.first_group + flat_group(group, groups)) * WG + lane;
    let count = p.batch * p.m * p.n;
    if i < count {
        var sum = 0.0;
        for (var part = 0u; part < p.parts; part++) {
            sum += part_sums[part * count + i];
        }
        if p.has_bias != 0u {
            sum += bias[i % p.n];
        }
        y[i] = sum;
    }
}

var<workgroup> cells: array<f32, WG>;

// One workgroup for each (part, 64 columns): threads of a column take every LANES-th row of the part.
@compute @workgroup_size(WG)
fn column_sum_parts(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let g = p.first_group + flat_group(group, groups);
    let across = (p.n + COLUMNS - 1u) / COLUMNS;
    let part = g / across;
    let col = (g % across) * COLUMNS + lane % COLUMNS;
    var sum = 0.0;
    if part < p.parts && col < p.n {
        let end = min((part + 1u) * p.depth, p.m);
        for (var row = part * p.depth + lane / COLUMNS; row < end; row += LANES) {
            sum += dy[row * p.n + col];
        }
    }
    cells[lane] = sum;
    workgroupBarrier();
    if lane < COLUMNS && part < p.parts && col < p.n {
        for (var i = 1u; i < LANES; i++) {
            sum += cells[lane + i * COLUMNS];
        }
        column_parts[part * p.n + col] = sum;
    }
}
