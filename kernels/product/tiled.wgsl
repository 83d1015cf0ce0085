// tiled - a product in tiles that the threads of a workgroup share.
//
//   y[row, col] = sum_k A[row, k] * B[k, col]      (+ bias, shift and residual)
//
// A workgroup computes a tile of ROWS x COLS of y, of one block and one split of the sum. It loops over k,
// DEPTH at a time: its threads fetch DEPTH columns of A and as many rows of B, a few quads each, exchange
// them (through_workgroup.wgsl or through_subgroup.wgsl), and each multiplies for its own rows and columns:
// a number that is fetched once is used ROWS or COLS times. Of A nothing but the elements of `a` lies in
// memory: a loader finds them by the sites of the tile's rows, once for a tile, and the steps of k.
//
// All reads of an iteration are issued before the first is waited for, which loops over them would not do:
// no driver unrolls a loop whose number of iterations it does not know. References: Goto & van de Geijn 2008
// (doi:10.1145/1356052.1356053); of the convolution, Chetlur et al. 2014 (cuDNN, arXiv:1410.0759).
//!include lib/grid.wgsl
//!include product/product.wgsl
//!include product/load_dense.wgsl // knob LOADER
//!include product/quads.wgsl // knob ACCESS
//!include product/through_workgroup.wgsl // knob SHARE

const TX: u32 = 8u; // knob: threads along the columns of the result
const TY: u32 = 8u; // knob: threads along its rows
const TM: u32 = 8u; // knob: rows of a thread
const TN: u32 = 8u; // knob: columns of a thread
const DEPTH: u32 = 16u; // knob: k of an iteration
const WG: u32 = TX * TY;
const ROWS: u32 = TY * TM;
const COLS: u32 = TX * TN;
const QUADS_A: u32 = DEPTH / 4u;
const QUADS_B: u32 = COLS / 4u;

const_assert 0u == (WG % QUADS_A);

struct Four { q0: vec4<f32>, q1: vec4<f32>, q2: vec4<f32>, q3: vec4<f32> }

// Four columns of eight rows.
struct Eight { low: Four, high: Four }

// sum + A[row, k..k+4] B[k..k+4, four columns].
fn times(sum: vec4<f32>, a: vec4<f32>, b: Four) -> vec4<f32> {
    return sum + a.x * b.q0 + a.y * b.q1 + a.z * b.q2 + a.w * b.q3;
}

fn times_four(sums: Four, a: Four, b: Four) -> Four {
    return Four(
        times(sums.q0, a.q0, b), times(sums.q1, a.q1, b), times(sums.q2, a.q2, b), times(sums.q3, a.q3, b),
    );
}

fn transposed(q0: vec4<f32>, q1: vec4<f32>, q2: vec4<f32>, q3: vec4<f32>) -> Four {
    let t = transpose(mat4x4<f32>(q0, q1, q2, q3));
    return Four(t[0], t[1], t[2], t[3]);
}

// Tile of a workgroup; `adds`: it adds up the columns of B too.
struct Place { block: Block, split: u32, row: u32, col: u32, begin: u32, end: u32, adds: bool }

fn place(group: u32) -> Place {
    let across = (p.cols + COLS - 1u) / COLS;
    let down = (p.rows + ROWS - 1u) / ROWS;
    let stack = group / across / down;
    let block = block_of(stack / p.splits); // without rows past the last
    let row = group / across % down * ROWS;
    let begin = stack % p.splits * p.split_depth;
    return Place(
        block, stack % p.splits, row, group % across * COLS,
        begin, min(begin + p.split_depth, block.depth), p.column_sums != 0u && row == 0u,
    );
}

var<workgroup> sites: array<vec4<i32>, ROWS>;

// Sites of four quads, the rows of which lie NEXT_A apart.
struct Sites { s0: vec4<i32>, s1: vec4<i32>, s2: vec4<i32>, s3: vec4<i32> }

fn sites_from(row: u32) -> Sites {
    var four: Sites;
    four.s0 = sites[row];
    if FETCH_A > 1u { four.s1 = sites[row + NEXT_A]; }
    if FETCH_A > 2u { four.s2 = sites[row + 2u * NEXT_A]; }
    if FETCH_A > 3u { four.s3 = sites[row + 3u * NEXT_A]; }
    return four;
}

// Steps of four k.
struct Steps { s0: vec3<i32>, s1: vec3<i32>, s2: vec3<i32>, s3: vec3<i32> }

fn steps_from(block: Block, digits: vec3<u32>, k: u32, end: u32) -> Steps {
    let sizes = digit_sizes(block);
    let d1 = next_digits(digits, sizes);
    let d2 = next_digits(d1, sizes);
    let d3 = next_digits(d2, sizes);
    return Steps(
        step_at(block, digits, k, end), step_at(block, d1, k + 1u, end), step_at(block, d2, k + 2u, end),
        step_at(block, d3, k + 3u, end),
    );
}

// Sum of the rows of B in `four`, of which the first is row k.
fn sum_of_rows(at: Place, k: u32, four: Four) -> vec4<f32> {
    var sum = select(vec4<f32>(), four.q0, k < at.end);
    if FETCH_B > 1u { sum += select(vec4<f32>(), four.q1, k + NEXT_B < at.end); }
    if FETCH_B > 2u { sum += select(vec4<f32>(), four.q2, k + 2u * NEXT_B < at.end); }
    if FETCH_B > 3u { sum += select(vec4<f32>(), four.q3, k + 3u * NEXT_B < at.end); }
    return sum;
}

@compute @workgroup_size(WG)
fn product(group: Workgroup, @builtin(local_invocation_index) lane: u32) {
    let at = place(p.first_group + flat_group(group.id, group.count));
    if at.row >= at.block.rows {
        return;
    }
    for (var i = lane; i < ROWS; i += WG) {
        sites[i] = site_at(at.block, at.row + i);
    }
    workgroupBarrier();
    let sizes = digit_sizes(at.block);
    var digits = digits_of(at.begin + first_k(lane), sizes);
    var state = begin(lane);
    for (var k = at.begin; k < at.end; k += DEPTH) {
        add_products(&state, at, digits, k, lane);
        digits = digits_after(digits, DEPTH, sizes);
    }
    finish(&state, at, lane);
}

// Rows of the tile from `first` on, `next` apart.
fn store_four(at: Place, first: u32, next: u32, col: u32, four: Four) {
    store_row(at, first, col, four.q0);
    store_row(at, first + next, col, four.q1);
    store_row(at, first + 2u * next, col, four.q2);
    store_row(at, first + 3u * next, col, four.q3);
}

fn store_row(at: Place, row: u32, col: u32, sum: vec4<f32>) {
    let of_y = sites[row].w;
    if of_y >= 0 { store_quad(at.split, u32(of_y), at.col + col, sum); }
}
