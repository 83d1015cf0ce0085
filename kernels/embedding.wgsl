// embedding - rows of a table, picked by number.
//
//   y[n] = table[index[n]]        dtable[v] = sum of dy[n] over the n with index[n] = v
//
//   table, dtable [rows, width]    index [n]    y, dy [n, width]
//
// The numbers are u32, or f32 that are whole. One past the last row means the last row.
//
// One thread for each element of y. Backward, `link` finds for each n the next one of the same row, and
// whether it is the first; `backward_clear` fills dtable with zeros; then `backward_rows` has one thread for
// each element of dy, of which those of a first n walk its row's n in order: no atomics, and always the same
// sum. A dispatch binds `count` elements of table or dtable from `first` on, and writes the y, or the rows,
// that these hold.
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
@group(0) @binding(6) var<storage, read_write> links: array<u32>;

const FIRST: u32 = 0x80000000u; // of a link: no n before has its row

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
fn link(thread: Invocation) {
    let n = element(thread, WG);
    if n >= p.n {
        return;
    }
    let row = picked(n);
    var before = 0u;
    while before < n && picked(before) != row {
        before++;
    }
    var next = n + 1u;
    while next < p.n && picked(next) != row {
        next++;
    }
    links[n] = next | select(0u, FIRST, before == n);
}

@compute @workgroup_size(WG)
fn backward_clear(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.count {
        dtable[i] = 0.0;
    }
}

@compute @workgroup_size(WG)
fn backward_rows(thread: Invocation) {
    let i = element(thread, WG);
    if i >= p.n * p.width {
        return;
    }
    let column = i % p.width;
    var n = i / p.width;
    let at = picked(n) * p.width + column;
    if (links[n] & FIRST) == 0u || at < p.first || at - p.first >= p.count {
        return;
    }
    var sum = 0.0;
    while n < p.n {
        sum += dy[n * p.width + column];
        n = links[n] & ~FIRST;
    }
    dtable[at - p.first] = sum;
}
