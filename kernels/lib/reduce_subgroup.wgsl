// reduce_subgroup - what lib/reduce.wgsl does, with one subgroup sum first: fewer barriers. Right for any subgroup size.
//
// Needs from its includer: `const WG: u32`, a power of two, the number of threads of the workgroup (one-dimensional).
// Every thread must call it (it holds barriers), and every thread gets the sum. It may be called again at once.
// The host puts it in place of lib/reduce.wgsl on adapters that have subgroups.

var<workgroup> reduce_cells: array<f32, WG>;

// `lane`: local_invocation_index.
fn block_sum(value: f32, lane: u32) -> f32 {
    // The cell of a subgroup is that of its first thread; the others hold zero. How threads are dealt to subgroups is up to the
    // driver, but for one driver it is always the same, and so is the order of this sum.
    let sum_of_subgroup = subgroupAdd(value);
    let first = subgroupElect();
    reduce_cells[lane] = select(0.0, sum_of_subgroup, first);
    workgroupBarrier();
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        if lane < stride {
            reduce_cells[lane] += reduce_cells[lane + stride];
        }
        workgroupBarrier();
    }
    let sum = reduce_cells[0];
    workgroupBarrier(); // before the next call overwrites the cells
    return sum;
}
