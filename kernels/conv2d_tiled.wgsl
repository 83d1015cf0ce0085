// conv2d_tiled - conv2d.wgsl for GPUs: an implicit matrix product in tiles that a workgroup shares.
//
//   gather:      dst[pixel, co] = sum_k A[pixel, k] * w[k, co]        k = (kh, kw, ci), A = the source pixels under the taps
//   backward_w:  dw[(kh,kw,ci), co] = sum_pixel A[pixel, k] * dy[pixel, co]   over a part of the pixels; conv2d.wgsl adds those
//
// A workgroup has a tile of ROWS x COLS of the result. It walks along k, DEPTH at a time: its threads fetch DEPTH columns of A
// and as many rows of the other factor into workgroup memory, then each multiplies for its own rectangle. A is never written to
// memory: the address of an element follows from the pixel, decoded once for a tile, and the tap, which moves on by comparing and
// subtracting. Formulas and shapes as in conv2d.wgsl.
//
// The entries without `_ragged` are for channels that are multiples of 4 on both sides, and read and write vec4s.
// Reference: Chetlur et al. 2014 (cuDNN, arXiv:1410.0759).
//!include lib/grid.wgsl
//!include lib/conv.wgsl
//!include lib/conv_weights.wgsl
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

// Of each row of the tile: number of the sample, source pixel of the first tap, pixel of dst (-1 past the end).
var<workgroup> sites: array<vec4<i32>, ROWS>;
const NOWHERE: i32 = -1073741824; // a row or a column outside every image, whatever the tap

