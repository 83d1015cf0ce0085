// through_subgroup - each of eight threads fetches rows of A, which the others get by subgroupBroadcast, and
// of B the columns that it multiplies itself: for drivers that compute on the CPU, where loads and barriers
// cost more than broadcasts. Needs subgroups of at least 8 lanes, of which the first eight are in use, and
// uniform control flow.

// A thread fetches four rows of A from 4*thread on, and four more 32 further on; of B the columns 4*thread
// and 32 further on.
const FETCH_A: u32 = 4u;
const FETCH_B: u32 = 4u;
const NEXT_A: u32 = 1u;
const NEXT_B: u32 = 1u;
const_assert 8u == TX && 1u == TY && 64u == TM && 4u == DEPTH;
const_assert 4u == TN || 8u == TN;

// Four columns of 32 rows: of rows i, i + 4, i + 8 ... in number i.
alias Block32 = array<Eight, 4>;

// Four columns of the tile's rows, and of the sums of the columns of B.
struct Half { low: Block32, high: Block32, column_sums: vec4<f32> }

struct State { low: Sites, high: Sites, left: Half, right: Half }

fn begin(thread: u32) -> State {
    return State(sites_from(4u * thread), sites_from(4u * thread + 32u), Half(), Half());
}

fn first_k(thread: u32) -> u32 { return 0u; }

fn add_products(state: ptr<function, State>, at: Place, digits: vec3<u32>, k: u32, thread: u32) {
    let to = steps_from(at.block, digits, k, at.end);
    let low = fetch_a((*state).low, to);
    let high = fetch_a((*state).high, to);
    let col = at.col + 4u * thread;
    (*state).left = plus_products((*state).left, low, high, at, k, col);
    if TN == 8u { (*state).right = plus_products((*state).right, low, high, at, k, col + 32u); }
}

fn plus_products(half: Half, low: Four, high: Four, at: Place, k: u32, col: u32) -> Half {
    let b_four = fetch_b(at, k, col);
    var column_sums = half.column_sums;
    if at.adds { column_sums += sum_of_rows(at, k, b_four); }
    return Half(multiply(half.low, low, b_four), multiply(half.high, high, b_four), column_sums);
}

fn multiply(sums: Block32, a: Four, b: Four) -> Block32 {
    return Block32(
        multiply_eight(sums[0], a[0], b), multiply_eight(sums[1], a[1], b),
        multiply_eight(sums[2], a[2], b), multiply_eight(sums[3], a[3], b),
    );
}

// A row is done before the next begins: it stays in registers meanwhile.
fn multiply_eight(sums: Eight, a: vec4<f32>, b: Four) -> Eight {
    let low = Four(
        times(sums[0][0], subgroupBroadcast(a, 0u), b), times(sums[0][1], subgroupBroadcast(a, 1u), b),
        times(sums[0][2], subgroupBroadcast(a, 2u), b), times(sums[0][3], subgroupBroadcast(a, 3u), b),
    );
    let high = Four(
        times(sums[1][0], subgroupBroadcast(a, 4u), b), times(sums[1][1], subgroupBroadcast(a, 5u), b),
        times(sums[1][2], subgroupBroadcast(a, 6u), b), times(sums[1][3], subgroupBroadcast(a, 7u), b),
    );
    return Eight(low, high);
}

// Sums before the epilogue, which is a loop over them: drivers need minutes to compile one epilogue for each.
var<workgroup> results: array<Block32, 8>;

fn store_block(at: Place, first: u32, col: u32, thread: u32, sums: Block32) {
    results[thread] = sums;
    for (var row = 0u; row < 32u; row++) {
        store_row(at, first + row, col, results[thread][row % 4u][row / 16u][row / 4u % 4u]);
    }
}

fn store_half(at: Place, col: u32, thread: u32, half: Half) {
    if at.adds { store_quad(at.split, p.split_rows - 1u, at.col + col, half.column_sums); }
    store_block(at, 0u, col, thread, half.low);
    store_block(at, 32u, col, thread, half.high);
}

fn finish(state: ptr<function, State>, at: Place, thread: u32) {
    store_half(at, 4u * thread, thread, (*state).left);
    if TN == 8u { store_half(at, 4u * thread + 32u, thread, (*state).right); }
}
