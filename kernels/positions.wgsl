// positions - the place of each number of a grid along an axis of it.
//
//   y[i] = i / step % size      y [n]
//
// One thread for each number.
//!include lib/grid.wgsl

const WG: u32 = 256u;

struct Params { n: u32, step: u32, size: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read_write> y: array<f32>;

@compute @workgroup_size(WG)
fn forward(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.n {
        y[i] = f32(i / p.step % p.size);
    }
}
