// denoising - one step of a reverse process, whatever the solver, updating the samples in place.
//
//   x0      = a x + b out                        clipped, or bounded and divided by its bound
//   next    = c0 x0 + c1 x + c2 out + sum_k d_k kept_k + sigma z    sigma times exp((e + f v) / 2) if learned
//   kept_k' = the same form with coefficients of its own, without z
//
//   x, out [samples, elements]    kept [1 + slots, samples, elements], the first of which is x0
//   v [samples, elements], what the model says of a learned variance
//   table [rows, 72]: t, a, b, clip, sigma, e, f, factor of a classifier's gradient; then from column 8 on a
//   form of 9 for the next x and for each slot: c0, c1, c2, d_0 .. d_5
//   z normal, drawn at step k = row of the state; not drawn where sigma is 0
//
// A coefficient that is 0 leaves out what it belongs to, be that NaN. One thread for each block of four
// elements of a sample. References: Ho et al. 2020 (arXiv:2006.11239), algorithm 2, and those
// in src/diffusion/scheduler. The bound: Saharia et al. 2022 (arXiv:2205.11487), section 2.3.
//!include lib/grid.wgsl
//!include lib/philox.wgsl

const WG: u32 = 256u;
const COLUMNS: u32 = 72u;
const FORMS: u32 = 8u; // column of the first form
const WIDTH: u32 = 9u; // of a form
const MOST: u32 = 7u; // forms

struct Params {
    samples: u32, elements: u32, rows: u32, slots: u32, rank: u32, bounded: u32, fraction: f32, most: f32,
    learned: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read> table: array<f32>;
@group(0) @binding(3) var<storage, read> out: array<f32>;
@group(0) @binding(4) var<storage, read_write> x: array<f32>;
@group(0) @binding(5) var<storage, read_write> kept: array<f32>;
@group(0) @binding(6) var<storage, read> bound: array<f32>; // anything if not bounded
@group(0) @binding(7) var<storage, read_write> bounds: array<f32>;
@group(0) @binding(8) var<storage, read_write> t: array<f32>;
@group(0) @binding(9) var<storage, read> variance: array<f32>; // anything if not learned

// First element of the state's row in the table.
fn row_start() -> u32 {
    return COLUMNS * min(state_row(), p.rows - 1u);
}

fn raw_x0(row: u32, i: u32) -> f32 {
    return table[row + 1u] * x[i] + table[row + 2u] * out[i];
}

// Not clamp, which may turn a NaN of the model into a number.
fn within(value: f32, limit: f32) -> f32 {
    let below = select(value, limit, value > limit);
    return select(below, -limit, below < -limit);
}

fn advance(row: u32, i: u32, x0: f32, z: f32) {
    let total = p.samples * p.elements;
    var next: array<f32, MOST>;
    for (var form = 0u; form <= p.slots; form++) {
        let first = row + FORMS + WIDTH * form;
        var sum = table[first] * x0 + table[first + 1u] * x[i];
        if table[first + 2u] != 0.0 {
            sum += table[first + 2u] * out[i];
        }
        for (var slot = 0u; slot < p.slots; slot++) {
            let coefficient = table[first + 3u + slot];
            if coefficient != 0.0 {
                sum += coefficient * kept[(slot + 1u) * total + i];
            }
        }
        next[form] = sum;
    }
    kept[i] = x0;
    x[i] = next[0] + table[row + 4u] * z;
    for (var slot = 0u; slot < p.slots; slot++) {
        kept[(slot + 1u) * total + i] = next[slot + 1u];
    }
}

@compute @workgroup_size(WG)
fn denoise(thread: Invocation) {
    let row = row_start();
    let block = block_of(element(thread, WG));
    var z = vec4<f32>();
    if table[row + 4u] != 0.0 {
        z = normal_of(draw_block(STREAM_REVERSE, state_row(), block));
    }
    let clip = table[row + 3u];
    for (var j = 0u; j < block.count; j++) {
        let i = block.first + j;
        var x0 = raw_x0(row, i);
        if p.bounded == 1u {
            x0 = within(x0, bound[block.n]) / bound[block.n];
        } else if clip > 0.0 {
            x0 = within(x0, clip);
        }
        var noise = z[j];
        if p.learned == 1u && table[row + 4u] != 0.0 {
            noise *= exp(0.5 * (table[row + 5u] + table[row + 6u] * variance[i]));
        }
        advance(row, i, x0, noise);
    }
}

var<workgroup> histogram: array<atomic<u32>, WG>;
var<workgroup> above: atomic<u32>;
var<workgroup> found: vec3<u32>; // leading bits, rank among those that share them, how many do

// A sample's bound: the quantile between the absolute values of x0 at `rank` and the next, at least 1 and at
// most `most`. Found digit by digit: as bits, numbers from 0 up are in order. One workgroup for each sample.
@compute @workgroup_size(WG)
fn find_bounds(thread: Invocation) {
    let n = flat_group(thread.group, thread.groups);
    let row = row_start();
    // A group past the end looks at the last sample, for the barriers, and stores nothing.
    let start = min(n, p.samples - 1u) * p.elements;
    var prefix = 0u;
    var rank = p.rank;
    var equal = 0u;
    for (var digit = 0u; digit < 4u; digit++) {
        let shift = 24u - 8u * digit;
        atomicStore(&histogram[thread.lane], 0u);
        workgroupBarrier();
        for (var e = thread.lane; e < p.elements; e += WG) {
            let bits = bitcast<u32>(abs(raw_x0(row, start + e)));
            if digit == 0u || bits >> ((shift + 8u) & 31u) == prefix {
                atomicAdd(&histogram[(bits >> shift) & 255u], 1u);
            }
        }
        workgroupBarrier();
        if thread.lane == 0u {
            var bucket = 0u;
            var before = 0u;
            while bucket < 255u && before + atomicLoad(&histogram[bucket]) <= rank {
                before += atomicLoad(&histogram[bucket]);
                bucket++;
            }
            found = vec3<u32>((prefix << 8u) | bucket, rank - before, atomicLoad(&histogram[bucket]));
        }
        let state_of_search = workgroupUniformLoad(&found);
        prefix = state_of_search.x;
        rank = state_of_search.y;
        equal = state_of_search.z;
    }
    if thread.lane == 0u {
        atomicStore(&above, 0x7f800000u); // infinity
    }
    workgroupBarrier();
    for (var e = thread.lane; e < p.elements; e += WG) {
        let bits = bitcast<u32>(abs(raw_x0(row, start + e)));
        if bits > prefix {
            atomicMin(&above, bits);
        }
    }
    workgroupBarrier();
    if thread.lane == 0u && n < p.samples {
        let low = bitcast<f32>(prefix);
        var quantile = low;
        if p.fraction > 0.0 && rank + 1u >= equal {
            quantile = low + (bitcast<f32>(atomicLoad(&above)) - low) * p.fraction;
        }
        bounds[n] = min(max(quantile, 1.0), p.most);
    }
}

@compute @workgroup_size(WG)
fn column_of_row(thread: Invocation) {
    let n = element(thread, WG);
    if n < p.samples {
        t[n] = table[row_start() + p.rank];
    }
}
