// product - sizes of a batch of matrix products, and of the sums of columns. Formula and shapes as in matmul.wgsl.

// Column sums: m rows of n, in parts of depth rows.
struct Params {
    batch: u32, m: u32, n: u32, k: u32,
    parts: u32, depth: u32,
    a_transposed: u32, b_transposed: u32, has_bias: u32,
    first_group: u32, // of this dispatch
}

@group(0) @binding(0) var<uniform> p: Params;
