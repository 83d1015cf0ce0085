// spread - numbers that the lanes of a subgroup read one each, given to all of them.
//
// A thread reads what all threads of its subgroup need only once in eight times, and gets the rest from its neighbours: where
// loads are dear and lanes near, as on drivers that compute on the CPU, this takes the place of workgroup memory. Right for
// subgroups of 8 lanes and more whose first eight are in use; every thread must be there.

// The columns come four k at a time: a loop on such drivers copies every sum once a turn.

// Eight rows of sums, of four columns.
struct Eight {
    a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, e: vec4<f32>, f: vec4<f32>, g: vec4<f32>, h: vec4<f32>,
}

// Four columns, of four k.
struct Four { k0: vec4<f32>, k1: vec4<f32>, k2: vec4<f32>, k3: vec4<f32> }

// Row i += the sum over k of v[k] of lane i * columns k. A row is done before the next begins: it stays in registers meanwhile.
fn spread(sums: Eight, v: vec4<f32>, c: Four) -> Eight {
    return Eight(
        sums.a + subgroupBroadcast(v.x, 0u) * c.k0 + subgroupBroadcast(v.y, 0u) * c.k1
            + subgroupBroadcast(v.z, 0u) * c.k2 + subgroupBroadcast(v.w, 0u) * c.k3,
        sums.b + subgroupBroadcast(v.x, 1u) * c.k0 + subgroupBroadcast(v.y, 1u) * c.k1
            + subgroupBroadcast(v.z, 1u) * c.k2 + subgroupBroadcast(v.w, 1u) * c.k3,
        sums.c + subgroupBroadcast(v.x, 2u) * c.k0 + subgroupBroadcast(v.y, 2u) * c.k1
            + subgroupBroadcast(v.z, 2u) * c.k2 + subgroupBroadcast(v.w, 2u) * c.k3,
        sums.d + subgroupBroadcast(v.x, 3u) * c.k0 + subgroupBroadcast(v.y, 3u) * c.k1
            + subgroupBroadcast(v.z, 3u) * c.k2 + subgroupBroadcast(v.w, 3u) * c.k3,
        sums.e + subgroupBroadcast(v.x, 4u) * c.k0 + subgroupBroadcast(v.y, 4u) * c.k1
            + subgroupBroadcast(v.z, 4u) * c.k2 + subgroupBroadcast(v.w, 4u) * c.k3,
        sums.f + subgroupBroadcast(v.x, 5u) * c.k0 + subgroupBroadcast(v.y, 5u) * c.k1
            + subgroupBroadcast(v.z, 5u) * c.k2 + subgroupBroadcast(v.w, 5u) * c.k3,
        sums.g + subgroupBroadcast(v.x, 6u) * c.k0 + subgroupBroadcast(v.y, 6u) * c.k1
            + subgroupBroadcast(v.z, 6u) * c.k2 + subgroupBroadcast(v.w, 6u) * c.k3,
        sums.h + subgroupBroadcast(v.x, 7u) * c.k0 + subgroupBroadcast(v.y, 7u) * c.k1
            + subgroupBroadcast(v.z, 7u) * c.k2 + subgroupBroadcast(v.w, 7u) * c.k3,
    );
}

// Ten pixels of a row of an image in one channel.
struct Line { x0: f32, x1: f32, x2: f32, x3: f32, x4: f32, x5: f32, x6: f32, x7: f32, x8: f32, x9: f32 }
