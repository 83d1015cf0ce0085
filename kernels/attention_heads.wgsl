// attention_heads - copies each head into a matrix of its own, padded with zeros to WIDTH channels, and back.
//
//   apart[n, head, row, c] = whole[n, row, head * D + c] for c < D, else 0
//
//   whole [N, rows, heads * D]    apart [N, heads, rows, WIDTH], WIDTH the next multiple of 4 after D
//
// take: src is whole, dst is apart.    give: the reverse. One thread for each element of apart.
//!include lib/grid.wgsl

const WG: u32 = 64u;

struct Params { count: u32, heads: u32, rows: u32, d: u32, first_group: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> src: array<f32>;
@group(0) @binding(2) var<storage, read_write> dst: array<f32>;

// Element of apart, its channel, and its place in whole.
struct Place { i: u32, channel: u32, whole: u32 }

fn place_of(thread: Invocation) -> Place {
    let i = p.first_group * WG + element(thread, WG);
    let width = (p.d + 3u) / 4u * 4u;
    let row = i / width % p.rows;
    let pair = i / width / p.rows;
    let at = ((pair / p.heads * p.rows + row) * p.heads + pair % p.heads) * p.d;
    return Place(i, i % width, at + i % width);
}

@compute @workgroup_size(WG)
fn take(thread: Invocation) {
    let at = place_of(thread);
    if at.i < p.count {
        var value = 0.0;
        if at.channel < p.d { value = src[at.whole]; }
        dst[at.i] = value;
    }
}

@compute @workgroup_size(WG)
fn give(thread: Invocation) {
    let at = place_of(thread);
    if at.i < p.count && at.channel < p.d { dst[at.whole] = src[at.i]; }
}
