// parts - numbers of one tensor put where those of another lie, or added to them, wherever either begins.
//
//   copy:  to[to_first + i]   = words[from_first + i]          of 32 bits, whatever they mean
//   add:   sum[to_first + i] += summand[from_first + i]        i < n
//
// For launches that are cut: bindings begin at multiples of 256 bytes, and a part of a tensor may not. One thread for
// each number.
//!include lib/grid.wgsl

const WG: u32 = 256u;

struct Params { n: u32, from_first: u32, to_first: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> words: array<u32>;
@group(0) @binding(2) var<storage, read_write> to: array<u32>;
@group(0) @binding(3) var<storage, read> summand: array<f32>;
@group(0) @binding(4) var<storage, read_write> sum: array<f32>;

@compute @workgroup_size(WG)
fn copy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * WG + lane;
    if i < p.n {
        to[p.to_first + i] = words[p.from_first + i];
    }
}

@compute @workgroup_size(WG)
fn add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * WG + lane;
    if i < p.n {
        sum[p.to_first + i] += summand[p.from_first + i];
    }
}
