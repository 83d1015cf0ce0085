// exchange - what the threads of a workgroup fetch for one another; for through_workgroup.wgsl and
// through_matrices.wgsl, which keep the quads, multiply, and hold the rows of A and of B PITCH_A and PITCH_B
// quads apart.

// Quads that a thread fetches, at most four of each factor, and the rows from one to the next.
const FETCH_A: u32 = ROWS * QUADS_A / WG;
const FETCH_B: u32 = DEPTH * QUADS_B / WG;
const NEXT_A: u32 = WG / QUADS_A;
const NEXT_B: u32 = WG / QUADS_B;
const_assert FETCH_A >= 1u && FETCH_A <= 4u && FETCH_B >= 1u && FETCH_B <= 4u;
const_assert 0u == (WG % QUADS_A) && 0u == (WG % QUADS_B);

// [ROWS, DEPTH] of A, then [DEPTH, COLS] of B.
const TILE_B: u32 = ROWS * PITCH_A;
const TILES: u32 = TILE_B + DEPTH * PITCH_B;

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
    multiply_tile(state, thread);
}

fn put(at: u32, next: u32, count: u32, four: Four) {
    put_quad(at, four[0]);
    if count > 1u { put_quad(at + next, four[1]); }
    if count > 2u { put_quad(at + 2u * next, four[2]); }
    if count > 3u { put_quad(at + 3u * next, four[3]); }
}

// Of the sums of the columns of B, each thread has those of the quads that it fetched.
fn store_column_sums(at: Place, thread: u32, own: vec4<f32>) {
    workgroupBarrier();
    put_sum(thread, own);
    workgroupBarrier();
    if thread < QUADS_B {
        var sum = vec4<f32>();
        for (var i = thread; i < WG; i += QUADS_B) { sum += sum_at(i); }
        store_quad(at.split, p.split_rows - 1u, at.col + 4u * thread, sum);
    }
}
