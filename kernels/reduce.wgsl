// reduce - sums over the middle of a tensor, in a fixed order.
//
//   sum:     out[o, s, c] = scale * sum of x[o, r, c]              over the rows r of slice s
//            out[o, s, c] = scale * sum of x[o, r, c] * y[o, r, c]   where PRODUCTS is true
//   spread:  dx[o, r, c]  = scale * dy[o, c]                         the derivative of sum with one slice
//
//   x, y, dx [outer, rows, columns]    out [outer, slices, columns]    dy [outer, columns]
//
// sum: one workgroup per (outer, slice, block of `width` columns). Its 256 threads stand in
// a grid of 256 / width rows by width columns, so that neighbours read neighbours however few columns there
// are; a tall sum is cut into slices, and a second dispatch of `sum` adds those up. spread: one thread per
// element of dx.
//!include lib/grid.wgsl

const WG: u32 = 256u;
const PRODUCTS: bool = false; // knob

// `width` is a power of two up to WG; slice s holds the rows from s * slice_rows on.
struct Params { outer: u32, rows: u32, columns: u32, slices: u32, slice_rows: u32, width: u32, scale: f32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> x: array<f32>;
@group(0) @binding(2) var<storage, read> y: array<f32>; // without PRODUCTS, x again
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(4) var<storage, read> dy: array<f32>;
@group(0) @binding(5) var<storage, read_write> dx: array<f32>;

// The elements of one thread: `count` from `first` on, `stride` apart; and the place of its column's sum.
struct Task { first: u32, stride: u32, count: u32, target_index: u32, has_target: bool }

fn task_of(group: u32, lane: u32) -> Task {
    let blocks = (p.columns + p.width - 1u) / p.width;
    let slice_index = group / blocks; // among those of all outers
    let outer = slice_index / p.slices;
    let slice = slice_index - outer * p.slices;
    let column = (group - slice_index * blocks) * p.width + lane % p.width;
    let lines = WG / p.width;
    let row = slice * p.slice_rows + lane / p.width;
    let end = min((slice + 1u) * p.slice_rows, p.rows);

    var task: Task;
    task.first = (outer * p.rows + row) * p.columns + column;
    task.stride = lines * p.columns;
    let inside = outer < p.outer && column < p.columns; // else past the last column or the last group
    if inside && row < end {
        task.count = (end - row + lines - 1u) / lines;
    }
    task.target_index = slice_index * p.columns + column;
    task.has_target = inside && lane < p.width;
    return task;
}

var<workgroup> cells: array<f32, WG>;

// Adds up the threads of each column and writes the sums. Every thread must call it.
fn finish(value: f32, task: Task, lane: u32) {
    cells[lane] = value;
    for (var stride = WG / 2u; stride >= p.width; stride /= 2u) {
        workgroupBarrier();
        if lane < stride {
            cells[lane] += cells[lane + stride];
        }
    }
    if task.has_target {
        out[task.target_index] = p.scale * cells[lane];
    }
}

fn term(at: u32) -> f32 {
    if PRODUCTS {
        return x[at] * y[at];
    }
    return x[at];
}

@compute @workgroup_size(WG)
fn sum(thread: Invocation) {
    let task = task_of(flat_group(thread.group, thread.groups), thread.lane);
    // Four sums at once: loads need not wait for additions, and rounding errors grow a quarter as fast.
    var sums = vec4<f32>();
    var at = task.first;
    for (var i = 0u; i < task.count / 4u; i++) {
        let half = at + 2u * task.stride;
        sums += vec4<f32>(term(at), term(at + task.stride), term(half), term(half + task.stride));
        at = half + 2u * task.stride;
    }
    for (var i = 0u; i < task.count % 4u; i++) {
        sums.x += term(at);
        at += task.stride;
    }
    finish((sums.x + sums.y) + (sums.z + sums.w), task, thread.lane);
}

@compute @workgroup_size(WG)
fn spread(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.outer * p.rows * p.columns {
        let line = i / p.columns;
        dx[i] = p.scale * dy[line / p.rows * p.columns + (i - line * p.columns)];
    }
}
