// conv2d_spread - conv2d.wgsl without workgroup memory: lanes of a subgroup share what they read. For drivers on a CPU.
//
// A thread has four channels of the result of 64 pixels: many sums for each number that is read, because there a load costs as
// much as some tens of multiplications. Formulas and shapes as in conv2d.wgsl; the gradient of the weights is in
// conv2d_spread_w.wgsl.
//
// gather:     64 pixels in a row of memory; the eight lanes read a pixel each, eight times.
// gather_3x3: a square of 8 x 8 pixels, of a convolution with 3 x 3 taps and a stride of 1: its 10 x 10 source pixels are read
//             once for all taps.
//!include lib/grid.wgsl
//!include lib/conv.wgsl
//!include lib/spread.wgsl

const WG: u32 = 8u; // threads, 4 channels each

@group(0) @binding(1) var<storage, read> src: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> dst: array<vec4<f32>>;
@group(0) @binding(4) var<storage, read> bias: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read> shift: array<vec4<f32>>;
@group(0) @binding(6) var<storage, read> residual: array<vec4<f32>>;

fn load(base: i32, c: u32) -> f32 {
    return select(0.0, src[u32(max(base, 0)) + min(c, p.src_c - 1u)], base >= 0 && c < p.src_c);
}

fn store(dst_pixel: u32, n: u32, lane: u32, sum: vec4<f32>) {
    let lanes = p.dst_c / 4u;
    if lane < lanes {
        let i = dst_pixel * lanes + lane;
        var value = sum;
        if p.has_shift != 0u { value += shift[n * lanes + lane]; }
        if p.has_residual != 0u { value += residual[i]; }
        dst[i] = value;
    }
}

struct Run { r: Residue, first: u32, pixels: u32 }

// Pixel of a run, the last one past its end.
fn run_pixel(run: Run, index: u32) -> Pixel {
    return pixel(run.r, min(index, run.pixels - 1u));
}

// The pixels of eight lanes are stored. One past the end is the last one again, with the same sum.
fn store_eight(at: Pixel, lane: u32, s: Eight) {
    store(subgroupBroadcast(at.dst, 0u), subgroupBroadcast(at.n, 0u), lane, s.a);
    store(subgroupBroadcast(at.dst, 1u), subgroupBroadcast(at.n, 1u), lane, s.b);
    store(subgroupBroadcast(at.dst, 2u), subgroupBroadcast(at.n, 2u), lane, s.c);
    store(subgroupBroadcast(at.dst, 3u), subgroupBroadcast(at.n, 3u), lane, s.d);
    store(subgroupBroadcast(at.dst, 4u), subgroupBroadcast(at.n, 4u), lane, s.e);
    store(subgroupBroadcast(at.dst, 5u), subgroupBroadcast(at.n, 5u), lane, s.f);
    store(subgroupBroadcast(at.dst, 6u), subgroupBroadcast(at.n, 6u), lane, s.g);
    store(subgroupBroadcast(at.dst, 7u), subgroupBroadcast(at.n, 7u), lane, s.h);
}

fn bias_of(lane: u32) -> Eight {
    var b = vec4<f32>();
    if p.has_bias != 0u { b = bias[lane]; }
    return Eight(b, b, b, b, b, b, b, b);
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
    let flat = p.first_group + flat_group(group, groups);
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
    let start = bias_of(column);
    var s0 = start;
    var s1 = start;
    var s2 = start;
    var s3 = start;
    var s4 = start;
    var s5 = start;
    var s6 = start;
    var s7 = start;
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
            let tap = (run.r.first + kh * run.r.kw + kw) * p.src_c;
            for (var c = 0u; c < p.src_c; c += 4u) {
                let w0 = w[(tap + c) * lanes + column];
                s0 = spread(s0, load(b0, c), w0);
                s1 = spread(s1, load(b1, c), w0);
                s2 = spread(s2, load(b2, c), w0);
                s3 = spread(s3, load(b3, c), w0);
                s4 = spread(s4, load(b4, c), w0);
                s5 = spread(s5, load(b5, c), w0);
                s6 = spread(s6, load(b6, c), w0);
                s7 = spread(s7, load(b7, c), w0);
                let w1 = w[(tap + min(c + 1u, p.src_c - 1u)) * lanes + column];
                s0 = spread(s0, load(b0, c + 1u), w1);
                s1 = spread(s1, load(b1, c + 1u), w1);
                s2 = spread(s2, load(b2, c + 1u), w1);
                s3 = spread(s3, load(b3, c + 1u), w1);
                s4 = spread(s4, load(b4, c + 1u), w1);
                s5 = spread(s5, load(b5, c + 1u), w1);
                s6 = spread(s6, load(b6, c + 1u), w1);
                s7 = spread(s7, load(b7, c + 1u), w1);
                let w2 = w[(tap + min(c + 2u, p.src_c - 1u)) * lanes + column];
                s0 = spread(s0, load(b0, c + 2u), w2);
                s1 = spread(s1, load(b1, c + 2u), w2);
                s2 = spread(s2, load(b2, c + 2u), w2);
                s3 = spread(s3, load(b3, c + 2u), w2);
                s4 = spread(s4, load(b4, c + 2u), w2);
                s5 = spread(s5, load(b5, c + 2u), w2);
                s6 = spread(s6, load(b6, c + 2u), w2);
                s7 = spread(s7, load(b7, c + 2u), w2);
                let w3 = w[(tap + min(c + 3u, p.src_c - 1u)) * lanes + column];
                s0 = spread(s0, load(b0, c + 3u), w3);
                s1 = spread(s1, load(b1, c + 3u), w3);
                s2 = spread(s2, load(b2, c + 3u), w3);
                s3 = spread(s3, load(b3, c + 3u), w3);
                s4 = spread(s4, load(b4, c + 3u), w3);
                s5 = spread(s5, load(b5, c + 3u), w3);
                s6 = spread(s6, load(b6, c + 3u), w3);
                s7 = spread(s7, load(b7, c + 3u), w3);
            }
        }
    }
    store_eight(a0, lane, s0);
    store_eight(a1, lane, s1);
    store_eight(a2, lane, s2);
    store_eight(a3, lane, s3);
    store_eight(a4, lane, s4);
    store_eight(a5, lane, s5);
    store_eight(a6, lane, s6);
    store_eight(a7, lane, s7);
}

