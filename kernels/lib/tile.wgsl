// tile - the product of two small matrices in workgroup memory, of which each thread has a rectangle in registers.
//
// A workgroup has TX * TY threads. For every DEPTH of k the includer reads what its threads fetch into registers, waits for those
// that still multiply, puts it into tile_a and tile_b, waits, and calls multiply_tiles. All reads of a step are under way before
// the first is waited for, which loops over them would not do: no driver unrolls a loop whose number of turns it does not know.
//
// A thread has rows y + i*TY and, in fours, columns 4*(x + j*TX): threads side by side read vec4s side by side.

const TX: u32 = 8u; // knob: threads along the columns of the result
const TY: u32 = 8u; // knob: threads along its rows
const HIGH: u32 = 8u; // knob: rows of a thread, 4 or 8
const BROAD: u32 = 8u; // knob: columns of a thread, 4 or 8
const WG: u32 = TX * TY;
const_assert 0u == (WG % 4u);
const ROWS: u32 = TY * HIGH;
const COLS: u32 = TX * BROAD;
const DEPTH: u32 = 16u;
// One vec4 more than there are in a row, so that rows do not all begin in one bank.
const PITCH_A: u32 = DEPTH / 4u + 1u;
const PITCH_B: u32 = COLS / 4u + 1u;
const QUADS_B: u32 = COLS / 4u;

// Quads that a thread fetches, at most four of each factor, and the rows from one to the next.
const FETCH_A: u32 = ROWS * DEPTH / 4u / WG;
const FETCH_B: u32 = DEPTH * QUADS_B / WG;
const NEXT_A: u32 = 4u * WG / DEPTH;
const NEXT_B: u32 = WG / QUADS_B;
const_assert FETCH_A <= 4u;
const_assert FETCH_B <= 4u;
const_assert ROWS <= WG; // a thread turns over at most one block of four by four
const_assert COLS <= WG;
const_assert 16u == DEPTH;

var<workgroup> tile_a: array<vec4<f32>, ROWS * PITCH_A>;  // [ROWS, DEPTH]
var<workgroup> tile_b: array<vec4<f32>, DEPTH * PITCH_B>; // [DEPTH, COLS]

// The first four columns of rows 0 to 7 of a thread, and the other four.
struct Sums {
    a0: vec4<f32>, a1: vec4<f32>, a2: vec4<f32>, a3: vec4<f32>, a4: vec4<f32>, a5: vec4<f32>, a6: vec4<f32>, a7: vec4<f32>,
    b0: vec4<f32>, b1: vec4<f32>, b2: vec4<f32>, b3: vec4<f32>, b4: vec4<f32>, b5: vec4<f32>, b6: vec4<f32>, b7: vec4<f32>,
}

struct Four { k0: vec4<f32>, k1: vec4<f32>, k2: vec4<f32>, k3: vec4<f32> }

// Quad thread % 4 of row thread / 4, and of those NEXT_A further on.
fn put_a(thread: u32, four: Four) {
    let at = thread / 4u * PITCH_A + thread % 4u;
    tile_a[at] = four.k0;
    if FETCH_A > 1u { tile_a[at + NEXT_A * PITCH_A] = four.k1; }
    if FETCH_A > 2u { tile_a[at + 2u * NEXT_A * PITCH_A] = four.k2; }
    if FETCH_A > 3u { tile_a[at + 3u * NEXT_A * PITCH_A] = four.k3; }
}

// Four k from 4 * (thread % 4) on of four rows from thread / 4 * 4 on, k by k.
fn put_a_turned(thread: u32, four: Four) {
    if thread < ROWS {
        let at = thread / 4u * 4u * PITCH_A + thread % 4u;
        let turned = transpose(mat4x4<f32>(four.k0, four.k1, four.k2, four.k3));
        tile_a[at] = turned[0];
        tile_a[at + PITCH_A] = turned[1];
        tile_a[at + 2u * PITCH_A] = turned[2];
        tile_a[at + 3u * PITCH_A] = turned[3];
    }
}

