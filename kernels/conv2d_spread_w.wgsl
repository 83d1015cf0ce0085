// conv2d_spread_w - the gradient of a convolution's weights as in conv2d.wgsl, for drivers on a CPU.
//
// As in conv2d_spread.wgsl, lanes of a subgroup share what they read, and a thread has four columns of some 64 rows (kh,kw,ci) of
// dw, over a part of the pixels; conv2d.wgsl adds the parts.
//
// backward_w:     64 rows, one after the other.
// backward_w_3x3: for 3 x 3 taps and a stride of 1, the nine taps of eight channels: it goes down a strip of eight columns of the
//                 image, where each pixel is read once for all taps.
//!include lib/grid.wgsl
//!include lib/conv_weights.wgsl
//!include lib/spread.wgsl

const WG: u32 = 8u; // threads, 4 channels each

@group(0) @binding(1) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read> dy: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> parts: array<vec4<f32>>;

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
    let inside = h >= 0 && w >= 0 && h < i32(q.h) && w < i32(q.w) && ow < q.ow;
    let i = ((i32(n * q.h) + h) * i32(q.w) + w) * i32(q.cin) + rows.ci;
    return select(vec4<f32>(), x[select(0u, u32(i) / 4u, inside)], inside);
}

// x under the tap of four pixels of dy: a channel in each row.
fn under(rows: Rows, n: u32, oh: u32, ow: u32) -> mat4x4<f32> {
    return transpose(mat4x4<f32>(
        load_x(rows, n, oh, ow), load_x(rows, n, oh, ow + 1u), load_x(rows, n, oh, ow + 2u), load_x(rows, n, oh, ow + 3u),
    ));
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
        parts[(part * part_rows() + row) * lanes + lane] = sum;
    }
}

// The sums of dy, by the workgroups that have the first rows of dw. They read dy once more: a sum more in the loop over the
// products would be copied once a turn, by every workgroup.
fn store_bias(part: u32, lane: u32) {
    let lanes = q.cout / 4u;
    if lane >= lanes {
        return;
    }
    var sum = vec4<f32>();
    let end = min((part + 1u) * q.rows, q.n * q.oh);
    for (var line = part * q.rows; line < end; line++) {
        var along = vec4<f32>();
        for (var ow = 0u; ow < q.ow; ow++) {
            along += dy[(line * q.ow + ow) * lanes + lane];
        }
        sum += along;
    }
    parts[((part + 1u) * part_rows() - 1u) * lanes + lane] = sum;
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
    let flat = q.first_group + flat_group(group, groups);
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
        // Past the end of the row x counts as outside.
        for (var ow = 0u; ow < q.ow; ow += 4u) {
            let d = Four(
                dy[(line * q.ow + ow) * lanes + column], dy[(line * q.ow + min(ow + 1u, q.ow - 1u)) * lanes + column],
                dy[(line * q.ow + min(ow + 2u, q.ow - 1u)) * lanes + column],
                dy[(line * q.ow + min(ow + 3u, q.ow - 1u)) * lanes + column],
            );
            let u = under(r0, n, oh, ow);
            let v = under(r1, n, oh, ow);
            s0 = spread(s0, u[0], d);
            s1 = spread(s1, u[1], d);
            s2 = spread(s2, u[2], d);
            s3 = spread(s3, u[3], d);
            s4 = spread(s4, v[0], d);
            s5 = spread(s5, v[1], d);
            s6 = spread(s6, v[2], d);
            s7 = spread(s7, v[3], d);
        }
    }
    if q.has_bias != 0u && first == 0u { store_bias(part, lane); }
    store_rows(first, part, lane, s0);
    store_rows(first + 1u, part, lane, s1);
    store_rows(first + 2u, part, lane, s2);
    store_rows(first + 3u, part, lane, s3);
    store_rows(first + 32u, part, lane, s4);
    store_rows(first + 33u, part, lane, s5);
    store_rows(first + 34u, part, lane, s6);
    store_rows(first + 35u, part, lane, s7);
}

// x once more, a number at a time.
@group(0) @binding(4) var<storage, read> x_ones: array<f32>;

// One channel of a pixel of x, 0 outside the image.
fn x_at(n: u32, h: i32, w: i32, ci: u32) -> f32 {
    let inside = h >= 0 && w >= 0 && h < i32(q.h) && w < i32(q.w);
    let i = ((i32(n * q.h) + h) * i32(q.w) + w) * i32(q.cin) + i32(ci);
    return select(0.0, x_ones[select(0u, u32(i), inside)], inside);
}

