// reparameterise - draws from normal distributions so that a gradient reaches their parameters.
//
//   z = mean + exp(log_var / 2) * eps      eps normal, drawn here or given
//   dlog_var = 1/2 * exp(log_var / 2) * eps * dz      (dmean is dz itself)
//
//   mean, log_var, eps, z, dz, dlog_var [samples, elements]    state [16]
//
// An eps that is drawn is the same in both, so nothing is stored. One thread for each block of four elements
// of a sample. Reference: Kingma & Welling 2014 (arXiv:1312.6114), section 2.4; random numbers as in
// lib/philox.wgsl.
//!include lib/grid.wgsl
//!include lib/philox.wgsl

const WG: u32 = 256u;
const DRAWN: bool = true; // knob: false, eps is given

struct Params { samples: u32, elements: u32, stream: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> mean: array<f32>;
@group(0) @binding(2) var<storage, read> log_var: array<f32>;
@group(0) @binding(3) var<storage, read> state: array<u32>; // if not DRAWN, the bits of eps
@group(0) @binding(4) var<storage, read_write> z: array<f32>;
@group(0) @binding(5) var<storage, read> dz: array<f32>;
@group(0) @binding(6) var<storage, read_write> dlog_var: array<f32>;

fn deviation(i: u32) -> f32 {
    return exp(0.5 * log_var[i]);
}

fn eps_of(block: Block) -> vec4<f32> {
    if DRAWN {
        return normal_of(draw_block(p.stream, state_step(), block));
    }
    var eps = vec4<f32>();
    for (var j = 0u; j < block.count; j++) {
        eps[j] = bitcast<f32>(state[block.first + j]);
    }
    return eps;
}

@compute @workgroup_size(WG)
fn forward(thread: Invocation) {
    let block = block_of(element(thread, WG));
    let eps = eps_of(block);
    for (var j = 0u; j < block.count; j++) {
        let i = block.first + j;
        z[i] = mean[i] + deviation(i) * eps[j];
    }
}

@compute @workgroup_size(WG)
fn backward_log_var(thread: Invocation) {
    let block = block_of(element(thread, WG));
    let eps = eps_of(block);
    for (var j = 0u; j < block.count; j++) {
        let i = block.first + j;
        dlog_var[i] = 0.5 * deviation(i) * eps[j] * dz[i];
    }
}
