// mse - the weighted mean of squared differences, the loss of diffusion models.
//
//   loss = scale * sum over n, i of w[n] * (prediction[n, i] - target[n, i])^2    scale = 1 / (samples * size)
//   dp[n, i] = 2 * scale * dy * w[n] * (prediction[n, i] - target[n, i])
//
//   prediction, target, dp [samples, size]    w [samples], 1 if not `weighted`    dy [1]
//   out [samples, slices]
//
// forward: one workgroup per (sample, slice) writes the slice's sum; reduce.wgsl's `sum` then adds them up
// in a fixed order. backward_prediction: one thread for each element. Reference: Ho et al. 2020
// (arXiv:2006.11239), equation 14.
//!include lib/grid.wgsl
//!include lib/reduce.wgsl

const WG: u32 = 256u;

// Slice s of a sample holds the elements from s * slice_size on.
struct Params { samples: u32, size: u32, slices: u32, slice_size: u32, weighted: u32, scale: f32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> prediction: array<f32>;
@group(0) @binding(2) var<storage, read> target_values: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>; // anything if not weighted
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(0) @binding(5) var<storage, read> dy: array<f32>;
@group(0) @binding(6) var<storage, read_write> dp: array<f32>;

fn weight_of(sample: u32) -> f32 {
    if p.weighted == 0u {
        return 1.0;
    }
    return weight[sample];
}

@compute @workgroup_size(WG)
fn forward(thread: Thread) {
    let part = flat_group(thread.group, thread.groups);
    let sample = part / p.slices;
    let begin = (part - sample * p.slices) * p.slice_size;
    var end = min(begin + p.slice_size, p.size);
    if sample >= p.samples {
        end = 0u; // a group past the end
    }
    var sum = 0.0;
    for (var i = begin + thread.lane; i < end; i += WG) {
        let difference = prediction[sample * p.size + i] - target_values[sample * p.size + i];
        sum += difference * difference;
    }
    let total = block_sum(sum, thread);
    if thread.lane == 0u && sample < p.samples {
        out[part] = weight_of(sample) * total;
    }
}

@compute @workgroup_size(WG)
fn backward_prediction(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * WG + lane;
    if i < p.samples * p.size {
        dp[i] = 2.0 * p.scale * dy[0] * weight_of(i / p.size) * (prediction[i] - target_values[i]);
    }
}
