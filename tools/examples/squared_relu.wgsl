// squared_relu - the square of what is above zero, at every element.
//
//   y = max(x, 0)^2      dx = 2 max(x, 0) dy      x, y, dx, dy [n]
//
// One thread for each element. Reference: So et al. 2021 (arXiv:2109.08668).
//!include lib/grid.wgsl

const WG: u32 = 256u;

struct Params { n: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;
@group(0) @binding(3) var<storage, read> dy: array<f32>;
@group(0) @binding(4) var<storage, read_write> dx: array<f32>;

@compute @workgroup_size(WG)
fn forward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * WG + lane;
    if i < p.n {
        let above = max(x[i], 0.0);
        y[i] = above * above;
    }
}

@compute @workgroup_size(WG)
fn backward(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * WG + lane;
    if i < p.n {
        dx[i] = 2.0 * max(x[i], 0.0) * dy[i];
    }
}
