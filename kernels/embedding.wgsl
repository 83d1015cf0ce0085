// embedding - rows of a table, picked by number.
//
//   y[n] = table[index[n]]        dtable[v] = sum of dy[n] over the n with index[n] = v
//
//   table, dtable [rows, width]    index [n]    y, dy [n, width]
//
// The numbers are u32, or f32 that are whole. One past the last row means the last row.
//
// One thread for each element of y, or of dtable, where it walks all n in order: no atomics, and always the
// same sum. A dispatch binds `count` elements of table or dtable from `first` on, and writes the y that these
// hold.
//!include lib/grid.wgsl

const WG: u32 = 256u;

struct Params {
    n: u32,
    rows: u32,
    width: u32,
    words: u32, // 1: the numbers are u32
    first: u32, count: u32,
}

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> table: array<f32>;
@group(0) @binding(2) var<storage, read> index: array<u32>;
@group(0) @binding(3) var<storage, read_write> y: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
@group(0) @binding(5) var<storage, read_write> dtable: array<f32>;

// The row that sample n picks.
fn picked(n: u32) -> u32 {
    let index = index[n];
    let number = select(u32(bitcast<f32>(index)), index, p.words == 1u);
    return min(number, p.rows - 1u);
}

@compute @workgroup_size(WG)
fn forward(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.n * p.width {
        let at = picked(i / p.width) * p.width + i % p.width;
        if at >= p.first && at - p.first < p.count {
            y[i] = table[at - p.first];
        }
    }
}

@compute @workgroup_size(WG)
fn backward_table(thread: Invocation) {
    let i = element(thread, WG);
    if i >= p.count {
        return;
    }
    let row = (p.first + i) / p.width;
    var at = (p.first + i) % p.width;
    var sum = 0.0;
    for (var n = 0u; n < p.n; n++) {
        if picked(n) == row {
            sum += dy[at];
        }
        at += p.width;
    }
    dtable[i] = sum;
}