// v: one pixel for each of eight lanes.
fn line_of(v: f32, x8: f32, x9: f32) -> Line {
    return Line(
        subgroupBroadcast(v, 0u), subgroupBroadcast(v, 1u), subgroupBroadcast(v, 2u), subgroupBroadcast(v, 3u),
        subgroupBroadcast(v, 4u), subgroupBroadcast(v, 5u), subgroupBroadcast(v, 6u), subgroupBroadcast(v, 7u), x8, x9,
    );
}

// Eight pixels of a row += the left tap of a row of taps.
fn left(sums: Eight, x: Line, tap: vec4<f32>) -> Eight {
    var s = sums;
    s.a += x.x0 * tap;
    s.b += x.x1 * tap;
    s.c += x.x2 * tap;
    s.d += x.x3 * tap;
    s.e += x.x4 * tap;
    s.f += x.x5 * tap;
    s.g += x.x6 * tap;
    s.h += x.x7 * tap;
    return s;
}

fn middle(sums: Eight, x: Line, tap: vec4<f32>) -> Eight {
    var s = sums;
    s.a += x.x1 * tap;
    s.b += x.x2 * tap;
    s.c += x.x3 * tap;
    s.d += x.x4 * tap;
    s.e += x.x5 * tap;
    s.f += x.x6 * tap;
    s.g += x.x7 * tap;
    s.h += x.x8 * tap;
    return s;
}

fn right(sums: Eight, x: Line, tap: vec4<f32>) -> Eight {
    var s = sums;
    s.a += x.x2 * tap;
    s.b += x.x3 * tap;
    s.c += x.x4 * tap;
    s.d += x.x5 * tap;
    s.e += x.x6 * tap;
    s.f += x.x7 * tap;
    s.g += x.x8 * tap;
    s.h += x.x9 * tap;
    return s;
}

// Stores a row of a square.
fn store_line(corner: Corner, row: u32, lane: u32, s: Eight) {
    if row < corner.rows {
        store_at(corner, row, 0u, lane, s.a);
        store_at(corner, row, 1u, lane, s.b);
        store_at(corner, row, 2u, lane, s.c);
        store_at(corner, row, 3u, lane, s.d);
        store_at(corner, row, 4u, lane, s.e);
        store_at(corner, row, 5u, lane, s.f);
        store_at(corner, row, 6u, lane, s.g);
        store_at(corner, row, 7u, lane, s.h);
    }
}

// The sample of a square, its first pixel in dst, and how much of it lies inside.
struct Corner { n: u32, dst: u32, rows: u32, cols: u32 }

