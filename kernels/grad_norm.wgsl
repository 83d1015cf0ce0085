// grad_norm - the Euclidean norm of a flat tensor, always added in the same order.
//
//   norm = sqrt(sum x^2)
//
//   x [n], a range of the tensor    partials [one for each workgroup of the first two]    norm [1]
//
// partial_sums: each workgroup adds WG * QUADS times four elements. partial_rest: one workgroup adds those
// that fill no four. total: one workgroup adds what they left.
//!include lib/grid.wgsl
//!include lib/reduce.wgsl

const WG: u32 = 256u;
const QUADS: u32 = 16u; // of a thread

// n: elements of the range, in partial_sums in fours; in total partial sums. first: of its partial sums.
struct Params { n: u32, first: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x4: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> x: array<f32>;
@group(0) @binding(3) var<storage, read_write> partials: array<f32>;
@group(0) @binding(4) var<storage, read_write> norm: array<f32>;

@compute @workgroup_size(WG)
fn partial_sums(thread: Thread) {
    let group = flat_group(thread.group, thread.groups);
    let start = group * WG * QUADS + thread.lane;
    var sum = vec4<f32>();
    for (var k = 0u; k < QUADS; k++) {
        let i = start + k * WG;
        if i < p.n {
            let four = x4[i];
            sum += four * four;
        }
    }
    let all = block_sum((sum.x + sum.y) + (sum.z + sum.w), thread);
    if thread.lane == 0u && group * WG * QUADS < p.n {
        partials[p.first + group] = all;
    }
}

@compute @workgroup_size(WG)
fn partial_rest(thread: Thread) {
    var square = 0.0;
    if thread.lane < p.n {
        square = x[thread.lane] * x[thread.lane];
    }
    let all = block_sum(square, thread);
    if thread.lane == 0u {
        partials[p.first] = all;
    }
}

@compute @workgroup_size(WG)
fn total(thread: Thread) {
    var sum = 0.0;
    for (var i = thread.lane; i < p.n; i += WG) {
        sum += partials[i];
    }
    let all = block_sum(sum, thread);
    if thread.lane == 0u {
        norm[0] = sqrt(all);
    }
}