fn x_line(n: u32, h: i32, w: i32, ci: u32) -> Line {
    return Line(
        x_at(n, h, w, ci), x_at(n, h, w + 1, ci), x_at(n, h, w + 2, ci), x_at(n, h, w + 3, ci), x_at(n, h, w + 4, ci),
        x_at(n, h, w + 5, ci), x_at(n, h, w + 6, ci), x_at(n, h, w + 7, ci), x_at(n, h, w + 8, ci), x_at(n, h, w + 9, ci),
    );
}

// A pixel of a row of dy, 0 past its end.
fn dy_at(line: u32, ow: u32, column: u32) -> vec4<f32> {
    return select(vec4<f32>(), dy[(line * q.ow + min(ow, q.ow - 1u)) * (q.cout / 4u) + column], ow < q.ow);
}

// dw of one tap += eight pixels of dy times the pixels of x under the tap, of which each lane has its channel.
fn along(sums: Eight, x0: f32, x1: f32, x2: f32, x3: f32, x4: f32, x5: f32, x6: f32, x7: f32, d: Eight) -> Eight {
    return Eight(
        sums.a + subgroupBroadcast(x0, 0u) * d.a + subgroupBroadcast(x1, 0u) * d.b + subgroupBroadcast(x2, 0u) * d.c
            + subgroupBroadcast(x3, 0u) * d.d + subgroupBroadcast(x4, 0u) * d.e + subgroupBroadcast(x5, 0u) * d.f
            + subgroupBroadcast(x6, 0u) * d.g + subgroupBroadcast(x7, 0u) * d.h,
        sums.b + subgroupBroadcast(x0, 1u) * d.a + subgroupBroadcast(x1, 1u) * d.b + subgroupBroadcast(x2, 1u) * d.c
            + subgroupBroadcast(x3, 1u) * d.d + subgroupBroadcast(x4, 1u) * d.e + subgroupBroadcast(x5, 1u) * d.f
            + subgroupBroadcast(x6, 1u) * d.g + subgroupBroadcast(x7, 1u) * d.h,
        sums.c + subgroupBroadcast(x0, 2u) * d.a + subgroupBroadcast(x1, 2u) * d.b + subgroupBroadcast(x2, 2u) * d.c
            + subgroupBroadcast(x3, 2u) * d.d + subgroupBroadcast(x4, 2u) * d.e + subgroupBroadcast(x5, 2u) * d.f
            + subgroupBroadcast(x6, 2u) * d.g + subgroupBroadcast(x7, 2u) * d.h,
        sums.d + subgroupBroadcast(x0, 3u) * d.a + subgroupBroadcast(x1, 3u) * d.b + subgroupBroadcast(x2, 3u) * d.c
            + subgroupBroadcast(x3, 3u) * d.d + subgroupBroadcast(x4, 3u) * d.e + subgroupBroadcast(x5, 3u) * d.f
            + subgroupBroadcast(x6, 3u) * d.g + subgroupBroadcast(x7, 3u) * d.h,
        sums.e + subgroupBroadcast(x0, 4u) * d.a + subgroupBroadcast(x1, 4u) * d.b + subgroupBroadcast(x2, 4u) * d.c
            + subgroupBroadcast(x3, 4u) * d.d + subgroupBroadcast(x4, 4u) * d.e + subgroupBroadcast(x5, 4u) * d.f
            + subgroupBroadcast(x6, 4u) * d.g + subgroupBroadcast(x7, 4u) * d.h,
        sums.f + subgroupBroadcast(x0, 5u) * d.a + subgroupBroadcast(x1, 5u) * d.b + subgroupBroadcast(x2, 5u) * d.c
            + subgroupBroadcast(x3, 5u) * d.d + subgroupBroadcast(x4, 5u) * d.e + subgroupBroadcast(x5, 5u) * d.f
            + subgroupBroadcast(x6, 5u) * d.g + subgroupBroadcast(x7, 5u) * d.h,
        sums.g + subgroupBroadcast(x0, 6u) * d.a + subgroupBroadcast(x1, 6u) * d.b + subgroupBroadcast(x2, 6u) * d.c
            + subgroupBroadcast(x3, 6u) * d.d + subgroupBroadcast(x4, 6u) * d.e + subgroupBroadcast(x5, 6u) * d.f
            + subgroupBroadcast(x6, 6u) * d.g + subgroupBroadcast(x7, 6u) * d.h,
        sums.h + subgroupBroadcast(x0, 7u) * d.a + subgroupBroadcast(x1, 7u) * d.b + subgroupBroadcast(x2, 7u) * d.c
            + subgroupBroadcast(x3, 7u) * d.d + subgroupBroadcast(x4, 7u) * d.e + subgroupBroadcast(x5, 7u) * d.f
            + subgroupBroadcast(x6, 7u) * d.g + subgroupBroadcast(x7, 7u) * d.h,
    );
}

