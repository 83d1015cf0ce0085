// conv2d_tiled_w - the gradient of a convolution's weights as in conv2d.wgsl, for GPUs: as conv2d_tiled.wgsl.
//
//   backward_w:   dw[(kh,kw,ci), co] = sum_pixel A[pixel, k] * dy[pixel, co]   over a part of the pixels; conv2d.wgsl adds those
//
// A workgroup walks along the pixels of its part, DEPTH at a time. The rows of its tile have a tap and a channel each, found
// once; where the next pixels have their first taps is put into workgroup memory together with the numbers of the present ones.
//!include lib/grid.wgsl
//!include lib/conv_weights.wgsl
//!include lib/tile.wgsl

@group(0) @binding(1) var<storage, read> x4: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dy4: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> parts4: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> x: array<f32>;
@group(0) @binding(5) var<storage, read> dy: array<f32>;
@group(0) @binding(6) var<storage, read_write> parts: array<f32>;

// Of each of DEPTH pixels of dy: element of x under the first tap, in front of x where that is outside, and its row and column.
var<workgroup> spots: array<vec4<i32>, DEPTH>;

// Tile of a workgroup: its part of the pixels, and its rows and columns of dw.
struct Piece { part: u32, row: u32, col: u32, rows: u32, begin: u32, end: u32 }

fn piece(group: u32) -> Piece {
    let rows = q.kh * q.kw * q.cin;
    let across = (q.cout + COLS - 1u) / COLS;
    let down = (rows + ROWS - 1u) / ROWS;
    let part = group / across / down;
    return Piece(
        part, group / across % down * ROWS, group % across * COLS, rows,
        part * q.rows * q.ow, min((part + 1u) * q.rows, q.n * q.oh) * q.ow,
    );
}

// Of each row of the tile: kh, kw, and elements of x from the first tap's first channel to its own.
var<workgroup> sites: array<vec4<i32>, ROWS>;
const NOWHERE: i32 = -1073741824; // a row or a column outside every image, and twice as far too

fn find_taps(at: Piece, thread: u32) {
    for (var i = thread; i < ROWS; i += WG) {
        let row = at.row + i;
        let tap = row / q.cin;
        let kh = tap / q.kw;
        let kw = tap % q.kw;
        let found = vec4<i32>(i32(kh), i32(kw), i32((kh * q.w + kw) * q.cin + row % q.cin), 0);
        sites[i] = select(vec4<i32>(NOWHERE, NOWHERE, 0, 0), found, row < at.rows);
    }
}

// A pixel of dy: its sample, row and column.
struct Spot { n: u32, h: u32, w: u32 }

fn spot_of(pixel: u32) -> Spot {
    let line = pixel / q.ow;
    return Spot(line / q.oh, line % q.oh, pixel % q.ow);
}

fn spot_after(spot: Spot, by: u32) -> Spot {
    var to = spot;
    to.w += by;
    while to.w >= q.ow {
        to.w -= q.ow;
        to.h += 1u;
        if to.h == q.oh {
            to.h = 0u;
            to.n += 1u;
        }
    }
    return to;
}

// The first DEPTH threads have a spot each.
fn put_spot(thread: u32, spot: Spot, inside: bool) {
    if thread < DEPTH {
        let h = i32(spot.h * q.stride) - i32(q.top);
        let w = i32(spot.w * q.stride) - i32(q.left);
        let found = vec4<i32>(((i32(spot.n * q.h) + h) * i32(q.w) + w) * i32(q.cin), h, w, 0);
        spots[thread] = select(vec4<i32>(0, NOWHERE, NOWHERE, 0), found, inside);
    }
}

// Element of x under a tap; 0 outside the image, past the rows or past the part.
struct Under { i: u32, inside: bool }

fn x_under(spot: vec4<i32>, site: vec4<i32>) -> Under {
    let inside = (u32(spot.y + site.x) < q.h) & (u32(spot.z + site.y) < q.w);
    return Under(u32(select(0, spot.x + site.z, inside)), inside);
}

fn x_quad(pixel: u32, site: vec4<i32>) -> vec4<f32> {
    let found = x_under(spots[pixel], site);
    return select(vec4<f32>(), x4[found.i / 4u], found.inside);
}

fn x_one(pixel: u32, site: vec4<i32>) -> f32 {
    let found = x_under(spots[pixel], site);
    return select(0.0, x[found.i], found.inside);
}

// Four channels of four pixels, for tile_a.
fn fetch_x(thread: u32) -> Four {
    let pixel = thread % 4u * 4u;
    let site = sites[min(thread, ROWS - 1u) / 4u * 4u];
    return Four(x_quad(pixel, site), x_quad(pixel + 1u, site), x_quad(pixel + 2u, site), x_quad(pixel + 3u, site));
}

