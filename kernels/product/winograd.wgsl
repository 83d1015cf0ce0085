// winograd - convolutions of 3 x 3 taps and a stride of 1 by Winograd's minimal filtering, F(2x2, 3x3).
//
//   dst = A^T [sum_c U[c] . V[c]] A      U[c] = G w[c] G^T      V[c] = B^T src[c] B
//
//   src [N, H, W, C]    dst, residual [N, OH, OW, D]    w [3, 3, C, D]    bias [D]    shift [N, D]
//   u [16, C, D]    v [16, tiles, C]    m [16, tiles, D]
//
// A tile is 2 x 2 pixels of dst, which 4 x 4 of src give: 16 multiplications for four pixels instead of 36.
// Summed over the channels, the product in the middle is one matrix product for each of the 16 places,
// m = v u, which tiled.wgsl computes. `tiles`: of one chunk of the batch, so that v and m stay in the cache.
// Channels are multiples of 4 on both sides.
//
// transform_weights: one thread for 4 channels of dst and one of src.    transform_src, transform_dst: for 4
// channels of a tile. Reference: Lavin & Gray 2015 (arXiv:1509.09308).
//!include lib/grid.wgsl

const WG: u32 = 64u;

struct Params {
    dst_h: u32, dst_w: u32, dst_c: u32,
    src_h: u32, src_w: u32, src_c: u32,
    top: i32, left: i32, // rows and columns of zeros before src
    first_tile: u32, tiles: u32, // of the chunk
    adjoint: u32, // the weights are those of a convolution whose adjoint this is, [3, 3, D, C]
    has_bias: u32, has_shift: u32, has_residual: u32,
}

@group(0) @binding(0) var<uniform> p: Params;

@group(0) @binding(1) var<storage, read> w: array<f32>;
@group(0) @binding(2) var<storage, read> given: array<vec4<f32>>; // w, src or m
@group(0) @binding(3) var<storage, read_write> made: array<vec4<f32>>; // u, v or dst

alias Line = mat4x4<f32>; // four of a row or a column

// A row of u or v, of which `place` quads are one place.
fn store_places(row: u32, place: u32, at: u32, line: Line) {
    let i = 4u * row * place + at;
    made[i] = line[0];
    made[i + place] = line[1];
    made[i + 2u * place] = line[2];
    made[i + 3u * place] = line[3];
}

// Channel c of src under a tap, to the channels of dst from 4 * quad on.
fn tap(row: u32, col: u32, c: u32, quad: u32) -> vec4<f32> {
    if p.adjoint == 0u {
        return given[((row * 3u + col) * p.src_c + c) * (p.dst_c / 4u) + quad];
    }
    // The taps in reverse.
    let at = ((8u - row * 3u - col) * p.dst_c + 4u * quad) * p.src_c + c;
    return vec4<f32>(w[at], w[at + p.src_c], w[at + 2u * p.src_c], w[at + 3u * p.src_c]);
}

// G x.
fn times_g(x0: vec4<f32>, x1: vec4<f32>, x2: vec4<f32>) -> Line {
    return Line(x0, 0.5 * (x0 + x1 + x2), 0.5 * (x0 - x1 + x2), x2);
}

@compute @workgroup_size(WG)
fn transform_weights(thread: Invocation) {
    let quads = p.dst_c / 4u;
    let place = p.src_c * quads;
    let item = element(thread, WG);
    if item >= place { return; }
    // Neighbouring threads read neighbouring elements.
    let c = select(item / quads, item % p.src_c, p.adjoint != 0u);
    let quad = select(item % quads, item / p.src_c, p.adjoint != 0u);
    let x0 = times_g(tap(0u, 0u, c, quad), tap(1u, 0u, c, quad), tap(2u, 0u, c, quad));
    let x1 = times_g(tap(0u, 1u, c, quad), tap(1u, 1u, c, quad), tap(2u, 1u, c, quad));
    let x2 = times_g(tap(0u, 2u, c, quad), tap(1u, 2u, c, quad), tap(2u, 2u, c, quad));
    let at = c * quads + quad;
    store_places(0u, place, at, times_g(x0[0], x1[0], x2[0]));
    store_places(1u, place, at, times_g(x0[1], x1[1], x2[1]));
    store_places(2u, place, at, times_g(x0[2], x1[2], x2[2]));
    store_places(3u, place, at, times_g(x0[3], x1[3], x2[3]));
}

