// partials - adds up the partial sums of a product, in the order of the splits.
//
//   y[i] = sum over splits of partials[split, i]      (+ bias, shift and residual)
//
// sum_partials: one thread for each element of y.    sum_with_columns: and for each column sum, the last row
// of a split.
//!include lib/grid.wgsl
//!include product/product.wgsl
//!include product/load_dense.wgsl
//!include product/singles.wgsl

const WG: u32 = 64u;

@group(0) @binding(7) var<storage, read_write> column_sums: array<f32>;

fn sum_of(i: u32) -> f32 {
    var sum = 0.0;
    var carry = 0.0; // of Kahan's summation: there may be many splits
    for (var split = 0u; split < p.splits; split++) {
        let term = a[split * p.split_rows * p.cols + i] - carry;
        let next = sum + term;
        carry = (next - sum) - term;
        sum = next;
    }
    return sum;
}

@compute @workgroup_size(WG)
fn sum_partials(thread: Invocation) {
    let i = p.first_group * WG + element(thread, WG);
    if i < p.blocks * p.rows * p.cols { store(0u, i / p.cols, i % p.cols, sum_of(i)); }
}

@compute @workgroup_size(WG)
fn sum_with_columns(thread: Invocation) {
    let i = p.first_group * WG + element(thread, WG);
    let count = p.rows * p.cols;
    if i < count { store(0u, i / p.cols, i % p.cols, sum_of(i)); }
    if i >= count && i < count + p.cols { column_sums[i - count] = sum_of(i); }
}
