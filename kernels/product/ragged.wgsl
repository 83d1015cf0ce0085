// ragged - quads of A, B and y element by element: for any sizes.
//!include product/singles.wgsl

fn a_row(site: vec4<i32>, to: Steps) -> vec4<f32> {
    return vec4<f32>(a_one(site, to[0]), a_one(site, to[1]), a_one(site, to[2]), a_one(site, to[3]));
}

fn blocks_a() -> bool { return false; }

fn fetch_a(at: Sites, to: Steps) -> Four { return rows_of_a(at, to); }

fn b_row(at: Place, k: u32, col: u32) -> vec4<f32> {
    return vec4<f32>(
        b[b_at(at.block, k, col, at.end)], b[b_at(at.block, k, col + 1u, at.end)],
        b[b_at(at.block, k, col + 2u, at.end)], b[b_at(at.block, k, col + 3u, at.end)],
    );
}

fn blocks_b() -> bool { return false; }

fn fetch_b(at: Place, k: u32, col: u32) -> Four { return rows_of_b(at, k, col); }

fn store_quad(split: u32, row: u32, col: u32, sum: vec4<f32>) {
    if col < p.cols { store(split, row, col, sum.x); }
    if col + 1u < p.cols { store(split, row, col + 1u, sum.y); }
    if col + 2u < p.cols { store(split, row, col + 2u, sum.z); }
    if col + 3u < p.cols { store(split, row, col + 3u, sum.w); }
}
