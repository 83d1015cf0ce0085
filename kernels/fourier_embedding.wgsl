// fourier_embedding - sines and cosines of a noise level's logarithm at fixed random frequencies.
//
//   y[n] = [ sin(2 pi w_i ln t[n]) | cos(2 pi w_i ln t[n]) ]
//
//   t [n]    w [half]    y [n, 2 half]    t above 0 and no subnormal
//
// One thread for each (n, i). The angle may be hundreds of turns, of which an f32 keeps 4e-5: logarithm and
// product are taken in integers, in units of 2^-32, and whole turns fall away. Reference: Song et al. 2021
// (arXiv:2011.13456), after Tancik et al. 2020.
//!include lib/grid.wgsl
//!include lib/wide.wgsl
//!include lib/trig.wgsl

const WG: u32 = 64u;

struct Params { n: u32, half: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> t: array<f32>;
@group(0) @binding(2) var<storage, read> w: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;

// log2 of m / 2^31 for m from 2^31, in units of 2^-32: each squaring gives a bit of it.
fn log2_of_mantissa(mantissa: u32) -> u32 {
    var m = mantissa;
    var bits = 0u;
    for (var i = 0u; i < 32u; i++) {
        let square = mul_wide(m, m);
        let carry = square.x >> 31u;
        bits = (bits << 1u) | carry;
        m = select((square.x << 1u) | (square.y >> 31u), square.x, carry == 1u);
    }
    return bits;
}

// |ln x|: whole part, and the rest in units of 2^-32.
fn abs_ln(x: f32) -> vec2<u32> {
    let bits = bitcast<u32>(x);
    let exponent = i32(bits >> 23u) - 127;
    let rest = log2_of_mantissa(((bits & 0x7fffffu) | 0x800000u) << 8u);
    var log = vec2<u32>(u32(exponent), rest);
    if exponent < 0 {
        // -(exponent + rest)
        log = vec2<u32>(u32(-exponent) - u32(rest != 0u), 0u - rest);
    }
    // Times ln 2, in units of 2^-64.
    let whole = mul_wide(log.x, 0xb17217f7u);
    let low = whole.y + mul_wide(log.x, 0xd1cf79abu).x;
    let sum = low + mul_wide(log.y, 0xb17217f7u).x;
    return vec2<u32>(whole.x + u32(low < whole.y) + u32(sum < low), sum);
}

// |factor| * a, as a fraction of a turn in units of 2^-32.
fn turns(factor: f32, a: vec2<u32>) -> u32 {
    let bits = bitcast<u32>(factor) & 0x7fffffffu;
    let exponent = bits >> 23u;
    if exponent == 0u {
        return 0u;
    }
    // A whole number of 24 bits times 2^shift.
    let mantissa = (bits & 0x7fffffu) | 0x800000u;
    let shift = i32(exponent) - 150;
    let low = mul_wide(mantissa, a.y);
    let high = mantissa * a.x + low.x;
    if shift >= 0 {
        return select(0u, low.y << u32(min(shift, 31)), shift < 32);
    }
    let right = u32(-shift);
    if right >= 64u {
        return 0u;
    }
    if right >= 32u {
        return high >> (right - 32u);
    }
    return (high << (32u - right)) | (low.y >> right);
}

@compute @workgroup_size(WG)
fn forward(thread: Invocation) {
    let item = element(thread, WG);
    if item >= p.n * p.half {
        return;
    }
    let n = item / p.half;
    let i = item % p.half;
    let negative = (t[n] < 1.0) != (w[i] < 0.0);
    let sin_cos = sin_cos_turns(turns(w[i], abs_ln(t[n])));
    let row = n * 2u * p.half;
    y[row + i] = select(sin_cos.x, -sin_cos.x, negative);
    y[row + p.half + i] = sin_cos.y;
}
