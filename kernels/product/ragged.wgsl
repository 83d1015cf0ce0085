// ragged - quads of A, B and y element by element: for any sizes.
//!include product/singles.wgsl

fn a_row(site: vec4<i32>, to: Steps) -> vec4<f32> {
    return vec4<f32>(a_one(site, to.s0), a_one(site, to.s1), a_one(site, to.s2), a_one(site, to.s3));
}

fn blocks_a() -> bool {
    return false;
}

fn fetch_a(at: Sites, to: Steps) -> Four {
    var four: Four;
    four.q0 = a_row(at.s0, to);
    if FETCH_A > 1u { four.q1 = a_row(at.s1, to); }
    if FETCH_A > 2u { four.q2 = a_row(at.s2, to); }
    if FETCH_A > 3u { four.q3 = a_row(at.s3, to); }
    return four;
}

fn b_row(at: Place, k: u32, col: u32) -> vec4<f32> {
    return vec4<f32>(
        b[b_at(at.block, k, col, at.end)], b[b_at(at.block, k, col + 1u, at.end)],
        b[b_at(at.block, k, col + 2u, at.end)], b[b_at(at.block, k, col + 3u, at.end)],
    );
}

fn blocks_b() -> bool {
    return false;
}

// What lies past the ends is as in quads.wgsl.
fn fetch_b(at: Place, k: u32, col: u32) -> Four {
    var four: Four;
    four.q0 = b_row(at, k, col);
    if FETCH_B > 1u { four.q1 = b_row(at, k + NEXT_B, col); }
    if FETCH_B > 2u { four.q2 = b_row(at, k + 2u * NEXT_B, col); }
    if FETCH_B > 3u { four.q3 = b_row(at, k + 3u * NEXT_B, col); }
    return four;
}

fn store_quad(split: u32, row: u32, col: u32, sum: vec4<f32>) {
    if col < p.cols { store(split, row, col, sum.x); }
    if col + 1u < p.cols { store(split, row, col + 1u, sum.y); }
    if col + 2u < p.cols { store(split, row, col + 2u, sum.z); }
    if col + 3u < p.cols { store(split, row, col + 3u, sum.w); }
}
