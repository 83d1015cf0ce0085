// loss - the weighted mean of a loss of each element: squared, absolute or Huber's error, or cross entropy.
//
//   loss = scale * sum over n, i of w[n] * f(p[n, i], t[n, i])    scale = 1 / (samples * size)
//   dp[n, i] = scale * dy * w[n] * f'(p[n, i], t[n, i])           the derivative in p
//
//   SQUARED         f = (p - t)^2                              f' = 2 (p - t)
//   ABSOLUTE        f = |p - t|                                f' = -1, 0 or 1
//   CROSS_ENTROPY   f = max(p, 0) - p t + log(1 + exp(-|p|))   f' = sigmoid(p) - t      p are logits
//   HUBER           f = c (p - t - c/2), c = p - t in [-delta, delta]      f' = c
//
//   each[n] = scale * sum over i of f(p[n, i], t[n, i])           scale = 1 / size
//
//   prediction, target, dp [samples, size]    w [samples], 1 if not `weighted`    dy [1]
//   out, raw [samples, slices], raw without the weights
//
// forward: one workgroup per (sample, slice) writes the slice's sum; reduce.wgsl's `sum` then adds them up
// in a fixed order. backward_prediction: one thread for each element. References: Ho et al. 2020
// (arXiv:2006.11239), equation 14; Kingma & Welling 2014 (arXiv:1312.6114), appendix C.1.
//!include lib/grid.wgsl
//!include lib/reduce.wgsl

const WG: u32 = 256u;

const SQUARED: u32 = 0u;
const ABSOLUTE: u32 = 1u;
const CROSS_ENTROPY: u32 = 2u;
const HUBER: u32 = 3u;
const FORM: u32 = 0u; // knob: one of the four
const_assert FORM <= HUBER;

// Slice s of a sample holds the elements from s * slice_size on.
struct Params {
    samples: u32, size: u32, slices: u32, slice_size: u32, weighted: u32, scale: f32, delta: f32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> prediction: array<f32>;
@group(0) @binding(2) var<storage, read> target_values: array<f32>;
@group(0) @binding(3) var<storage, read> weight: array<f32>; // anything if not weighted
@group(0) @binding(4) var<storage, read_write> out: array<f32>;
@group(0) @binding(5) var<storage, read> dy: array<f32>;
@group(0) @binding(6) var<storage, read_write> dp: array<f32>;
@group(0) @binding(7) var<storage, read_write> raw: array<f32>;
@group(0) @binding(8) var<storage, read_write> each: array<f32>;

fn weight_of(sample: u32) -> f32 {
    if p.weighted == 0u {
        return 1.0;
    }
    return weight[sample];
}

// ln(1 + x) for x from 0 to 1, relatively exact however small x is: 2 artanh(x / (2 + x)) by its series.
fn ln_1p(x: f32) -> f32 {
    let s = x / (2.0 + x);
    let z = s * s;
    let series = 1.0 / 3.0 + z * (1.0 / 5.0 + z * (1.0 / 7.0
        + z * (1.0 / 9.0 + z * (1.0 / 11.0 + z * (1.0 / 13.0)))));
    return 2.0 * (s + s * (z * series));
}

// The probability of the class that the sign of the logit speaks against.
fn against(logit: f32, goal: f32) -> f32 {
    return select(goal, 1.0 - goal, logit > 0.0);
}

// Not clamp, which may turn a NaN into a number.
fn within(d: f32, limit: f32) -> f32 {
    let below = select(d, limit, d > limit);
    return select(below, -limit, below < -limit);
}

fn value(x: f32, goal: f32) -> f32 {
    switch FORM {
        case ABSOLUTE: { return abs(x - goal); }
        // The first two terms are |x| times 1 - t or t: a sum of what is not negative, so nothing cancels.
        case CROSS_ENTROPY: { return abs(x) * against(x, goal) + ln_1p(exp(-abs(x))); }
        case HUBER: {
            let inner = within(x - goal, p.delta);
            return inner * (x - goal - 0.5 * inner);
        }
        default: { return (x - goal) * (x - goal); }
    }
}

fn slope(x: f32, goal: f32) -> f32 {
    switch FORM {
        case ABSOLUTE: {
            // Not sign, whose result for a NaN is up to the driver.
            let d = x - goal;
            return select(select(d, -1.0, d < 0.0), 1.0, d > 0.0);
        }
        case CROSS_ENTROPY: {
            // From above, (1 - t) - sigmoid(-x): a sigmoid next to 1 would lose what is left.
            let e = exp(-abs(x));
            let away = against(x, goal) - e / (1.0 + e);
            return select(-away, away, x > 0.0);
        }
        case HUBER: { return within(x - goal, p.delta); }
        default: { return 2.0 * (x - goal); }
    }
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
        sum += value(prediction[sample * p.size + i], target_values[sample * p.size + i]);
    }
    let total = block_sum(sum, thread);
    if thread.lane == 0u && sample < p.samples {
        out[part] = weight_of(sample) * total;
        raw[part] = total;
    }
}

@compute @workgroup_size(WG)
fn each_sample(thread: Invocation) {
    let n = element(thread, WG);
    if n >= p.samples {
        return;
    }
    var sum = 0.0;
    for (var slice = 0u; slice < p.slices; slice++) {
        sum += raw[n * p.slices + slice];
    }
    each[n] = p.scale * sum;
}

@compute @workgroup_size(WG)
fn backward_prediction(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.samples * p.size {
        dp[i] = p.scale * dy[0] * weight_of(i / p.size) * slope(prediction[i], target_values[i]);
    }
}
