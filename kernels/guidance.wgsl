// guidance - two predictions of a model, with a class and without, to one: classifier-free guidance.
//
//   g = u + scale * (c - u)         y = rescale * g * std(c) / std(g) + (1 - rescale) * g
//
//   x [2, samples, elements]: c, then u    y [samples, elements]    std over the guided elements of a sample
//
// Of each `channels` elements side by side the first `guided` are; the others (a learned variance) are those
// of c. One workgroup for each sample. References: Ho & Salimans 2022 (arXiv:2207.12598), whose 1 + w is this
// scale; the rescaling is that of Lin et al. 2023 (arXiv:2305.08891), section 3.4.
//!include lib/grid.wgsl
//!include lib/reduce.wgsl

const WG: u32 = 256u;

struct Params { samples: u32, elements: u32, channels: u32, guided: u32, scale: f32, rescale: f32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read_write> y: array<f32>;

fn is_guided(i: u32) -> bool {
    return i % p.channels < p.guided;
}

// The guided prediction of an element; of others that of c.
fn mixed(sample: u32, i: u32) -> f32 {
    let c = x[sample * p.elements + i];
    let u = x[(p.samples + sample) * p.elements + i];
    return select(c, u + p.scale * (c - u), is_guided(i));
}

@compute @workgroup_size(WG)
fn guide(thread: Thread) {
    let group = flat_group(thread.group, thread.groups);
    let sample = min(group, p.samples - 1u);
    var factor = 1.0;
    if p.rescale > 0.0 {
        let count = f32(p.elements / p.channels * p.guided);
        var sum_c = 0.0;
        var sum_g = 0.0;
        for (var i = thread.lane; i < p.elements; i += WG) {
            let guided = is_guided(i);
            sum_c += select(0.0, x[sample * p.elements + i], guided);
            sum_g += select(0.0, mixed(sample, i), guided);
        }
        let mean_c = block_sum(sum_c, thread) / count;
        let mean_g = block_sum(sum_g, thread) / count;
        var squares_c = 0.0;
        var squares_g = 0.0;
        for (var i = thread.lane; i < p.elements; i += WG) {
            let guided = is_guided(i);
            let c = select(0.0, x[sample * p.elements + i] - mean_c, guided);
            let g = select(0.0, mixed(sample, i) - mean_g, guided);
            squares_c += c * c;
            squares_g += g * g;
        }
        let spread_c = block_sum(squares_c, thread);
        let spread_g = block_sum(squares_g, thread);
        // A prediction that is the same everywhere has no spread to be rescaled.
        let ratio = select(1.0, sqrt(spread_c / spread_g), spread_g > 0.0);
        factor = p.rescale * ratio + (1.0 - p.rescale);
    }
    for (var i = thread.lane; i < p.elements && group < p.samples; i += WG) {
        y[sample * p.elements + i] = mixed(sample, i) * select(1.0, factor, is_guided(i));
    }
}