fn store_at(corner: Corner, row: u32, col: u32, lane: u32, sum: vec4<f32>) {
    if col < corner.cols {
        store(corner.dst + row * p.dst_w + col, corner.n, lane, sum);
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
    let flat = p.first_group + flat_group(group, groups);
    let square = flat / across;
    let n = square / squares_w / squares_h;
    if n >= p.n {
        return;
    }
    let lane = flat % across * WG + thread;
    let column = min(lane, lanes - 1u);
    let h0 = square / squares_w % squares_h * 8u;
    let w0 = square % squares_w * 8u;
    let corner = Corner(n, (n * p.dst_h + h0) * p.dst_w + w0, p.dst_h - h0, p.dst_w - w0);
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
    let start = bias_of(column);
    var s0 = start;
    var s1 = start;
    var s2 = start;
    var s3 = start;
    var s4 = start;
    var s5 = start;
    var s6 = start;
    var s7 = start;
    let tap = p.src_c * lanes;
    for (var c = 0u; c < p.src_c; c++) {
        let f0 = load(e0, c);
        let f4 = load(e4, c);
        let f8 = load(e8, c);
        let x0 = line_of(load(b0, c), subgroupBroadcast(f0, 0u), subgroupBroadcast(f0, 1u));
        let x1 = line_of(load(b1, c), subgroupBroadcast(f0, 2u), subgroupBroadcast(f0, 3u));
        let x2 = line_of(load(b2, c), subgroupBroadcast(f0, 4u), subgroupBroadcast(f0, 5u));
        let x3 = line_of(load(b3, c), subgroupBroadcast(f0, 6u), subgroupBroadcast(f0, 7u));
        let x4 = line_of(load(b4, c), subgroupBroadcast(f4, 0u), subgroupBroadcast(f4, 1u));
        let x5 = line_of(load(b5, c), subgroupBroadcast(f4, 2u), subgroupBroadcast(f4, 3u));
        let x6 = line_of(load(b6, c), subgroupBroadcast(f4, 4u), subgroupBroadcast(f4, 5u));
        let x7 = line_of(load(b7, c), subgroupBroadcast(f4, 6u), subgroupBroadcast(f4, 7u));
        let x8 = line_of(load(b8, c), subgroupBroadcast(f8, 0u), subgroupBroadcast(f8, 1u));
        let x9 = line_of(load(b9, c), subgroupBroadcast(f8, 2u), subgroupBroadcast(f8, 3u));
        let at = c * lanes + column;
        let w00 = w[at];
        s0 = left(s0, x0, w00);
        s1 = left(s1, x1, w00);
        s2 = left(s2, x2, w00);
        s3 = left(s3, x3, w00);
        s4 = left(s4, x4, w00);
        s5 = left(s5, x5, w00);
        s6 = left(s6, x6, w00);
        s7 = left(s7, x7, w00);
        let w01 = w[at + tap];
        s0 = middle(s0, x0, w01);
        s1 = middle(s1, x1, w01);
        s2 = middle(s2, x2, w01);
        s3 = middle(s3, x3, w01);
        s4 = middle(s4, x4, w01);
        s5 = middle(s5, x5, w01);
        s6 = middle(s6, x6, w01);
        s7 = middle(s7, x7, w01);
        let w02 = w[at + 2u * tap];
        s0 = right(s0, x0, w02);
        s1 = right(s1, x1, w02);
        s2 = right(s2, x2, w02);
        s3 = right(s3, x3, w02);
        s4 = right(s4, x4, w02);
        s5 = right(s5, x5, w02);
        s6 = right(s6, x6, w02);
        s7 = right(s7, x7, w02);
        let w10 = w[at + 3u * tap];
        s0 = left(s0, x1, w10);
        s1 = left(s1, x2, w10);
        s2 = left(s2, x3, w10);
        s3 = left(s3, x4, w10);
        s4 = left(s4, x5, w10);
        s5 = left(s5, x6, w10);
        s6 = left(s6, x7, w10);
        s7 = left(s7, x8, w10);
        let w11 = w[at + 4u * tap];
        s0 = middle(s0, x1, w11);
        s1 = middle(s1, x2, w11);
        s2 = middle(s2, x3, w11);
        s3 = middle(s3, x4, w11);
        s4 = middle(s4, x5, w11);
        s5 = middle(s5, x6, w11);
        s6 = middle(s6, x7, w11);
        s7 = middle(s7, x8, w11);
        let w12 = w[at + 5u * tap];
        s0 = right(s0, x1, w12);
        s1 = right(s1, x2, w12);
        s2 = right(s2, x3, w12);
        s3 = right(s3, x4, w12);
        s4 = right(s4, x5, w12);
        s5 = right(s5, x6, w12);
        s6 = right(s6, x7, w12);
        s7 = right(s7, x8, w12);
        let w20 = w[at + 6u * tap];
        s0 = left(s0, x2, w20);
        s1 = left(s1, x3, w20);
        s2 = left(s2, x4, w20);
        s3 = left(s3, x5, w20);
        s4 = left(s4, x6, w20);
        s5 = left(s5, x7, w20);
        s6 = left(s6, x8, w20);
        s7 = left(s7, x9, w20);
        let w21 = w[at + 7u * tap];
        s0 = middle(s0, x2, w21);
        s1 = middle(s1, x3, w21);
        s2 = middle(s2, x4, w21);
        s3 = middle(s3, x5, w21);
        s4 = middle(s4, x6, w21);
        s5 = middle(s5, x7, w21);
        s6 = middle(s6, x8, w21);
        s7 = middle(s7, x9, w21);
        let w22 = w[at + 8u * tap];
        s0 = right(s0, x2, w22);
        s1 = right(s1, x3, w22);
        s2 = right(s2, x4, w22);
        s3 = right(s3, x5, w22);
        s4 = right(s4, x6, w22);
        s5 = right(s5, x7, w22);
        s6 = right(s6, x8, w22);
        s7 = right(s7, x9, w22);
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
