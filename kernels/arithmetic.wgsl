// arithmetic - two tensors added, subtracted, multiplied or divided; and one tensor scaled and shifted.
//
//   y[o, r, c] = a[o, r, c] op b[o, c]             op is one of + - * /
//   affine:  y[i] = factor * a[i] + offset
//
//   a, y [outer, rows, columns]    b [outer, columns]
//
// How b's shape spreads over a's is src/ops/arithmetic.rs's `Broadcast`; every case is one of these views.
// One thread for each element, which may be four columns: finding o and c (two integer divisions) is then
// paid once for four.
//!include lib/grid.wgsl

const WG: u32 = 256u;
alias T = f32; // knob: or vec4<f32>
const ADD: u32 = 0u;
const SUB: u32 = 1u;
const MUL: u32 = 2u;

// `n`: elements, of type T; `block` = rows * columns and `columns` count the same.
struct Params { n: u32, op: u32, block: u32, columns: u32, factor: f32, offset: f32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> a: array<T>;
@group(0) @binding(2) var<storage, read> b: array<T>;
@group(0) @binding(3) var<storage, read_write> y: array<T>;

fn apply(a: T, b: T) -> T {
    switch p.op {
        case ADD: { return a + b; }
        case SUB: { return a - b; }
        case MUL: { return a * b; }
        default: { return a / b; }
    }
}

// Index into b of the element i of a.
fn index_of_b(i: u32) -> u32 {
    if p.block == p.columns {
        return i; // b has a's shape
    }
    return i / p.block * p.columns + i % p.columns;
}

@compute @workgroup_size(WG)
fn forward(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.n {
        y[i] = apply(a[i], b[index_of_b(i)]);
    }
}

@compute @workgroup_size(WG)
fn affine(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.n {
        y[i] = p.factor * a[i] + p.offset;
    }
}
