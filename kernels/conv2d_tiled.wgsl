// conv2d_tiled - conv2d.wgsl for GPUs: an implicit matrix product in tiles that a workgroup shares.
//
//   gather:   dst[pixel, co] = sum_k A[pixel, k] * w[k, co]      k = (kh, kw, ci), A = the source pixels under the taps
//
// A workgroup has a tile of ROWS x COLS of the result. It walks along k, DEPTH at a time: its threads fetch DEPTH columns of A
// and as many rows of the weights, put them into workgroup memory, and each multiplies for its own rectangle. A is never written
// to memory: the address of an element is that of the pixel's first tap, computed once for a tile, and the way from there to the
// tap, computed once for a step. Formulas and shapes as in conv2d.wgsl.
//
// The entry without `_ragged` is for channels that are multiples of 4 on both sides, and reads and writes vec4s.
// Reference: Chetlur et al. 2014 (cuDNN, arXiv:1410.0759).
//!include lib/grid.wgsl
//!include lib/conv.wgsl
//!include lib/tile.wgsl

@group(0) @binding(1) var<storage, read> src4: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> w4: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dst4: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias4: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> shift4: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> residual4: array<vec4<f32>>;
@group(0) @binding(7) var<storage, read> src: array<f32>;
@group(0) @binding(8) var<storage, read> w: array<f32>;
@group(0) @binding(9) var<storage, read_write> dst: array<f32>;
@group(0) @binding(10) var<storage, read> bias: array<f32>;
@group(0) @binding(11) var<storage, read> shift: array<f32>;
@group(0) @binding(12) var<storage, read> residual: array<f32>;

// Tile of a workgroup; `pixels` is 0 past the end.
struct Place { r: Residue, pixels: u32, row: u32, col: u32 }

fn place(group: u32) -> Place {
    let across = (p.dst_c + COLS - 1u) / COLS;
    let down = (most_pixels() + ROWS - 1u) / ROWS;
    let number = group / across / down;
    var at: Place;
    if number < residues() {
        at.r = residue(number);
        at.pixels = p.n * at.r.rows * at.r.cols;
    }
    at.row = group / across % down * ROWS;
    at.col = group % across * COLS;
    return at;
}

// Of each row of the tile: element of src under the first tap, in front of src where that is outside, row and column of that
// source pixel, pixel of dst (-1 past the end).
var<workgroup> sites: array<vec4<i32>, ROWS>;
const NOWHERE: i32 = -1073741824; // a row or a column outside every image, and twice as far too

fn find_sites(at: Place, thread: u32) {
    for (var i = thread; i < ROWS; i += WG) {
        var site = vec4<i32>(0, NOWHERE, NOWHERE, -1);
        if at.row + i < at.pixels {
            let found = pixel(at.r, at.row + i);
            let first = ((i32(found.n * p.src_h) + found.h) * i32(p.src_w) + found.w) * i32(p.src_c);
            site = vec4<i32>(first, found.h, found.w, i32(found.dst));
        }
        sites[i] = site;
    }
}

// Where a thread is along k.
struct Tap { ci: u32, kh: u32, kw: u32 }

fn moved(tap: Tap, by: u32, taps_w: u32, channels: u32) -> Tap {
    var to = tap;
    to.ci += by;
    while to.ci >= channels {
        to.ci -= channels;
        to.kw += 1u;
        if to.kw == taps_w {
            to.kw = 0u;
            to.kh += 1u;
        }
    }
    return to;
}

// From the first tap: elements of src, rows and columns; past the last tap outside of every image.
fn step_to(tap: Tap, taps_h: u32) -> vec3<i32> {
    let elements = (tap.kh * p.src_w + tap.kw) * p.src_c + tap.ci;
    return vec3<i32>(i32(elements), select(NOWHERE, i32(tap.kh), tap.kh < taps_h), i32(tap.kw));
}

// Conditions are joined by `&` wherever reads depend on them: `&&` makes branches, between which drivers reorder nothing.
fn is_inside(site: vec4<i32>, step: vec3<i32>) -> bool {
    return (u32(site.y + step.y) < p.src_h) & (u32(site.z + step.z) < p.src_w);
}

fn src_quad(site: vec4<i32>, step: vec3<i32>) -> vec4<f32> {
    let inside = is_inside(site, step);
    return select(vec4<f32>(), src4[u32(select(0, site.x + step.x, inside)) / 4u], inside);
}

fn src_one(site: vec4<i32>, step: vec3<i32>) -> f32 {
    let inside = is_inside(site, step);
    return select(0.0, src[select(0, site.x + step.x, inside)], inside);
}

