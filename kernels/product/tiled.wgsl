// tiled - a product in tiles that the threads of a workgroup share.
//
//   y[row, col] = sum_k A[row, k] * B[k, col]      (+ bias, shift and residual)
//
// A workgroup computes a tile of ROWS x COLS of y, of one block and one split of the sum. It loops over k,
// DEPTH at a time: its threads fetch DEPTH columns of A and as many rows of B, a few quads each, exchange
// them (through_workgroup.wgsl, through_subgroup.wgsl or through_matrices.wgsl), and each multiplies, alone
// or with its subgroup, for its own rows and columns: a number that is fetched once is used ROWS or COLS
// times. Sites are found once for a tile.
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

alias Four = mat4x4<f32>; // quads
alias Eight = array<Four, 2>; // four columns of eight rows

// sum + A[row, k..k+4] B[k..k+4, four columns].
fn times(sum: vec4<f32>, a: vec4<f32>, b: Four) -> vec4<f32> {
    return sum + a.x * b[0] + a.y * b[1] + a.z * b[2] + a.w * b[3];
}

fn times_four(sums: Four, a: Four, b: Four) -> Four {
    return Four(
        times(sums[0], a[0], b), times(sums[1], a[1], b), times(sums[2], a[2], b), times(sums[3], a[3], b),
    );
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
alias Sites = array<vec4<i32>, 4>;

fn sites_from(row: u32) -> Sites {
    var four: Sites;
    four[0] = sites[row];
    if FETCH_A > 1u { four[1] = sites[row + NEXT_A]; }
    if FETCH_A > 2u { four[2] = sites[row + 2u * NEXT_A]; }
    if FETCH_A > 3u { four[3] = sites[row + 3u * NEXT_A]; }
    return four;
}

// Steps of four k.
alias Steps = array<vec3<i32>, 4>;

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

fn rows_of_a(at: Sites, to: Steps) -> Four {
    var four: Four;
    four[0] = a_row(at[0], to);
    if FETCH_A > 1u { four[1] = a_row(at[1], to); }
    if FETCH_A > 2u { four[2] = a_row(at[2], to); }
    if FETCH_A > 3u { four[3] = a_row(at[3], to); }
    return four;
}

// Past the last k it reads the last one again, which A has zeros for; past the last column the last one, of
// which nothing is stored.
fn rows_of_b(at: Place, k: u32, col: u32) -> Four {
    var four: Four;
    four[0] = b_row(at, k, col);
    if FETCH_B > 1u { four[1] = b_row(at, k + NEXT_B, col); }
    if FETCH_B > 2u { four[2] = b_row(at, k + 2u * NEXT_B, col); }
    if FETCH_B > 3u { four[3] = b_row(at, k + 3u * NEXT_B, col); }
    return four;
}

// Sum of the rows of B in `four`, of which the first is row k.
fn sum_of_rows(at: Place, k: u32, four: Four) -> vec4<f32> {
    var sum = select(vec4<f32>(), four[0], k < at.end);
    if FETCH_B > 1u { sum += select(vec4<f32>(), four[1], k + NEXT_B < at.end); }
    if FETCH_B > 2u { sum += select(vec4<f32>(), four[2], k + 2u * NEXT_B < at.end); }
    if FETCH_B > 3u { sum += select(vec4<f32>(), four[3], k + 3u * NEXT_B < at.end); }
    return sum;
}

@compute @workgroup_size(WG)
fn product(group: Workgroup, @builtin(local_invocation_index) lane: u32) {
    let at = place(p.first_group + flat_group(group.id, group.count));
    if at.row >= at.block.rows { return; }
    for (var i = lane; i < ROWS; i += WG) { sites[i] = site_at(at.block, at.row + i); }
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
    store_row(at, first, col, four[0]);
    store_row(at, first + next, col, four[1]);
    store_row(at, first + 2u * next, col, four[2]);
    store_row(at, first + 3u * next, col, four[3]);
}

fn store_row(at: Place, row: u32, col: u32, sum: vec4<f32>) {
    let of_y = sites[row].w;
    if of_y >= 0 { store_quad(at.split, u32(of_y), at.col + col, sum); }
}
