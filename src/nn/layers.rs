//! The layers that models of this field are made of.

use super::{ALIGN, Init, Layout, Scope};
use crate::ops::activation::Activation;
use crate::ops::arithmetic::add;
use crate::ops::attention::attention;
use crate::ops::concat::concat;
use crate::ops::conv_transpose2d::conv_transpose2d;
use crate::ops::conv2d::{Epilogue, Padding, conv2d};
use crate::ops::fold_upsample::fold_upsample;
use crate::ops::layer_norm::{Affine, layer_norm as layer_norm_of};
use crate::ops::{group_norm as norm, matmul};
use crate::tape::Tensor;
use crate::tensor::Shape;

/// A convolution's form.
#[derive(Clone, Copy, Debug)]
pub struct Conv {
    /// Channels of the result.
    pub out: usize,
    /// Height and width of the kernel.
    pub kernel: usize,
    /// Pixels from one place of the kernel to the next.
    pub stride: usize,
    /// Zeros around the image.
    pub padding: Padding,
    /// The image is made twice as high and wide first, by repeating each pixel: for a stride of 1.
    pub upsample: bool,
    /// Start from zero weights, as Ho et al. and ADM do for the last convolution of each block.
    pub zero: bool,
}

impl Conv {
    /// 3x3, stride 1, same size.
    pub const fn same(out: usize) -> Self {
        Conv { out, kernel: 3, stride: 1, padding: Padding::same(1), upsample: false, zero: false }
    }

    /// 1x1.
    pub const fn point(out: usize) -> Self {
        Conv { out, kernel: 1, stride: 1, padding: Padding::same(0), upsample: false, zero: false }
    }

    /// 3x3, of an image that is upsampled first.
    pub const fn upsampled(out: usize) -> Self {
        Conv { upsample: true, ..Conv::same(out) }
    }

    /// From zero weights if `zero`.
    #[must_use]
    pub const fn zero_if(self, zero: bool) -> Self {
        Conv { zero, ..self }
    }
}

/// The result of [`conv2d`] with a stride of 1 on `x` with each pixel repeated twice in both directions,
/// but for the rounding of sums: a transposed convolution with summed weights, which needs 4 multiplications
/// instead of 9 and no large image.
///
/// `x` is `[N, H, W, Cin]`, `w` is `[KH, KW, Cin, Cout]`, the result `[N, OH, OW, Cout]` with
/// `OH = 2 * H + top + bottom - KH + 1`.
///
/// # Panics
/// When the shapes do not fit together, or rows or columns of the result see nothing but padding.
#[track_caller]
pub fn conv2d_upsampled(x: &Tensor, w: &Tensor, padding: Padding, epilogue: Epilogue) -> Tensor {
    let [n, h, width, cin] = x.shape().of_rank("conv2d_upsampled, image");
    let [kh, kw, w_cin, cout] = w.shape().of_rank("conv2d_upsampled, weights");
    let Padding { top, bottom, left, right } = padding;
    assert!(
        cin == w_cin
            && n * h * width * cin * kh * kw * cout > 0
            && (2 * h + top + bottom >= kh && 2 * width + left + right >= kw)
            && (top.max(bottom) < kh && left.max(right) < kw),
        "conv2d_upsampled: image {} does not fit weights {} with {padding:?}",
        x.shape(),
        w.shape()
    );
    let [top, bottom, left, right] =
        [(kh, top), (kh, bottom), (kw, left), (kw, right)].map(|(k, pad)| k - 1 - pad);
    let padding = Padding { top, bottom, left, right };
    conv_transpose2d(x, &fold_upsample(w), 2, padding, 0, epilogue)
}

/// Channels from which on an input is worth a product of its own.
const NARROW: usize = 16;