fn store_tap(tap: u32, ci: u32, part: u32, lane: u32, s: Eight) {
    store_channel(tap, ci, part, lane, s.a);
    store_channel(tap, ci + 1u, part, lane, s.b);
    store_channel(tap, ci + 2u, part, lane, s.c);
    store_channel(tap, ci + 3u, part, lane, s.d);
    store_channel(tap, ci + 4u, part, lane, s.e);
    store_channel(tap, ci + 5u, part, lane, s.f);
    store_channel(tap, ci + 6u, part, lane, s.g);
    store_channel(tap, ci + 7u, part, lane, s.h);
}

fn store_channel(tap: u32, ci: u32, part: u32, lane: u32, sum: vec4<f32>) {
    if ci < q.cin {
        store_row(tap * q.cin + ci, part, lane, sum);
    }
}

@compute @workgroup_size(WG)
fn backward_w_3x3(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) thread: u32,
    @builtin(subgroup_invocation_id) subgroup_lane: u32,
) {
    let lanes = q.cout / 4u;
    let across = (lanes + WG - 1u) / WG;
    let down = (q.cin + 7u) / 8u;
    let flat = q.first_group + flat_group(group, groups);
    let part = flat / across / down;
    if part >= q.parts {
        return;
    }
    let first = flat / across % down * 8u;
    let lane = flat % across * WG + thread;
    let column = min(lane, lanes - 1u);
    let ci = min(first + subgroup_lane % 8u, q.cin - 1u);
    var s00 = Eight();
    var s01 = Eight();
    var s02 = Eight();
    var s10 = Eight();
    var s11 = Eight();
    var s12 = Eight();
    var s20 = Eight();
    var s21 = Eight();
    var s22 = Eight();
    let end = min((part + 1u) * q.rows, q.n * q.oh);
    for (var ow = 0u; ow < q.ow; ow += 8u) {
        let left = i32(ow) - i32(q.left);
        var line = part * q.rows;
        // The rows of one sample after those of the other.
        while line < end {
            let n = line / q.oh;
            let stop = min(end, (n + 1u) * q.oh);
            let top = i32(line % q.oh) - i32(q.top);
            var v0 = x_line(n, top, left, ci);
            var v1 = x_line(n, top + 1, left, ci);
            var below = top + 2;
            for (; line < stop; line++) {
                let v2 = x_line(n, below, left, ci);
                let d = Eight(
                    dy_at(line, ow, column), dy_at(line, ow + 1u, column),
                    dy_at(line, ow + 2u, column), dy_at(line, ow + 3u, column),
                    dy_at(line, ow + 4u, column), dy_at(line, ow + 5u, column),
                    dy_at(line, ow + 6u, column), dy_at(line, ow + 7u, column),
                );
                s00 = along(s00, v0.x0, v0.x1, v0.x2, v0.x3, v0.x4, v0.x5, v0.x6, v0.x7, d);
                s01 = along(s01, v0.x1, v0.x2, v0.x3, v0.x4, v0.x5, v0.x6, v0.x7, v0.x8, d);
                s02 = along(s02, v0.x2, v0.x3, v0.x4, v0.x5, v0.x6, v0.x7, v0.x8, v0.x9, d);
                s10 = along(s10, v1.x0, v1.x1, v1.x2, v1.x3, v1.x4, v1.x5, v1.x6, v1.x7, d);
                s11 = along(s11, v1.x1, v1.x2, v1.x3, v1.x4, v1.x5, v1.x6, v1.x7, v1.x8, d);
                s12 = along(s12, v1.x2, v1.x3, v1.x4, v1.x5, v1.x6, v1.x7, v1.x8, v1.x9, d);
                s20 = along(s20, v2.x0, v2.x1, v2.x2, v2.x3, v2.x4, v2.x5, v2.x6, v2.x7, d);
                s21 = along(s21, v2.x1, v2.x2, v2.x3, v2.x4, v2.x5, v2.x6, v2.x7, v2.x8, d);
                s22 = along(s22, v2.x2, v2.x3, v2.x4, v2.x5, v2.x6, v2.x7, v2.x8, v2.x9, d);
                v0 = v1;
                v1 = v2;
                below += 1;
            }
        }
    }
    if q.has_bias != 0u && first == 0u { store_bias(part, lane); }
    store_tap(0u, first, part, lane, s00);
    store_tap(1u, first, part, lane, s01);
    store_tap(2u, first, part, lane, s02);
    store_tap(3u, first, part, lane, s10);
    store_tap(4u, first, part, lane, s11);
    store_tap(5u, first, part, lane, s12);
    store_tap(6u, first, part, lane, s20);
    store_tap(7u, first, part, lane, s21);
    store_tap(8u, first, part, lane, s22);
}
