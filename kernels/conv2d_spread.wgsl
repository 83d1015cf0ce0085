// conv2d_spread - conv2d.wgsl without workgroup memory: lanes of a subgroup share what they read. For drivers on a CPU.
//
// A thread has four channels of the result of 64 pixels, or of 64 rows of dw: many sums for each number that is read, because there
// a load costs as much as some tens of multiplications. Formulas and shapes as in conv2d.wgsl.
//
// gather:     64 pixels in a row of memory; the eight lanes read a pixel each, eight times.
// gather_3x3: a square of 8 x 8 pixels, of a convolution with 3 x 3 taps and a stride of 1: its 10 x 10 source pixels are read
//             once for all taps.
// backward_w: 64 rows (kh,kw,ci) of dw, over a part of the pixels; conv2d.wgsl adds the parts.
//!include lib/grid.wgsl
//!include lib/conv.wgsl
//!include lib/conv_weights.wgsl
//!include lib/spread.wgsl

const WG: u32 = 8u; // threads, 4 channels each

@group(0) @binding(1) var<storage, read> src: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dst: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> shift: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> residual: array<vec4<f32>>;

fn load(base: i32, c: u32) -> f32 {
    return select(0.0, src[u32(max(base, 0)) + c], base >= 0);
}

fn store(at: Pixel, lane: u32, sum: vec4<f32>) {
    let lanes = p.dst_c / 4u;
    if lane < lanes {
        var value = sum;
        if p.has_bias != 0u { value += bias[lane]; }
        if p.has_shift != 0u { value += shift[at.n * lanes + lane]; }
        let i = at.dst * lanes + lane;
        if p.has_residual != 0u { value += residual[i]; }
        dst[i] = value;
    }
}

struct Run { r: Residue, first: u32, pixels: u32 }

// Eight pixels of a run from `first` on are stored, as many as there are.
fn store_eight(run: Run, first: u32, lane: u32, s: Eight) {
    store_run(run, first, lane, s.a);
    store_run(run, first + 1u, lane, s.b);
    store_run(run, first + 2u, lane, s.c);
    store_run(run, first + 3u, lane, s.d);
    store_run(run, first + 4u, lane, s.e);
    store_run(run, first + 5u, lane, s.f);
    store_run(run, first + 6u, lane, s.g);
    store_run(run, first + 7u, lane, s.h);
}

fn store_run(run: Run, index: u32, lane: u32, sum: vec4<f32>) {
    if index < run.pixels {
        store(pixel(run.r, index), lane, sum);
    }
}

// Pixel of a run, the last one past its end.
fn run_pixel(run: Run, index: u32) -> Pixel {
    return pixel(run.r, min(index, run.pixels - 1u));
}

@compute @workgroup_size(WG)
fn gather(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let lanes = p.dst_c / 4u;
    let across = (lanes + WG - 1u) / WG;
    let runs = (most_pixels() + 63u) / 64u;
    let flat = flat_group(group, groups);
    let number = flat / across / runs;
    if number >= residues() {
        return;
    }
    var run: Run;
    run.r = residue(number);
    run.first = flat / across % runs * 64u;
    run.pixels = p.n * run.r.rows * run.r.cols;
    if run.first >= run.pixels {
        return;
    }
    let lane = flat % across * WG + thread;
    // Channels past the end are computed as the last ones, and not stored: every lane is needed for what it reads.
    let column = min(lane, lanes - 1u);
    let own = run.first + subgroup_lane % 8u;
    let a0 = run_pixel(run, own);
    let a1 = run_pixel(run, own + 8u);
    let a2 = run_pixel(run, own + 16u);
    let a3 = run_pixel(run, own + 24u);
    let a4 = run_pixel(run, own + 32u);
    let a5 = run_pixel(run, own + 40u);
    let a6 = run_pixel(run, own + 48u);
    let a7 = run_pixel(run, own + 56u);
    var s0 = Eight();
    var s1 = Eight();
    var s2 = Eight();
    var s3 = Eight();
    var s4 = Eight();
    var s5 = Eight();
    var s6 = Eight();
    var s7 = Eight();
    var at = run.r.first * p.src_c * lanes + column;
    for (var kh = 0u; kh < run.r.kh; kh++) {
        for (var kw = 0u; kw < run.r.kw; kw++) {
            let b0 = source(a0, kh, kw);
            let b1 = source(a1, kh, kw);
            let b2 = source(a2, kh, kw);
            let b3 = source(a3, kh, kw);
            let b4 = source(a4, kh, kw);
            let b5 = source(a5, kh, kw);
            let b6 = source(a6, kh, kw);
            let b7 = source(a7, kh, kw);
            for (var c = 0u; c < p.src_c; c++) {
                let wv = w[at];
                s0 = spread(s0, load(b0, c), wv);
                s1 = spread(s1, load(b1, c), wv);
                s2 = spread(s2, load(b2, c), wv);
                s3 = spread(s3, load(b3, c), wv);
                s4 = spread(s4, load(b4, c), wv);
                s5 = spread(s5, load(b5, c), wv);
                s6 = spread(s6, load(b6, c), wv);
                s7 = spread(s7, load(b7, c), wv);
                at += lanes;
            }
        }
    }
    store_eight(run, run.first, lane, s0);
    store_eight(run, run.first + 8u, lane, s1);
    store_eight(run, run.first + 16u, lane, s2);
    store_eight(run, run.first + 24u, lane, s3);
    store_eight(run, run.first + 32u, lane, s4);
    store_eight(run, run.first + 40u, lane, s5);
    store_eight(run, run.first + 48u, lane, s6);
    store_eight(run, run.first + 56u, lane, s7);
}

