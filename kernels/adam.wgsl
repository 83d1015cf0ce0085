// adam - one step of Adam with clipping, decoupled weight decay and a moving average of the parameters.
//
//   g   <- g * 2^-e * min(1, clip / (norm + 1e-6))                           the factor if clip > 0
//   m    = beta1 m + (1 - beta1) g        v = beta2 v + (1 - beta2) g^2
//   p    = p - lr (correction1 m / (sqrt(correction2 v) + eps) + weight_decay p)
//   ema  = ema - (1 - ema_decay) (ema - p)
//
//   params, grads, m, v, ema [n], a range of the flat parameters    norm [1]
//
// e is the exponent of the loss's scale, 0 without one. A norm that is not finite changes nothing
// but the gradients, if they are to be cleared. A thread
// has ITEMS elements, each of them one number or four, as far apart as a workgroup is wide, so that
// neighbours read neighbours. References: Kingma & Ba 2015 (arXiv:1412.6980), Loshchilov & Hutter 2019
// (arXiv:1711.05101).
//!include lib/grid.wgsl
//!include lib/state.wgsl

const WG: u32 = 256u;
const ITEMS: u32 = 4u; // reading the state is paid once for all
alias T = f32; // knob: or vec4<f32>

struct Params {
    n: u32, // elements
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
@group(0) @binding(3) var<storage, read_write> params: array<T>;
@group(0) @binding(4) var<storage, read_write> grads: array<T>;
@group(0) @binding(5) var<storage, read_write> m: array<T>;
@group(0) @binding(6) var<storage, read_write> v: array<T>;
@group(0) @binding(7) var<storage, read_write> ema: array<T>;

@compute @workgroup_size(WG)
fn update(thread: Invocation) {
    // By the exponent's bits, since drivers may assume that floats are finite.
    let skips = (bitcast<u32>(norm[0]) & 0x7f800000u) == 0x7f800000u;
    let clip = select(1.0, min(1.0, p.clip / (norm[0] + 1e-6)), p.clip > 0.0);
    let scale = ldexp(clip, -state_loss_exponent());
    let correction1 = state_correction1();
    let correction2 = state_correction2();
    let lr = state_lr();
    let ema_rest = 1.0 - state_ema_decay();
    let first = flat_group(thread.group, thread.groups) * WG * ITEMS + thread.lane;
    for (var k = 0u; k < ITEMS; k++) {
        let i = first + k * WG;
        if i < p.n && skips {
            if p.zero_grads == 1u {
                grads[i] = T(0.0);
            }
        } else if i < p.n {
            let g = grads[i] * scale;
            let mean = p.beta1 * m[i] + p.rest1 * g;
            let square = p.beta2 * v[i] + p.rest2 * g * g;
            let direction = mean * correction1 / (sqrt(square * correction2) + p.eps);
            let stepped = params[i] - lr * (direction + p.weight_decay * params[i]);
            m[i] = mean;
            v[i] = square;
            params[i] = stepped;
            ema[i] -= ema_rest * (ema[i] - stepped);
            if p.zero_grads == 1u {
                grads[i] = T(0.0);
            }
        }
    }
}
