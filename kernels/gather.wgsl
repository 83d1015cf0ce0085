// gather - samples of a data set that lies on the device, picked by number, mirrored where that is asked.
//
//   y[n, h, w, c] = value(data[k, h, w', c])        k = sample[n] without its top bit
//   w' = W - 1 - w where the top bit of sample[n] is set, else w
//   bytes: value(b) = 2 b / 255 - 1, from bytes, four to a word, the first lowest
//   numbers: value(v) = v
//
//   data [rows, H, W, C]    sample [n]    y [n, H, W, C]    elements = H W C
//
// A number past the last row means the last row. One thread for each element of y. A dispatch binds `count`
// elements of data (of bytes: words) from `first` on, and writes the y that these hold.
//!include lib/grid.wgsl

const WG: u32 = 256u;
const MIRRORED: u32 = 0x80000000u;

struct Params { n: u32, rows: u32, elements: u32, width: u32, channels: u32, first: u32, count: u32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> sample: array<u32>;
@group(0) @binding(2) var<storage, read> packed: array<u32>;
@group(0) @binding(3) var<storage, read> data: array<f32>;
@group(0) @binding(4) var<storage, read_write> y: array<f32>;

// Where element `i` of y comes from.
fn source_of(i: u32) -> u32 {
    let picked = sample[i / p.elements];
    var e = i % p.elements;
    if picked >= MIRRORED {
        let c = e % p.channels;
        let w = e / p.channels % p.width;
        e = (e / p.channels - w + p.width - 1u - w) * p.channels + c;
    }
    return min(picked & ~MIRRORED, p.rows - 1u) * p.elements + e;
}

@compute @workgroup_size(WG)
fn bytes(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.n * p.elements {
        let at = source_of(i);
        let word = at / 4u;
        if word >= p.first && word - p.first < p.count {
            let byte = (packed[word - p.first] >> (8u * (at % 4u))) & 255u;
            y[i] = f32(byte) * (2.0 / 255.0) - 1.0;
        }
    }
}

@compute @workgroup_size(WG)
fn numbers(thread: Invocation) {
    let i = element(thread, WG);
    if i < p.n * p.elements {
        let at = source_of(i);
        if at >= p.first && at - p.first < p.count {
            y[i] = data[at - p.first];
        }
    }
}