// Ten pixels of a row of src in one channel: the first eight, one for each lane, and the other two, which all lanes have.
struct Line { v: f32, e: f32, f: f32 }

// Eight pixels of a row += three taps side by side.
fn three_taps(sums: Eight, x: Line, w0: vec4<f32>, w1: vec4<f32>, w2: vec4<f32>) -> Eight {
    let x0 = subgroupBroadcast(x.v, 0u);
    let x1 = subgroupBroadcast(x.v, 1u);
    let x2 = subgroupBroadcast(x.v, 2u);
    let x3 = subgroupBroadcast(x.v, 3u);
    let x4 = subgroupBroadcast(x.v, 4u);
    let x5 = subgroupBroadcast(x.v, 5u);
    let x6 = subgroupBroadcast(x.v, 6u);
    let x7 = subgroupBroadcast(x.v, 7u);
    return Eight(
        sums.a + x0 * w0 + x1 * w1 + x2 * w2,
        sums.b + x1 * w0 + x2 * w1 + x3 * w2,
        sums.c + x2 * w0 + x3 * w1 + x4 * w2,
        sums.d + x3 * w0 + x4 * w1 + x5 * w2,
        sums.e + x4 * w0 + x5 * w1 + x6 * w2,
        sums.f + x5 * w0 + x6 * w1 + x7 * w2,
        sums.g + x6 * w0 + x7 * w1 + x.e * w2,
        sums.h + x7 * w0 + x.e * w1 + x.f * w2,
    );
}

// Stores a row of a square.
fn store_line(corner: Pixel, row: u32, lane: u32, s: Eight) {
    store_at(corner, row, 0u, lane, s.a);
    store_at(corner, row, 1u, lane, s.b);
    store_at(corner, row, 2u, lane, s.c);
    store_at(corner, row, 3u, lane, s.d);
    store_at(corner, row, 4u, lane, s.e);
    store_at(corner, row, 5u, lane, s.f);
    store_at(corner, row, 6u, lane, s.g);
    store_at(corner, row, 7u, lane, s.h);
}

// `corner.h` and `corner.w` are rows and columns of dst here.
fn store_at(corner: Pixel, row: u32, col: u32, lane: u32, sum: vec4<f32>) {
    if u32(corner.h) + row < p.dst_h && u32(corner.w) + col < p.dst_w {
        var at = corner;
        at.dst += row * p.dst_w + col;
        store(at, lane, sum);
    }
}