fn fetch_x_ragged(thread: u32) -> Four {
    let row = thread / 4u;
    let pixel = thread % 4u * 4u;
    var four = Four();
    four.k0 = x_ragged(pixel, sites[row]);
    if FETCH_A > 1u { four.k1 = x_ragged(pixel, sites[row + NEXT_A]); }
    if FETCH_A > 2u { four.k2 = x_ragged(pixel, sites[row + 2u * NEXT_A]); }
    if FETCH_A > 3u { four.k3 = x_ragged(pixel, sites[row + 3u * NEXT_A]); }
    return four;
}

fn x_ragged(pixel: u32, site: vec4<i32>) -> vec4<f32> {
    return vec4<f32>(x_one(pixel, site), x_one(pixel + 1u, site), x_one(pixel + 2u, site), x_one(pixel + 3u, site));
}

// For tile_b. Past the part's last pixel it gets that again, which tile_a has zeros for, and past the last column that, which
// nobody stores.
fn fetch_dy(at: Piece, pixel: u32, thread: u32) -> Four {
    let row = pixel + thread / QUADS_B;
    let last = at.end - 1u;
    let col = min(at.col + thread % QUADS_B * 4u, q.cout - 4u);
    var four = Four();
    four.k0 = dy4[(min(row, last) * q.cout + col) / 4u];
    if FETCH_B > 1u { four.k1 = dy4[(min(row + NEXT_B, last) * q.cout + col) / 4u]; }
    if FETCH_B > 2u { four.k2 = dy4[(min(row + 2u * NEXT_B, last) * q.cout + col) / 4u]; }
    if FETCH_B > 3u { four.k3 = dy4[(min(row + 3u * NEXT_B, last) * q.cout + col) / 4u]; }
    return four;
}

fn dy_ragged(row: u32, col: u32) -> vec4<f32> {
    let i = row * q.cout + min(vec4<u32>(col, col + 1u, col + 2u, col + 3u), vec4<u32>(q.cout - 1u));
    return vec4<f32>(dy[i.x], dy[i.y], dy[i.z], dy[i.w]);
}

fn fetch_dy_ragged(at: Piece, pixel: u32, thread: u32) -> Four {
    let row = pixel + thread / QUADS_B;
    let last = at.end - 1u;
    let col = at.col + thread % QUADS_B * 4u;
    var four = Four();
    four.k0 = dy_ragged(min(row, last), col);
    if FETCH_B > 1u { four.k1 = dy_ragged(min(row + NEXT_B, last), col); }
    if FETCH_B > 2u { four.k2 = dy_ragged(min(row + 2u * NEXT_B, last), col); }
    if FETCH_B > 3u { four.k3 = dy_ragged(min(row + 3u * NEXT_B, last), col); }
    return four;
}

// The sums of dy are made by the workgroups that have the first rows of dw, of the tiles that they fetch anyway. Of each tile a
// thread adds some rows of four columns, always the same.
const_assert 0u == (WG % QUADS_B);
const_assert WG <= (DEPTH * PITCH_B);

fn column_share(thread: u32, rows: u32) -> vec4<f32> {
    var sum = vec4<f32>();
    for (var i = thread; i < min(rows, DEPTH) * QUADS_B; i += WG) {
        sum += tile_b[i / QUADS_B * PITCH_B + i % QUADS_B];
    }
    return sum;
}

// Sum of the shares in the four columns of a thread, for the first QUADS_B threads. Every thread must call it.
fn column_sum(thread: u32, share: vec4<f32>) -> vec4<f32> {
    workgroupBarrier();
    tile_b[thread] = share;
    workgroupBarrier();
    var sum = vec4<f32>();
    if thread < QUADS_B {
        for (var i = thread; i < WG; i += QUADS_B) {
            sum += tile_b[i];
        }
    }
    return sum;
}

fn store_bias(at: Piece, thread: u32, share: vec4<f32>) {
    let sum = column_sum(thread, share);
    let col = at.col + 4u * thread;
    if thread < QUADS_B && col < q.cout {
        parts4[((at.part * part_rows() + at.rows) * q.cout + col) / 4u] = sum;
    }
}

