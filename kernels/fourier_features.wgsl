// fourier_features - an image beside sines and cosines of its values, which tell close values apart.
//
//   y[r] = [ x[r, c] | sin(2 pi 2^n x[r, c]) | cos(2 pi 2^n x[r, c]) ]
//   dx = dy_x + sum over n of 2 pi 2^n (dy_sin cos - dy_cos sin)
//
//   x, dx [rows, channels]    y, dy [rows, channels (1 + 2 K)], n from the smallest on within a channel
//   n are the K bits of `powers` that are 1
//
// One thread for each element of x. Turns are counted from the nearest whole one, which an f32 gives exactly.
// Reference: Kingma et al. 2021 (arXiv:2107.00630), appendix C.
//!include lib/grid.wgsl
//!include lib/trig.wgsl

const WG: u32 = 256u;
const TAU: f32 = 6.2831855;

struct Params { n: u32, channels: u32, powers: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;

// (sin, cos) of 2 pi turns.
fn sin_cos(turns: f32) -> vec2<f32> {
    let rest = turns - round(turns); // in [-1/2, 1/2]
    return sin_cos_turns(bitcast<u32>(i32(rest * 4294967296.0)));
}

// Where the element i of x stands in y.
fn place(i: u32, count: u32) -> u32 {
    return i / p.channels * p.channels * (1u + 2u * count) + i % p.channels;
}

// Where its first sine stands.
fn place_of_sines(i: u32, count: u32) -> u32 {
    return place(i, count) - i % p.channels + p.channels + i % p.channels * count;
}

@compute @workgroup_size(WG)
fn forward(thread: Invocation) {
    let i = element(thread, WG);
    if i >= p.n {
        return;
    }
    let count = countOneBits(p.powers);
    y[place(i, count)] = x[i];
    var at = place_of_sines(i, count);
    for (var rest = p.powers; rest != 0u; rest &= rest - 1u) {
        let angle = sin_cos(x[i] * f32(rest & (0u - rest)));
        y[at] = angle.x;
        y[at + p.channels * count] = angle.y;
        at++;
    }
}

@compute @workgroup_size(WG)
fn backward_x(thread: Invocation) {
    let i = element(thread, WG);
    if i >= p.n {
        return;
    }
    let count = countOneBits(p.powers);
    var sum = dy[place(i, count)];
    var at = place_of_sines(i, count);
    for (var rest = p.powers; rest != 0u; rest &= rest - 1u) {
        let power = f32(rest & (0u - rest));
        let angle = sin_cos(x[i] * power);
        sum += TAU * power * (dy[at] * angle.y - dy[at + p.channels * count] * angle.x);
        at++;
    }
    dx[i] = sum;
}