// Quad thread % QUADS_B of row thread / QUADS_B, and of those NEXT_B further on.
fn put_b(thread: u32, four: Four) {
    let at = thread / QUADS_B * PITCH_B + thread % QUADS_B;
    tile_b[at] = four.k0;
    if FETCH_B > 1u { tile_b[at + NEXT_B * PITCH_B] = four.k1; }
    if FETCH_B > 2u { tile_b[at + 2u * NEXT_B * PITCH_B] = four.k2; }
    if FETCH_B > 3u { tile_b[at + 3u * NEXT_B * PITCH_B] = four.k3; }
}

// Four rows from 4 * (thread % 4) on of quad thread / 4, column by column.
fn put_b_turned(thread: u32, four: Four) {
    if thread < COLS {
        let at = thread % 4u * 4u * PITCH_B + thread / 4u;
        let turned = transpose(mat4x4<f32>(four.k0, four.k1, four.k2, four.k3));
        tile_b[at] = turned[0];
        tile_b[at + PITCH_B] = turned[1];
        tile_b[at + 2u * PITCH_B] = turned[2];
        tile_b[at + 3u * PITCH_B] = turned[3];
    }
}

fn times(sum: vec4<f32>, a: vec4<f32>, b: Four) -> vec4<f32> {
    return sum + a.x * b.k0 + a.y * b.k1 + a.z * b.k2 + a.w * b.k3;
}

fn four_of_b(at: u32) -> Four {
    return Four(tile_b[at], tile_b[at + PITCH_B], tile_b[at + 2u * PITCH_B], tile_b[at + 3u * PITCH_B]);
}

// Adds the products of four k, from 4 * quad on.
fn multiply_quad(sums: ptr<function, Sums>, x: u32, y: u32, quad: u32) {
    let at = y * PITCH_A + quad;
    let r0 = tile_a[at];
    let r1 = tile_a[at + TY * PITCH_A];
    let r2 = tile_a[at + 2u * TY * PITCH_A];
    let r3 = tile_a[at + 3u * TY * PITCH_A];
    let left = four_of_b(4u * quad * PITCH_B + x);
    (*sums).a0 = times((*sums).a0, r0, left);
    (*sums).a1 = times((*sums).a1, r1, left);
    (*sums).a2 = times((*sums).a2, r2, left);
    (*sums).a3 = times((*sums).a3, r3, left);
    if BROAD == 8u {
        let right = four_of_b(4u * quad * PITCH_B + x + TX);
        (*sums).b0 = times((*sums).b0, r0, right);
        (*sums).b1 = times((*sums).b1, r1, right);
        (*sums).b2 = times((*sums).b2, r2, right);
        (*sums).b3 = times((*sums).b3, r3, right);
    }
    if HIGH == 8u {
        let r4 = tile_a[at + 4u * TY * PITCH_A];
        let r5 = tile_a[at + 5u * TY * PITCH_A];
        let r6 = tile_a[at + 6u * TY * PITCH_A];
        let r7 = tile_a[at + 7u * TY * PITCH_A];
        (*sums).a4 = times((*sums).a4, r4, left);
        (*sums).a5 = times((*sums).a5, r5, left);
        (*sums).a6 = times((*sums).a6, r6, left);
        (*sums).a7 = times((*sums).a7, r7, left);
        if BROAD == 8u {
            let right = four_of_b(4u * quad * PITCH_B + x + TX);
            (*sums).b4 = times((*sums).b4, r4, right);
            (*sums).b5 = times((*sums).b5, r5, right);
            (*sums).b6 = times((*sums).b6, r6, right);
            (*sums).b7 = times((*sums).b7, r7, right);
        }
    }
}

fn multiply_tiles(sums: ptr<function, Sums>, x: u32, y: u32) {
    multiply_quad(sums, x, y, 0u);
    multiply_quad(sums, x, y, 1u);
    multiply_quad(sums, x, y, 2u);
    multiply_quad(sums, x, y, 3u);
}
