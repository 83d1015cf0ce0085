// grad_norm - the Euclidean norm of a flat tensor, always added in the same order.
//
//   norm = sqrt(sum x^2)
//
//   x [n], a part of the tensor at a time    partials [one for each workgroup of partial_sums]    norm [1]
//
// partial_sums: each workgroup adds WG * PER_THREAD elements. total: one workgroup adds what they left.
//!include lib/grid.wgsl
//!include lib/reduce.wgsl

const WG: u32 = 256u;
const PER_THREAD: u32 = 64u;

// n: elements of this part, or partial sums in total. first: where this part's partial sums begin.
struct Params { n: u32, first: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> partials: array<f32>;
@group(0) @binding(3) var<storage, read_write> norm: array<f32>;

@compute @workgroup_size(WG)
fn partial_sums(thread: Thread) {
    let group = flat_group(thread.group, thread.groups);
    let start = group * WG * PER_THREAD + thread.lane;
    var sum = 0.0;
    for (var k = 0u; k < PER_THREAD; k++) {
        let i = start + k * WG;
        if i < p.n {
            sum += x[i] * x[i];
        }
    }
    let all = block_sum(sum, thread);
    if thread.lane == 0u && group * WG * PER_THREAD < p.n {
        partials[p.first + group] = all;
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
