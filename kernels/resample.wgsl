// resample - nearest upsampling and average pooling by a whole factor f; each is the
// other's adjoint but for a scale.
//
//   spread: large[n, h, w, c] = scale * small[n, h/f, w/f, c]
//   gather: small[n, h, w, c] = scale * sum over i, j < f of large[n, h*f + i, w*f + j, c]
//
//   small [N, H, W, C]    large [N, f*H, f*W, C]
//
// One thread for each element of the result; it may be four channels.
//!include lib/grid.wgsl

const WG: u32 = 256u;
alias T = f32; // knob: or vec4<f32>

// `lines` is N * H, `width` W and `channels` C, in elements, of the small one.
struct Params { lines: u32, width: u32, channels: u32, factor: u32, scale: f32 }

@group(0) @binding(0) var<uniform> p: Params;
@group(0) @binding(1) var<storage, read> small: array<T>;
@group(0) @binding(2) var<storage, read_write> large_out: array<T>;
@group(0) @binding(3) var<storage, read> large: array<T>;
@group(0) @binding(4) var<storage, read_write> small_out: array<T>;

@compute @workgroup_size(WG)
fn spread(thread: Invocation) {
    let i = element(thread, WG);
    let large_width = p.width * p.factor;
    if i < p.lines * p.factor * large_width * p.channels {
        let pixel = i / p.channels;
        let c = i - pixel * p.channels;
        let line = pixel / large_width; // n * f*H + h
        let column = pixel - line * large_width;
        // Since f divides f*H, lines of all samples can be counted through.
        let source = line / p.factor * p.width + column / p.factor;
        large_out[i] = p.scale * small[source * p.channels + c];
    }
}

@compute @workgroup_size(WG)
fn gather(thread: Invocation) {
    let i = element(thread, WG);
    let large_width = p.width * p.factor;
    if i < p.lines * p.width * p.channels {
        let pixel = i / p.channels;
        let c = i - pixel * p.channels;
        let line = pixel / p.width; // n * H + h
        let column = pixel - line * p.width;
        var sum = T(0.0);
        for (var v = 0u; v < p.factor; v++) {
            let start = (line * p.factor + v) * large_width + column * p.factor;
            for (var u = 0u; u < p.factor; u++) {
                sum += large[(start + u) * p.channels + c];
            }
        }
        small_out[i] = p.scale * sum;
    }
}
