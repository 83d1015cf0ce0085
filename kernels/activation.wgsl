// activation - a pointwise function of every element.
//
//   y = f(x)      dx = dy * f'(x)      x, y, dx, dy [n]
//
// One thread for each element. References: SiLU and GELU, Hendrycks & Gimpel 2016 (arXiv:1606.08415).
//!include lib/grid.wgsl
//!include lib/activation.wgsl

const WG: u32 = 256u;

struct Params { n: u32, kind: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;

@compute @workgroup_size(WG)
fn forward(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.n {
        y[i] = activate(p.kind, x[i]);
    }
}

@compute @workgroup_size(WG)
fn backward_x(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.n {
        dx[i] = dy[i] * activate_derivative(p.kind, x[i]);
    }
}
