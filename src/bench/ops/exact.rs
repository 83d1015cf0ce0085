//! Single elements of the ops' results by plain loops in f64.

use super::{ADAM, ADAM_NORM, EPS, GROUPS, Op, adam_state};

/// Element `index` of the result, and the magnitude that rounding errors are a fraction of. `x`: the inputs,
/// as `Op::inputs` has them.
pub(super) fn value(op: Op, x: &[Vec<f32>], index: usize) -> (f64, f64) {
    let of = |input: usize, at: usize| f64::from(x[input][at]);
    match op {
        Op::Conv { c, side, k, stride, .. } => {
            let out = side.div_ceil(stride);
            let [n, oh, ow, co] = unravel(index, [out, out, c]);
            let seen = |o: usize, tap: usize| (o * stride + tap).checked_sub(k / 2).filter(|&at| at < side);
            let terms = taps(k).flat_map(|[kh, kw]| {
                let at = seen(oh, kh).zip(seen(ow, kw)).map(|(h, w)| ((n * side + h) * side + w) * c);
                let w = (kh * k + kw) * c * c + co;
                at.into_iter().flat_map(move |at| (0..c).map(move |ci| (at + ci, w + ci * c)))
            });
            sum(terms.map(|(at, w)| of(0, at) * of(1, w)).chain([of(2, co)]))
        }
        Op::ConvTranspose { c, side, .. } => {
            // y[oh] takes x[h] through tap oh + 1 - 2 h.
            let [n, oh, ow, co] = unravel(index, [2 * side, 2 * side, c]);
            let tap = |o: usize, at: usize| (o + 1).checked_sub(2 * at).filter(|&tap| tap < 4);
            let pixels = (0..side * side).map(|i| [i / side, i % side]);
            let terms = pixels.flat_map(|[h, w]| {
                let met = tap(oh, h).zip(tap(ow, w)).map(|(kh, kw)| ((kh * 4 + kw) * c + co) * c);
                let at = ((n * side + h) * side + w) * c;
                met.into_iter().flat_map(move |weight| (0..c).map(move |ci| (at + ci, weight + ci)))
            });
            sum(terms.map(|(at, w)| of(0, at) * of(1, w)).chain([of(2, co)]))
        }
        Op::Norm { c, side, .. } => {
            let [n, _, _, channel] = unravel(index, [side, side, c]);
            let (width, pixels) = (c / GROUPS, side * side);
            let first = n * pixels * c + channel / width * width;
            let mean_of = |f: &dyn Fn(f64) -> f64| {
                let group = (0..pixels * width).map(|i| of(0, first + i / width * c + i % width));
                group.map(f).sum::<f64>() / (pixels * width) as f64
            };
            let mean = mean_of(&|x| x);
            let var = mean_of(&|x| (x - mean).powi(2));
            let u = (of(0, index) - mean) / (var + f64::from(EPS)).sqrt() * of(1, channel) + of(2, channel);
            (u / (1.0 + (-u).exp()), 1.0 + u.abs())
        }
        Op::Attention { tokens, d, .. } => {
            let (row, channel) = (index / d, index % d);
            let n = row / tokens;
            let score = |key: usize| {
                (0..d).map(|i| of(0, row * d + i) * of(1, (n * tokens + key) * d + i)).sum::<f64>()
                    / (d as f64).sqrt()
            };
            let scores: Vec<f64> = (0..tokens).map(score).collect();
            let highest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
            let total: f64 = scores.iter().map(|s| (s - highest).exp()).sum();
            let values = (0..tokens).map(|key| of(2, (n * tokens + key) * d + channel));
            let (value, magnitude) =
                sum(scores.iter().zip(values).map(|(s, v)| (s - highest).exp() / total * v));
            // Scores are sums themselves: their errors move the weights.
            (value, magnitude * 4.0)
        }
        Op::Linear { cin, cout, .. } => {
            let (row, co) = (index / cout, index % cout);
            let terms = (0..cin).map(|ci| of(0, row * cin + ci) * of(1, ci * cout + co));
            sum(terms.chain([of(2, co)]))
        }
        Op::Product { side } => {
            let (row, column) = (index / side, index % side);
            sum((0..side).map(|k| of(0, row * side + k) * of(1, k * side + column)))
        }
        Op::Adam { .. } => {
            let state = adam_state();
            let scale = ADAM.clip.map_or(1.0, |clip| (clip / (f64::from(ADAM_NORM) + 1e-6)).min(1.0));
            let g = of(1, index) * scale;
            let m = ADAM.beta1 * of(2, index) + (1.0 - ADAM.beta1) * g;
            let v = ADAM.beta2 * of(3, index) + (1.0 - ADAM.beta2) * g * g;
            let [m, v] = [m * f64::from(state.correction1), v * f64::from(state.correction2)];
            let value = of(0, index) - f64::from(state.lr) * m / (v.sqrt() + ADAM.eps);
            (value, 1.0 + value.abs())
        }
    }
}

/// The position of an element: the first dimension is what is left.
fn unravel(index: usize, [a, b, c]: [usize; 3]) -> [usize; 4] {
    [index / (a * b * c), index / (b * c) % a, index / c % b, index % c]
}

fn taps(k: usize) -> impl Iterator<Item = [usize; 2]> {
    (0..k * k).map(move |i| [i / k, i % k])
}

/// A sum, and the sum of its terms' magnitudes.
fn sum(terms: impl Iterator<Item = f64>) -> (f64, f64) {
    terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
}
