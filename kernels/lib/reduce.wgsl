// reduce - the sum over a workgroup in a fixed order, through workgroup memory only.
//
// Needs from its includer: `const WG: u32`, a power of two, the number of threads of the (one-dimensional)
// workgroup. An entry point takes `thread: Thread`. Every thread must call block_sum (it holds barriers),
// every thread gets the sum, and it may be called again at once. On adapters with subgroups the host takes
// lib/reduce_subgroup.wgsl in place of this file.

struct Thread {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
}

var<workgroup> reduce_cells: array<f32, WG>;

fn block_sum(value: f32, thread: Thread) -> f32 {
    reduce_cells[thread.lane] = value;
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if thread.lane < stride {
            reduce_cells[thread.lane] += reduce_cells[thread.lane + stride];
        }
    }
    workgroupBarrier();
    let sum = reduce_cells[0];
    workgroupBarrier(); // before the next call overwrites the cells
    return sum;
}
