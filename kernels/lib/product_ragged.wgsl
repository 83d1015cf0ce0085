// product_ragged - quads of the factors of a product of any sizes, element by element, and how one of the product is stored.
//
// Needs from its includer: lib/product.wgsl, the factors `a` and `b`, `bias` and `y`, as arrays of f32. Without branches: reads
// between branches wait for each other, and some drivers need minutes to compile as many as there are elements.

// A[row, k..k + 4], 0 outside of the matrix and from `end` on.
fn a_ragged(item: u32, row: u32, k: u32, end: u32) -> vec4<f32> {
    let along = vec4<u32>(k, k + 1u, k + 2u, k + 3u);
    let inside = (along < vec4<u32>(end)) & vec4<bool>(row < p.m);
    let lines = select(row * p.k + along, along * p.m + row, p.a_transposed != 0u);
    let i = select(vec4<u32>(), item * p.m * p.k + lines, inside);
    return select(vec4<f32>(), vec4<f32>(a[i.x], a[i.y], a[i.z], a[i.w]), inside);
}

// B[k, col..col + 4], likewise.
fn b_ragged(item: u32, k: u32, col: u32, end: u32) -> vec4<f32> {
    let along = vec4<u32>(col, col + 1u, col + 2u, col + 3u);
    let inside = (along < vec4<u32>(p.n)) & vec4<bool>(k < end);
    let lines = select(k * p.n + along, along * p.k + k, p.b_transposed != 0u);
    let i = select(vec4<u32>(), item * p.k * p.n + lines, inside);
    return select(vec4<f32>(), vec4<f32>(b[i.x], b[i.y], b[i.z], b[i.w]), inside);
}

// y[line + col..] up to column N.
fn store_four(line: u32, col: u32, sum: vec4<f32>) {
    var value = sum;
    if p.has_bias != 0u {
        let i = min(vec4<u32>(col, col + 1u, col + 2u, col + 3u), vec4<u32>(p.n - 1u));
        value += vec4<f32>(bias[i.x], bias[i.y], bias[i.z], bias[i.w]);
    }
    if col < p.n { y[line + col] = value.x; }
    if col + 1u < p.n { y[line + col + 1u] = value.y; }
    if col + 2u < p.n { y[line + col + 2u] = value.z; }
    if col + 3u < p.n { y[line + col + 3u] = value.w; }
}
