// naive - a product as its formula reads: one thread for each element of y.
//
//   y[row, col] = sum_k A[row, k] * B[k, col]      (+ bias, shift and residual)
//
// Every thread reads all that it multiplies, two numbers for each multiplication. tiled.wgsl computes the
// same, and shares what is read. Each split of the sum over k writes rows of its own, which partials.wgsl
// adds up; where the sums of the columns of B are wanted, it has one row more, whose A is 1.
//!include lib/grid.wgsl
//!include product/product.wgsl
//!include product/load_dense.wgsl // knob LOADER
//!include product/singles.wgsl

const WG: u32 = 64u;

@compute @workgroup_size(WG)
fn product(thread: Invocation) {
    let item = p.first_group * WG + element(thread, WG);
    let rows = p.rows + p.column_sums;
    let col = item % p.cols;
    let row = item / p.cols % rows;
    let split = item / p.cols / rows % p.splits;
    let block = block_of(item / p.cols / rows / p.splits); // without rows past the last
    let is_sum = (p.column_sums != 0u) & (row == p.rows) & (block.rows > 0u);
    if row >= block.rows && !is_sum { return; }
    let begin = split * p.split_depth;
    let end = min(begin + p.split_depth, block.depth);
    let sizes = digit_sizes(block);
    let site = site_at(block, row);
    var digits = digits_of(begin, sizes);
    var sum = 0.0;
    for (var k = begin; k < end; k++) {
        let left = select(a_one(site, step_of(block, digits)), 1.0, is_sum);
        sum += left * b[b_at(block, k, col, end)];
        digits = next_digits(digits, sizes);
    }
    store(split, select(u32(site.w), row, is_sum), col, sum);
}