@compute @workgroup_size(WG)
fn gather_3x3(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let lanes = p.dst_c / 4u;
    let across = (lanes + WG - 1u) / WG;
    let squares_w = (p.dst_w + 7u) / 8u;
    let squares_h = (p.dst_h + 7u) / 8u;
    let flat = flat_group(group, groups);
    let square = flat / across;
    let n = square / squares_w / squares_h;
    if n >= p.n {
        return;
    }
    let lane = flat % across * WG + thread;
    let column = min(lane, lanes - 1u);
    let h0 = square / squares_w % squares_h * 8u;
    let w0 = square % squares_w * 8u;
    let corner = Pixel(n, i32(h0), i32(w0), (n * p.dst_h + h0) * p.dst_w + w0);
    // Rows of the source square, a lane for each of eight columns; and its last two columns, four rows to a vector.
    let r = residue(0u);
    let i = subgroup_lane % 8u;
    let top = Pixel(n, i32(h0) - r.top, i32(w0) - r.left, 0u);
    let b0 = source(top, 0u, i);
    let b1 = source(top, 1u, i);
    let b2 = source(top, 2u, i);
    let b3 = source(top, 3u, i);
    let b4 = source(top, 4u, i);
    let b5 = source(top, 5u, i);
    let b6 = source(top, 6u, i);
    let b7 = source(top, 7u, i);
    let b8 = source(top, 8u, i);
    let b9 = source(top, 9u, i);
    let e0 = source(top, i / 2u, 8u + i % 2u);
    let e4 = source(top, 4u + i / 2u, 8u + i % 2u);
    let e8 = source(top, 8u + i / 2u % 2u, 8u + i % 2u);
    var s0 = Eight();
    var s1 = Eight();
    var s2 = Eight();
    var s3 = Eight();
    var s4 = Eight();
    var s5 = Eight();
    var s6 = Eight();
    var s7 = Eight();
    let tap = p.src_c * lanes;
    for (var c = 0u; c < p.src_c; c++) {
        let f0 = load(e0, c);
        let f4 = load(e4, c);
        let f8 = load(e8, c);
        let x0 = Line(load(b0, c), subgroupBroadcast(f0, 0u), subgroupBroadcast(f0, 1u));
        let x1 = Line(load(b1, c), subgroupBroadcast(f0, 2u), subgroupBroadcast(f0, 3u));
        let x2 = Line(load(b2, c), subgroupBroadcast(f0, 4u), subgroupBroadcast(f0, 5u));
        let x3 = Line(load(b3, c), subgroupBroadcast(f0, 6u), subgroupBroadcast(f0, 7u));
        let x4 = Line(load(b4, c), subgroupBroadcast(f4, 0u), subgroupBroadcast(f4, 1u));
        let x5 = Line(load(b5, c), subgroupBroadcast(f4, 2u), subgroupBroadcast(f4, 3u));
        let x6 = Line(load(b6, c), subgroupBroadcast(f4, 4u), subgroupBroadcast(f4, 5u));
        let x7 = Line(load(b7, c), subgroupBroadcast(f4, 6u), subgroupBroadcast(f4, 7u));
        let x8 = Line(load(b8, c), subgroupBroadcast(f8, 0u), subgroupBroadcast(f8, 1u));
        let x9 = Line(load(b9, c), subgroupBroadcast(f8, 2u), subgroupBroadcast(f8, 3u));
        let at = c * lanes + column;
        let w00 = w[at];
        let w01 = w[at + tap];
        let w02 = w[at + 2u * tap];
        s0 = three_taps(s0, x0, w00, w01, w02);
        s1 = three_taps(s1, x1, w00, w01, w02);
        s2 = three_taps(s2, x2, w00, w01, w02);
        s3 = three_taps(s3, x3, w00, w01, w02);
        s4 = three_taps(s4, x4, w00, w01, w02);
        s5 = three_taps(s5, x5, w00, w01, w02);
        s6 = three_taps(s6, x6, w00, w01, w02);
        s7 = three_taps(s7, x7, w00, w01, w02);
        let w10 = w[at + 3u * tap];
        let w11 = w[at + 4u * tap];
        let w12 = w[at + 5u * tap];
        s0 = three_taps(s0, x1, w10, w11, w12);
        s1 = three_taps(s1, x2, w10, w11, w12);
        s2 = three_taps(s2, x3, w10, w11, w12);
        s3 = three_taps(s3, x4, w10, w11, w12);
        s4 = three_taps(s4, x5, w10, w11, w12);
        s5 = three_taps(s5, x6, w10, w11, w12);
        s6 = three_taps(s6, x7, w10, w11, w12);
        s7 = three_taps(s7, x8, w10, w11, w12);
        let w20 = w[at + 6u * tap];
        let w21 = w[at + 7u * tap];
        let w22 = w[at + 8u * tap];
        s0 = three_taps(s0, x2, w20, w21, w22);
        s1 = three_taps(s1, x3, w20, w21, w22);
        s2 = three_taps(s2, x4, w20, w21, w22);
        s3 = three_taps(s3, x5, w20, w21, w22);
        s4 = three_taps(s4, x6, w20, w21, w22);
        s5 = three_taps(s5, x7, w20, w21, w22);
        s6 = three_taps(s6, x8, w20, w21, w22);
        s7 = three_taps(s7, x9, w20, w21, w22);
    }
    store_line(corner, 0u, lane, s0);
    store_line(corner, 1u, lane, s1);
    store_line(corner, 2u, lane, s2);
    store_line(corner, 3u, lane, s3);
    store_line(corner, 4u, lane, s4);
    store_line(corner, 5u, lane, s5);
    store_line(corner, 6u, lane, s6);
    store_line(corner, 7u, lane, s7);
}