/// `x [N, H, W, Cin]` through a convolution with bias, plus a per-sample `shift [N, out]` and a `residual`
/// of the result's shape.
///
/// # Panics
/// When shapes do not fit together, or an image is to be upsampled for a stride other than 1.
#[track_caller]
pub fn conv(s: &Scope, x: &Tensor, form: Conv, shift: Option<&Tensor>, residual: Option<&Tensor>) -> Tensor {
    assert!(!form.upsample || form.stride == 1, "conv: {} upsampled, and {form:?}", x.shape());
    let (k, cin) = (form.kernel, x.shape().last());
    let fan_in = k * k * cin;
    let init = if form.zero { Init::Zeros } else { Init::FanIn(fan_in) };
    let w = s.param("weight", [k, k, cin, form.out], Layout::Conv, init);
    let bias = s.param("bias", [form.out], Layout::Plain, init);
    let epilogue = Epilogue { bias: Some(&bias), shift, residual };
    s.label(|| {
        if form.upsample {
            conv2d_upsampled(x, &w, form.padding, epilogue)
        } else {
            conv2d(x, &w, form.stride, form.padding, epilogue)
        }
    })
}

/// `[N, H, W, C1]`, and maybe `[N, H, W, C2]` beside it, through a 1x1 convolution to `[N, H, W, out]`: of
/// each input a product with its rows of the weights, so that they are never concatenated.
#[track_caller]
pub fn point(s: &Scope, inputs: &[&Tensor], out: usize, bias: bool) -> Tensor {
    let cin: usize = inputs.iter().map(|x| x.shape().last()).sum();
    let init = Init::FanIn(cin);
    // Rows of small models may begin between the places that a GPU can bind; and a copy of few channels costs
    // less than a product more, which rounds once more too.
    let apart = |c: usize| c >= NARROW && (c * out).is_multiple_of(ALIGN);
    let apart = inputs.iter().all(|x| apart(x.shape().last()));
    let inputs = match apart {
        true => inputs.iter().map(|&x| x.clone()).collect(),
        false => vec![side_by_side(s, inputs)],
    };
    let shapes: Vec<Shape> = inputs.iter().map(|x| [1, 1, x.shape().last(), out].into()).collect();
    let weights = s.param_slices("weight", [1, 1, cin, out], &shapes, Layout::Conv, init);
    let bias = bias.then(|| s.param("bias", [out], Layout::Plain, init));
    s.label(|| {
        let pad = Padding::same(0);
        let first = Epilogue { bias: bias.as_ref(), ..Epilogue::default() };
        let mut sum = conv2d(&inputs[0], &weights[0], 1, pad, first);
        for (x, w) in inputs.iter().zip(&weights).skip(1) {
            sum = conv2d(x, w, 1, pad, Epilogue { residual: Some(&sum), ..Epilogue::default() });
        }
        sum
    })
}

/// Concatenates tensors in their last dimension, for layers that read one tensor.
#[track_caller]
pub fn side_by_side(s: &Scope, inputs: &[&Tensor]) -> Tensor {
    match inputs {
        [x] => (*x).clone(),
        _ => s.label(|| concat(inputs)),
    }
}

/// `x [N, H, W, Cin]` through a transposed convolution with bias, which enlarges it about `stride` times,
/// to `[N, OH, OW, out]` with `OH = (H - 1) * stride - top - bottom + kernel`. Kernel 4, stride 2 and
/// padding 1 double the height and the width.
#[track_caller]
pub fn conv_transpose(
    s: &Scope,
    x: &Tensor,
    out: usize,
    kernel: usize,
    stride: usize,
    padding: Padding,
) -> Tensor {
    // PyTorch counts the channels of the result here.
    let init = Init::FanIn(out * kernel * kernel);
    let w = s.param("weight", [kernel, kernel, out, x.shape().last()], Layout::Conv, init);
    let bias = s.param("bias", [out], Layout::Plain, init);
    s.label(|| conv_transpose2d(x, &w, stride, padding, 0, Epilogue::bias(&bias)))
}

/// `x [.., Cin]` to `[.., out]`, with bias.
#[track_caller]
pub fn linear(s: &Scope, x: &Tensor, out: usize) -> Tensor {
    linear_zero_if(false, s, x, out)
}

/// As [`linear`]; from zero weights if `zero`.
#[track_caller]
pub fn linear_zero_if(zero: bool, s: &Scope, x: &Tensor, out: usize) -> Tensor {
    let init = if zero { Init::Zeros } else { Init::FanIn(x.shape().last()) };
    linear_from([init, init], s, x, out)
}

