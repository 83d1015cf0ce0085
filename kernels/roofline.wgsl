// roofline - what a device can do at most: multiplications with additions, and moving memory.
//
//   multiply_add:  c = fma(c, a, b), `rounds` times, in eight independent chains of four lanes each thread
//   copy:          dst[i] = src[i]
//
//   src, dst [n] of four lanes
//
// One thread for each element of dst. The chains hide each other's latency, and what they come to is written,
// so that nothing can be left out. References: Williams, Waterman & Patterson 2009, "Roofline"; McCalpin
// 1995, "STREAM".
//!include lib/grid.wgsl

const WG: u32 = 256u;

struct Params { n: u32, rounds: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> src: array<vec4<f32>>;
@group(0) @binding(2) var<storage, read_write> dst: array<vec4<f32>>;

@compute @workgroup_size(WG)
fn multiply_add(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * WG + lane;
    if i >= p.n {
        return;
    }
    // Not known to the compiler, so that it cannot compute ahead.
    let a = src[i];
    let b = a * 0.5;
    var c0 = a; var c1 = a * 2.0; var c2 = a * 3.0; var c3 = a * 4.0;
    var c4 = a * 5.0; var c5 = a * 6.0; var c6 = a * 7.0; var c7 = a * 8.0;
    for (var round = 0u; round < p.rounds; round += 1u) {
        c0 = fma(c0, a, b); c1 = fma(c1, a, b); c2 = fma(c2, a, b); c3 = fma(c3, a, b);
        c4 = fma(c4, a, b); c5 = fma(c5, a, b); c6 = fma(c6, a, b); c7 = fma(c7, a, b);
    }
    dst[i] = ((c0 + c1) + (c2 + c3)) + ((c4 + c5) + (c6 + c7));
}

@compute @workgroup_size(WG)
fn copy(
    @builtin(workgroup_id) group: vec3<u32>,
    @builtin(num_workgroups) groups: vec3<u32>,
    @builtin(local_invocation_index) lane: u32,
) {
    let i = flat_group(group, groups) * WG + lane;
    if i < p.n {
        dst[i] = src[i];
    }
}
