// philox - counter-based random numbers, Philox 4x32-10 (Salmon et al. 2011); the same function as src/philox.rs.

// High and low half of a 32 x 32 bit product; WGSL has no 64-bit integers.
fn mul_wide(a: u32, b: u32) -> vec2<u32> {
    let al = a & 0xffffu;
    let ah = a >> 16u;
    let bl = b & 0xffffu;
    let bh = b >> 16u;
    let low = al * bl;
    let mid1 = ah * bl + (low >> 16u);
    let mid2 = al * bh + (mid1 & 0xffffu);
    return vec2<u32>(ah * bh + (mid1 >> 16u) + (mid2 >> 16u), a * b);
}

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

// In (0, 1): the upper 24 bits, centred in their interval.
fn uniform_of(word: u32) -> f32 {
    return (f32(word >> 8u) + 0.5) * (1.0 / 16777216.0);
}

// Four words as four standard normal numbers (Box and Muller 1958).
fn normal_of(words: vec4<u32>) -> vec4<f32> {
    let r1 = sqrt(-2.0 * log(uniform_of(words.x)));
    let r2 = sqrt(-2.0 * log(uniform_of(words.z)));
    let a1 = 6.28318531 * uniform_of(words.y);
    let a2 = 6.28318531 * uniform_of(words.w);
    return vec4<f32>(r1 * cos(a1), r1 * sin(a1), r2 * cos(a2), r2 * sin(a2));
}