// What a thread puts into tile_a.
fn fetch_src(thread: u32, tap: Tap, taps_h: u32) -> Four {
    let step = step_to(tap, taps_h);
    let row = thread / 4u;
    var four = Four();
    four.k0 = src_quad(sites[row], step);
    if FETCH_A > 1u { four.k1 = src_quad(sites[row + NEXT_A], step); }
    if FETCH_A > 2u { four.k2 = src_quad(sites[row + 2u * NEXT_A], step); }
    if FETCH_A > 3u { four.k3 = src_quad(sites[row + 3u * NEXT_A], step); }
    return four;
}

// What a thread puts into tile_b: the weights of the residue's rows from k on, of `depth`. Past the last row it gets that again,
// which tile_a has zeros for, and past the last column that, which nobody stores.
fn fetch_w(at: Place, k: u32, depth: u32, thread: u32) -> Four {
    let row = k + thread / QUADS_B;
    let last = depth - 1u;
    let first = at.r.first * p.src_c * p.dst_c + min(at.col + thread % QUADS_B * 4u, p.dst_c - 4u);
    var four = Four();
    four.k0 = w4[(first + min(row, last) * p.dst_c) / 4u];
    if FETCH_B > 1u { four.k1 = w4[(first + min(row + NEXT_B, last) * p.dst_c) / 4u]; }
    if FETCH_B > 2u { four.k2 = w4[(first + min(row + 2u * NEXT_B, last) * p.dst_c) / 4u]; }
    if FETCH_B > 3u { four.k3 = w4[(first + min(row + 3u * NEXT_B, last) * p.dst_c) / 4u]; }
    return four;
}

@compute @workgroup_size(WG)
fn gather(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = place(p.first_group + flat_group(group, groups));
    if at.row >= at.pixels {
        return;
    }
    find_sites(at, thread);
    let x = thread % TX;
    let y = thread / TX;
    let depth = at.r.kh * at.r.kw * p.src_c;
    var sums = Sums();
    var tap = moved(Tap(), thread % 4u * 4u, at.r.kw, p.src_c);
    workgroupBarrier();
    for (var k = 0u; k < depth; k += DEPTH) {
        let a = fetch_src(thread, tap, at.r.kh);
        let b = fetch_w(at, k, depth, thread);
        workgroupBarrier();
        put_a(thread, a);
        put_b(thread, b);
        workgroupBarrier();
        multiply_tiles(&sums, x, y);
        tap = moved(tap, DEPTH, at.r.kw, p.src_c);
    }
    let col = at.col + 4u * x;
    store_row(y, col, sums.a0, sums.b0);
    store_row(y + TY, col, sums.a1, sums.b1);
    store_row(y + 2u * TY, col, sums.a2, sums.b2);
    store_row(y + 3u * TY, col, sums.a3, sums.b3);
    if HIGH == 8u {
        store_row(y + 4u * TY, col, sums.a4, sums.b4);
        store_row(y + 5u * TY, col, sums.a5, sums.b5);
        store_row(y + 6u * TY, col, sums.a6, sums.b6);
        store_row(y + 7u * TY, col, sums.a7, sums.b7);
    }
}

// Number of the sample, where it matters.
fn sample(site: vec4<i32>) -> u32 {
    var n = 0u;
    if p.has_shift != 0u { n = u32(site.w) / (p.dst_h * p.dst_w); }
    return n;
}

fn store_row(row: u32, col: u32, left: vec4<f32>, right: vec4<f32>) {
    let site = sites[row];
    let n = sample(site);
    store_quad(site, n, col, left);
    if BROAD == 8u { store_quad(site, n, col + 4u * TX, right); }
}

fn store_quad(site: vec4<i32>, n: u32, col: u32, sum: vec4<f32>) {
    if site.w >= 0 && col < p.dst_c {
        var value = sum;
        if p.has_bias != 0u { value += bias4[col / 4u]; }
        if p.has_shift != 0u { value += shift4[(n * p.dst_c + col) / 4u]; }
        let i = (u32(site.w) * p.dst_c + col) / 4u;
        if p.has_residual != 0u { value += residual4[i]; }
        dst4[i] = value;
    }
}

// The same for any numbers of channels. The four steps of a quad are no longer those of one pixel.
struct Steps { s0: vec3<i32>, s1: vec3<i32>, s2: vec3<i32>, s3: vec3<i32> }

fn steps_to(tap: Tap, r: Residue) -> Steps {
    let t1 = moved(tap, 1u, r.kw, p.src_c);
    let t2 = moved(t1, 1u, r.kw, p.src_c);
    let t3 = moved(t2, 1u, r.kw, p.src_c);
    return Steps(step_to(tap, r.kh), step_to(t1, r.kh), step_to(t2, r.kh), step_to(t3, r.kh));
}

