// loss_history - the last losses of each timestep, and the law by which timesteps are drawn in proportion to
// them.
//
//   law:     r[t] = sqrt(mean of the squares of the losses of t)    p[t] = (1 - e) r[t] / sum of r + e / T, e
//   = 0.001
//            sums[t] = p[0] + .. + p[t]    weights[t] = 1 / (T p[t])    p = 1 / T until each t has 10 losses
//   record:  each loss takes the place of the oldest of its timestep, in the order of the samples
//
//   history [T, 11]: 10 losses, and the number of the next one: 0 to 9 at first, then 10 to 19 in turn
//   t, losses [samples]    sums, weights [T]
//
// One workgroup (law), one thread for each timestep (record). Reference: Nichol & Dhariwal 2021
// (arXiv:2102.09672), section 3.3, and the program's `LossSecondMomentResampler`.
//!include lib/grid.wgsl
//!include lib/reduce.wgsl

const WG: u32 = 256u;
const KEPT: u32 = 10u;
const ROW: u32 = 11u;
const EVEN: f32 = 0.001;

struct Params { steps: u32, samples: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> old: array<f32>;
@group(0) @binding(2) var<storage, read_write> sums: array<f32>;
@group(0) @binding(3) var<storage, read_write> weights: array<f32>;
@group(0) @binding(4) var<storage, read> t: array<f32>;
@group(0) @binding(5) var<storage, read> losses: array<f32>;
@group(0) @binding(6) var<storage, read_write> history: array<f32>;

var<workgroup> parts: array<f32, WG>;

fn root(step: u32) -> f32 {
    var squares = 0.0;
    for (var i = 0u; i < KEPT; i++) {
        let loss = old[step * ROW + i];
        squares += loss * loss;
    }
    return sqrt(squares / f32(KEPT));
}

@compute @workgroup_size(WG)
fn law(thread: Thread) {
    let share = (p.steps + WG - 1u) / WG;
    let first = min(thread.lane * share, p.steps);
    let end = min(first + share, p.steps);
    var roots = 0.0;
    var cold = 0.0;
    for (var step = first; step < end; step++) {
        roots += root(step);
        cold += select(0.0, 1.0, old[step * ROW + KEPT] < f32(KEPT));
    }
    let total = block_sum(roots, thread);
    let all_cold = block_sum(cold, thread);
    parts[thread.lane] = roots;
    workgroupBarrier();
    var sum = 0.0;
    for (var lane = 0u; lane < thread.lane; lane++) {
        sum += parts[lane];
    }
    let even = 1.0 / f32(p.steps);
    let drawn = all_cold == 0.0 && total > 0.0;
    for (var step = first; step < end; step++) {
        var probability = even;
        if drawn {
            let r = root(step);
            sum += r;
            probability = (1.0 - EVEN) * r / total + EVEN * even;
            sums[step] = (1.0 - EVEN) * sum / total + EVEN * f32(step + 1u) * even;
        } else {
            sums[step] = f32(step + 1u) * even;
        }
        weights[step] = even / probability;
    }
}

@compute @workgroup_size(WG)
fn record(thread: Invocation) {
    let step = element(thread, WG);
    if step >= p.steps {
        return;
    }
    var number = u32(history[step * ROW + KEPT]);
    for (var n = 0u; n < p.samples; n++) {
        // A loss that is not finite ends the training; the exponent's bits say so.
        if t[n] == f32(step) && (bitcast<u32>(losses[n]) & 0x7f800000u) != 0x7f800000u {
            history[step * ROW + number % KEPT] = losses[n];
            number = select(number + 1u, KEPT, number == 2u * KEPT - 1u);
        }
    }
    history[step * ROW + KEPT] = f32(number);
}
