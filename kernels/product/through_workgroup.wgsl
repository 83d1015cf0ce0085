// through_workgroup - threads exchange what they fetched through workgroup memory, then multiply for rows y + i*TY and, in fours,
// columns 4*(x + j*TX): threads side by side read vec4s side by side.

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
const_assert WG <= DEPTH * PITCH_B; // finish

var<workgroup> tile_a: array<vec4<f32>, ROWS * PITCH_A>;  // [ROWS, DEPTH]
var<workgroup> tile_b: array<vec4<f32>, DEPTH * PITCH_B>; // [DEPTH, COLS]

// The first four columns of a thread's rows, and the other four; of the sums of the columns of B, what it fetched itself.
struct State { left: Eight, right: Eight, share: vec4<f32> }

fn begin(thread: u32) -> State {
    return State();
}

fn first_k(thread: u32) -> u32 {
    return thread % QUADS_A * 4u;
}

fn turn(state: ptr<function, State>, at: Place, digits: vec3<u32>, k: u32, thread: u32) {
    let k_b = k + select(thread / QUADS_B, first_k(thread), blocks_b());
    let b_four = fetch_b(at, k_b, at.col + 4u * select(thread % QUADS_B, thread / QUADS_A, blocks_b()));
    let row = select(thread / QUADS_A, min(thread / QUADS_A * 4u, ROWS - 4u), blocks_a());
    let a_four = fetch_a(sites_from(row), steps_from(at.block, digits, k + first_k(thread), at.end));
    if at.adds { (*state).share += share_of_columns(at, k_b, b_four); }
    workgroupBarrier();
    if blocks_b() {
        if thread < QUADS_A * QUADS_B { put_b(first_k(thread) * PITCH_B + thread / QUADS_A, PITCH_B, 4u, b_four); }
    } else {
        put_b(thread / QUADS_B * PITCH_B + thread % QUADS_B, NEXT_B * PITCH_B, FETCH_B, b_four);
    }
    if blocks_a() {
        if thread < ROWS / 4u * QUADS_A { put_a(thread / QUADS_A * 4u * PITCH_A + thread % QUADS_A, PITCH_A, 4u, a_four); }
    } else {
        put_a(thread / QUADS_A * PITCH_A + thread % QUADS_A, NEXT_A * PITCH_A, FETCH_A, a_four);
    }
    workgroupBarrier();
    multiply(state, thread, 0u);
    if QUADS_A > 1u { multiply(state, thread, 1u); }
    if QUADS_A > 2u { multiply(state, thread, 2u); multiply(state, thread, 3u); }
}

fn put_a(at: u32, next: u32, count: u32, four: Four) {
    tile_a[at] = four.q0;
    if count > 1u { tile_a[at + next] = four.q1; }
    if count > 2u { tile_a[at + 2u * next] = four.q2; }
    if count > 3u { tile_a[at + 3u * next] = four.q3; }
}

fn put_b(at: u32, next: u32, count: u32, four: Four) {
    tile_b[at] = four.q0;
    if count > 1u { tile_b[at + next] = four.q1; }
    if count > 2u { tile_b[at + 2u * next] = four.q2; }
    if count > 3u { tile_b[at + 3u * next] = four.q3; }
}

fn four_of_b(at: u32) -> Four {
    return Four(tile_b[at], tile_b[at + PITCH_B], tile_b[at + 2u * PITCH_B], tile_b[at + 3u * PITCH_B]);
}

// Adds the products of four k, from 4 * quad on.
fn multiply(state: ptr<function, State>, thread: u32, quad: u32) {
    let at = thread / TX * PITCH_A + quad;
    let r0 = tile_a[at];
    let r1 = tile_a[at + TY * PITCH_A];
    let r2 = tile_a[at + 2u * TY * PITCH_A];
    let r3 = tile_a[at + 3u * TY * PITCH_A];
    let left = four_of_b(4u * quad * PITCH_B + thread % TX);
    (*state).left.r0 = times((*state).left.r0, r0, left);
    (*state).left.r1 = times((*state).left.r1, r1, left);
    (*state).left.r2 = times((*state).left.r2, r2, left);
    (*state).left.r3 = times((*state).left.r3, r3, left);
    if TN == 8u {
        let right = four_of_b(4u * quad * PITCH_B + thread % TX + TX);
        (*state).right.r0 = times((*state).right.r0, r0, right);
        (*state).right.r1 = times((*state).right.r1, r1, right);
        (*state).right.r2 = times((*state).right.r2, r2, right);
        (*state).right.r3 = times((*state).right.r3, r3, right);
    }
    if TM == 8u {
        let r4 = tile_a[at + 4u * TY * PITCH_A];
        let r5 = tile_a[at + 5u * TY * PITCH_A];
        let r6 = tile_a[at + 6u * TY * PITCH_A];
        let r7 = tile_a[at + 7u * TY * PITCH_A];
        (*state).left.r4 = times((*state).left.r4, r4, left);
        (*state).left.r5 = times((*state).left.r5, r5, left);
        (*state).left.r6 = times((*state).left.r6, r6, left);
        (*state).left.r7 = times((*state).left.r7, r7, left);
        if TN == 8u {
            let right = four_of_b(4u * quad * PITCH_B + thread % TX + TX);
            (*state).right.r4 = times((*state).right.r4, r4, right);
            (*state).right.r5 = times((*state).right.r5, r5, right);
            (*state).right.r6 = times((*state).right.r6, r6, right);
            (*state).right.r7 = times((*state).right.r7, r7, right);
        }
    }
}

fn finish(state: ptr<function, State>, at: Place, thread: u32) {
    if at.adds {
        workgroupBarrier();
        tile_b[thread] = (*state).share;
        workgroupBarrier();
        if thread < QUADS_B {
            var sum = vec4<f32>();
            for (var i = thread; i < WG; i += QUADS_B) {
                sum += tile_b[i];
            }
            store_quad(at.part, p.part_rows - 1u, at.col + 4u * thread, sum);
        }
    }
    let y = thread / TX;
    let x = thread % TX;
    store_eight(at, y, TY, 4u * x, (*state).left);
    if TN == 8u { store_eight(at, y, TY, 4u * (x + TX), (*state).right); }
}
