// cross_entropy - how unlikely a classifier thinks the right class of each sample.
//
//   loss[n] = log sum_k exp(x[n, k]) - x[n, label]     right[n] = 1 where x[n, label] is the largest, else 0
//   dx[n, k] = dy[n] * (exp(x[n, k] - log sum) - (1 for the label))
//
//   x, dx [samples, classes]    labels, loss, right, dy [samples]
//
// forward: one thread for each sample; backward: one for each element, with log sum = loss + x[n, label]. Of
// equal largest elements the first is the one that is chosen. A label past the last class means the last.
//!include lib/grid.wgsl

const WG: u32 = 64u;

struct Params { samples: u32, classes: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> labels: array<u32>;
@group(0) @binding(3) var<storage, read_write> loss: array<f32>;
@group(0) @binding(4) var<storage, read_write> right: array<f32>;
@group(0) @binding(5) var<storage, read> saved_loss: array<f32>;
@group(0) @binding(6) var<storage, read> dy: array<f32>;
@group(0) @binding(7) var<storage, read_write> dx: array<f32>;

@compute @workgroup_size(WG)
fn forward(thread: Invocation) {
    let n = element(thread, WG);
    if n >= p.samples {
        return;
    }
    let first = n * p.classes;
    let label = min(labels[n], p.classes - 1u);
    var top = x[first];
    var chosen = 0u;
    for (var k = 1u; k < p.classes; k++) {
        if x[first + k] > top {
            top = x[first + k];
            chosen = k;
        }
    }
    var total = 0.0;
    for (var k = 0u; k < p.classes; k++) {
        total += exp(x[first + k] - top);
    }
    loss[n] = (top - x[first + label]) + log(total);
    right[n] = select(0.0, 1.0, chosen == label);
}

@compute @workgroup_size(WG)
fn backward(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.samples * p.classes {
        let n = i / p.classes;
        let label = min(labels[n], p.classes - 1u);
        let log_sum = saved_loss[n] + x[n * p.classes + label];
        let share = exp(x[i] - log_sum);
        dx[i] = dy[n] * (share - select(0.0, 1.0, i % p.classes == label));
    }
}
