// conv - sizes of a convolution, or of the adjoint of one, as ordinary convolutions of its residues.
//
// A convolution gathers dst[h,w] from src[h*stride + kh - top, w*stride + kw - left]. In the adjoint of a convolution of stride
// `step`, the tap kh meets row h of dst only where kh and h + pad are equal modulo step: the pixels of one residue form an image
// of their own, which an ordinary convolution with their few taps gathers from src. Nothing is multiplied by the zeros that
// would have to be put between the pixels of src. With a step of 1 there is one residue, the whole image.
//
// The weights [taps, src_c, dst_c] hold the taps of one residue after those of the other, in the order in which the convolution
// reads them. Reference: Dumoulin & Visin 2016, chapter 4 (arXiv:1603.07285).

struct Params {
    n: u32,
    dst_h: u32, dst_w: u32, dst_c: u32,
    src_h: u32, src_w: u32, src_c: u32,
    kh: u32, kw: u32,
    stride: u32, step: u32,
    pad_h: i32, pad_w: i32, // of the adjoint: kh - 1 - top for a convolution
    has_bias: u32, has_shift: u32, has_residual: u32,
    first_group: u32, // of this dispatch
}

@group(0) @binding(0) var<uniform> p: Params;

// The ordinary convolution of one residue.
struct Residue {
    h0: u32, w0: u32,       // first pixel in dst; the others lie `step` apart
    rows: u32, cols: u32,   // its pixels
    kh: u32, kw: u32,       // its taps
    top: i32, left: i32,
    first: u32,             // number of its first tap
}

// Taps along one axis that pixel `at` meets, what lies before src where it meets the first, and taps of lesser residues.
struct Axis { taps: u32, before_src: i32, lesser: u32 }

fn axis(at: u32, taps: u32, pad: i32) -> Axis {
    let d = i32(at) + pad;
    let r = u32(d % i32(p.step)); // pad is negative for a step of 1 alone, where this is 0
    let own = select(0u, (taps - r + p.step - 1u) / p.step, r < taps);
    return Axis(own, i32(own) - 1 - d / i32(p.step), taps / p.step * r + min(taps % p.step, r));
}

fn residues() -> u32 {
    return min(p.step, p.dst_h) * min(p.step, p.dst_w);
}

// Pixels of the residue that has most, the first.
fn most_pixels() -> u32 {
    return p.n * ((p.dst_h + p.step - 1u) / p.step) * ((p.dst_w + p.step - 1u) / p.step);
}

fn residue(number: u32) -> Residue {
    let across = min(p.step, p.dst_w);
    let h0 = number / across;
    let w0 = number % across;
    let h = axis(h0, p.kh, p.pad_h);
    let w = axis(w0, p.kw, p.pad_w);
    return Residue(
        h0, w0,
        (p.dst_h - h0 + p.step - 1u) / p.step, (p.dst_w - w0 + p.step - 1u) / p.step,
        h.taps, w.taps, h.before_src, w.before_src,
        h.lesser * p.kw + h.taps * w.lesser,
    );
}

// A pixel of a residue: its sample, the source pixel of its first tap (maybe outside), and its number in dst.
struct Pixel { n: u32, h: i32, w: i32, dst: u32 }

fn pixel(r: Residue, index: u32) -> Pixel {
    let line = index / r.cols;
    let n = line / r.rows;
    let h = line % r.rows;
    let w = index % r.cols;
    return Pixel(
        n, i32(h * p.stride) - r.top, i32(w * p.stride) - r.left,
        (n * p.dst_h + r.h0 + h * p.step) * p.dst_w + r.w0 + w * p.step,
    );
}

// First element of the source pixel of a tap, or -1 outside the image.
fn source(at: Pixel, kh: u32, kw: u32) -> i32 {
    let h = at.h + i32(kh);
    let w = at.w + i32(kw);
    let inside = (u32(h) < p.src_h) & (u32(w) < p.src_w); // what is negative becomes large
    return select(-1, ((i32(at.n * p.src_h) + h) * i32(p.src_w) + w) * i32(p.src_c), inside);
}
