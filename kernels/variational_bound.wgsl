// variational_bound - one term of the bound of a reverse step with a learned variance, in nats.
//
//   q(x_{t-1} | x_t, x_0) = N(mu, exp(l1))    model: N(mu - z, exp(l2))    z = B (target - m)    l2 = c + h v
//   (B, l1, c, h) = table[t]
//
//   t > 0: KL = 1/2 (exp(d) - 1 - d + z^2 exp(-l2))    d = l1 - l2
//          dKL/dm = -B z exp(-l2)                      dKL/dl2 = -1/2 (exp(d) - 1 + z^2 exp(-l2))
//   t = 0: -ln P of the bin of width 2/255 around x0 = mu, open to the outside at -1 and 1
//          with s = exp(l2 / 2), phi and Phi of the normal distribution, P = Phi(p) - Phi(q):
//          dlnP/dz = (phi(p) - phi(q)) / (s P)         dlnP/dl2 = -1/2 (p phi(p) - q phi(q)) / P
//
//   output, doutput [samples, rows, 2 channels]: m, then v    target, x0 [samples, rows, channels]
//   t [samples]    table [steps, 4]    each, dy [samples]: the mean over rows and channels
//
// forward: one workgroup for each sample. backward: one thread for each element of x0. References: Nichol &
// Dhariwal 2021 (arXiv:2102.09672), section 3.1; Ho et al. 2020 (arXiv:2006.11239), equation 13.
//!include lib/grid.wgsl
//!include lib/reduce.wgsl

const WG: u32 = 256u;

