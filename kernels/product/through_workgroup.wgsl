// through_workgroup - threads exchange what they fetched through workgroup memory, then multiply for rows
// y + i*TY and four columns each from 4*(x + j*TX) on: neighbouring threads read neighbouring vec4s.
//!include product/exchange.wgsl

const_assert 4u == TM || 8u == TM;
const_assert 4u == TN || 8u == TN;

// One vec4 more than there are in a row, so that rows do not all begin in one bank.
const PITCH_A: u32 = QUADS_A + 1u;
const PITCH_B: u32 = QUADS_B + 1u;
const_assert WG <= DEPTH * PITCH_B; // put_sum

var<workgroup> tiles: array<vec4<f32>, TILES>;

// The first four columns of a thread's rows, and the other four; of the sums of the columns of B, what it
// fetched itself.
struct State { left: Eight, right: Eight, column_sums: vec4<f32> }

fn begin(thread: u32) -> State { return State(); }

fn put_quad(at: u32, quad: vec4<f32>) { tiles[at] = quad; }

fn put_sum(at: u32, sum: vec4<f32>) { tiles[TILE_B + at] = sum; }

fn sum_at(at: u32) -> vec4<f32> { return tiles[TILE_B + at]; }

fn multiply_tile(state: ptr<function, State>, thread: u32) {
    multiply(state, thread, 0u);
    if QUADS_A > 1u { multiply(state, thread, 1u); }
    if QUADS_A > 2u { multiply(state, thread, 2u); multiply(state, thread, 3u); }
}

fn four_at(at: u32, next: u32) -> Four {
    return Four(tiles[at], tiles[at + next], tiles[at + 2u * next], tiles[at + 3u * next]);
}

// Adds the products of four k, from 4 * quad on.
fn multiply(state: ptr<function, State>, thread: u32, quad: u32) {
    let row = thread / TX * PITCH_A + quad;
    let col = TILE_B + 4u * quad * PITCH_B + thread % TX;
    let low = four_at(row, TY * PITCH_A);
    (*state).left[0] = times_four((*state).left[0], low, four_at(col, PITCH_B));
    if TN == 8u { (*state).right[0] = times_four((*state).right[0], low, four_at(col + TX, PITCH_B)); }
    if TM == 8u {
        let high = four_at(row + 4u * TY * PITCH_A, TY * PITCH_A);
        (*state).left[1] = times_four((*state).left[1], high, four_at(col, PITCH_B));
        if TN == 8u {
            (*state).right[1] = times_four((*state).right[1], high, four_at(col + TX, PITCH_B));
        }
    }
}

fn finish(state: ptr<function, State>, at: Place, thread: u32) {
    if at.adds { store_column_sums(at, thread, (*state).column_sums); }
    store_columns(at, thread / TX, thread % TX * 4u, (*state).left);
    if TN == 8u { store_columns(at, thread / TX, (thread % TX + TX) * 4u, (*state).right); }
}

fn store_columns(at: Place, row: u32, col: u32, eight: Eight) {
    store_four(at, row, TY, col, eight[0]);
    if TM == 8u { store_four(at, row + 4u * TY, TY, col, eight[1]); }
}