/// As [`linear`], whose weights and bias start from these.
#[track_caller]
pub fn linear_from([weight, bias]: [Init; 2], s: &Scope, x: &Tensor, out: usize) -> Tensor {
    let w = s.param("weight", [x.shape().last(), out], Layout::Linear, weight);
    let bias = s.param("bias", [out], Layout::Plain, bias);
    s.adapted(x, s.label(|| matmul::linear(x, &w, Some(&bias))))
}

/// `x [.., Cin]` to `[.., out]`, without bias.
#[track_caller]
pub fn linear_without_bias(s: &Scope, x: &Tensor, out: usize) -> Tensor {
    let cin = x.shape().last();
    let w = s.param("weight", [cin, out], Layout::Linear, Init::FanIn(cin));
    s.adapted(x, s.label(|| matmul::linear(x, &w, None)))
}

/// Layer norm over the channels of `x [N, .., C]`, with a scale and a shift for each.
#[track_caller]
pub fn layer_norm(s: &Scope, x: &Tensor, eps: f32) -> Tensor {
    let c = x.shape().last();
    let scale = s.param("weight", [c], Layout::Plain, Init::Ones);
    let shift = s.param("bias", [c], Layout::Plain, Init::Zeros);
    s.label(|| layer_norm_of(x, Affine::Channels { scale: &scale, shift: &shift }, eps))
}

/// Group norm over `x [N, .., C]`, followed by an activation.
#[track_caller]
pub fn group_norm(s: &Scope, x: &Tensor, groups: usize, eps: f32, then: Activation) -> Tensor {
    group_norm_of(s, &[x], groups, eps, then)
}

/// As [`group_norm`], of one tensor or of two side by side.
#[track_caller]
pub fn group_norm_of(s: &Scope, inputs: &[&Tensor], groups: usize, eps: f32, then: Activation) -> Tensor {
    let c: usize = inputs.iter().map(|x| x.shape().last()).sum();
    let gamma = s.param("weight", [c], Layout::Plain, Init::Ones);
    let beta = s.param("bias", [c], Layout::Plain, Init::Zeros);
    s.label(|| norm::group_norm_of(inputs, &gamma, &beta, groups, eps, then))
}

/// Self-attention over the pixels of `x [N, H, W, C]` with a residual connection, as the reference
/// library's `Attention`.
///
/// `groups`: of the norm before it, none without. `heads` heads of `width` channels each.
#[track_caller]
pub fn attention_block(
    s: &Scope,
    x: &Tensor,
    groups: Option<usize>,
    eps: f32,
    [heads, width]: [usize; 2],
    zero: bool,
) -> Tensor {
    let [n, h, w, c] = x.shape().of_rank("attention");
    let normed = match groups {
        Some(groups) => group_norm(&s.sub("group_norm"), x, groups, eps, Activation::Identity),
        None => x.clone(),
    };
    let out = self_attention(s, &normed.reshape([n, h * w, c]), [heads, width], zero);
    s.label(|| add(&out.reshape([n, h, w, c]), x))
}

/// Self-attention of `tokens [N, T, C]`: `heads` heads of `width` channels each, all projections with bias.
#[track_caller]
pub fn self_attention(s: &Scope, tokens: &Tensor, [heads, width]: [usize; 2], zero: bool) -> Tensor {
    let project = |name: &str| linear(&s.sub(name), tokens, heads * width);
    let (q, k, v) = (project("to_q"), project("to_k"), project("to_v"));
    let mixed = s.label(|| attention(&q, &k, &v, heads));
    linear_zero_if(zero, &s.sub("to_out.0"), &mixed, tokens.shape().last())
}