@group(0) @binding(7) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(8) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(9) var<storage, read_write> parts: array<vec4<f32>>;

// Four rows of dw: the tap and the first channel.
struct Rows { kh: i32, kw: i32, ci: i32 }

fn rows_of(row: u32) -> Rows {
    let tap = row / q.cin;
    return Rows(i32(tap / q.kw), i32(tap % q.kw), i32(row % q.cin));
}

// x under the tap of a pixel of dy.
fn load_x(rows: Rows, n: u32, oh: u32, ow: u32) -> vec4<f32> {
    let h = i32(oh * q.stride) + rows.kh - i32(q.top);
    let w = i32(ow * q.stride) + rows.kw - i32(q.left);
    let inside = h >= 0 && w >= 0 && h < i32(q.h) && w < i32(q.w);
    let i = ((i32(n * q.h) + h) * i32(q.w) + w) * i32(q.cin) + rows.ci;
    return select(vec4<f32>(), x[select(0u, u32(i) / 4u, inside)], inside);
}

// Rows of dw that eight lanes have in one component: row, row + 4, .. row + 28.
fn store_rows(row: u32, part: u32, lane: u32, s: Eight) {
    store_row(row, part, lane, s.a);
    store_row(row + 4u, part, lane, s.b);
    store_row(row + 8u, part, lane, s.c);
    store_row(row + 12u, part, lane, s.d);
    store_row(row + 16u, part, lane, s.e);
    store_row(row + 20u, part, lane, s.f);
    store_row(row + 24u, part, lane, s.g);
    store_row(row + 28u, part, lane, s.h);
}

fn store_row(row: u32, part: u32, lane: u32, sum: vec4<f32>) {
    let rows = q.kh * q.kw * q.cin;
    let lanes = q.cout / 4u;
    if row < rows && lane < lanes {
        parts[(part * rows + row) * lanes + lane] = sum;
    }
}

@compute @workgroup_size(WG)
fn backward_w(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let rows = q.kh * q.kw * q.cin;
    let lanes = q.cout / 4u;
    let across = (lanes + WG - 1u) / WG;
    let down = (rows + 63u) / 64u;
    let flat = flat_group(group, groups);
    let part = flat / across / down;
    if part >= q.parts {
        return;
    }
    let first = flat / across % down * 64u;
    let lane = flat % across * WG + thread;
    let column = min(lane, lanes - 1u);
    // Rows past the end are read as the last ones, and not stored.
    let own = first + subgroup_lane % 8u * 4u;
    let r0 = rows_of(min(own, rows - 4u));
    let r1 = rows_of(min(own + 32u, rows - 4u));
    var s0 = Eight();
    var s1 = Eight();
    var s2 = Eight();
    var s3 = Eight();
    var s4 = Eight();
    var s5 = Eight();
    var s6 = Eight();
    var s7 = Eight();
    let end = min((part + 1u) * q.rows, q.n * q.oh);
    for (var line = part * q.rows; line < end; line++) {
        let n = line / q.oh;
        let oh = line % q.oh;
        for (var ow = 0u; ow < q.ow; ow++) {
            let d = dy[(line * q.ow + ow) * lanes + column];
            let x0 = load_x(r0, n, oh, ow);
            let x1 = load_x(r1, n, oh, ow);
            s0 = spread(s0, x0.x, d);
            s1 = spread(s1, x0.y, d);
            s2 = spread(s2, x0.z, d);
            s3 = spread(s3, x0.w, d);
            s4 = spread(s4, x1.x, d);
            s5 = spread(s5, x1.y, d);
            s6 = spread(s6, x1.z, d);
            s7 = spread(s7, x1.w, d);
        }
    }
    store_rows(first, part, lane, s0);
    store_rows(first + 1u, part, lane, s1);
    store_rows(first + 2u, part, lane, s2);
    store_rows(first + 3u, part, lane, s3);
    store_rows(first + 32u, part, lane, s4);
    store_rows(first + 33u, part, lane, s5);
    store_rows(first + 34u, part, lane, s6);
    store_rows(first + 35u, part, lane, s7);
}
