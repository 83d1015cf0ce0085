// swap - two neighbouring axes change places; its own derivative, with their sizes changed round.
//
//   y[a, c, b, d] = x[a, b, c, d]      x [A, B, C, D]    y [A, C, B, D]
//
// One thread for each element of y; it may be four numbers, and D counts elements.
//!include lib/grid.wgsl

const WG: u32 = 256u;
alias T = f32; // knob: or vec4<f32>

struct Params { n: u32, b: u32, c: u32, d: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<T>;
@group(0) @binding(2) var<storage, read_write> y: array<T>;

@compute @workgroup_size(WG)
fn forward(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.n {
        let row = i / p.d; // of y: a, c, b
        let b = row % p.b;
        let c = row / p.b % p.c;
        let a = row / (p.b * p.c);
        y[i] = x[((a * p.b + b) * p.c + c) * p.d + i % p.d];
    }
}