@compute @workgroup_size(WG)
fn backward_w(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = piece(q.first_group + flat_group(group, groups));
    if at.part >= q.parts {
        return;
    }
    find_taps(at, thread);
    let x = thread % TX;
    let y = thread / TX;
    var sums = Sums();
    let adds = q.has_bias != 0u && at.row == 0u;
    var share = vec4<f32>();
    var spot = spot_of(at.begin + thread);
    put_spot(thread, spot, at.begin + thread < at.end);
    spot = spot_after(spot, DEPTH);
    workgroupBarrier();
    for (var pixel = at.begin; pixel < at.end; pixel += DEPTH) {
        let a = fetch_x(thread);
        let b = fetch_dy(at, pixel, thread);
        workgroupBarrier();
        put_b(thread, b); // first, since only some threads have an `a`
        put_a_turned(thread, a);
        put_spot(thread, spot, pixel + DEPTH + thread < at.end);
        workgroupBarrier();
        if adds { share += column_share(thread, at.end - pixel); }
        multiply_tiles(&sums, x, y);
        spot = spot_after(spot, DEPTH);
    }
    if adds { store_bias(at, thread, share); }
    let row = at.row + y;
    let col = at.col + 4u * x;
    store_w(at, row, col, sums.a0, sums.b0);
    store_w(at, row + TY, col, sums.a1, sums.b1);
    store_w(at, row + 2u * TY, col, sums.a2, sums.b2);
    store_w(at, row + 3u * TY, col, sums.a3, sums.b3);
    if HIGH == 8u {
        store_w(at, row + 4u * TY, col, sums.a4, sums.b4);
        store_w(at, row + 5u * TY, col, sums.a5, sums.b5);
        store_w(at, row + 6u * TY, col, sums.a6, sums.b6);
        store_w(at, row + 7u * TY, col, sums.a7, sums.b7);
    }
}

fn store_w(at: Piece, row: u32, col: u32, left: vec4<f32>, right: vec4<f32>) {
    if row < at.rows {
        let i = (at.part * part_rows() + row) * q.cout + col;
        if col < q.cout { parts4[i / 4u] = left; }
        if BROAD == 8u && col + 4u * TX < q.cout { parts4[i / 4u + TX] = right; }
    }
}

@compute @workgroup_size(WG)
fn backward_w_ragged(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
) {
    let at = piece(q.first_group + flat_group(group, groups));
    if at.part >= q.parts {
        return;
    }
    find_taps(at, thread);
    let x = thread % TX;
    let y = thread / TX;
    var sums = Sums();
    let adds = q.has_bias != 0u && at.row == 0u;
    var share = vec4<f32>();
    var spot = spot_of(at.begin + thread);
    put_spot(thread, spot, at.begin + thread < at.end);
    spot = spot_after(spot, DEPTH);
    workgroupBarrier();
    for (var pixel = at.begin; pixel < at.end; pixel += DEPTH) {
        let a = fetch_x_ragged(thread);
        let b = fetch_dy_ragged(at, pixel, thread);
        workgroupBarrier();
        put_a(thread, a);
        put_b(thread, b);
        put_spot(thread, spot, pixel + DEPTH + thread < at.end);
        workgroupBarrier();
        if adds { share += column_share(thread, at.end - pixel); }
        multiply_tiles(&sums, x, y);
        spot = spot_after(spot, DEPTH);
    }
    if adds { store_bias_ragged(at, thread, share); }
    let row = at.row + y;
    let col = at.col + 4u * x;
    store_w_ragged(at, row, col, sums.a0, sums.b0);
    store_w_ragged(at, row + TY, col, sums.a1, sums.b1);
    store_w_ragged(at, row + 2u * TY, col, sums.a2, sums.b2);
    store_w_ragged(at, row + 3u * TY, col, sums.a3, sums.b3);
    if HIGH == 8u {
        store_w_ragged(at, row + 4u * TY, col, sums.a4, sums.b4);
        store_w_ragged(at, row + 5u * TY, col, sums.a5, sums.b5);
        store_w_ragged(at, row + 6u * TY, col, sums.a6, sums.b6);
        store_w_ragged(at, row + 7u * TY, col, sums.a7, sums.b7);
    }
}

fn store_w_ragged(at: Piece, row: u32, col: u32, left: vec4<f32>, right: vec4<f32>) {
    if row < at.rows {
        let line = (at.part * part_rows() + row) * q.cout;
        store_w_four(line, col, left);
        if BROAD == 8u { store_w_four(line, col + 4u * TX, right); }
    }
}

fn store_w_four(line: u32, col: u32, four: vec4<f32>) {
    if col < q.cout { parts[line + col] = four.x; }
    if col + 1u < q.cout { parts[line + col + 1u] = four.y; }
    if col + 2u < q.cout { parts[line + col + 2u] = four.z; }
    if col + 3u < q.cout { parts[line + col + 3u] = four.w; }
}

fn store_bias_ragged(at: Piece, thread: u32, share: vec4<f32>) {
    let sum = column_sum(thread, share);
    if thread < QUADS_B {
        store_w_four((at.part * part_rows() + at.rows) * q.cout, at.col + 4u * thread, sum);
    }
}
