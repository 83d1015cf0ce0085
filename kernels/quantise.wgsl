// quantise - vectors rounded to the nearest of a codebook, and how evenly its codes are used.
//
//   nearest:           index[m] = the first k of least sum_c (z[m, c] - codes[k, c])^2
//   straight_through:  y = e; its gradient goes to z as it is
//   usage:             counts[k] = number of m with index[m] = k
//   perplexity:        out = exp(-sum_k s ln s)      s = counts[k] / vectors
//
//   z [vectors, width]    codes [K, width]    index [vectors], whole numbers    counts [K]    out [1]
//   e, y [elements]
//
// One thread for each vector (nearest), code (usage) or element; perplexity is one workgroup. Reference: van
// den Oord et al. 2017 (arXiv:1711.00937), equations 1 and 2.
//!include lib/grid.wgsl
//!include lib/reduce.wgsl

const WG: u32 = 64u;

struct Params { vectors: u32, codes: u32, width: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> z: array<f32>;
@group(0) @binding(2) var<storage, read> codes: array<f32>;
@group(0) @binding(3) var<storage, read> index: array<f32>;
@group(0) @binding(3) var<storage, read_write> nearest_index: array<f32>;
@group(0) @binding(4) var<storage, read> counts: array<f32>;
@group(0) @binding(4) var<storage, read_write> new_counts: array<f32>;
@group(0) @binding(5) var<storage, read> e: array<f32>;
@group(0) @binding(6) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn nearest(thread: Invocation) {
    let m = element(thread, WG);
    if m >= p.vectors {
        return;
    }
    var best = 0u;
    var least = 3.4e38;
    for (var k = 0u; k < p.codes; k++) {
        var distance = 0.0;
        for (var c = 0u; c < p.width; c++) {
            let difference = z[m * p.width + c] - codes[k * p.width + c];
            distance += difference * difference;
        }
        if distance < least {
            least = distance;
            best = k;
        }
    }
    nearest_index[m] = f32(best);
}

@compute @workgroup_size(WG)
fn straight_through(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.vectors * p.width {
        y[i] = e[i];
    }
}

@compute @workgroup_size(WG)
fn usage(thread: Invocation) {
    let k = element(thread, WG);
    if k >= p.codes {
        return;
    }
    var count = 0u;
    for (var m = 0u; m < p.vectors; m++) {
        count += u32(index[m] == f32(k));
    }
    new_counts[k] = f32(count);
}

@compute @workgroup_size(WG)
fn perplexity(thread: Thread) {
    var entropy = 0.0;
    for (var k = thread.lane; k < p.codes; k += WG) {
        let share = counts[k] / f32(p.vectors);
        if share > 0.0 {
            entropy -= share * log(share);
        }
    }
    let all = block_sum(entropy, thread);
    if thread.lane == 0u {
        y[0] = exp(all);
    }
}
