// through_workgroup - threads exchange what they fetched through workgroup memory, then multiply for rows
// y + i*TY and four columns each from 4*(x + j*TX) on: neighbouring threads read neighbouring vec4s.

// Quads that a thread fetches, at most four of each factor, and the rows from one to the next.
const FETCH_A: u32 = ROWS * QUADS_A / WG;
const FETCH_B: u32 = DEPTH * QUADS_B / WG;
const NEXT_A: u32 = WG / QUADS_A;
const NEXT_B: u32 = WG / QUADS_B;
const_assert FETCH_A >= 1u && FETCH_A <= 4u && FETCH_B >= 1u && FETCH_B <= 4u;
const_assert 0u == (WG % QUADS_A) && 0u == (WG % QUADS_B);
const_assert 4u == TM || 8u == TM;
const_assert 4u == TN || 8u == TN;

// One vec4 more than there are in a row, so that rows do not all begin in one bank.
const PITCH_A: u32 = QUADS_A + 1u;
const PITCH_B: u32 = QUADS_B + 1u;
const TILE_B: u32 = ROWS * PITCH_A;
const_assert WG <= DEPTH * PITCH_B; // finish

// [ROWS, DEPTH] of A, then [DEPTH, COLS] of B.
var<workgroup> tiles: array<vec4<f32>, TILE_B + DEPTH * PITCH_B>;

// The first four columns of a thread's rows, and the other four; of the sums of the columns of B, what it
// fetched itself.
struct State { left: Eight, right: Eight, column_sums: vec4<f32> }

fn begin(thread: u32) -> State { return State(); }

fn first_k(thread: u32) -> u32 {
    return thread % QUADS_A * 4u;
}

fn add_products(state: ptr<function, State>, at: Place, digits: vec3<u32>, k: u32, thread: u32) {
    let k_b = k + select(thread / QUADS_B, first_k(thread), blocks_b());
    let b_four = fetch_b(at, k_b, at.col + 4u * select(thread % QUADS_B, thread / QUADS_A, blocks_b()));
    let row = select(thread / QUADS_A, min(thread / QUADS_A * 4u, ROWS - 4u), blocks_a());
    let a_four = fetch_a(sites_from(row), steps_from(at.block, digits, k + first_k(thread), at.end));
    if at.adds { (*state).column_sums += sum_of_rows(at, k_b, b_four); }
    let quad = thread % QUADS_A;
    let line = thread / QUADS_A;
    workgroupBarrier();
    if !blocks_b() {
        put(TILE_B + thread / QUADS_B * PITCH_B + thread % QUADS_B, NEXT_B * PITCH_B, FETCH_B, b_four);
    } else if line < QUADS_B {
        put(TILE_B + 4u * quad * PITCH_B + line, PITCH_B, 4u, b_four);
    }
    if !blocks_a() {
        put(line * PITCH_A + quad, NEXT_A * PITCH_A, FETCH_A, a_four);
    } else if line < ROWS / 4u {
        put(4u * line * PITCH_A + quad, PITCH_A, 4u, a_four);
    }
    workgroupBarrier();
    multiply(state, thread, 0u);
    if QUADS_A > 1u { multiply(state, thread, 1u); }
    if QUADS_A > 2u { multiply(state, thread, 2u); multiply(state, thread, 3u); }
}

fn put(at: u32, next: u32, count: u32, four: Four) {
    tiles[at] = four[0];
    if count > 1u { tiles[at + next] = four[1]; }
    if count > 2u { tiles[at + 2u * next] = four[2]; }
    if count > 3u { tiles[at + 3u * next] = four[3]; }
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
    if at.adds {
        workgroupBarrier();
        tiles[TILE_B + thread] = (*state).column_sums;
        workgroupBarrier();
        if thread < QUADS_B {
            var sum = vec4<f32>();
            for (var i = thread; i < WG; i += QUADS_B) { sum += tiles[TILE_B + i]; }
            store_quad(at.split, p.split_rows - 1u, at.col + 4u * thread, sum);
        }
    }
    store_columns(at, thread / TX, thread % TX * 4u, (*state).left);
    if TN == 8u { store_columns(at, thread / TX, (thread % TX + TX) * 4u, (*state).right); }
}

fn store_columns(at: Place, row: u32, col: u32, eight: Eight) {
    store_four(at, row, TY, col, eight[0]);
    if TM == 8u { store_four(at, row + 4u * TY, TY, col, eight[1]); }
}
