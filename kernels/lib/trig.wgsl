// trig - sine and cosine of an angle in turns, to 1e-7; the same function as `sin_cos_turns` of src/simd.rs.
//
// WGSL promises sin and cos only to 5e-4 and only in [-pi, pi]. Here the angle is a fraction of a full turn
// in units of 2^-32, so that it wraps around by itself and is brought near zero in integers, without
// rounding, whatever the driver does to floats.

// (sin, cos) of 2 pi * turns / 2^32. The polynomials on [-pi/4, pi/4] are those of Cephes (Moshier 1989).
fn sin_cos_turns(turns: u32) -> vec2<f32> {
    let quarter = (turns + 0x20000000u) >> 30u; // the nearest quarter turn
    let x = f32(bitcast<i32>(turns - (quarter << 30u))) * 1.4629180793e-9; // 2 pi / 2^32
    let z = x * x;
    let s = x + x * z * (-0.16666654611 + z * (8.3321608736e-3 - z * 1.9515295891e-4));
    let c = 1.0 - 0.5 * z
        + z * z * (4.166664568298827e-2 + z * (-1.388731625493765e-3 + z * 2.443315711809948e-5));
    let swapped = select(vec2<f32>(s, c), vec2<f32>(c, s), (quarter & 1u) == 1u);
    return vec2<f32>(
        select(swapped.x, -swapped.x, (quarter & 2u) != 0u),
        select(swapped.y, -swapped.y, ((quarter + 1u) & 2u) != 0u),
    );
}
