//! The list of single ops that are timed: shapes, recording, and one element of the result by f64 loops.

use super::Direction;
use crate::ops::activation::Activation;
use crate::ops::adam::{AdamOptions, AdamTensors, adam};
use crate::ops::attention::attention;
use crate::ops::conv_transpose2d::conv_transpose2d;
use crate::ops::conv2d::{Epilogue, Padding, conv2d};
use crate::ops::group_norm::group_norm;
use crate::ops::matmul::{Transpose, linear, matmul};
use crate::state::State;
use crate::tape::Tensor;

/// Groups of every group norm in the list, and the term under its root.
const GROUPS: usize = 32;
const EPS: f32 = 1e-5;

/// An op at a shape.
pub struct Op {
    /// As other programs name it: op, sizes.
    pub name: &'static str,
    /// The directions that are timed.
    pub directions: &'static [Direction],
    /// Shapes of inputs and weights; the stores are `x0`, `x1`, ...
    pub(super) inputs: Vec<Vec<usize>>,
    /// Records the forward pass on the inputs.
    pub(super) record: Box<dyn Fn(&[Tensor]) -> Tensor>,
    /// Element `index` of the result for these values of the inputs, and the magnitude that its rounding
    /// error is a fraction of.
    pub(super) exact: Box<dyn Fn(&[Vec<f32>], usize) -> (f64, f64)>,
    /// The input whose values are squared: second moments are not negative.
    pub(super) squared: Option<usize>,
    /// Further stores that `record` uses, as words.
    pub(super) stores: Vec<(&'static str, Vec<u32>)>,
    /// Bytes that must move forward and backward, where fewer than the launches count.
    pub(super) bytes: Option<[u64; 2]>,
}

impl Op {
    fn new(
        name: &'static str,
        inputs: Vec<Vec<usize>>,
        record: impl Fn(&[Tensor]) -> Tensor + 'static,
        exact: impl Fn(&[Vec<f32>], usize) -> (f64, f64) + 'static,
    ) -> Op {
        Op {
            name,
            directions: &[Direction::Forward, Direction::Backward],
            inputs,
            record: Box::new(record),
            exact: Box::new(exact),
            squared: None,
            stores: Vec::new(),
            bytes: None,
        }
    }
}

/// All ops that are timed.
pub(super) fn all() -> Vec<Op> {
    vec![
        conv("conv3x3_n16_c64_h32", [16, 64, 32], 3, 1),
        conv("conv3x3_n4_c128_h32", [4, 128, 32], 3, 1),
        conv("conv3x3_n4_c256_h16", [4, 256, 16], 3, 1),
        conv("conv3x3_n64_c256_h8", [64, 256, 8], 3, 1),
        conv("conv3x3s2_n16_c64_h32", [16, 64, 32], 3, 2),
        conv("conv3x3s2_n4_c128_h32", [4, 128, 32], 3, 2),
        conv_transpose("convT4x4s2_n8_c128_h16", [8, 128, 16]),
        conv("conv1x1_n16_c64_h32", [16, 64, 32], 1, 1),
        conv("conv1x1_n4_c256_h16", [4, 256, 16], 1, 1),
        norm("gn32_silu_n16_c64_h32", [16, 64, 32]),
        norm("gn32_silu_n4_c128_h64", [4, 128, 64]),
        attend("attn_b4_n256_d256", [4, 256, 256]),
        attend("attn_b64_n64_d256", [64, 64, 256]),
        product("linear_128x512x512", [128, 512, 512], true),
        product("matmul_512", [512; 3], false),
        product("matmul_1024", [1024; 3], false),
        product("matmul_2048", [2048; 3], false),
        update("adam_15M", 15_000_000),
    ]
}

/// A `k` by `k` convolution with bias, `[N, side, side, C]` to as many channels.
fn conv(name: &'static str, [n, c, side]: [usize; 3], k: usize, stride: usize) -> Op {
    let record =
        move |x: &[Tensor]| conv2d(&x[0], &x[1], stride, Padding::same(k / 2), Epilogue::bias(&x[2]));
    let out = side.div_ceil(stride);
    // Row or column of x under a tap; `None`: padding.
    let under = move |o: usize, tap: usize| (o * stride + tap).checked_sub(k / 2).filter(|&at| at < side);
    Op::new(name, vec![vec![n, side, side, c], vec![k, k, c, c], vec![c]], record, move |x, index| {
        let [n, oh, ow, co] = unravel(index, [out, out, c]);
        let taps = (0..k * k).filter_map(|tap| Some((under(oh, tap / k)?, under(ow, tap % k)?, tap)));
        let terms = taps.flat_map(|(h, w, tap)| {
            let at = ((n * side + h) * side + w) * c;
            (0..c).map(move |ci| times(x[0][at + ci], x[1][(tap * c + ci) * c + co]))
        });
        sum(terms.chain([f64::from(x[2][co])]))
    })
}

/// A transposed 4x4 convolution with bias that doubles the side.
fn conv_transpose(name: &'static str, [n, c, side]: [usize; 3]) -> Op {
    let record = |x: &[Tensor]| conv_transpose2d(&x[0], &x[1], 2, Padding::same(1), 0, Epilogue::bias(&x[2]));
    // y[o] takes x[at] through tap o + 1 - 2 at.
    let tap = |o: usize, at: usize| (o + 1).checked_sub(2 * at).filter(|&tap| tap < 4);
    Op::new(name, vec![vec![n, side, side, c], vec![4, 4, c, c], vec![c]], record, move |x, index| {
        let [n, oh, ow, co] = unravel(index, [2 * side, 2 * side, c]);
        let pixels = (0..side * side).map(|i| (i / side, i % side));
        let taps = pixels.filter_map(|(h, w)| Some((h, w, tap(oh, h)? * 4 + tap(ow, w)?)));
        let terms = taps.flat_map(|(h, w, tap)| {
            let at = ((n * side + h) * side + w) * c;
            (0..c).map(move |ci| times(x[0][at + ci], x[1][(tap * c + co) * c + ci]))
        });
        sum(terms.chain([f64::from(x[2][co])]))
    })
}

/// Group norm and SiLU. Two tensors move forward, three backward.
fn norm(name: &'static str, [n, c, side]: [usize; 3]) -> Op {
    let record = |x: &[Tensor]| group_norm(&x[0], &x[1], &x[2], GROUPS, EPS, Activation::Silu);
    let tensor = (4 * n * c * side * side) as u64;
    let op = Op::new(name, vec![vec![n, side, side, c], vec![c], vec![c]], record, move |x, index| {
        let [n, _, _, channel] = unravel(index, [side, side, c]);
        let (width, pixels) = (c / GROUPS, side * side);
        let first = n * pixels * c + channel / width * width;
        let mean_of = |f: &dyn Fn(f64) -> f64| {
            let group = (0..pixels * width).map(|i| f64::from(x[0][first + i / width * c + i % width]));
            group.map(f).sum::<f64>() / (pixels * width) as f64
        };
        let mean = mean_of(&|x| x);
        let var = mean_of(&|x| (x - mean).powi(2));
        let xhat = (f64::from(x[0][index]) - mean) / (var + f64::from(EPS)).sqrt();
        let u = xhat * f64::from(x[1][channel]) + f64::from(x[2][channel]);
        (u / (1.0 + (-u).exp()), 1.0 + u.abs())
    });
    Op { bytes: Some([2 * tensor, 3 * tensor]), ..op }
}

/// Attention of one head, `[N, tokens, D]`.
fn attend(name: &'static str, [n, tokens, d]: [usize; 3]) -> Op {
    let record = |x: &[Tensor]| attention(&x[0], &x[1], &x[2], 1);
    Op::new(name, vec![vec![n, tokens, d]; 3], record, move |x, index| {
        let (row, channel) = (index / d, index % d);
        let first = row / tokens * tokens;
        let score = |key: usize| {
            (0..d).map(|i| times(x[0][row * d + i], x[1][(first + key) * d + i])).sum::<f64>()
                / (d as f64).sqrt()
        };
        let scores: Vec<f64> = (0..tokens).map(score).collect();
        let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = scores.iter().map(|s| (s - highest).exp()).sum();
        let value = |key: usize| f64::from(x[2][(first + key) * d + channel]);
        let terms = scores.iter().enumerate().map(|(key, s)| (s - highest).exp() / total * value(key));
        let (value, magnitude) = sum(terms);
        // Scores are sums themselves: their errors move the weights.
        (value, magnitude * 4.0)
    })
}

/// The product of matrices `[rows, depth]` and `[depth, cols]`; with a bias, a linear layer.
fn product(name: &'static str, [rows, depth, cols]: [usize; 3], biased: bool) -> Op {
    let record = |x: &[Tensor]| match x.get(2) {
        Some(bias) => linear(&x[0], &x[1], Some(bias)),
        None => matmul(&x[0], &x[1], Transpose::default(), None),
    };
    let inputs = [vec![rows, depth], vec![depth, cols]].into_iter().chain(biased.then(|| vec![cols]));
    Op::new(name, inputs.collect(), record, move |x, index| {
        let (row, col) = (index / cols, index % cols);
        let terms = (0..depth).map(|k| times(x[0][row * depth + k], x[1][k * cols + col]));
        sum(terms.chain(x.get(2).map(|bias| f64::from(bias[col]))))
    })
}

/// Adam and EMA over `n` flat parameters, as the third step.
fn update(name: &'static str, n: usize) -> Op {
    const OPTIONS: AdamOptions = AdamOptions {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.0,
        clip: Some(1.0),
        zero_grads: false,
    };
    const GRADIENT_NORM: f32 = 4.0;
    let correction = |beta: f64| (1.0 / (1.0 - beta.powi(3))) as f32;
    let [correction1, correction2] = [OPTIONS.beta1, OPTIONS.beta2].map(correction);
    let state = State { lr: 1e-3, correction1, correction2, ema_decay: 0.75, ..State::default() };
    let record = |x: &[Tensor]| {
        let tape = x[0].tape();
        let tensors = AdamTensors { params: &x[0], grads: &x[1], m: &x[2], v: &x[3], ema: &x[4] };
        adam(OPTIONS, tensors, &tape.stored("norm", 0, [1]), &tape.stored_u32("state", [State::WORDS]));
        x[0].clone()
    };
    let op = Op::new(name, vec![vec![n]; 5], record, move |x, index| {
        let of = |input: usize| f64::from(x[input][index]);
        let g = of(1) / (f64::from(GRADIENT_NORM) + 1e-6); // clipped to 1
        let m = OPTIONS.beta1 * of(2) + (1.0 - OPTIONS.beta1) * g;
        let v = OPTIONS.beta2 * of(3) + (1.0 - OPTIONS.beta2) * g * g;
        let [m, v] = [m * f64::from(correction1), v * f64::from(correction2)];
        let value = of(0) - f64::from(state.lr) * m / (v.sqrt() + OPTIONS.eps);
        (value, 1.0 + value.abs())
    });
    Op {
        directions: &[Direction::Step],
        squared: Some(3),
        stores: vec![("norm", vec![GRADIENT_NORM.to_bits()]), ("state", state.words().to_vec())],
        ..op
    }
}

/// Position of an element; the first dimension is what the other three leave.
fn unravel(index: usize, [a, b, c]: [usize; 3]) -> [usize; 4] {
    [index / (a * b * c), index / (b * c) % a, index / c % b, index % c]
}

fn times(a: f32, b: f32) -> f64 {
    f64::from(a) * f64::from(b)
}

/// A sum, and the sum of its terms' magnitudes.
fn sum(terms: impl Iterator<Item = f64>) -> (f64, f64) {
    terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
}
