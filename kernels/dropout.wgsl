// dropout - zeroes elements at random and scales the others up, so that the mean stays (inverted dropout).
//
//   y[n, i] = keep ? scale * x[n, i] : 0      scale = 1 / (1 - p)      keep: uniform(word of (n, i)) >= p
//
//   x, y [samples, elements]    state [16]
//
// Word j of the random block b of a sample is that of element 4 * b + j. One thread for each block. The
// derivative is the same function with the same mask: nothing is stored. forward_vec4 is for sizes that
// four divides.
// References: Srivastava et al. 2014 (JMLR 15); random numbers as in lib/philox.wgsl.
//!include lib/grid.wgsl
//!include lib/philox.wgsl

const WG: u32 = 256u;

// `threshold`: the least word whose uniform number is kept. Deciding on integers makes the mask the same on
// every device.
struct Params { samples: u32, elements: u32, stream: u32, threshold: u32, scale: f32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> state: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read> x4: array<vec4<f32>>;
@group(0) @binding(5) var<storage, read_write> y4: array<vec4<f32>>;

fn keep(block: Block) -> vec4<bool> {
    return draw_block(p.stream, state_step(), block) >= vec4<u32>(p.threshold);
}

@compute @workgroup_size(WG)
fn forward(thread: Invocation) {
    let block = block_of(element(thread, WG));
    let kept = keep(block);
    for (var j = 0u; j < block.count; j++) {
        y[block.first + j] = select(0.0, p.scale * x[block.first + j], kept[j]);
    }
}

@compute @workgroup_size(WG)
fn forward_vec4(thread: Invocation) {
    let block = block_of(element(thread, WG));
    if block.count > 0u {
        y4[block.first / 4u] = select(vec4<f32>(), p.scale * x4[block.first / 4u], keep(block));
    }
}
