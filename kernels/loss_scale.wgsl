// loss_scale - keeps the gradients of a loss within the range of 16-bit floats.
//
//   scale_loss:    y = share * 2^e      scale = 2^e      skipped = scaler[2]      e = 16 + scaler[0]
//   unscale_norm:  true_norm = norm / 2^e, or norm where that is not finite
//   update_scale:  words = state, with e and Adam's corrections 1 / (1 - beta^t) of the t steps taken
//                  norm finite:  scaler[1] += 1, and after 2000 such steps in a row  scaler[0] += 1
//                  otherwise:    scaler[0] -= 1    scaler[1] = 0    scaler[2] += 1
//
//   share, y, scale, skipped, norm, true_norm [1]    state, words [16]
//   scaler, scaler_in [3]: e - 16, good steps in a row, skipped steps
//
// One thread. Powers of two change no rounding. Reference: Micikevicius et al. 2018 (arXiv:1710.03740), with
// the numbers of torch.amp.GradScaler.
//!include lib/state.wgsl

// log_beta1, log_beta2: natural logarithms of Adam's decays
struct Params { log_beta1: f32, log_beta2: f32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> share: array<f32>;
@group(0) @binding(2) var<storage, read> scaler_in: array<f32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read_write> scale: array<f32>;
@group(0) @binding(5) var<storage, read_write> skipped: array<f32>;
@group(0) @binding(6) var<storage, read> norm: array<f32>;
@group(0) @binding(7) var<storage, read_write> true_norm: array<f32>;
@group(0) @binding(8) var<storage, read> state: array<u32>;
@group(0) @binding(9) var<storage, read_write> words: array<u32>;
@group(0) @binding(10) var<storage, read_write> scaler: array<f32>;

const START: f32 = 16.0;
const GROWTH: f32 = 2000.0;
// Of e. The highest is beyond what any loss allows.
const LEAST: f32 = -100.0;
const MOST: f32 = 100.0;

// By the exponent's bits, since drivers may assume that floats are finite.
fn is_finite(x: f32) -> bool { return (bitcast<u32>(x) & 0x7f800000u) != 0x7f800000u; }

@compute @workgroup_size(1)
fn scale_loss() {
    let e = i32(START + scaler_in[0]);
    y[0] = ldexp(share[0], e);
    scale[0] = ldexp(1.0, e);
    skipped[0] = scaler_in[2];
}

@compute @workgroup_size(1)
fn unscale_norm() {
    true_norm[0] = norm[0];
    if is_finite(norm[0]) {
        true_norm[0] = ldexp(norm[0], -i32(START + scaler_in[0]));
    }
}

// 1 / (1 - exp(x)) of x < 0, also where exp(x) is close to 1.
fn correction(x: f32) -> f32 {
    if x < -0.25 {
        return 1.0 / (1.0 - exp(x));
    }
    let rest = 1.0 + x / 4.0 * (1.0 + x / 5.0 * (1.0 + x / 6.0));
    return -1.0 / (x * (1.0 + x / 2.0 * (1.0 + x / 3.0 * rest)));
}

@compute @workgroup_size(1)
fn update_scale() {
    for (var i = 0u; i < 16u; i++) {
        words[i] = state[i];
    }
    let t = max(f32(state_step() + 1u) - scaler[2], 1.0);
    words[5] = bitcast<u32>(correction(t * p.log_beta1));
    words[6] = bitcast<u32>(correction(t * p.log_beta2));
    words[9] = bitcast<u32>(i32(START + scaler[0]));
    if !is_finite(norm[0]) {
        scaler[0] = max(scaler[0] - 1.0, LEAST - START);
        scaler[1] = 0.0;
        scaler[2] += 1.0;
    } else if scaler[1] + 1.0 >= GROWTH {
        scaler[0] = min(scaler[0] + 1.0, MOST - START);
        scaler[1] = 0.0;
    } else {
        scaler[1] += 1.0;
    }
}
