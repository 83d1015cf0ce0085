// denoising - one ancestral step of the reverse process, updating the samples in place.
//
//   x0 = r0 * x - r1 * eps, clipped to [-clip, clip] if clip > 0
//   x  = coef_x0 * x0 + coef_x * x + sigma * z
//
//   x, eps, x0 [samples, elements]    table [rows, 8]: r0, r1, coef_x0, coef_x, sigma, clip, t, unused
//   z normal, drawn at step k = row of the state; not drawn where sigma is 0
//
// One thread for each block of four elements of a sample, as in noising. Reference: Ho et al. 2020
// (arXiv:2006.11239), equation 7 and algorithm 2.
//!include lib/grid.wgsl
//!include lib/state.wgsl
//!include lib/philox.wgsl

const WG: u32 = 256u;
const COLUMNS: u32 = 8u;

struct Params { samples: u32, elements: u32, rows: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<f32>;
@group(0) @binding(3) var<storage, read> eps: array<f32>;
@group(0) @binding(4) var<storage, read_write> x: array<f32>;
@group(0) @binding(5) var<storage, read_write> x0: array<f32>;
@group(0) @binding(6) var<storage, read_write> t: array<f32>;

// First element of the state's row in the table.
fn row_start() -> u32 {
    return COLUMNS * min(state_row(), p.rows - 1u);
}

// Elements of one block: `count` of them from `first` on; `count` is 0 past the end.
struct Block { first: u32, count: u32, z: vec4<f32> }

fn block_of(item: u32, sigma: f32) -> Block {
    let blocks = (p.elements + 3u) / 4u;
    let n = item / blocks;
    let block = item % blocks;
    if n >= p.samples {
        return Block(0u, 0u, vec4<f32>());
    }
    var z = vec4<f32>();
    if sigma != 0.0 {
        z = normal_of(draw(state_seed(), STREAM_REVERSE, state_row(), state_sample() + n, block));
    }
    return Block(n * p.elements + 4u * block, min(4u, p.elements - 4u * block), z);
}

fn predicted_x0(row: u32, i: u32) -> f32 {
    let predicted = table[row] * x[i] - table[row + 1u] * eps[i];
    let clip = table[row + 5u];
    // Not clamp, which may turn a NaN of the model into a number.
    let below = select(predicted, clip, clip > 0.0 && predicted > clip);
    return select(below, -clip, clip > 0.0 && below < -clip);
}

@compute @workgroup_size(WG)
fn denoise(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = row_start();
    let sigma = table[row + 4u];
    let block = block_of(flat_group(group, groups) * WG + lane, sigma);
    for (var j = 0u; j < block.count; j++) {
        let i = block.first + j;
        x[i] = table[row + 2u] * predicted_x0(row, i) + table[row + 3u] * x[i] + sigma * block.z[j];
    }
}

// The same, and writes x0.
@compute @workgroup_size(WG)
fn denoise_showing_x0(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let row = row_start();
    let sigma = table[row + 4u];
    let block = block_of(flat_group(group, groups) * WG + lane, sigma);
    for (var j = 0u; j < block.count; j++) {
        let i = block.first + j;
        let predicted = predicted_x0(row, i);
        x0[i] = predicted;
        x[i] = table[row + 2u] * predicted + table[row + 3u] * x[i] + sigma * block.z[j];
    }
}

@compute @workgroup_size(WG)
fn timestep_of_row(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let n = flat_group(group, groups) * WG + lane;
    if n < p.samples {
        t[n] = table[row_start() + 6u];
    }
}