/// Attention of `tokens [N, T, C]` to a `context [N, S, D]`: `heads` heads of `width` channels each, only the
/// last projection with bias.
#[track_caller]
pub fn attention_between(s: &Scope, tokens: &Tensor, context: &Tensor, [heads, width]: [usize; 2]) -> Tensor {
    let project = |name: &str, x: &Tensor| linear_without_bias(&s.sub(name), x, heads * width);
    let (q, k, v) = (project("to_q", tokens), project("to_k", context), project("to_v", context));
    let mixed = s.label(|| attention(&q, &k, &v, heads));
    linear(&s.sub("to_out.0"), &mixed, tokens.shape().last())
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use super::super::{Params, STORE, write_parameters};
    use super::*;
    use crate::check::{devices, random};
    use crate::device::Device;
    use crate::program::{Plan, Program, Sharing};
    use crate::state::State;
    use crate::tape::Tape;

    /// Parts of these widths through `point`, as they are or put side by side first: all launches, the
    /// result, and the gradients of the inputs and of the parameters.
    fn point_of(
        device: &Device,
        widths: [usize; 2],
        out: usize,
        apart: bool,
    ) -> (Vec<&'static str>, [Vec<f32>; 3]) {
        let (tape, params) = (Tape::new(), Rc::new(RefCell::new(Params::default())));
        let scope = Scope::training(&tape, &params, &tape.stored_u32("state", [State::WORDS]));
        let inputs = ["left", "right"].into_iter().zip(widths);
        let inputs: Vec<Tensor> = inputs.map(|(name, c)| tape.variable(name, 0, [2, 3, 5, c])).collect();
        let refs: Vec<&Tensor> = inputs.iter().collect();
        let y = if apart {
            point(&scope, &refs, out, true)
        } else {
            point(&scope, &[&side_by_side(&scope, &refs)], out, true)
        };
        let gradients = tape.backward_from(&y, &tape.stored("dy", 0, y.shape().clone()));
        let launches =
            tape.recorded(|all| all.entries.iter().map(|entry| entry.recorded.launch().name()).collect());
        let of_parts: Vec<&Tensor> = refs.iter().filter_map(|x| gradients.get(x)).collect();
        let of_params = gradients.of_store(STORE);
        let outputs: Vec<&Tensor> =
            of_params.iter().map(|(_, dw)| dw).chain(of_parts.iter().copied()).chain([&y]).collect();
        let plan = Plan::new(&tape, &outputs, device);
        let mut program = Program::compile(&plan, device, &[], Sharing::Guarded).unwrap();
        program.write("left", &random(0, 30 * widths[0])).unwrap();
        program.write("right", &random(1, 30 * widths[1])).unwrap();
        write_parameters(&program, &random(2, params.borrow().elements())).unwrap();
        program.write("dy", &random(3, y.elements())).unwrap();
        program.run().unwrap();
        let read = |tensors: Vec<&Tensor>| tensors.iter().flat_map(|t| program.read(t).unwrap()).collect();
        let of_params = of_params.iter().map(|(_, dw)| dw).collect();
        (launches, [vec![&y], of_parts, of_params].map(read))
    }

    #[test]
    fn a_point_of_two_is_that_of_both_side_by_side() {
        for (_, device) in devices() {
            // Rows that a GPU can bind, and others.
            for (widths, out, alone) in [([16, 24], 16, true), ([8, 24], 16, false), ([17, 19], 7, false)] {
                let (launches, results) = point_of(device, widths, out, true);
                assert_eq!(!launches.contains(&"concat join"), alone, "{launches:?}");
                let (_, wanted) = point_of(device, widths, out, false);
                for (results, wanted) in results.iter().zip(&wanted) {
                    assert_eq!(results.len(), wanted.len());
                    let close = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * b.abs().max(1.0);
                    assert!(
                        results.iter().zip(wanted).all(close),
                        "{widths:?} to {out}: {results:?}, {wanted:?}"
                    );
                }
            }
        }
    }

    #[test]
    fn conv_transpose_has_the_parameters_of_pytorch() {
        let (tape, params) = (Tape::new(), Rc::new(RefCell::new(Params::default())));
        let scope = Scope::new(&tape, &params).sub("up");
        let x = tape.stored("x", 0, [2, 8, 6, 5]);
        let y = conv_transpose(&scope, &x, 3, 4, 2, Padding::same(1));
        assert_eq!(y.shape().dims(), [2, 16, 12, 3]);
        // {n: tuple(p.shape) for n, p in torch.nn.ConvTranspose2d(5, 3, 4, 2, 1).named_parameters()}
        let params = params.borrow();
        let shapes: Vec<_> = params.specs().iter().map(|s| (s.name.as_str(), s.file_shape())).collect();
        assert_eq!(shapes, [("up.weight", vec![5, 3, 4, 4]), ("up.bias", vec![3])]);
        // torch.nn.init._calculate_fan_in_and_fan_out(torch.nn.ConvTranspose2d(5, 3, 4, 2, 1).weight)[0]
        assert!(params.specs().iter().all(|s| s.init == Init::FanIn(48)));
    }
}
