// quads - A, B and y by vec4s: for sizes of which each that lies along memory is a multiple of 4.

alias Element = vec4<f32>;
const WIDTH: u32 = 4u;

fn a_quad(site: vec4<i32>, step: vec3<i32>) -> vec4<f32> {
    let inside = is_inside(site, step);
    return select(vec4<f32>(), a[u32(select(0, site.x + step.x, inside)) / 4u], inside);
}

// A quad along memory is four k of a row, or four rows of a k, of which `blocks_a` threads take four by four.
fn blocks_a() -> bool {
    return a_along_rows();
}

fn fetch_a(at: Sites, to: Steps) -> Four {
    if blocks_a() {
        return transposed(
            a_quad(at.s0, to.s0), a_quad(at.s0, to.s1), a_quad(at.s0, to.s2), a_quad(at.s0, to.s3),
        );
    }
    var four: Four;
    four.q0 = a_quad(at.s0, to.s0);
    if FETCH_A > 1u { four.q1 = a_quad(at.s1, to.s0); }
    if FETCH_A > 2u { four.q2 = a_quad(at.s2, to.s0); }
    if FETCH_A > 3u { four.q3 = a_quad(at.s3, to.s0); }
    return four;
}

fn blocks_b() -> bool {
    return b_along_depth();
}

fn b_quad(i: u32) -> vec4<f32> {
    return b[i / 4u];
}

// Past the last k it reads the last one again, which A has zeros for; past the last column the last one, of
// which nothing is stored.
fn fetch_b(at: Place, k: u32, col: u32) -> Four {
    if blocks_b() {
        let first = at.block.b + min(k, at.end - 4u);
        let last = p.cols - 1u;
        return transposed(
            b_quad(first + min(col, last) * p.depth), b_quad(first + min(col + 1u, last) * p.depth),
            b_quad(first + min(col + 2u, last) * p.depth), b_quad(first + min(col + 3u, last) * p.depth),
        );
    }
    let first = at.block.b + min(col, p.cols - 4u);
    let last = at.end - 1u;
    var four: Four;
    four.q0 = b_quad(first + min(k, last) * p.cols);
    if FETCH_B > 1u { four.q1 = b_quad(first + min(k + NEXT_B, last) * p.cols); }
    if FETCH_B > 2u { four.q2 = b_quad(first + min(k + 2u * NEXT_B, last) * p.cols); }
    if FETCH_B > 3u { four.q3 = b_quad(first + min(k + 3u * NEXT_B, last) * p.cols); }
    return four;
}

fn store_quad(split: u32, row: u32, col: u32, sum: vec4<f32>) {
    if col < p.cols { store(split, row, col, sum); }
}