fn src_ragged(site: vec4<i32>, to: Steps) -> vec4<f32> {
    return vec4<f32>(src_one(site, to.s0), src_one(site, to.s1), src_one(site, to.s2), src_one(site, to.s3));
}

fn fetch_src_ragged(thread: u32, tap: Tap, r: Residue) -> Four {
    let to = steps_to(tap, r);
    let row = thread / 4u;
    var four = Four();
    four.k0 = src_ragged(sites[row], to);
    if FETCH_A > 1u { four.k1 = src_ragged(sites[row + NEXT_A], to); }
    if FETCH_A > 2u { four.k2 = src_ragged(sites[row + 2u * NEXT_A], to); }
    if FETCH_A > 3u { four.k3 = src_ragged(sites[row + 3u * NEXT_A], to); }
    return four;
}

fn w_ragged(first: u32, col: u32) -> vec4<f32> {
    let i = first + min(vec4<u32>(col, col + 1u, col + 2u, col + 3u), vec4<u32>(p.dst_c - 1u));
    return vec4<f32>(w[i.x], w[i.y], w[i.z], w[i.w]);
}

fn fetch_w_ragged(at: Place, k: u32, depth: u32, thread: u32) -> Four {
    let row = k + thread / QUADS_B;
    let last = depth - 1u;
    let first = at.r.first * p.src_c * p.dst_c;
    let col = at.col + thread % QUADS_B * 4u;
    var four = Four();
    four.k0 = w_ragged(first + min(row, last) * p.dst_c, col);
    if FETCH_B > 1u { four.k1 = w_ragged(first + min(row + NEXT_B, last) * p.dst_c, col); }
    if FETCH_B > 2u { four.k2 = w_ragged(first + min(row + 2u * NEXT_B, last) * p.dst_c, col); }
    if FETCH_B > 3u { four.k3 = w_ragged(first + min(row + 3u * NEXT_B, last) * p.dst_c, col); }
    return four;
}

@compute @workgroup_size(WG)
fn gather_ragged(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = place(p.first_group + flat_group(group, groups));
    if at.row >= at.pixels {
        return;
    }
    find_sites(at, thread);
    let x = thread % TX;
    let y = thread / TX;
    let depth = at.r.kh * at.r.kw * p.src_c;
    var sums = Sums();
    var tap = moved(Tap(), thread % 4u * 4u, at.r.kw, p.src_c);
    workgroupBarrier();
    for (var k = 0u; k < depth; k += DEPTH) {
        let a = fetch_src_ragged(thread, tap, at.r);
        let b = fetch_w_ragged(at, k, depth, thread);
        workgroupBarrier();
        put_a(thread, a);
        put_b(thread, b);
        workgroupBarrier();
        multiply_tiles(&sums, x, y);
        tap = moved(tap, DEPTH, at.r.kw, p.src_c);
    }
    let col = at.col + 4u * x;
    store_row_ragged(y, col, sums.a0, sums.b0);
    store_row_ragged(y + TY, col, sums.a1, sums.b1);
    store_row_ragged(y + 2u * TY, col, sums.a2, sums.b2);
    store_row_ragged(y + 3u * TY, col, sums.a3, sums.b3);
    if HIGH == 8u {
        store_row_ragged(y + 4u * TY, col, sums.a4, sums.b4);
        store_row_ragged(y + 5u * TY, col, sums.a5, sums.b5);
        store_row_ragged(y + 6u * TY, col, sums.a6, sums.b6);
        store_row_ragged(y + 7u * TY, col, sums.a7, sums.b7);
    }
}

fn store_row_ragged(row: u32, col: u32, left: vec4<f32>, right: vec4<f32>) {
    let site = sites[row];
    let n = sample(site);
    store_ragged(site, n, col, left);
    if BROAD == 8u { store_ragged(site, n, col + 4u * TX, right); }
}

fn store_ragged(site: vec4<i32>, n: u32, col: u32, sum: vec4<f32>) {
    store_one(site, n, col, sum.x);
    store_one(site, n, col + 1u, sum.y);
    store_one(site, n, col + 2u, sum.z);
    store_one(site, n, col + 3u, sum.w);
}

fn store_one(site: vec4<i32>, n: u32, col: u32, sum: f32) {
    if site.w >= 0 && col < p.dst_c {
        var value = sum;
        if p.has_bias != 0u { value += bias[col]; }
        if p.has_shift != 0u { value += shift[n * p.dst_c + col]; }
        let i = u32(site.w) * p.dst_c + col;
        if p.has_residual != 0u { value += residual[i]; }
        dst[i] = value;
    }
}
