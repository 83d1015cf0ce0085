// singles - A, B and y element by element, for any sizes; without branches, between which reads would wait
// for each other.

alias Element = f32;
const WIDTH: u32 = 1u;

fn a_one(site: vec4<i32>, step: vec3<i32>) -> f32 {
    let inside = is_inside(site, step);
    return select(0.0, a[u32(select(0, site.x + step.x, inside))], inside);
}

// Position in b of B[k, col], of the last k or column past those.
fn b_at(block: Block, k: u32, col: u32, end: u32) -> u32 {
    let row = min(k, end - 1u);
    let column = min(col, p.cols - 1u);
    return block.b + select(row * p.cols + column, column * p.depth + row, b_along_depth());
}
