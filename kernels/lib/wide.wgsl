// wide - products of 32-bit numbers in full; WGSL has no 64-bit integers.

// High and low half of a 32 x 32 bit product.
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
