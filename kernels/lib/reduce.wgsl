// reduce - the sum over a workgroup in a fixed order, through workgroup memory only.
//
// Needs from its includer: `const WG: u32`, a power of two, the number of threads of the workgroup (one-dimensional).
// Every thread must call it (it holds barriers), and every thread gets the sum. It may be called again at once.

var<workgroup> reduce_cells: array<f32, WG>;

// `lane`: local_invocation_index.
fn block_sum(value: f32, lane: u32) -> f32 {
    reduce_cells[lane] = value;
    for (var stride = WG / 2u; stride > 0u; stride /= 2u) {
        workgroupBarrier();
        if lane < stride {
            reduce_cells[lane] += reduce_cells[lane + stride];
        }
    }
    workgroupBarrier();
    let sum = reduce_cells[0];
    workgroupBarrier(); // before the next call overwrites the cells
    return sum;
}
