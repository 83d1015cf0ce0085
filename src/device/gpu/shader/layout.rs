//! How numbers of 16 bits lie in memory: the functions by which a kernel's text loads and stores them.

/// How numbers of 16 bits lie in memory. The bytes are the same.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Layout {
    /// Elements of type f16, for adapters that have it.
    Native,
    /// Two in each word.
    Packed,
}

/// Rounds two numbers to a word. What `pack2x16float` makes of numbers above 65,504 and of NaN is open.
const PAIR: &str = "
fn half_pair(v: vec2<f32>) -> u32 {
    let bits = bitcast<vec2<u32>>(v);
    let size = bits & vec2<u32>(0x7fffffffu);
    let large = size >= vec2<u32>(0x477ff000u);
    let special = select(vec2<u32>(0x7c00u), vec2<u32>(0x7e00u), size > vec2<u32>(0x7f800000u));
    let signed = select(vec2<u32>(), special | ((bits >> vec2<u32>(16u)) & vec2<u32>(0x8000u)), large);
    let finite = clamp(select(v, vec2<f32>(), large), vec2<f32>(-65504.0), vec2<f32>(65504.0));
    return pack2x16float(finite) | signed.x | (signed.y << 16u);
}
";

impl Layout {
    /// What stands before a text.
    pub fn directive(self) -> &'static str {
        if self == Layout::Native { "enable f16; " } else { "" }
    }

    /// What the functions of all variables call.
    pub fn shared(self) -> &'static str {
        if self == Layout::Packed { PAIR } else { "\n" }
    }

    /// The type of the elements of the array `name` that hold vectors of so many numbers, and the functions
    /// that load and store one.
    pub fn access(self, name: &str, width: usize, is_written: bool) -> Result<(String, String), String> {
        let typed = |scalar| if width == 1 { String::from(scalar) } else { format!("vec{width}<{scalar}>") };
        let (wide, half) = (typed("f32"), typed("f16"));
        let rounds = format!("NAME[half_i] = {half}(half_v);");
        let (ty, load, store) = match (self, width, is_written) {
            (Layout::Native, ..) => (&*half, &*format!("{wide}(NAME[half_i])"), &*rounds),
            (_, 1, false) => ("u32", "unpack2x16float(NAME[half_i / 2u])[half_i % 2u]", ""),
            // The neighbour in the word is another thread's. No two threads of a dispatch store one element:
            // both exclusive-ors would undo each other.
            (_, 1, true) => (
                "atomic<u32>",
                "unpack2x16float(atomicLoad(&NAME[half_i / 2u]))[half_i % 2u]",
                "let half_bits = half_pair(vec2<f32>(half_v)) ^ atomicLoad(&NAME[half_i / 2u]); \
                 atomicXor(&NAME[half_i / 2u], half_bits & (0xffffu << (16u * (half_i % 2u))));",
            ),
            (_, 2, _) => ("u32", "unpack2x16float(NAME[half_i])", "NAME[half_i] = half_pair(half_v);"),
            (_, 4, _) => (
                "vec2<u32>",
                "vec4<f32>(unpack2x16float(NAME[half_i].x), unpack2x16float(NAME[half_i].y))",
                "NAME[half_i] = vec2<u32>(half_pair(half_v.xy), half_pair(half_v.zw));",
            ),
            _ => return Err(format!("`{name}` is an array of vectors of {width}")),
        };
        let mut functions = format!("fn half_load_NAME(half_i: u32) -> {wide} {{ return {load}; }}\n");
        if is_written {
            functions += &format!("fn half_store_NAME(half_i: u32, half_v: {wide}) {{ {store} }}\n");
        }
        Ok((ty.to_owned(), functions.replace("NAME", name)))
    }
}
