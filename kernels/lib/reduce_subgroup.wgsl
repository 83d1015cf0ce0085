// reduce_subgroup - lib/reduce.wgsl with subgroup sums first: two barriers instead of ten. Right for any
// subgroup size.
//
// Needs from its includer: `const WG: u32`, the number of threads of the (one-dimensional) workgroup. The
// contract is that of lib/reduce.wgsl. Which threads form a subgroup is up to the driver, but for one driver
// always the same, and so is the sum.

struct Thread {
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
    @builtin(subgroup_id) subgroup: u32,
    @builtin(num_subgroups) subgroups: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
}

var<workgroup> reduce_cells: array<f32, WG>;

fn block_sum(value: f32, thread: Thread) -> f32 {
    let part = subgroupAdd(value);
    if thread.subgroup_lane == 0u {
        reduce_cells[thread.subgroup] = part;
    }
    workgroupBarrier();
    // Each subgroup adds up the sums of all, its lanes in turn: small subgroups are many.
    let lanes = subgroupAdd(1u);
    var some = 0.0;
    for (var i = thread.subgroup_lane; i < thread.subgroups; i += lanes) {
        some += reduce_cells[i];
    }
    let sum = subgroupAdd(some);
    workgroupBarrier(); // before the next call overwrites the cells
    return sum;
}
