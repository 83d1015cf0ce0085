// quads - A, B and y by vec4s: for sizes of which each that lies along memory is a multiple of 4.

alias Element = vec4<f32>;
const WIDTH: u32 = 4u;

fn a_quad(site: vec4<i32>, step: vec3<i32>) -> vec4<f32> {
    let inside = is_inside(site, step);
    return select(vec4<f32>(), a[u32(select(0, site.x + step.x, inside)) / 4u], inside);
}

fn a_row(site: vec4<i32>, to: Steps) -> vec4<f32> { return a_quad(site, to[0]); }

// A quad along memory is four k of a row, or four rows of a k, of which `blocks_a` threads take four by four.
fn blocks_a() -> bool { return a_along_rows(); }

fn fetch_a(at: Sites, to: Steps) -> Four {
    if !blocks_a() { return rows_of_a(at, to); }
    return transpose(Four(
        a_quad(at[0], to[0]), a_quad(at[0], to[1]), a_quad(at[0], to[2]), a_quad(at[0], to[3]),
    ));
}

fn b_row(at: Place, k: u32, col: u32) -> vec4<f32> {
    return b[(at.block.b + min(k, at.end - 1u) * p.cols + min(col, p.cols - 4u)) / 4u];
}

// Of a column, four k.
fn b_column(at: Place, k: u32, col: u32) -> vec4<f32> {
    return b[(at.block.b + min(k, at.end - 4u) + min(col, p.cols - 1u) * p.depth) / 4u];
}

fn blocks_b() -> bool { return b_along_depth(); }

fn fetch_b(at: Place, k: u32, col: u32) -> Four {
    if !blocks_b() { return rows_of_b(at, k, col); }
    return transpose(Four(
        b_column(at, k, col), b_column(at, k, col + 1u), b_column(at, k, col + 2u), b_column(at, k, col + 3u),
    ));
}

fn store_quad(split: u32, row: u32, col: u32, sum: vec4<f32>) {
    if col < p.cols { store(split, row, col, sum); }
}
