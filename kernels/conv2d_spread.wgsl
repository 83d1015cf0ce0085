// conv2d_spread - conv2d.wgsl without workgroup memory: lanes of a subgroup share what they read. For drivers on a CPU.
//
// A thread has four channels of the result of 64 pixels: many sums for each number that is read, because there a load costs as
// much as some tens of multiplications. Formulas and shapes as in conv2d.wgsl; the gradient of the weights is in
// conv2d_spread_w.wgsl.
//
// gather:     64 pixels in a row of memory; the eight lanes read a pixel each, eight times.
// gather_3x3: a square of 8 x 8 pixels, of a convolution with 3 x 3 taps and a stride of 1: its 10 x 10 source pixels are read
//             once for all taps. gather_3x3_tall: likewise, 16 rows of 8.
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

fn load_four(base: i32, c: u32) -> vec4<f32> {
    return vec4<f32>(load(base, c), load(base, c + 1u), load(base, c + 2u), load(base, c + 3u));
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
    let last = p.src_c - 1u;
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
                let k = Four(
                    w[(tap + c) * lanes + column], w[(tap + min(c + 1u, last)) * lanes + column],
                    w[(tap + min(c + 2u, last)) * lanes + column], w[(tap + min(c + 3u, last)) * lanes + column],
                );
                s0 = spread(s0, load_four(b0, c), k);
                s1 = spread(s1, load_four(b1, c), k);
                s2 = spread(s2, load_four(b2, c), k);
                s3 = spread(s3, load_four(b3, c), k);
                s4 = spread(s4, load_four(b4, c), k);
                s5 = spread(s5, load_four(b5, c), k);
                s6 = spread(s6, load_four(b6, c), k);
                s7 = spread(s7, load_four(b7, c), k);
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

// The nine taps of a channel.
struct Taps {
    a: vec4<f32>, b: vec4<f32>, c: vec4<f32>,
    d: vec4<f32>, e: vec4<f32>, f: vec4<f32>,
    g: vec4<f32>, h: vec4<f32>, i: vec4<f32>,
}

fn taps_at(at: u32, tap: u32) -> Taps {
    return Taps(
        w[at], w[at + tap], w[at + 2u * tap], w[at + 3u * tap], w[at + 4u * tap], w[at + 5u * tap], w[at + 6u * tap],
        w[at + 7u * tap], w[at + 8u * tap],
    );
}

fn nine(
    sum: vec4<f32>, a: f32, b: f32, c: f32, d: f32, e: f32, f: f32, g: f32, h: f32, i: f32, t: Taps,
) -> vec4<f32> {
    return sum + a * t.a + b * t.b + c * t.c + d * t.d + e * t.e + f * t.f + g * t.g + h * t.h + i * t.i;
}

// Eight pixels of a row += the pixels x, y and z of three rows of src under the taps.
fn under(s: Eight, x: Line, y: Line, z: Line, t: Taps) -> Eight {
    return Eight(
        nine(s.a, x.x0, x.x1, x.x2, y.x0, y.x1, y.x2, z.x0, z.x1, z.x2, t),
        nine(s.b, x.x1, x.x2, x.x3, y.x1, y.x2, y.x3, z.x1, z.x2, z.x3, t),
        nine(s.c, x.x2, x.x3, x.x4, y.x2, y.x3, y.x4, z.x2, z.x3, z.x4, t),
        nine(s.d, x.x3, x.x4, x.x5, y.x3, y.x4, y.x5, z.x3, z.x4, z.x5, t),
        nine(s.e, x.x4, x.x5, x.x6, y.x4, y.x5, y.x6, z.x4, z.x5, z.x6, t),
        nine(s.f, x.x5, x.x6, x.x7, y.x5, y.x6, y.x7, z.x5, z.x6, z.x7, t),
        nine(s.g, x.x6, x.x7, x.x8, y.x6, y.x7, y.x8, z.x6, z.x7, z.x8, t),
        nine(s.h, x.x7, x.x8, x.x9, y.x7, y.x8, y.x9, z.x7, z.x8, z.x9, t),
    );
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

// The sample of a square, its first pixel in dst, and how much of it lies inside; the pixel of src under its first tap.
struct Corner { n: u32, dst: u32, rows: u32, cols: u32, top: Pixel }

fn store_at(corner: Corner, row: u32, col: u32, lane: u32, sum: vec4<f32>) {
    if col < corner.cols {
        store(corner.dst + row * p.dst_w + col, corner.n, lane, sum);
    }
}

// Of square number `square`, of `high` rows; n is p.n past the last.
fn corner_of(square: u32, high: u32) -> Corner {
    let squares_w = (p.dst_w + 7u) / 8u;
    let squares_h = (p.dst_h + high - 1u) / high;
    let n = min(square / squares_w / squares_h, p.n);
    let h = square / squares_w % squares_h * high;
    let w = square % squares_w * 8u;
    let r = residue(0u);
    let top = Pixel(n, i32(h) - r.top, i32(w) - r.left, 0u);
    return Corner(n, (n * p.dst_h + h) * p.dst_w + w, p.dst_h - h, p.dst_w - w, top);
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
    let flat = p.first_group + flat_group(group, groups);
    let corner = corner_of(flat / across, 8u);
    if corner.n >= p.n {
        return;
    }
    let lane = flat % across * WG + thread;
    let column = min(lane, lanes - 1u);
    // Rows of the source square, a lane for each of eight columns; and its last two columns, four rows to a vector.
    let i = subgroup_lane % 8u;
    let b0 = source(corner.top, 0u, i);
    let b1 = source(corner.top, 1u, i);
    let b2 = source(corner.top, 2u, i);
    let b3 = source(corner.top, 3u, i);
    let b4 = source(corner.top, 4u, i);
    let b5 = source(corner.top, 5u, i);
    let b6 = source(corner.top, 6u, i);
    let b7 = source(corner.top, 7u, i);
    let b8 = source(corner.top, 8u, i);
    let b9 = source(corner.top, 9u, i);
    let e0 = source(corner.top, 0u + i / 2u, 8u + i % 2u);
    let e1 = source(corner.top, 4u + i / 2u, 8u + i % 2u);
    let e2 = source(corner.top, 8u + i / 2u, 8u + i % 2u);
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
        let t = taps_at(c * lanes + column, tap);
        let f0 = load(e0, c);
        let f1 = load(e1, c);
        let f2 = load(e2, c);
        let x0 = line_of(load(b0, c), subgroupBroadcast(f0, 0u), subgroupBroadcast(f0, 1u));
        let x1 = line_of(load(b1, c), subgroupBroadcast(f0, 2u), subgroupBroadcast(f0, 3u));
        let x2 = line_of(load(b2, c), subgroupBroadcast(f0, 4u), subgroupBroadcast(f0, 5u));
        s0 = under(s0, x0, x1, x2, t);
        let x3 = line_of(load(b3, c), subgroupBroadcast(f0, 6u), subgroupBroadcast(f0, 7u));
        s1 = under(s1, x1, x2, x3, t);
        let x4 = line_of(load(b4, c), subgroupBroadcast(f1, 0u), subgroupBroadcast(f1, 1u));
        s2 = under(s2, x2, x3, x4, t);
        let x5 = line_of(load(b5, c), subgroupBroadcast(f1, 2u), subgroupBroadcast(f1, 3u));
        s3 = under(s3, x3, x4, x5, t);
        let x6 = line_of(load(b6, c), subgroupBroadcast(f1, 4u), subgroupBroadcast(f1, 5u));
        s4 = under(s4, x4, x5, x6, t);
        let x7 = line_of(load(b7, c), subgroupBroadcast(f1, 6u), subgroupBroadcast(f1, 7u));
        s5 = under(s5, x5, x6, x7, t);
        let x8 = line_of(load(b8, c), subgroupBroadcast(f2, 0u), subgroupBroadcast(f2, 1u));
        s6 = under(s6, x6, x7, x8, t);
        let x9 = line_of(load(b9, c), subgroupBroadcast(f2, 2u), subgroupBroadcast(f2, 3u));
        s7 = under(s7, x7, x8, x9, t);
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

// As gather_3x3, with 16 rows, so that the weights serve twice as many pixels.
@compute @workgroup_size(WG)
fn gather_3x3_tall(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let lanes = p.dst_c / 4u;
    let across = (lanes + WG - 1u) / WG;
    let flat = p.first_group + flat_group(group, groups);
    let corner = corner_of(flat / across, 16u);
    if corner.n >= p.n {
        return;
    }
    let lane = flat % across * WG + thread;
    let column = min(lane, lanes - 1u);
    // Rows of the source square, a lane for each of eight columns; and its last two columns, four rows to a vector.
    let i = subgroup_lane % 8u;
    let b0 = source(corner.top, 0u, i);
    let b1 = source(corner.top, 1u, i);
    let b2 = source(corner.top, 2u, i);
    let b3 = source(corner.top, 3u, i);
    let b4 = source(corner.top, 4u, i);
    let b5 = source(corner.top, 5u, i);
    let b6 = source(corner.top, 6u, i);
    let b7 = source(corner.top, 7u, i);
    let b8 = source(corner.top, 8u, i);
    let b9 = source(corner.top, 9u, i);
    let b10 = source(corner.top, 10u, i);
    let b11 = source(corner.top, 11u, i);
    let b12 = source(corner.top, 12u, i);
    let b13 = source(corner.top, 13u, i);
    let b14 = source(corner.top, 14u, i);
    let b15 = source(corner.top, 15u, i);
    let b16 = source(corner.top, 16u, i);
    let b17 = source(corner.top, 17u, i);
    let e0 = source(corner.top, 0u + i / 2u, 8u + i % 2u);
    let e1 = source(corner.top, 4u + i / 2u, 8u + i % 2u);
    let e2 = source(corner.top, 8u + i / 2u, 8u + i % 2u);
    let e3 = source(corner.top, 12u + i / 2u, 8u + i % 2u);
    let e4 = source(corner.top, 16u + i / 2u, 8u + i % 2u);
    let start = bias_of(column);
    var s0 = start;
    var s1 = start;
    var s2 = start;
    var s3 = start;
    var s4 = start;
    var s5 = start;
    var s6 = start;
    var s7 = start;
    var s8 = start;
    var s9 = start;
    var s10 = start;
    var s11 = start;
    var s12 = start;
    var s13 = start;
    var s14 = start;
    var s15 = start;
    let tap = p.src_c * lanes;
    for (var c = 0u; c < p.src_c; c++) {
        let t = taps_at(c * lanes + column, tap);
        let f0 = load(e0, c);
        let f1 = load(e1, c);
        let f2 = load(e2, c);
        let f3 = load(e3, c);
        let f4 = load(e4, c);
        let x0 = line_of(load(b0, c), subgroupBroadcast(f0, 0u), subgroupBroadcast(f0, 1u));
        let x1 = line_of(load(b1, c), subgroupBroadcast(f0, 2u), subgroupBroadcast(f0, 3u));
        let x2 = line_of(load(b2, c), subgroupBroadcast(f0, 4u), subgroupBroadcast(f0, 5u));
        s0 = under(s0, x0, x1, x2, t);
        let x3 = line_of(load(b3, c), subgroupBroadcast(f0, 6u), subgroupBroadcast(f0, 7u));
        s1 = under(s1, x1, x2, x3, t);
        let x4 = line_of(load(b4, c), subgroupBroadcast(f1, 0u), subgroupBroadcast(f1, 1u));
        s2 = under(s2, x2, x3, x4, t);
        let x5 = line_of(load(b5, c), subgroupBroadcast(f1, 2u), subgroupBroadcast(f1, 3u));
        s3 = under(s3, x3, x4, x5, t);
        let x6 = line_of(load(b6, c), subgroupBroadcast(f1, 4u), subgroupBroadcast(f1, 5u));
        s4 = under(s4, x4, x5, x6, t);
        let x7 = line_of(load(b7, c), subgroupBroadcast(f1, 6u), subgroupBroadcast(f1, 7u));
        s5 = under(s5, x5, x6, x7, t);
        let x8 = line_of(load(b8, c), subgroupBroadcast(f2, 0u), subgroupBroadcast(f2, 1u));
        s6 = under(s6, x6, x7, x8, t);
        let x9 = line_of(load(b9, c), subgroupBroadcast(f2, 2u), subgroupBroadcast(f2, 3u));
        s7 = under(s7, x7, x8, x9, t);
        let x10 = line_of(load(b10, c), subgroupBroadcast(f2, 4u), subgroupBroadcast(f2, 5u));
        s8 = under(s8, x8, x9, x10, t);
        let x11 = line_of(load(b11, c), subgroupBroadcast(f2, 6u), subgroupBroadcast(f2, 7u));
        s9 = under(s9, x9, x10, x11, t);
        let x12 = line_of(load(b12, c), subgroupBroadcast(f3, 0u), subgroupBroadcast(f3, 1u));
        s10 = under(s10, x10, x11, x12, t);
        let x13 = line_of(load(b13, c), subgroupBroadcast(f3, 2u), subgroupBroadcast(f3, 3u));
        s11 = under(s11, x11, x12, x13, t);
        let x14 = line_of(load(b14, c), subgroupBroadcast(f3, 4u), subgroupBroadcast(f3, 5u));
        s12 = under(s12, x12, x13, x14, t);
        let x15 = line_of(load(b15, c), subgroupBroadcast(f3, 6u), subgroupBroadcast(f3, 7u));
        s13 = under(s13, x13, x14, x15, t);
        let x16 = line_of(load(b16, c), subgroupBroadcast(f4, 0u), subgroupBroadcast(f4, 1u));
        s14 = under(s14, x14, x15, x16, t);
        let x17 = line_of(load(b17, c), subgroupBroadcast(f4, 2u), subgroupBroadcast(f4, 3u));
        s15 = under(s15, x15, x16, x17, t);
    }
    store_line(corner, 0u, lane, s0);
    store_line(corner, 1u, lane, s1);
    store_line(corner, 2u, lane, s2);
    store_line(corner, 3u, lane, s3);
    store_line(corner, 4u, lane, s4);
    store_line(corner, 5u, lane, s5);
    store_line(corner, 6u, lane, s6);
    store_line(corner, 7u, lane, s7);
    store_line(corner, 8u, lane, s8);
    store_line(corner, 9u, lane, s9);
    store_line(corner, 10u, lane, s10);
    store_line(corner, 11u, lane, s11);
    store_line(corner, 12u, lane, s12);
    store_line(corner, 13u, lane, s13);
    store_line(corner, 14u, lane, s14);
    store_line(corner, 15u, lane, s15);
}
