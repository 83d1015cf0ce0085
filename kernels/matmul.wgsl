// matmul - the gradient of a bias.
//
//   dbias[n] = sum over rows of dy[row,n]
//
// column_sum_parts: sums of parts of the rows, which sum_parts adds in their order. The products are those of kernels/product.
//!include lib/grid.wgsl

struct Params {
    m: u32, n: u32, // rows and columns of dy
    parts: u32, depth: u32, // the rows in parts of depth
    first_group: u32, // of this dispatch
}

@group(0) @binding(0) var<uniform> p: Params;

const WG: u32 = 256u;

const COLUMNS: u32 = 64u; // columns that a workgroup of column_sum_parts takes, WG / COLUMNS threads each
const LANES: u32 = WG / COLUMNS;

@group(0) @binding(7) var<storage, read_write> y: array<f32>;
@group(0) @binding(8) var<storage, read> part_sums: array<f32>; // [parts, count of y]
@group(0) @binding(9) var<storage, read> dy: array<f32>; // [rows, N]
@group(0) @binding(10) var<storage, read_write> column_parts: array<f32>; // [parts, N]

// One thread for each element of y.
@compute @workgroup_size(WG)
fn sum_parts(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = (p.first_group + flat_group(group, groups)) * WG + lane;
    let count = p.n;
    if i < count {
        var sum = 0.0;
        for (var part = 0u; part < p.parts; part++) {
            sum += part_sums[part * count + i];
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
