// load_dense - A and B as matrices, each as it stands or transposed. A block is an item of a batch.

struct Block { number: u32, rows: u32, depth: u32, b: u32 } // `b`: first element of B

fn block_of(number: u32) -> Block {
    return Block(number, select(0u, p.rows, number < p.blocks), p.depth, number * p.depth * p.cols);
}

// Neighbouring elements of A in memory have one k, else one row.
fn a_along_rows() -> bool { return p.a_transposed != 0u; }

// Neighbouring elements of B in memory have one column, else one k.
fn b_along_depth() -> bool { return p.b_transposed != 0u; }

fn site_of(block: Block, row: u32) -> vec4<i32> {
    let first = block.number * p.rows * p.depth + row * select(p.depth, 1u, a_along_rows());
    return vec4<i32>(i32(first), 0, 0, i32(block.number * p.rows + row));
}

// Only the lowest digit counts.
fn digit_sizes(block: Block) -> vec2<u32> { return vec2<u32>(0xffffffffu, 1u); }

fn step_of(block: Block, k: vec3<u32>) -> vec3<i32> {
    return vec3<i32>(i32(k.x * select(1u, p.rows, a_along_rows())), 0, 0);
}
