// partials - adds up the parts of a product's sum, in their order.
//
//   y[i] = sum over parts of partials[part, i]      (+ bias, shift and residual)
//
// sum_partials: one thread for each element of y.    sum_with_columns: and for each column sum, the last row
// of a part.
//!include lib/grid.wgsl
//!include product/product.wgsl
//!include product/load_dense.wgsl
//!include product/singles.wgsl

const WG: u32 = 64u;

@group(0) @binding(7) var<storage, read_write> column_sums: array<f32>;

fn sum_of(i: u32) -> f32 {
    var sum = 0.0;
    var carry = 0.0; // of Kahan's summation: the parts may be many
    for (var part = 0u; part < p.parts; part++) {
        let term = a[part * p.part_rows * p.cols + i] - carry;
        let next = sum + term;
        carry = (next - sum) - term;
        sum = next;
    }
    return sum;
}

@compute @workgroup_size(WG)
fn sum_partials(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = (p.first_group + flat_group(group, groups)) * WG + thread;
    if i < p.blocks * p.rows * p.cols { store(0u, i / p.cols, i % p.cols, sum_of(i)); }
}

@compute @workgroup_size(WG)
fn sum_with_columns(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let i = (p.first_group + flat_group(group, groups)) * WG + thread;
    let count = p.rows * p.cols;
    if i < count { store(0u, i / p.cols, i % p.cols, sum_of(i)); }
    if i >= count && i < count + p.cols { column_sums[i - count] = sum_of(i); }
}
