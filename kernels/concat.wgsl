// concat - put tensors side by side along the channels, or take some channels out; each undoes the
// other, and is its derivative.
//
//   output[row, to_first + c] = input[row, from_first + c]      c < width
//
//   input [rows, from_width]    output [rows, to_width]
//
// One thread for each element that is copied, or set to zero; it may be four numbers, and widths count
// elements.
//!include lib/grid.wgsl

const WG: u32 = 256u;
alias T = f32; // knob: or vec4<f32>

struct Params { rows: u32, width: u32, from_width: u32, from_first: u32, to_width: u32, to_first: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> input: array<T>;
@group(0) @binding(2) var<storage, read_write> output: array<T>;

@compute @workgroup_size(WG)
fn strip(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.rows * p.width {
        let row = i / p.width;
        let c = i - row * p.width;
        output[row * p.to_width + p.to_first + c] = input[row * p.from_width + p.from_first + c];
    }
}

// For channels without a gradient.
@compute @workgroup_size(WG)
fn zero(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.rows * p.width {
        let row = i / p.width;
        output[row * p.to_width + p.to_first + i - row * p.width] = T(0.0);
    }
}
