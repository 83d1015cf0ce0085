// noising - clean samples to noisy ones at random timesteps, and plain normal noise.
//
//   noising:   x_t = a * x0 + b * eps    target = c * x0 + d * eps    (a, b, c, d) = table[t]    eps normal
//              t given, or uniform in [0, steps)
//   gaussian:  eps alone, of any stream
//
//   x0, x_t, target, eps [samples, elements]    t, given_t [samples]
//   table [steps, 4]: sqrt(abar), sqrt(1 - abar), then those of the target: 0 and 1 where it is the noise
//
// One thread for each block of four elements of a sample. Reference: Ho et al. 2020 (arXiv:2006.11239),
// equation 4 and algorithm 1.
//!include lib/grid.wgsl
//!include lib/philox.wgsl

const WG: u32 = 256u;

struct Params { samples: u32, elements: u32, steps: u32, stream: u32, given: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read> x0: array<f32>;
@group(0) @binding(3) var<storage, read> table: array<f32>;
@group(0) @binding(4) var<storage, read_write> x_t: array<f32>;
@group(0) @binding(5) var<storage, read_write> target_values: array<f32>;
@group(0) @binding(6) var<storage, read_write> t: array<f32>;
@group(0) @binding(7) var<storage, read> given_t: array<f32>; // anything if not given
@group(0) @binding(5) var<storage, read_write> eps: array<f32>;

@compute @workgroup_size(WG)
fn noising(thread: Invocation) {
    let block = block_of(element(thread, WG));
    if block.count == 0u {
        return;
    }
    let word = draw(state_seed(), STREAM_TIMESTEP, state_step(), state_sample() + block.n, 0u).x;
    // The high word of the product: uniform without a division, and in integers, so alike on every device.
    var step = mul_wide(word, p.steps).x;
    if p.given == 1u {
        step = min(u32(given_t[block.n]), p.steps - 1u);
    }
    let row = 4u * step;
    let z = normal_of(draw_block(p.stream, state_step(), block));
    for (var j = 0u; j < block.count; j++) {
        let clean = x0[block.first + j];
        x_t[block.first + j] = table[row] * clean + table[row + 1u] * z[j];
        target_values[block.first + j] = table[row + 2u] * clean + table[row + 3u] * z[j];
    }
    if block.number == 0u {
        t[block.n] = f32(step);
    }
}

@compute @workgroup_size(WG)
fn gaussian(thread: Invocation) {
    let block = block_of(element(thread, WG));
    let z = normal_of(draw_block(p.stream, state_step(), block));
    for (var j = 0u; j < block.count; j++) {
        eps[block.first + j] = z[j];
    }
}
