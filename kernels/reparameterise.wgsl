// reparameterise - draws from normal distributions so that a gradient reaches their parameters.
//
//   z = mean + exp(log_var / 2) * eps      eps normal, drawn here or given
//   dlog_var = 1/2 * exp(log_var / 2) * eps * dz      (dmean is dz itself)
//
//   mean, log_var, eps, z, dz, dlog_var [samples, elements]    state [16]
//
// forward, backward_log_var: eps is drawn, in both the same, so nothing is stored; one thread for each block
// of four elements of a sample, which is what one draw of random numbers gives; the last block of a sample
// may be smaller. forward_given, backward_log_var_given: one thread for each element. Reference: Kingma &
// Welling 2014 (arXiv:1312.6114), section 2.4; random numbers as in lib/philox.wgsl.
//!include lib/grid.wgsl
//!include lib/state.wgsl
//!include lib/philox.wgsl

const WG: u32 = 256u;

struct Params { samples: u32, elements: u32, stream: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> mean: array<f32>;
@group(0) @binding(2) var<storage, read> log_var: array<f32>;
@group(0) @binding(3) var<storage, read> state: array<u32>;
@group(0) @binding(4) var<storage, read> eps: array<f32>;
@group(0) @binding(5) var<storage, read_write> z: array<f32>;
@group(0) @binding(6) var<storage, read> dz: array<f32>;
@group(0) @binding(7) var<storage, read_write> dlog_var: array<f32>;

fn deviation(i: u32) -> f32 {
    return exp(0.5 * log_var[i]);
}

// Elements of one block: `count` of them from `first` on; `count` is 0 past the end.
struct Block { first: u32, count: u32, eps: vec4<f32> }

fn block_of(item: u32) -> Block {
    let blocks = (p.elements + 3u) / 4u;
    let n = item / blocks;
    let block = item - n * blocks;
    if n >= p.samples {
        return Block(0u, 0u, vec4<f32>());
    }
    let sample = state_sample() + n;
    let drawn = normal_of(draw(state_seed(), p.stream, state_step(), sample, block));
    return Block(n * p.elements + 4u * block, min(4u, p.elements - 4u * block), drawn);
}

@compute @workgroup_size(WG)
fn forward(thread: Invocation) {
    let block = block_of(element(thread, WG));
    for (var j = 0u; j < block.count; j++) {
        let i = block.first + j;
        z[i] = mean[i] + deviation(i) * block.eps[j];
    }
}

@compute @workgroup_size(WG)
fn backward_log_var(thread: Invocation) {
    let block = block_of(element(thread, WG));
    for (var j = 0u; j < block.count; j++) {
        let i = block.first + j;
        dlog_var[i] = 0.5 * deviation(i) * block.eps[j] * dz[i];
    }
}

@compute @workgroup_size(WG)
fn forward_given(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.samples * p.elements {
        z[i] = mean[i] + deviation(i) * eps[i];
    }
}

@compute @workgroup_size(WG)
fn backward_log_var_given(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.samples * p.elements {
        dlog_var[i] = 0.5 * deviation(i) * eps[i] * dz[i];
    }
}