struct Params { samples: u32, rows: u32, channels: u32, steps: u32, learns_mean: u32, scale: f32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> output: array<f32>;
@group(0) @binding(2) var<storage, read> target_values: array<f32>;
@group(0) @binding(3) var<storage, read> x0: array<f32>;
@group(0) @binding(4) var<storage, read> t: array<f32>;
@group(0) @binding(5) var<storage, read> table: array<f32>;
@group(0) @binding(6) var<storage, read_write> each: array<f32>;
@group(0) @binding(7) var<storage, read> dy: array<f32>;
@group(0) @binding(8) var<storage, read_write> doutput: array<f32>;

const HALF_BIN: f32 = 1.0 / 255.0;
const DENSITY: f32 = 0.3989422804; // 1 / sqrt(2 pi)

// A value, and its derivatives in z and in l2.
struct Term { value: f32, dz: f32, dl: f32 }

// exp(d) - 1 - d for |d| < 1, where the difference would cancel.
fn series(d: f32) -> f32 {
    let high = 1.0 / 5040.0 + d * (1.0 / 40320.0 + d * (1.0 / 362880.0 + d * (1.0 / 3628800.0)));
    let low = 0.5 + d * (1.0 / 6.0 + d * (1.0 / 24.0 + d * (1.0 / 120.0 + d * (1.0 / 720.0 + d * high))));
    return d * d * low;
}

fn divergence(z: f32, l1: f32, l2: f32) -> Term {
    let d = l1 - l2;
    let excess = select(exp(d) - 1.0 - d, series(d), abs(d) < 1.0);
    let inverse = exp(-l2);
    let square = z * z * inverse;
    return Term(0.5 * (excess + square), z * inverse, -0.5 * (excess + d + square));
}

// exp(x^2 / 2) P(Z > x) for x >= 0, relatively right to 4e-7: a Chebyshev fit of erfc (Press et al.,
// Numerical Recipes, section 6.2).
fn tail(x: f32) -> f32 {
    let u = 1.0 / (1.0 + 0.35355339059 * x);
    let high = 0.27886807 + u * (-1.13520398 + u * (1.48851587 + u * (-0.82215223 + u * 0.17087277)));
    let low = 1.00002368 + u * (0.37409196 + u * (0.09678418 + u * (-0.18628806 + u * high)));
    return 0.5 * u * exp(-1.26551223 + u * low);
}

// ln P(Z < x), and phi(x) / P.
fn open_bin(x: f32) -> vec2<f32> {
    let far = tail(abs(x));
    let density = exp(-0.5 * x * x);
    if x < 0.0 {
        return vec2<f32>(log(far) - 0.5 * x * x, DENSITY / far);
    }
    let inside = 1.0 - density * far;
    return vec2<f32>(log(inside), DENSITY * density / inside);
}

// -ln P of the bin of x0, at a distance of z from the mean.
fn decoder(z: f32, clean: f32, l2: f32) -> Term {
    let inverse = exp(-0.5 * l2);
    if abs(clean) > 0.999 {
        let way = select(1.0, -1.0, clean > 0.0);
        let x = (way * z + HALF_BIN) * inverse;
        let bin = open_bin(x);
        return Term(-bin.x, -way * bin.y * inverse, 0.5 * x * bin.y);
    }
    // By symmetry z >= 0.
    let way = select(1.0, -1.0, z < 0.0);
    let c = abs(z) * inverse;
    let h = 2.0 * HALF_BIN * inverse;
    if h < 0.4 && c * h < 0.6 {
        // A narrow bin: the density in its middle, and two terms of Taylor's series.
        let h2 = h * h;
        let c2 = c * c;
        let more = h2 * (c2 - 1.0) / 24.0 + h2 * h2 * (c2 * c2 - 6.0 * c2 + 3.0) / 1920.0;
        let slope = (h2 * c / 12.0 + h2 * h2 * (c2 * c - 3.0 * c) / 480.0) / (1.0 + more);
        let by_h = (h2 * (c2 - 1.0) / 12.0 + h2 * h2 * (c2 * c2 - 6.0 * c2 + 3.0) / 480.0) / (1.0 + more);
        let value = 0.5 * c2 + 0.9189385332 - log(h) - log(1.0 + more);
        // In ln s: h and c go down with it.
        return Term(value, way * (c - slope) * inverse, 0.5 * (1.0 - c2 + c * slope + by_h));
    }
    let low = c - 0.5 * h;
    let high = c + 0.5 * h;
    var inside: f32; // P times exp(low^2 / 2), or P
    var near = 1.0; // the density at low by the same factor, times sqrt(2 pi)
    var far = exp(-c * h); // that at high
    var scale = -0.5 * low * low;
    if low > 0.0 {
        inside = tail(low) - far * tail(high);
    } else {
        near = exp(scale);
        far = near * far;
        scale = 0.0;
        inside = 1.0 - near * tail(-low) - far * tail(high);
    }
    let dz = DENSITY * (far - near) / inside * inverse;
    let dl = -0.5 * DENSITY * (high * far - low * near) / inside;
    return Term(-scale - log(inside), -way * dz, -dl);
}

// The term of element i of sample n, whose row of the table is `row`.
fn term(n: u32, i: u32, row: u32) -> Term {
    let at = n * p.rows * p.channels + i;
    let out = 2u * p.channels * (n * p.rows + i / p.channels) + i % p.channels;
    let z = table[row] * (target_values[at] - output[out]);
    let l2 = table[row + 2u] + table[row + 3u] * output[out + p.channels];
    if row == 0u {
        return decoder(z, x0[at], l2);
    }
    return divergence(z, table[row + 1u], l2);
}

fn row_of(n: u32) -> u32 {
    return 4u * min(u32(t[n]), p.steps - 1u);
}

@compute @workgroup_size(WG)
fn forward(thread: Thread) {
    let n = flat_group(thread.group, thread.groups);
    var sum = 0.0;
    if n < p.samples {
        let row = row_of(n);
        for (var i = thread.lane; i < p.rows * p.channels; i += WG) {
            sum += term(n, i, row).value;
        }
    }
    let total = block_sum(sum, thread);
    if thread.lane == 0u && n < p.samples {
        each[n] = p.scale * total;
    }
}

@compute @workgroup_size(WG)
fn backward(thread: Invocation) {
    let item = element(thread, WG);
    let size = p.rows * p.channels;
    let n = item / size;
    if n >= p.samples {
        return;
    }
    let i = item - n * size;
    let row = row_of(n);
    let slope = term(n, i, row);
    let scale = p.scale * dy[n];
    let out = 2u * p.channels * (n * p.rows + i / p.channels) + i % p.channels;
    doutput[out] = select(0.0, -scale * table[row] * slope.dz, p.learns_mean == 1u);
    doutput[out + p.channels] = scale * table[row + 3u] * slope.dl;
}