// The sample and the first pixel of a tile of the chunk.
struct Tile { n: u32, h: u32, w: u32 }

fn tile(number: u32) -> Tile {
    let across = (p.dst_w + 1u) / 2u;
    let down = (p.dst_h + 1u) / 2u;
    let i = p.first_tile + number;
    return Tile(i / across / down, i / across % down * 2u, i % across * 2u);
}

// Channels of a pixel under a tile, zeros outside src.
fn src_quad(at: Tile, row: i32, col: i32, quad: u32) -> vec4<f32> {
    let h = i32(at.h) - p.top + row;
    let w = i32(at.w) - p.left + col;
    let inside = (u32(h) < p.src_h) & (u32(w) < p.src_w); // what is negative becomes large
    let i = ((i32(at.n * p.src_h) + h) * i32(p.src_w) + w) * i32(p.src_c / 4u) + i32(quad);
    return select(vec4<f32>(), given[u32(select(0, i, inside))], inside);
}

fn src_line(at: Tile, row: i32, quad: u32) -> Line {
    return Line(
        src_quad(at, row, 0, quad), src_quad(at, row, 1, quad), src_quad(at, row, 2, quad),
        src_quad(at, row, 3, quad),
    );
}

// x B.
fn times_b(x: Line) -> Line {
    return Line(x[0] - x[2], x[1] + x[2], x[2] - x[1], x[1] - x[3]);
}

@compute @workgroup_size(WG)
fn transform_src(thread: Invocation) {
    let quads = p.src_c / 4u;
    let place = p.tiles * quads;
    let item = element(thread, WG);
    if item >= place { return; }
    let at = tile(item / quads);
    let quad = item % quads;
    let x0 = src_line(at, 0, quad);
    let x1 = src_line(at, 1, quad);
    let x2 = src_line(at, 2, quad);
    let x3 = src_line(at, 3, quad);
    store_places(0u, place, item, times_b(x0 - x2));
    store_places(1u, place, item, times_b(x1 + x2));
    store_places(2u, place, item, times_b(x2 - x1));
    store_places(3u, place, item, times_b(x1 - x3));
}

@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> shift: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> residual: array<vec4<f32>>;

fn m_line(row: u32, place: u32, item: u32) -> Line {
    let i = 4u * row * place + item;
    return Line(given[i], given[i + place], given[i + 2u * place], given[i + 3u * place]);
}

fn store_dst(i: u32, sum: vec4<f32>) {
    var value = sum;
    if p.has_residual != 0u { value += residual[i]; }
    made[i] = value;
}

// x A, plus `more`: bias and shift.
fn store_line(at: Tile, row: u32, quad: u32, x: Line, more: vec4<f32>) {
    if at.h + row < p.dst_h {
        let quads = p.dst_c / 4u;
        let i = ((at.n * p.dst_h + at.h + row) * p.dst_w + at.w) * quads + quad;
        store_dst(i, x[0] + x[1] + x[2] + more);
        if at.w + 1u < p.dst_w { store_dst(i + quads, x[1] - x[2] - x[3] + more); }
    }
}

@compute @workgroup_size(WG)
fn transform_dst(thread: Invocation) {
    let quads = p.dst_c / 4u;
    let place = p.tiles * quads;
    let item = element(thread, WG);
    if item >= place { return; }
    let at = tile(item / quads);
    let quad = item % quads;
    var more = vec4<f32>();
    if p.has_bias != 0u { more += bias[quad]; }
    if p.has_shift != 0u { more += shift[at.n * quads + quad]; }
    let x0 = m_line(0u, place, item);
    let x1 = m_line(1u, place, item);
    let x2 = m_line(2u, place, item);
    let x3 = m_line(3u, place, item);
    store_line(at, 0u, quad, x0 + x1 + x2, more);
    store_line(at, 1u, quad, x1 - x2 - x3, more);
}
