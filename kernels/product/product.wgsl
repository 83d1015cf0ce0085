// product - sizes and tensors of a product, and its sum over k; for the kernels of this folder.
//
//   y[row, col] = sum_k A[row, k] * B[k, col] + bias[col] + shift[sample, col] + residual[row, col]
//
// A loader (load_*.wgsl) finds the elements of A in `a`: a row has a site, a k has a step, and
//
//   A[row, k] = a[site.x + step.x]   where (site + step).yz is a row and a column of the image, else 0
//
// A matrix lies in row and column 0 of an image. B lies in `b` as it stands, or transposed.

struct Params {
    blocks: u32, rows: u32, cols: u32, depth: u32, // products, and the sizes of the largest; see the loaders
    splits: u32, split_depth: u32, // of the sum over k, and k of each
    split_rows: u32, // of y, from one split to the next
    a_transposed: u32, b_transposed: u32,
    src_n: u32, src_h: u32, src_w: u32, src_c: u32,
    dst_h: u32, dst_w: u32,
    kh: u32, kw: u32, stride: u32, step: u32,
    pad_h: i32, pad_w: i32,
    has_bias: u32, has_shift: u32, has_residual: u32,
    pixels: u32, // rows of a sample
    column_sums: u32, // 1: the last row of a split is the sums of the columns of B
    first_group: u32, // of this dispatch
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<Element>;
@group(0) @binding(2) var<storage, read> b: array<Element>;
@group(0) @binding(3) var<storage, read> bias: array<Element>;
@group(0) @binding(4) var<storage, read> shift: array<Element>;
@group(0) @binding(5) var<storage, read> residual: array<Element>;
@group(0) @binding(6) var<storage, read_write> y: array<Element>;

const NOWHERE: i32 = -1073741824; // a row or a column outside every image, and twice as far too

// Site of a row: element of a, row and column of the image, row of y (-1 past the last).
fn site_at(block: Block, row: u32) -> vec4<i32> {
    return select(vec4<i32>(0, NOWHERE, NOWHERE, -1), site_of(block, row), row < block.rows);
}

// Step of a k, whose digits are `at`.
fn step_at(block: Block, at: vec3<u32>, k: u32, end: u32) -> vec3<i32> {
    return select(vec3<i32>(0, NOWHERE, NOWHERE), step_of(block, at), k < end);
}

// Conditions are joined by `&` wherever reads depend on them: `&&` makes branches, between which drivers
// reorder nothing.
fn is_inside(site: vec4<i32>, step: vec3<i32>) -> bool {
    // What is negative becomes large.
    return (u32(site.y + step.y) < p.src_h) & (u32(site.z + step.z) < p.src_w);
}

// The digits of a k, the lowest first, and those `by` further on; `sizes` of the two lower digits.
fn digits_of(k: u32, sizes: vec2<u32>) -> vec3<u32> {
    let rest = k / sizes.x;
    return vec3<u32>(k % sizes.x, rest % sizes.y, rest / sizes.y);
}

fn digits_after(digits: vec3<u32>, by: u32, sizes: vec2<u32>) -> vec3<u32> {
    var to = digits;
    to.x += by;
    while to.x >= sizes.x {
        to.x -= sizes.x;
        to.y += 1u;
        if to.y == sizes.y {
            to.y = 0u;
            to.z += 1u;
        }
    }
    return to;
}

fn next_digits(digits: vec3<u32>, sizes: vec2<u32>) -> vec3<u32> {
    let x = digits.x + 1u;
    let y = digits.y + u32(x == sizes.x);
    return vec3<u32>(select(x, 0u, x == sizes.x), select(y, 0u, y == sizes.y), digits.z + u32(y == sizes.y));
}

// Writes y[row, col] of a split, for an Element of WIDTH columns.
fn store(split: u32, row: u32, col: u32, sum: Element) {
    var value = sum;
    if p.has_bias != 0u { value += bias[col / WIDTH]; }
    if p.has_shift != 0u { value += shift[(row / p.pixels * p.cols + col) / WIDTH]; }
    let i = ((split * p.split_rows + row) * p.cols + col) / WIDTH;
    if p.has_residual != 0u { value += residual[i]; }
    y[i] = value;
}
