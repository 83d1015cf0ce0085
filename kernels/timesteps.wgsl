// timesteps - the timesteps of a batch: each alike or by probabilities, each on its own or spread evenly.
//
//   t[n] = the first t with u[n] < sums[t], or floor(u[n] * steps) without sums
//   u[n] uniform in (0, 1) of sample n; with a stride, of sample 0 and n strides of 2^-32 further, modulo 1
//
//   t [samples]    sums [steps]: of the probabilities up to and with each timestep
//
// One thread for each sample. Reference: Kingma et al. 2021 (arXiv:2107.00630), appendix I.1.
//!include lib/grid.wgsl
//!include lib/philox.wgsl

const WG: u32 = 256u;

struct Params { samples: u32, elements: u32, steps: u32, stride: u32, weighted: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> state: array<u32>;
@group(0) @binding(2) var<storage, read> sums: array<f32>; // anything if not weighted
@group(0) @binding(3) var<storage, read_write> t: array<f32>;

@compute @workgroup_size(WG)
fn timesteps(thread: Invocation) {
    let n = element(thread, WG);
    if n >= p.samples {
        return;
    }
    let sample = state_sample() + n;
    let first = draw(state_seed(), STREAM_TIMESTEP, state_step(), select(0u, sample, p.stride == 0u), 0u).x;
    let word = first + sample * p.stride;
    // The high word of the product, as in noising.wgsl.
    var low = mul_wide(word, p.steps).x;
    if p.weighted == 1u {
        let u = uniform_of(word);
        low = 0u;
        var high = p.steps - 1u;
        while low < high {
            let middle = (low + high) / 2u;
            if u < sums[middle] {
                high = middle;
            } else {
                low = middle + 1u;
            }
        }
    }
    t[n] = f32(low);
}
