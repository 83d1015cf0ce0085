// philox - counter-based random numbers, Philox 4x32-10 (Salmon et al. 2011), as in src/philox.rs.
//
// Needs from its includer: `p.samples` and `p.elements` of its parameters, and a binding `state: array<u32>`.
//!include lib/state.wgsl
//!include lib/wide.wgsl
//!include lib/trig.wgsl

// Purposes of numbers, as in src/philox.rs.
const STREAM_TIMESTEP: u32 = 2u;
const STREAM_REVERSE: u32 = 5u;

fn philox(counter: vec4<u32>, key: vec2<u32>) -> vec4<u32> {
    var c = counter;
    var k = key;
    for (var round = 0u; round < 10u; round++) {
        let p0 = mul_wide(c.x, 0xD2511F53u);
        let p1 = mul_wide(c.z, 0xCD9E8D57u);
        c = vec4<u32>(p1.x ^ c.y ^ k.x, p1.y, p0.x ^ c.w ^ k.y, p0.y);
        k += vec2<u32>(0x9E3779B9u, 0xBB67AE85u);
    }
    return c;
}

// The four random words for elements 4 * block .. 4 * block + 4 of one sample.
fn draw(seed: vec2<u32>, stream: u32, step: u32, sample: u32, block: u32) -> vec4<u32> {
    return philox(vec4<u32>(block, sample, step, stream), seed);
}

// In (0, 1): the upper 23 bits, centred in their interval.
fn uniform_of(word: u32) -> f32 {
    return (f32(word >> 9u) + 0.5) * (1.0 / 8388608.0);
}

// sqrt(-2 ln u) of `u = uniform_of(word)`, to 4e-7 even next to u = 1, where WGSL's log has no relative
// accuracy.
fn radius_of(word: u32) -> f32 {
    let u = uniform_of(word);
    var f = -uniform_of(~word); // u - 1 without rounding
    var e = 0.0;
    if u < 0.70710678 {
        // u = 2^e (1 + f) with 1 + f from sqrt(1/2) to sqrt(2)
        let bits = bitcast<u32>(u) - 0x3f3504f3u; // those of sqrt(1/2)
        e = f32(bitcast<i32>(bits) >> 23u);
        f = bitcast<f32>((bits & 0x007fffffu) + 0x3f3504f3u) - 1.0;
    }
    // ln(1 + f), Cephes (Moshier 1989)
    var y = 7.0376836292e-2 * f - 1.1514610310e-1;
    y = y * f + 1.1676998740e-1;
    y = y * f - 1.2420140846e-1;
    y = y * f + 1.4249322787e-1;
    y = y * f - 1.6668057665e-1;
    y = y * f + 2.0000714765e-1;
    y = y * f - 2.4999993993e-1;
    y = y * f + 3.3333331174e-1;
    let z = f * f;
    return sqrt(-2.0 * (f + (y * f * z - 0.5 * z) + e * 0.69314718));
}

// Four words as four standard normal numbers (Box and Muller 1958).
fn normal_of(words: vec4<u32>) -> vec4<f32> {
    let a = radius_of(words.x) * sin_cos_turns(centred(words.y));
    let b = radius_of(words.z) * sin_cos_turns(centred(words.w));
    return vec4<f32>(a.y, a.x, b.y, b.x);
}

// `uniform_of(word)` as a fraction of 2^32.
fn centred(word: u32) -> u32 {
    return (word & 0xfffffe00u) | 0x100u;
}

// The block of four elements of a sample that an item is, which is what one draw of random numbers serves:
// `count` of them from `first` on. The last block of a sample may be smaller; `count` is 0 past the end.
struct Block { n: u32, number: u32, first: u32, count: u32 }

fn block_of(item: u32) -> Block {
    let blocks = (p.elements + 3u) / 4u;
    let n = item / blocks;
    let number = item - n * blocks;
    let count = select(0u, min(4u, p.elements - 4u * number), n < p.samples);
    return Block(n, number, n * p.elements + 4u * number, count);
}

// The four random words of a block.
fn draw_block(stream: u32, step: u32, block: Block) -> vec4<u32> {
    return draw(state_seed(), stream, step, state_sample() + block.n, block.number);
}
