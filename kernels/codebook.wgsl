// codebook - what a step adds to a codebook's statistics, and the codes that follow from them.
//
//   gather:  n[k] += usage[k]    sum[k] += sum of z[m] over the m with index[m] = k
//            candidate[k] = z[r], if r is among these vectors: uniform among those of all batches of the step
//   update:  N' = decay N + (1 - decay) n
//            averages: e = (decay e S(N) + (1 - decay) sum) / S(N')
//                      S(N) = (N + eps) / (all + K eps) * all      all = sum of N
//            where N' < restart: e = ema = candidate, N' = restart, m = v = 0
//            n = sum = 0
//
//   z [vectors, width]    index [vectors]    usage [K]    totals [2]: the sums of N and of n
//   statistics: n [K], sum [K, width], candidate [K, width]    N (counts) [K]    codes, ema, m, v [K, width]
//
// S smooths the counts, so that no code is divided by 0; e S(N) is the running sum of the vectors of a code.
// A norm that is not finite changes nothing. One thread for each element of a code (gather), or each code
// (update), after one workgroup for the totals. Reference: van den Oord et al. 2017 (arXiv:1711.00937),
// appendix A.1; restarts as in Dhariwal et al. 2020 (arXiv:2005.00341), section 3.
//!include lib/grid.wgsl
//!include lib/reduce.wgsl
//!include lib/philox.wgsl

const WG: u32 = 64u;
const EPS: f32 = 1e-5;
const STREAM_RESTART: u32 = 16u;

struct Params {
    codes: u32,
    width: u32,
    elements: u32, // codes * width
    samples: u32, // of the batch, each of per_sample vectors
    per_sample: u32,
    step_vectors: u32, // of all batches of the step
    averages: u32,
    decay: f32,
    rest: f32, // 1 - decay
    restart: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> z: array<f32>;
@group(0) @binding(2) var<storage, read> index: array<f32>;
@group(0) @binding(3) var<storage, read> usage: array<f32>;
@group(0) @binding(4) var<storage, read> state: array<u32>;
@group(0) @binding(5) var<storage, read_write> statistics: array<f32>;
@group(0) @binding(6) var<storage, read> norm: array<f32>;
@group(0) @binding(7) var<storage, read_write> totals: array<f32>;
@group(0) @binding(8) var<storage, read_write> counts: array<f32>;
@group(0) @binding(9) var<storage, read_write> codes: array<f32>;
@group(0) @binding(10) var<storage, read_write> ema: array<f32>;
@group(0) @binding(11) var<storage, read_write> m: array<f32>;
@group(0) @binding(12) var<storage, read_write> v: array<f32>;

@compute @workgroup_size(WG)
fn gather(thread: Invocation) {
    let i = element(thread, WG);
    if i >= p.elements {
        return;
    }
    let k = i / p.width;
    let c = i % p.width;
    let vectors = p.samples * p.per_sample;
    var sum = 0.0;
    for (var row = 0u; row < vectors; row++) {
        if index[row] == f32(k) {
            sum += z[row * p.width + c];
        }
    }
    statistics[p.codes + i] += sum;
    if c == 0u {
        statistics[k] += usage[k];
    }
    let word = draw(state_seed(), STREAM_RESTART, state_step(), k, 0u).x;
    // The high word of the product: a number below step_vectors.
    let picked = mul_wide(word, p.step_vectors).x;
    let first = state_sample() * p.per_sample;
    if picked >= first && picked - first < vectors {
        statistics[p.codes + p.elements + i] = z[(picked - first) * p.width + c];
    }
}

@compute @workgroup_size(WG)
fn sum_up(thread: Thread) {
    var old = 0.0;
    var new_ones = 0.0;
    for (var k = thread.lane; k < p.codes; k += WG) {
        old += counts[k];
        new_ones += statistics[k];
    }
    let all = block_sum(old, thread);
    let added = block_sum(new_ones, thread);
    if thread.lane == 0u {
        totals[0] = all;
        totals[1] = added;
    }
}

fn smoothed(count: f32, all: f32) -> f32 {
    return (count + EPS) / (all + f32(p.codes) * EPS) * all;
}

@compute @workgroup_size(WG)
fn update(thread: Invocation) {
    let k = element(thread, WG);
    if k >= p.codes {
        return;
    }
    // By the exponent's bits, since drivers may assume that floats are finite.
    if (bitcast<u32>(norm[0]) & 0x7f800000u) == 0x7f800000u {
        for (var i = k * p.width; i < (k + 1u) * p.width; i++) {
            statistics[p.codes + i] = 0.0;
        }
        statistics[k] = 0.0;
        return;
    }
    let before = counts[k];
    let count = p.decay * before + p.rest * statistics[k];
    let all = p.decay * totals[0] + p.rest * totals[1];
    let old_share = p.decay * smoothed(before, totals[0]);
    let dead = count < p.restart;
    for (var i = k * p.width; i < (k + 1u) * p.width; i++) {
        if dead {
            let candidate = statistics[p.codes + p.elements + i];
            codes[i] = candidate;
            ema[i] = candidate;
            m[i] = 0.0;
            v[i] = 0.0;
        } else if p.averages == 1u {
            codes[i] = (codes[i] * old_share + p.rest * statistics[p.codes + i]) / smoothed(count, all);
            // Adam would go on with what it has of earlier steps.
            m[i] = 0.0;
            v[i] = 0.0;
        }
        statistics[p.codes + i] = 0.0;
    }
    statistics[k] = 0.0;
    counts[k] = select(count, p.restart, dead);
}
