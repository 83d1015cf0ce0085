//! Numbers of 16 bits, two in each word, for adapters without f16: the functions that pack and unpack them.

/// Rounds two numbers to a word. What `pack2x16float` makes of numbers above 65,504 and of NaN is open.
pub(super) const PAIR: &str = "
fn packed_pair(v: vec2<f32>) -> u32 {
    let bits = bitcast<vec2<u32>>(v);
    let size = bits & vec2<u32>(0x7fffffffu);
    let large = size >= vec2<u32>(0x477ff000u);
    let special = select(vec2<u32>(0x7c00u), vec2<u32>(0x7e00u), size > vec2<u32>(0x7f800000u));
    let signed = select(vec2<u32>(), special | ((bits >> vec2<u32>(16u)) & vec2<u32>(0x8000u)), large);
    let finite = clamp(select(v, vec2<f32>(), large), vec2<f32>(-65504.0), vec2<f32>(65504.0));
    return pack2x16float(finite) | signed.x | (signed.y << 16u);
}
";

/// The type of the elements of the array `name` that hold vectors of so many numbers packed, and the
/// functions that load and store one as `wide`.
pub(super) fn access(
    name: &str,
    (width, wide): (usize, &str),
    writable: bool,
) -> Result<(&'static str, String), String> {
    let (ty, load, store) = match (width, writable) {
        (1, false) => ("u32", "unpack2x16float(NAME[packed_i / 2u])[packed_i % 2u]", ""),
        // The neighbour in the word is another thread's. No two threads of a dispatch store one element: both
        // exclusive-ors would undo each other.
        (1, true) => (
            "atomic<u32>",
            "unpack2x16float(atomicLoad(&NAME[packed_i / 2u]))[packed_i % 2u]",
            "let packed_bits = packed_pair(vec2<f32>(packed_v)) ^ atomicLoad(&NAME[packed_i / 2u]); \
             atomicXor(&NAME[packed_i / 2u], packed_bits & (0xffffu << (16u * (packed_i % 2u))));",
        ),
        (2, _) => ("u32", "unpack2x16float(NAME[packed_i])", "NAME[packed_i] = packed_pair(packed_v);"),
        (4, _) => (
            "vec2<u32>",
            "vec4<f32>(unpack2x16float(NAME[packed_i].x), unpack2x16float(NAME[packed_i].y))",
            "NAME[packed_i] = vec2<u32>(packed_pair(packed_v.xy), packed_pair(packed_v.zw));",
        ),
        _ => return Err(format!("`{name}` is an array of vectors of {width}")),
    };
    let mut functions = format!("fn packed_load_NAME(packed_i: u32) -> {wide} {{ return {load}; }}\n");
    if writable {
        functions += &format!("fn packed_store_NAME(packed_i: u32, packed_v: {wide}) {{ {store} }}\n");
    }
    Ok((ty, functions.replace("NAME", name)))
}
