// adjoint_weights - the weights of a convolution in the order in which its adjoint reads them.
//
//   made[tap', col, row] = weights[tap, row, col]
//
//   weights [KH * KW, rows, cols]    made [KH * KW, cols, rows]
//
// tap' is the tap's number in the order of load_conv.wgsl: those of one residue stay together, in reverse.
// One thread for each weight.
//!include lib/grid.wgsl

const WG: u32 = 64u;

struct Params { kh: u32, kw: u32, rows: u32, cols: u32, step: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> weights: array<f32>;
@group(0) @binding(2) var<storage, read_write> made: array<f32>;

// Along one axis: taps of lesser residues, of the tap's own residue, and its place among these.
struct Place { lesser: u32, own: u32, at: u32 }

fn place(k: u32, taps: u32) -> Place {
    let r = k % p.step;
    let own = (taps - r + p.step - 1u) / p.step;
    return Place(taps / p.step * r + min(taps % p.step, r), own, own - 1u - k / p.step);
}

@compute @workgroup_size(WG)
fn adjoint_weights(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.kh * p.kw * p.rows * p.cols {
        let row = i % p.rows;
        let col = i / p.rows % p.cols;
        let tap = i / p.rows / p.cols;
        let h = place(tap / p.kw, p.kh);
        let w = place(tap % p.kw, p.kw);
        let to = h.lesser * p.kw + h.own * w.lesser + h.at * w.own + w.at;
        made[(to * p.cols + col) * p.rows + row] = weights[(tap * p.rows + row) * p.cols + col];
    }
}
