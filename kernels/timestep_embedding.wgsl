// timestep_embedding - the sinusoidal embedding of the diffusion step.
//
//   y[n] = [ sin(t[n] f_i) | cos(t[n] f_i) ]     f_i = period^(-i / (half - freq_shift))     half = dim / 2
//
//   t [n]    y [n, dim]    cosines first if cos_first; an odd dim ends with one zero
//
// One thread for each (n, i). Angles reach 1000 rad, where an f32 is off by 3e-5 rad: here they are
// fractions of a turn in units of 2^-64, and whole turns fall away in integers. Reference: Ho et al. 2020
// (arXiv:2006.11239), after Vaswani et al. 2017.
//!include lib/grid.wgsl
//!include lib/wide.wgsl
//!include lib/trig.wgsl

const WG: u32 = 256u;

struct Params {
    n: u32,
    dim: u32,
    cos_first: u32,
    // period^(-1 / (half - freq_shift)), the ratio of two frequencies, in units of 2^-64
    ratio_high: u32,
    ratio_low: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> t: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

// Product of two fractions in units of 2^-64, high word first; at most 3 units too small.
fn times(a: vec2<u32>, b: vec2<u32>) -> vec2<u32> {
    let top = mul_wide(a.x, b.x);
    let low1 = top.y + mul_wide(a.x, b.y).x;
    let low2 = low1 + mul_wide(a.y, b.x).x;
    return vec2<u32>(top.x + u32(low1 < top.y) + u32(low2 < low1), low2);
}

// f_i / (2 pi), turns for each unit of t: 1 / (2 pi) times ratio^i by repeated squaring.
fn turns_per_step(i: u32) -> vec2<u32> {
    var product = vec2<u32>(0x28be60dbu, 0x9391054au); // 1 / (2 pi)
    var power = vec2<u32>(p.ratio_high, p.ratio_low);
    for (var rest = i; rest > 0u; rest >>= 1u) {
        if (rest & 1u) == 1u {
            product = times(product, power);
        }
        power = times(power, power);
    }
    return product;
}

@compute @workgroup_size(WG)
fn forward(thread: Invocation) {
    let half = p.dim / 2u;
    let columns = half + (p.dim & 1u);
    let item = element(thread, WG);
    let n = item / columns;
    let i = item % columns;
    if n >= p.n {
        return;
    }
    let row = n * p.dim;
    if i == half {
        y[row + p.dim - 1u] = 0.0;
        return;
    }
    let step = turns_per_step(i);
    let whole = u32(abs(t[n]));
    let fraction = abs(t[n]) - f32(whole);
    let turns = whole * step.x + mul_wide(whole, step.y).x + u32(fraction * f32(step.x));
    let sin_cos = sin_cos_turns(turns);
    let sine = select(sin_cos.x, -sin_cos.x, t[n] < 0.0);
    y[row + select(i, half + i, p.cos_first == 1u)] = sine;
    y[row + select(half + i, i, p.cos_first == 1u)] = sin_cos.y;
}
