// spread - numbers that the lanes of a subgroup read one each, given to all of them.
//
// A thread reads what all threads of its subgroup need only once in eight times, and gets the rest from its neighbours: where
// loads are dear and lanes near, as on drivers that compute on the CPU, this takes the place of workgroup memory. Right for
// subgroups of 8 lanes and more whose first eight are in use; every thread must be there.

// The columns come four k at a time where they can: a loop on such drivers copies every sum once a turn.

// Eight rows of sums, of four columns.
struct Eight {
    a: vec4<f32>, b: vec4<f32>, c: vec4<f32>, d: vec4<f32>, e: vec4<f32>, f: vec4<f32>, g: vec4<f32>, h: vec4<f32>,
}

// Row i += v of lane i * columns.
fn spread(sums: Eight, v: f32, columns: vec4<f32>) -> Eight {
    var s = sums;
    s.a += subgroupBroadcast(v, 0u) * columns;
    s.b += subgroupBroadcast(v, 1u) * columns;
    s.c += subgroupBroadcast(v, 2u) * columns;
    s.d += subgroupBroadcast(v, 3u) * columns;
    s.e += subgroupBroadcast(v, 4u) * columns;
    s.f += subgroupBroadcast(v, 5u) * columns;
    s.g += subgroupBroadcast(v, 6u) * columns;
    s.h += subgroupBroadcast(v, 7u) * columns;
    return s;
}

// Ten pixels of a row of an image in one channel.
struct Line { x0: f32, x1: f32, x2: f32, x3: f32, x4: f32, x5: f32, x6: f32, x7: f32, x8: f32, x9: f32 }