fn find_sites(at: Place, thread: u32) {
    for (var i = thread; i < ROWS; i += WG) {
        var site = vec4<i32>(0, NOWHERE, NOWHERE, -1);
        if at.row + i < at.pixels {
            let found = pixel(at.r, at.row + i);
            site = vec4<i32>(i32(found.n), found.h, found.w, i32(found.dst));
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

// Element of src under a tap, or -1 outside the image or past the last tap.
fn under(site: vec4<i32>, tap: Tap, taps_h: u32) -> i32 {
    if tap.kh >= taps_h {
        return -1;
    }
    let base = source(Pixel(u32(site.x), site.y, site.z, 0u), tap.kh, tap.kw);
    return select(-1, base + i32(tap.ci), base >= 0);
}

fn src_quad(site: vec4<i32>, tap: Tap, taps_h: u32) -> vec4<f32> {
    let i = under(site, tap, taps_h);
    return select(vec4<f32>(), src4[u32(max(i, 0)) / 4u], i >= 0);
}

fn src_one(site: vec4<i32>, tap: Tap, taps_h: u32) -> f32 {
    let i = under(site, tap, taps_h);
    return select(0.0, src[u32(max(i, 0))], i >= 0);
}

fn src_ragged(site: vec4<i32>, tap: Tap, r: Residue) -> vec4<f32> {
    let t1 = moved(tap, 1u, r.kw, p.src_c);
    let t2 = moved(t1, 1u, r.kw, p.src_c);
    let t3 = moved(t2, 1u, r.kw, p.src_c);
    return vec4<f32>(
        src_one(site, tap, r.kh), src_one(site, t1, r.kh), src_one(site, t2, r.kh), src_one(site, t3, r.kh),
    );
}

fn w_ragged(row: u32, col: u32) -> vec4<f32> {
    let i = row * p.dst_c + col;
    let rest = p.dst_c - col; // columns from here on; at least one
    var four = vec4<f32>(w[i], 0.0, 0.0, 0.0);
    if rest > 1u { four.y = w[i + 1u]; }
    if rest > 2u { four.z = w[i + 2u]; }
    if rest > 3u { four.w = w[i + 3u]; }
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
    for (var k = 0u; k < depth; k += DEPTH) {
        workgroupBarrier();
        for (var i = thread / 4u; i < ROWS; i += WG / 4u) {
            tile_a[i * PITCH_A + thread % 4u] = src_quad(sites[i], tap, at.r.kh);
        }
        for (var i = thread; i < DEPTH * QUADS_B; i += WG) {
            let row = k + i / QUADS_B;
            let col = at.col + i % QUADS_B * 4u;
            var four = vec4<f32>();
            if row < depth && col < p.dst_c {
                four = w4[((at.r.first * p.src_c + row) * p.dst_c + col) / 4u];
            }
            tile_b[i / QUADS_B * PITCH_B + i % QUADS_B] = four;
        }
        tap = moved(tap, DEPTH, at.r.kw, p.src_c);
        workgroupBarrier();
        multiply_tiles(&sums, x, y);
    }
    if depth == 0u {
        workgroupBarrier(); // for the sites
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

fn store_row(row: u32, col: u32, left: vec4<f32>, right: vec4<f32>) {
    let site = sites[row];
    store_quad(site, col, left);
    if BROAD == 8u { store_quad(site, col + 4u * TX, right); }
}

fn store_quad(site: vec4<i32>, col: u32, sum: vec4<f32>) {
    if site.w >= 0 && col < p.dst_c {
        var value = sum;
        if p.has_bias != 0u { value += bias4[col / 4u]; }
        if p.has_shift != 0u { value += shift4[(u32(site.x) * p.dst_c + col) / 4u]; }
        let i = (u32(site.w) * p.dst_c + col) / 4u;
        if p.has_residual != 0u { value += residual4[i]; }
        dst4[i] = value;
    }
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
    for (var k = 0u; k < depth; k += DEPTH) {
        workgroupBarrier();
        for (var i = thread / 4u; i < ROWS; i += WG / 4u) {
            tile_a[i * PITCH_A + thread % 4u] = src_ragged(sites[i], tap, at.r);
        }
        for (var i = thread; i < DEPTH * QUADS_B; i += WG) {
            let row = k + i / QUADS_B;
            let col = at.col + i % QUADS_B * 4u;
            var four = vec4<f32>();
            if row < depth && col < p.dst_c {
                four = w_ragged(at.r.first * p.src_c + row, col);
            }
            tile_b[i / QUADS_B * PITCH_B + i % QUADS_B] = four;
        }
        tap = moved(tap, DEPTH, at.r.kw, p.src_c);
        workgroupBarrier();
        multiply_tiles(&sums, x, y);
    }
    if depth == 0u {
        workgroupBarrier(); // for the sites
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
    store_ragged(site, col, left);
    if BROAD == 8u { store_ragged(site, col + 4u * TX, right); }
}

fn store_ragged(site: vec4<i32>, col: u32, sum: vec4<f32>) {
    store_one(site, col, sum.x);
    store_one(site, col + 1u, sum.y);
    store_one(site, col + 2u, sum.z);
    store_one(site, col + 3u, sum.w);
}

fn store_one(site: vec4<i32>, col: u32, sum: f32) {
    if site.w >= 0 && col < p.dst_c {
        var value = sum;
        if p.has_bias != 0u { value += bias[col]; }
        if p.has_shift != 0u { value += shift[u32(site.x) * p.dst_c + col]; }
        let i = u32(site.w) * p.dst_c + col;
        if p.has_residual != 0u { value += residual[i]; }
        dst[i] = value;
    }
}

@group(0) @binding(13) var<storage, read> x4: array<vec4<f32>>;
@group(0) @binding(14) var<storage, read> dy4: array<vec4<f32>>;
@group(0) @binding(15) var<storage, read_write> parts4: array<vec4<f32>>;
@group(0) @binding(16) var<storage, read> x: array<f32>;
@group(0) @binding(17) var<storage, read> dy: array<f32>;
@group(0) @binding(18) var<storage, read_write> parts: array<f32>;

// Of each of DEPTH pixels of dy: row of x that begins its sample, and the pixel of x under the first tap.
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

// The taps and channels of the tile's rows stand in `sites`: kh, kw, ci.
fn find_taps(at: Piece, thread: u32) {
    for (var i = thread; i < ROWS; i += WG) {
        let row = at.row + i;
        let tap = row / q.cin;
        let found = vec4<i32>(i32(tap / q.kw), i32(tap % q.kw), i32(row % q.cin), 0);
        sites[i] = select(vec4<i32>(NOWHERE, NOWHERE, 0, 0), found, row < at.rows);
    }
}

fn find_spots(pixel: u32, end: u32, thread: u32) {
    if thread < DEPTH {
        let at = pixel + thread;
        let line = at / q.ow;
        let found = vec4<i32>(
            i32(line / q.oh * q.h), i32(line % q.oh * q.stride) - i32(q.top), i32(at % q.ow * q.stride) - i32(q.left), 0,
        );
        spots[thread] = select(vec4<i32>(0, NOWHERE, NOWHERE, 0), found, at < end);
    }
}

// Element of x, or -1 outside the image, past the rows or past the part.
fn x_under(spot: vec4<i32>, site: vec4<i32>) -> i32 {
    let h = spot.y + site.x;
    let w = spot.z + site.y;
    let inside = h >= 0 && w >= 0 && h < i32(q.h) && w < i32(q.w);
    return select(-1, ((spot.x + h) * i32(q.w) + w) * i32(q.cin) + site.z, inside);
}

fn x_quad(pixel: u32, site: vec4<i32>) -> vec4<f32> {
    let i = x_under(spots[pixel], site);
    return select(vec4<f32>(), x4[u32(max(i, 0)) / 4u], i >= 0);
}

fn x_one(pixel: u32, site: vec4<i32>) -> f32 {
    let i = x_under(spots[pixel], site);
    return select(0.0, x[u32(max(i, 0))], i >= 0);
}

// The sums of dy are made by the workgroups that have the first rows of dw, of the tiles that they fetch anyway. Of each tile a
// thread adds some rows of four columns, always the same.
const_assert 0u == (WG % QUADS_B);
const_assert WG <= (DEPTH * PITCH_B);

fn column_share(thread: u32) -> vec4<f32> {
    var sum = vec4<f32>();
    for (var i = thread; i < DEPTH * QUADS_B; i += WG) {
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
    let quad = thread % 4u;
    var sums = Sums();
    let adds = q.has_bias != 0u && at.row == 0u;
    var share = vec4<f32>();
    for (var pixel = at.begin; pixel < at.end; pixel += DEPTH) {
        find_spots(pixel, at.end, thread);
        workgroupBarrier();
        // Four channels of four pixels at a time, turned over on the way.
        for (var i = thread / 4u * 4u; i < ROWS; i += WG) {
            let site = sites[i];
            let four = transpose(mat4x4<f32>(
                x_quad(4u * quad, site), x_quad(4u * quad + 1u, site), x_quad(4u * quad + 2u, site), x_quad(4u * quad + 3u, site),
            ));
            tile_a[i * PITCH_A + quad] = four[0];
            tile_a[(i + 1u) * PITCH_A + quad] = four[1];
            tile_a[(i + 2u) * PITCH_A + quad] = four[2];
            tile_a[(i + 3u) * PITCH_A + quad] = four[3];
        }
        for (var i = thread; i < DEPTH * QUADS_B; i += WG) {
            let row = pixel + i / QUADS_B;
            let col = at.col + i % QUADS_B * 4u;
            var four = vec4<f32>();
            if row < at.end && col < q.cout {
                four = dy4[(row * q.cout + col) / 4u];
            }
            tile_b[i / QUADS_B * PITCH_B + i % QUADS_B] = four;
        }
        workgroupBarrier();
        if adds { share += column_share(thread); }
        multiply_tiles(&sums, x, y);
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
    let quad = thread % 4u;
    var sums = Sums();
    let adds = q.has_bias != 0u && at.row == 0u;
    var share = vec4<f32>();
    for (var pixel = at.begin; pixel < at.end; pixel += DEPTH) {
        find_spots(pixel, at.end, thread);
        workgroupBarrier();
        for (var i = thread / 4u; i < ROWS; i += WG / 4u) {
            let site = sites[i];
            tile_a[i * PITCH_A + quad] = vec4<f32>(
                x_one(4u * quad, site), x_one(4u * quad + 1u, site), x_one(4u * quad + 2u, site), x_one(4u * quad + 3u, site),
            );
        }
        for (var i = thread; i < DEPTH * QUADS_B; i += WG) {
            let row = pixel + i / QUADS_B;
            let col = at.col + i % QUADS_B * 4u;
            var four = vec4<f32>();
            if row < at.end {
                four = vec4<f32>(dy_one(row, col), dy_one(row, col + 1u), dy_one(row, col + 2u), dy_one(row, col + 3u));
            }
            tile_b[i / QUADS_B * PITCH_B + i % QUADS_B] = four;
        }
        workgroupBarrier();
        if adds { share += column_share(thread); }
        multiply_tiles(&sums, x, y);
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

fn dy_one(row: u32, col: u32) -> f32 {
    return select(0.0, dy[row * q.cout + min(col, q.cout - 1u)], col < q.cout);
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
