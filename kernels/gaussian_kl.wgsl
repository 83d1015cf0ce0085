// gaussian_kl - how far normal distributions are from the standard one: the prior term of a VAE's loss.
//
//   kl = scale * sum over all elements of mean^2 + (exp(l) - 1 - l)      scale = 1 / (2 N)      l = log_var
//   dmean = dy * 2 * scale * mean      dlog_var = dy * scale * (exp(l) - 1)
//
//   mean, log_var, dmean, dlog_var [elements]    out [slices]    dy [1]
//
// forward: one workgroup for each slice writes the slice's sum; reduce.wgsl's `sum` then adds them up in a
// fixed order. backward: one thread for each element. Reference: Kingma & Welling 2014 (arXiv:1312.6114),
// appendix B.
//!include lib/grid.wgsl
//!include lib/reduce.wgsl

const WG: u32 = 256u;

// Slice s holds the elements from s * slice_size on.
struct Params { elements: u32, slices: u32, slice_size: u32, scale: f32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> mean: array<f32>;
@group(0) @binding(2) var<storage, read> log_var: array<f32>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
@group(0) @binding(5) var<storage, read_write> dmean: array<f32>;
@group(0) @binding(6) var<storage, read_write> dlog_var: array<f32>;

// exp(l) - 1 - l for |l| < 1, where the difference would cancel: the series up to l^11 / 11!.
fn series(l: f32) -> f32 {
    let high = 1.0 / 5040.0 + l * (1.0 / 40320.0 + l * (1.0 / 362880.0
        + l * (1.0 / 3628800.0 + l * (1.0 / 39916800.0))));
    let low = 0.5 + l * (1.0 / 6.0 + l * (1.0 / 24.0 + l * (1.0 / 120.0 + l * (1.0 / 720.0 + l * high))));
    return l * l * low;
}

@compute @workgroup_size(WG)
fn forward(thread: Thread) {
    let part = flat_group(thread.group, thread.groups);
    // Empty for a group past the end.
    let begin = min(part, p.slices) * p.slice_size;
    let end = min(begin + p.slice_size, p.elements);
    var sum = 0.0;
    for (var i = begin + thread.lane; i < end; i += WG) {
        let l = log_var[i];
        sum += mean[i] * mean[i] + select(exp(l) - 1.0 - l, series(l), abs(l) < 1.0);
    }
    let total = block_sum(sum, thread);
    if thread.lane == 0u && part < p.slices {
        out[part] = total;
    }
}

@compute @workgroup_size(WG)
fn backward(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.elements {
        let scale = p.scale * dy[0];
        let l = log_var[i];
        dmean[i] = 2.0 * scale * mean[i];
        dlog_var[i] = scale * select(exp(l) - 1.0, l + series(l), abs(l) < 1.0);
    }
}
