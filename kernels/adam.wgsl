// adam - one step of Adam with clipping, decoupled weight decay and a moving average of the parameters.
//
//   g   <- g * min(1, clip / (norm + 1e-6))                                  if clip > 0
//   m    = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
//   p    = p - lr (correction1 m / (sqrt(correction2 v) + eps) + weight_decay p)
//   ema  = ema - (1 - ema_decay) (ema - p)
//
//   params, grads, m, v, ema [n], a part of the flat parameters    norm [1]
//
// A norm that is not finite changes nothing. One thread for each element.
// References: Kingma & Ba 2015 (arXiv:1412.6980), Loshchilov & Hutter 2019 (arXiv:1711.05101).
//!include lib/grid.wgsl
//!include lib/state.wgsl

const WG: u32 = 256u;

struct Params {
    n: u32,
    beta1: f32,
    beta2: f32,
    // 1 - beta, rounded once: 1 - 0.999 in f32 is off by 1e-5
    rest1: f32,
    rest2: f32,
    eps: f32,
    weight_decay: f32,
    clip: f32,
    zero_grads: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read> norm: array<f32>;
@group(0) @binding(3) var<storage, read_write> params: array<f32>;
@group(0) @binding(4) var<storage, read_write> grads: array<f32>;
@group(0) @binding(5) var<storage, read_write> m: array<f32>;
@group(0) @binding(6) var<storage, read_write> v: array<f32>;
@group(0) @binding(7) var<storage, read_write> ema: array<f32>;

@compute @workgroup_size(WG)
fn update(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * WG + lane;
    // By the exponent's bits, since drivers may assume that floats are finite.
    let finite = (bitcast<u32>(norm[0]) & 0x7f800000u) != 0x7f800000u;
    if i >= p.n || !finite {
        return;
    }
    let scale = select(1.0, min(1.0, p.clip / (norm[0] + 1e-6)), p.clip > 0.0);
    let g = grads[i] * scale;
    let mean = p.beta1 * m[i] + p.rest1 * g;
    let square = p.beta2 * v[i] + p.rest2 * g * g;
    let direction = mean * state_correction1() / (sqrt(square * state_correction2()) + p.eps);
    let stepped = params[i] - state_lr() * (direction + p.weight_decay * params[i]);
    m[i] = mean;
    v[i] = square;
    params[i] = stepped;
    ema[i] -= (1.0 - state_ema_decay()) * (ema[i] - stepped);
    if p.zero_grads == 1u {
        grads[i] = 0.0;
    }
}
