// roofline_f16 - what a device can do at most with 16-bit floats: as `multiply_add` of roofline.wgsl.
//
//   multiply_add:  c = fma(c, a, b), `rounds` times, in eight independent chains of four lanes each thread
//
//   src, dst [n] of four lanes
//
// One thread for each element of dst. For adapters with the feature `f16` only.
enable f16;
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
    // Stored as f32, which every adapter can; what is measured happens in registers.
    let a = vec4<f16>(src[i]);
    let b = a * 0.5h;
    var c0 = a; var c1 = a * 2.0h; var c2 = a * 3.0h; var c3 = a * 4.0h;
    var c4 = a * 5.0h; var c5 = a * 6.0h; var c6 = a * 7.0h; var c7 = a * 8.0h;
    for (var round = 0u; round < p.rounds; round += 1u) {
        c0 = fma(c0, a, b); c1 = fma(c1, a, b); c2 = fma(c2, a, b); c3 = fma(c3, a, b);
        c4 = fma(c4, a, b); c5 = fma(c5, a, b); c6 = fma(c6, a, b); c7 = fma(c7, a, b);
    }
    dst[i] = vec4<f32>(((c0 + c1) + (c2 + c3)) + ((c4 + c5) + (c6 + c7)));
}
