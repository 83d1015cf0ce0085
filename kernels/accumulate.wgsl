// accumulate - the sum of two gradients of one tensor; recorded by the tape, and only there.
//
//   sum = a + b (forward)      sum = a (copy)      sum += a (add_into)      sum = 1 (one)      a, b, sum [n]
//
// One thread for each element, which may be four numbers.
//!include lib/grid.wgsl

const WG: u32 = 256u;
alias T = f32; // knob: or vec4<f32>

struct Params { n: u32 } // elements

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<T>;
@group(0) @binding(2) var<storage, read> b: array<T>;
@group(0) @binding(3) var<storage, read_write> sum: array<T>;

@compute @workgroup_size(WG)
fn forward(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.n {
        sum[i] = a[i] + b[i];
    }
}

@compute @workgroup_size(WG)
fn copy(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.n {
        sum[i] = a[i];
    }
}

@compute @workgroup_size(WG)
fn add_into(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.n {
        sum[i] += a[i];
    }
}

@compute @workgroup_size(WG)
fn one(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.n {
        sum[i] = T(1.0);
    }
}
