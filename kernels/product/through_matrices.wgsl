// through_matrices - threads exchange what they fetched through workgroup memory, rounded to f16; a subgroup
// multiplies 2 x 2 cooperative matrices of the tile of y, whose sums have 32 bits.
//
// For GPUs with units that multiply matrices. matrices_8.wgsl and matrices_16.wgsl include this file and say
// what a matrix is. Subgroups have LANES threads that follow one another, and uniform control flow.
enable f16;
enable wgpu_cooperative_matrix;
//!include product/exchange.wgsl

const SUBGROUPS: u32 = WG / LANES;
const ACROSS: u32 = COLS / (2u * SIDE); // subgroups side by side
const_assert SUBGROUPS * 4u * SIDE * SIDE == ROWS * COLS && ACROSS * 2u * SIDE == COLS;
const_assert 0u == (DEPTH % SIDE);

// Rows begin at multiples of 16 bytes, as matrices must, and not all in one bank.
const PITCH_A: u32 = QUADS_A + 2u;
const PITCH_B: u32 = QUADS_B + 2u;

// Scalars, which every API loads matrices from.
var<workgroup> tiles: array<f16, 4u * TILES>;

// A matrix of each subgroup, on the way to y.
var<workgroup> results: array<f32, SUBGROUPS * SIDE * SIDE>;
const_assert 4u * WG <= SUBGROUPS * SIDE * SIDE; // put_sum

struct State { upper_left: Sum, upper_right: Sum, lower_left: Sum, lower_right: Sum, column_sums: vec4<f32> }

fn begin(thread: u32) -> State { return State(); }

fn put_quad(at: u32, quad: vec4<f32>) {
    let half = vec4<f16>(quad);
    tiles[4u * at] = half.x;
    tiles[4u * at + 1u] = half.y;
    tiles[4u * at + 2u] = half.z;
    tiles[4u * at + 3u] = half.w;
}

fn put_sum(at: u32, sum: vec4<f32>) {
    results[4u * at] = sum.x;
    results[4u * at + 1u] = sum.y;
    results[4u * at + 2u] = sum.z;
    results[4u * at + 3u] = sum.w;
}

fn sum_at(at: u32) -> vec4<f32> {
    return vec4<f32>(results[4u * at], results[4u * at + 1u], results[4u * at + 2u], results[4u * at + 3u]);
}

fn subgroup_of(thread: u32) -> u32 { return subgroupBroadcastFirst(thread) / LANES; }

// First row and column of a subgroup's part of the tile.
fn corner(subgroup: u32) -> vec2<u32> {
    return 2u * SIDE * vec2<u32>(subgroup / ACROSS, subgroup % ACROSS);
}

fn multiply_tile(state: ptr<function, State>, thread: u32) {
    let at = corner(subgroup_of(thread));
    for (var k = 0u; k < DEPTH; k += SIDE) {
        let row = 4u * at.x * PITCH_A + k;
        let col = 4u * (TILE_B + k * PITCH_B) + at.y;
        let upper = coopLoadT<Left>(&tiles[row], 4u * PITCH_A);
        let lower = coopLoadT<Left>(&tiles[row + 4u * SIDE * PITCH_A], 4u * PITCH_A);
        let left = coopLoadT<Right>(&tiles[col], 4u * PITCH_B);
        let right = coopLoadT<Right>(&tiles[col + SIDE], 4u * PITCH_B);
        (*state).upper_left = coopMultiplyAdd(upper, left, (*state).upper_left);
        (*state).upper_right = coopMultiplyAdd(upper, right, (*state).upper_right);
        (*state).lower_left = coopMultiplyAdd(lower, left, (*state).lower_left);
        (*state).lower_right = coopMultiplyAdd(lower, right, (*state).lower_right);
    }
}

fn finish(state: ptr<function, State>, at: Place, thread: u32) {
    if at.adds { store_column_sums(at, thread, (*state).column_sums); }
    store_matrices(at, thread, (*state).upper_left, 0u, 0u);
    store_matrices(at, thread, (*state).upper_right, 0u, SIDE);
    store_matrices(at, thread, (*state).lower_left, SIDE, 0u);
    store_matrices(at, thread, (*state).lower_right, SIDE, SIDE);
}

// That matrix of each subgroup, `row` rows and `col` columns from its corner.
fn store_matrices(at: Place, thread: u32, sums: Sum, row: u32, col: u32) {
    const QUADS: u32 = SIDE / 4u;
    workgroupBarrier();
    coopStoreT(sums, &results[subgroup_of(thread) * SIDE * SIDE], SIDE);
    workgroupBarrier();
    for (var i = thread; i < SUBGROUPS * SIDE * QUADS; i += WG) {
        let origin = corner(i / (SIDE * QUADS));
        store_row(at, origin.x + row + i / QUADS % SIDE, origin.y + col + 4u * (i % QUADS), sum_at(i));
    }
}
