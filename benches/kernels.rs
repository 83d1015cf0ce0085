//! The main kernels at shapes of the `mnist` recipe's U-Net at batch 16. Each is checked against f64 loops
//! before it is timed.
//!
//! `cargo bench --bench kernels -- conv2d` times what has `conv2d` in its name; `DENOIR_BENCH_DEVICE=gpu`
//! adds a GPU. Where the report says `Gelem/s`, read GFLOP/s: the elements are floating-point operations,
//! two for a multiply and add. Where it says `GB/s`, the bytes are those that must move even if each tensor
//! is read or written only once a pass.

#[path = "common/check.rs"]
mod check;
mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use denoir::bench::numbers;
use denoir::device::Device;
use denoir::ops::activation::Activation;
use denoir::ops::adam::{AdamOptions, AdamTensors, adam};
use denoir::ops::attention::attention;
use denoir::ops::conv_transpose2d::conv_transpose2d;
use denoir::ops::conv2d::{Epilogue, Padding, conv2d};
use denoir::ops::group_norm::group_norm;
use denoir::ops::matmul::{Transpose, linear, matmul};
use denoir::program::Program;
use denoir::state::State;
use denoir::tape::Tape;

use check::{check, compiled, sum};
use common::{devices, time};

/// Times on every device what `prepare` compiles and has checked. Nothing is prepared that the command line
/// leaves out.
fn bench(c: &mut Criterion, op: &str, shape: &str, work: Throughput, prepare: impl Fn(&Device) -> Program) {
    let mut group = c.benchmark_group(op);
    group.throughput(work);
    for (name, device) in devices() {
        let mut ready = None;
        group.bench_function(BenchmarkId::new(shape, name), |b| {
            let program = ready.get_or_insert_with(|| prepare(device));
            b.iter_custom(|runs| time(device, runs, || program.run().expect("the program runs")));
        });
    }
    group.finish();
}

/// The position along each dimension of element `index`.
fn unravel<const R: usize>(mut index: usize, dims: [usize; R]) -> [usize; R] {
    let mut at = [0; R];
    for (at, size) in at.iter_mut().zip(dims).rev() {
        (*at, index) = (index % size, index / size);
    }
    at
}

fn product(a: f32, b: f32) -> f64 {
    f64::from(a) * f64::from(b)
}

/// A 3x3 convolution with a row of zeros on each side.
#[derive(Clone, Copy)]
struct Conv {
    n: usize,
    side: usize,
    cin: usize,
    cout: usize,
    stride: usize,
}

impl Conv {
    /// Side of the result.
    fn out(&self) -> usize {
        self.side.div_ceil(self.stride)
    }

    fn x(&self, [n, h, w, c]: [usize; 4]) -> usize {
        ((n * self.side + h) * self.side + w) * self.cin + c
    }

    fn w(&self, [kh, kw, ci, co]: [usize; 4]) -> usize {
        ((kh * 3 + kw) * self.cin + ci) * self.cout + co
    }

    fn y(&self, [n, h, w, c]: [usize; 4]) -> usize {
        ((n * self.out() + h) * self.out() + w) * self.cout + c
    }

    /// The row that tap `k` sees from row `o` of the result; `None`: padding. Columns likewise.
    fn seen(&self, o: usize, k: usize) -> Option<usize> {
        (o * self.stride + k).checked_sub(1).filter(|&at| at < self.side)
    }

    /// All pairs of a pixel of the result and a tap, `[oh, ow, kh, kw]`, that meet inside the image, at
    /// `[h, w]`.
    fn meetings(&self) -> impl Iterator<Item = ([usize; 4], [usize; 2])> {
        let (conv, pairs) = (*self, self.out() * self.out() * 9);
        (0..pairs).filter_map(move |i| {
            let at = unravel(i, [conv.out(), conv.out(), 3, 3]);
            Some((at, [conv.seen(at[0], at[2])?, conv.seen(at[1], at[3])?]))
        })
    }
}

fn conv(c: &mut Criterion) {
    for conv in [
        Conv { n: 16, side: 28, cin: 32, cout: 32, stride: 1 },
        Conv { n: 16, side: 14, cin: 64, cout: 64, stride: 1 },
        Conv { n: 16, side: 28, cin: 32, cout: 32, stride: 2 },
    ] {
        let Conv { n, side, cin, cout, stride } = conv;
        let (x_dims, w_dims) = ([n, side, side, cin], [3, 3, cin, cout]);
        let y_dims = [n, conv.out(), conv.out(), cout];
        let [x, w, dy] = [x_dims, w_dims, y_dims].map(|dims| numbers(dims[1] as u32, dims.iter().product()));
        let bias = numbers(0, cout);
        let inputs = [("x", &*x), ("w", &*w), ("bias", &*bias), ("dy", &*dy)];
        let shape = format!("[{n},{side},{side},{cin}] 3x3x{cout} stride {stride}");
        let work = || Throughput::Elements((2 * dy.len() * 9 * cin) as u64);
        let record = || {
            let tape = Tape::new();
            let (x, w) = (tape.variable("x", 0, x_dims), tape.variable("w", 0, w_dims));
            let epilogue = Epilogue { bias: Some(&tape.stored("bias", 0, [cout])), ..Epilogue::default() };
            let y = conv2d(&x, &w, stride, Padding::same(1), epilogue);
            let gradients = tape.backward_from(&y, &tape.stored("dy", 0, y_dims));
            let [dx, dw] = [&x, &w].map(|t| gradients.get(t).expect("a gradient").clone());
            (tape, y, dx, dw)
        };
        bench(c, "conv2d forward", &shape, work(), |device| {
            let (tape, y, ..) = record();
            let program = compiled(device, &tape, &[&y], &inputs);
            check(&program, "conv2d forward", &y, |index| {
                let [n, oh, ow, co] = unravel(index, y_dims);
                let met = conv.meetings().filter(|([h, w, ..], _)| [*h, *w] == [oh, ow]);
                let terms = met.flat_map(|([_, _, kh, kw], [h, width])| {
                    (0..cin).map(move |ci| (conv.x([n, h, width, ci]), conv.w([kh, kw, ci, co])))
                });
                let terms = terms.map(|(at_x, at_w)| product(x[at_x], w[at_w]));
                sum(terms.chain([f64::from(bias[co])]))
            });
            program
        });
        bench(c, "conv2d backward_x", &shape, work(), |device| {
            let (tape, _, dx, _) = record();
            let program = compiled(device, &tape, &[&dx], &inputs);
            check(&program, "conv2d backward_x", &dx, |index| {
                let [n, h, width, ci] = unravel(index, x_dims);
                let met = conv.meetings().filter(|(_, at)| *at == [h, width]);
                let terms = met.flat_map(|([oh, ow, kh, kw], _)| {
                    (0..cout).map(move |co| (conv.y([n, oh, ow, co]), conv.w([kh, kw, ci, co])))
                });
                sum(terms.map(|(at_y, at_w)| product(dy[at_y], w[at_w])))
            });
            program
        });
        bench(c, "conv2d backward_w", &shape, work(), |device| {
            let (tape, _, _, dw) = record();
            let program = compiled(device, &tape, &[&dw], &inputs);
            check(&program, "conv2d backward_w", &dw, |index| {
                let [kh, kw, ci, co] = unravel(index, w_dims);
                let met = conv.meetings().filter(|([_, _, a, b], _)| [*a, *b] == [kh, kw]);
                let terms = met.flat_map(|([oh, ow, ..], [h, width])| {
                    (0..n).map(move |n| (conv.y([n, oh, ow, co]), conv.x([n, h, width, ci])))
                });
                sum(terms.map(|(at_y, at_x)| product(dy[at_y], x[at_x])))
            });
            program
        });
    }
}

/// Doubling the side, as decoders do. GFLOP/s count the products that reach a pixel, and none with zeros
/// between pixels.
fn conv_transpose(c: &mut Criterion) {
    let (n, side, channels, k, out) = (8, 8, 256, 4, 16);
    let (x_dims, w_dims) = ([n, side, side, channels], [k, k, channels, channels]);
    let y_dims = [n, out, out, channels];
    let [x, w, dy] = [x_dims, w_dims, y_dims].map(|dims| numbers(dims[1] as u32, dims.iter().product()));
    let bias = numbers(0, channels);
    let inputs = [("x", &*x), ("w", &*w), ("bias", &*bias), ("dy", &*dy)];
    let shape = format!("[{n},{side},{side},{channels}] {k}x{k}x{channels} stride 2");
    let record = || {
        let tape = Tape::new();
        let (x, w) = (tape.variable("x", 0, x_dims), tape.variable("w", 0, w_dims));
        let y = conv_transpose2d(
            &x,
            &w,
            2,
            Padding::same(1),
            0,
            Epilogue::bias(&tape.stored("bias", 0, [channels])),
        );
        let gradients = tape.backward_from(&y, &tape.stored("dy", 0, y_dims));
        let [dx, dw] = [&x, &w].map(|t| gradients.get(t).expect("a gradient").clone());
        (tape, y, dx, dw)
    };
    // All pairs of a pixel of x and a tap that meet inside the result: the pixel, the tap, and the pixel of
    // the result that they go to.
    let rows = || {
        (0..side * k).filter_map(move |i| {
            let (at, tap) = (i / k, i % k);
            Some([at, tap, (2 * at + tap).checked_sub(1).filter(|to| *to < out)?])
        })
    };
    let pairs = rows().flat_map(|row| rows().map(move |col| [0, 1, 2].map(|i| [row[i], col[i]])));
    let meetings: Vec<[[usize; 2]; 3]> = pairs.collect();
    let work = || Throughput::Elements((2 * n * meetings.len() * channels * channels) as u64);
    let x_at = |[n, h, w, ci]: [usize; 4]| f64::from(x[((n * side + h) * side + w) * channels + ci]);
    let dy_at = |[n, h, w, co]: [usize; 4]| f64::from(dy[((n * out + h) * out + w) * channels + co]);
    let w_at = |[kh, kw, co, ci]: [usize; 4]| f64::from(w[((kh * k + kw) * channels + co) * channels + ci]);
    bench(c, "conv_transpose2d forward", &shape, work(), |device| {
        let (tape, y, ..) = record();
        let program = compiled(device, &tape, &[&y], &inputs);
        check(&program, "conv_transpose2d forward", &y, |index| {
            let [n, oh, ow, co] = unravel(index, y_dims);
            let met = meetings.iter().filter(|[_, _, to]| *to == [oh, ow]);
            let terms = met.flat_map(|&[[h, w], [kh, kw], _]| {
                (0..channels).map(move |ci| x_at([n, h, w, ci]) * w_at([kh, kw, co, ci]))
            });
            sum(terms.chain([f64::from(bias[co])]))
        });
        program
    });
    bench(c, "conv_transpose2d backward_x", &shape, work(), |device| {
        let (tape, _, dx, _) = record();
        let program = compiled(device, &tape, &[&dx], &inputs);
        check(&program, "conv_transpose2d backward_x", &dx, |index| {
            let [n, h, w, ci] = unravel(index, x_dims);
            let met = meetings.iter().filter(|[at, ..]| *at == [h, w]);
            sum(met.flat_map(|&[_, [kh, kw], [oh, ow]]| {
                (0..channels).map(move |co| dy_at([n, oh, ow, co]) * w_at([kh, kw, co, ci]))
            }))
        });
        program
    });
    bench(c, "conv_transpose2d backward_w", &shape, work(), |device| {
        let (tape, _, _, dw) = record();
        let program = compiled(device, &tape, &[&dw], &inputs);
        check(&program, "conv_transpose2d backward_w", &dw, |index| {
            let [kh, kw, co, ci] = unravel(index, w_dims);
            let met = meetings.iter().filter(|[_, tap, _]| *tap == [kh, kw]);
            sum(met.flat_map(|&[[h, w], _, [oh, ow]]| {
                (0..n).map(move |n| x_at([n, h, w, ci]) * dy_at([n, oh, ow, co]))
            }))
        });
        program
    });
}

/// `silu(u)` and its slope.
fn silu(u: f64) -> [f64; 2] {
    let s = 1.0 / (1.0 + (-u).exp());
    [u * s, s * (1.0 + u * (1.0 - s))]
}

/// The gradient needs the forward pass's statistics, so it is timed together with the forward pass.
fn norm(c: &mut Criterion) {
    const EPS: f64 = 1e-5;
    for [n, side, channels, groups] in [[16, 28, 32, 32], [16, 14, 64, 32]] {
        let dims = [n, side, side, channels];
        let elements: usize = dims.iter().product();
        let [x, dy] = [1, 2].map(|salt| numbers(salt, elements));
        let [gamma, beta] = [3, 4].map(|salt| numbers(salt, channels));
        let inputs = [("x", &*x), ("gamma", &*gamma), ("beta", &*beta), ("dy", &*dy)];
        let shape = format!("[{n},{side},{side},{channels}] {groups} groups");
        let record = || {
            let tape = Tape::new();
            let x = tape.variable("x", 0, dims);
            let [gamma, beta] = ["gamma", "beta"].map(|store| tape.variable(store, 0, [channels]));
            let y = group_norm(&x, &gamma, &beta, groups, EPS as f32, Activation::Silu);
            let gradients = tape.backward_from(&y, &tape.stored("dy", 0, dims));
            let [dx, dgamma, dbeta] =
                [&x, &gamma, &beta].map(|t| gradients.get(t).expect("a gradient").clone());
            (tape, y, [dx, dgamma, dbeta])
        };
        // The elements of a group, with their channels; and its mean and reciprocal deviation.
        let (width, pixels) = (channels / groups, side * side);
        let members = |n: usize, group: usize| {
            (0..pixels * width).map(move |i| {
                let channel = group * width + i % width;
                ((n * pixels + i / width) * channels + channel, channel)
            })
        };
        let statistics = |n: usize, group: usize| {
            let mean_of = |f: &dyn Fn(f64) -> f64| {
                members(n, group).map(|(at, _)| f(f64::from(x[at]))).sum::<f64>() / (pixels * width) as f64
            };
            let mean = mean_of(&|x| x);
            (mean, 1.0 / (mean_of(&|x| (x - mean).powi(2)) + EPS).sqrt())
        };
        // xhat, silu(u) and dy * silu'(u) of an element, with u = gamma * xhat + beta.
        let element = |at: usize, (mean, rstd): (f64, f64)| {
            let channel = at % channels;
            let xhat = (f64::from(x[at]) - mean) * rstd;
            let [y, slope] = silu(f64::from(gamma[channel]) * xhat + f64::from(beta[channel]));
            [xhat, y, f64::from(dy[at]) * slope]
        };
        bench(
            c,
            "group_norm_silu forward",
            &shape,
            Throughput::BytesDecimal(8 * elements as u64),
            |device| {
                let (tape, y, _) = record();
                let program = compiled(device, &tape, &[&y], &inputs);
                check(&program, "group_norm_silu forward", &y, |index| {
                    let [n, _, _, channel] = unravel(index, dims);
                    let y = element(index, statistics(n, channel / width))[1];
                    (y, 1.0 + y.abs())
                });
                program
            },
        );
        let work = Throughput::BytesDecimal(20 * elements as u64);
        bench(c, "group_norm_silu forward and backward", &shape, work, |device| {
            let (tape, _, [dx, dgamma, dbeta]) = record();
            let program = compiled(device, &tape, &[&dx, &dgamma, &dbeta], &inputs);
            check(&program, "group_norm_silu dx", &dx, |index| {
                let [n, _, _, channel] = unravel(index, dims);
                let of_group = statistics(n, channel / width);
                let [mut mean, mut mean_xhat] = [0.0; 2];
                for (at, channel) in members(n, channel / width) {
                    let [xhat, _, du] = element(at, of_group);
                    let dxhat = f64::from(gamma[channel]) * du / (pixels * width) as f64;
                    mean += dxhat;
                    mean_xhat += dxhat * xhat;
                }
                let [xhat, _, du] = element(index, of_group);
                let dxhat = f64::from(gamma[channel]) * du;
                let dx = of_group.1 * (dxhat - mean - xhat * mean_xhat);
                (dx, 1.0 + dx.abs())
            });
            let of_channel = |channel: usize| {
                (0..n).flat_map(move |n| {
                    let of_group = statistics(n, channel / width);
                    (0..pixels).map(move |p| element((n * pixels + p) * channels + channel, of_group))
                })
            };
            check(&program, "group_norm_silu dgamma", &dgamma, |channel| {
                sum(of_channel(channel).map(|[xhat, _, du]| du * xhat))
            });
            check(&program, "group_norm_silu dbeta", &dbeta, |channel| {
                sum(of_channel(channel).map(|[_, _, du]| du))
            });
            program
        });
    }
}

/// One head of one sample, for the reference of attention.
struct Head<'a> {
    /// q, k, v and dy, `[N, T, C]`.
    values: [&'a [f32]; 4],
    tokens: usize,
    channels: usize,
    /// Channels of a head.
    width: usize,
    sample: usize,
    /// First channel.
    first: usize,
}

impl Head<'_> {
    fn row(&self, of: usize, token: usize) -> &[f32] {
        let start = (self.sample * self.tokens + token) * self.channels + self.first;
        &self.values[of][start..start + self.width]
    }

    fn dot(&self, [a, of_a]: [usize; 2], [b, of_b]: [usize; 2]) -> f64 {
        self.row(a, of_a).iter().zip(self.row(b, of_b)).map(|(a, b)| product(*a, *b)).sum()
    }

    fn scale(&self) -> f64 {
        1.0 / (self.width as f64).sqrt()
    }

    /// The weights of a query: softmax of its scores.
    fn weights(&self, query: usize) -> Vec<f64> {
        let exp = |key| (self.scale() * self.dot([Q, query], [K, key])).exp();
        let mut weights: Vec<f64> = (0..self.tokens).map(exp).collect();
        let total: f64 = weights.iter().sum();
        weights.iter_mut().for_each(|w| *w /= total);
        weights
    }

    /// Gradients of a query's scores.
    fn dscores(&self, query: usize) -> Vec<f64> {
        let weights = self.weights(query);
        let dweights: Vec<f64> = (0..self.tokens).map(|key| self.dot([DY, query], [V, key])).collect();
        let mean: f64 = weights.iter().zip(&dweights).map(|(w, dw)| w * dw).sum();
        weights.iter().zip(&dweights).map(|(w, dw)| w * (dw - mean)).collect()
    }
}

/// Numbers of the tensors in [`Head::values`].
const Q: usize = 0;
const K: usize = 1;
const V: usize = 2;
const DY: usize = 3;

/// The gradient needs the forward pass's result and sums, so it is timed together with the forward pass.
fn attend(c: &mut Criterion) {
    let (dims @ [n, tokens, channels], heads) = ([16, 196, 64], 8);
    let elements = n * tokens * channels;
    let values: [Vec<f32>; 4] = std::array::from_fn(|of| numbers(of as u32, elements));
    let inputs: [(&str, &[f32]); 4] = std::array::from_fn(|of| (["q", "k", "v", "dy"][of], &*values[of]));
    let shape = format!("[{n},{tokens},{channels}] {heads} heads");
    // Two products forward; five backward, where the scores are computed again.
    let work = |products: usize| Throughput::Elements((products * 2 * elements * tokens) as u64);
    let record = || {
        let tape = Tape::new();
        let [q, k, v] = ["q", "k", "v"].map(|store| tape.variable(store, 0, dims));
        let y = attention(&q, &k, &v, heads);
        let gradients = tape.backward_from(&y, &tape.stored("dy", 0, dims));
        let of = [&q, &k, &v].map(|t| gradients.get(t).expect("a gradient").clone());
        (tape, y, of)
    };
    // The head, token and channel of an element.
    let find = |index: usize| {
        let [sample, token, channel] = unravel(index, dims);
        let width = channels / heads;
        let values = std::array::from_fn(|of| &*values[of]);
        let first = channel / width * width;
        (Head { values, tokens, channels, width, sample, first }, token, channel - first)
    };
    bench(c, "attention forward", &shape, work(2), |device| {
        let (tape, y, _) = record();
        let program = compiled(device, &tape, &[&y], &inputs);
        check(&program, "attention forward", &y, |index| {
            let (head, query, channel) = find(index);
            let weights = head.weights(query);
            sum(weights.iter().enumerate().map(|(key, w)| w * f64::from(head.row(V, key)[channel])))
        });
        program
    });
    bench(c, "attention forward and backward", &shape, work(7), |device| {
        let (tape, _, [dq, dk, dv]) = record();
        let program = compiled(device, &tape, &[&dq, &dk, &dv], &inputs);
        check(&program, "attention dq", &dq, |index| {
            let (head, query, channel) = find(index);
            let dscores = head.dscores(query);
            let k = |key| f64::from(head.row(K, key)[channel]);
            sum(dscores.iter().enumerate().map(|(key, ds)| head.scale() * ds * k(key)))
        });
        check(&program, "attention dk", &dk, |index| {
            let (head, key, channel) = find(index);
            let q = |query| f64::from(head.row(Q, query)[channel]);
            sum((0..tokens).map(|query| head.scale() * head.dscores(query)[key] * q(query)))
        });
        check(&program, "attention dv", &dv, |index| {
            let (head, key, channel) = find(index);
            let dy = |query| f64::from(head.row(DY, query)[channel]);
            sum((0..tokens).map(|query| head.weights(query)[key] * dy(query)))
        });
        program
    });
}

fn multiply(c: &mut Criterion) {
    // The projections of attention, and a square that says what the device can do.
    for [m, n, k] in [[16 * 196, 64, 64], [512, 512, 512]] {
        let [a, b, bias] = [m * k, k * n, n].map(|len| numbers(len as u32, len));
        let dy = numbers(1, m * n);
        let inputs = [("a", &*a), ("b", &*b), ("bias", &*bias), ("dy", &*dy)];
        let work = || Throughput::Elements((2 * m * n * k) as u64);
        let shape = format!("[{m},{k}] [{k},{n}]");
        bench(c, "linear forward", &shape, work(), |device| {
            let tape = Tape::new();
            let [a_in, b_in] =
                [("a", [m, k]), ("b", [k, n])].map(|(store, dims)| tape.stored(store, 0, dims));
            let y = linear(&a_in, &b_in, Some(&tape.stored("bias", 0, [n])));
            let program = compiled(device, &tape, &[&y], &inputs);
            check(&program, "linear forward", &y, |index| {
                let terms = (0..k).map(|i| product(a[index / n * k + i], b[i * n + index % n]));
                sum(terms.chain([f64::from(bias[index % n])]))
            });
            program
        });
        // What the gradient of the weights is: a^T dy.
        bench(c, "matmul of a transposed", &format!("[{m},{k}] [{m},{n}]"), work(), |device| {
            let tape = Tape::new();
            let [a_in, dy_in] =
                [("a", [m, k]), ("dy", [m, n])].map(|(store, dims)| tape.stored(store, 0, dims));
            let y = matmul(&a_in, &dy_in, Transpose { a: true, b: false }, None);
            let program = compiled(device, &tape, &[&y], &inputs);
            check(&program, "matmul of a transposed", &y, |index| {
                sum((0..m).map(|i| product(a[i * k + index / n], dy[i * n + index % n])))
            });
            program
        });
    }
}

fn optimise(c: &mut Criterion) {
    const N: usize = 2_000_000;
    // The gradient is read; parameters, both moments and the moving average are read and written.
    let work = Throughput::BytesDecimal(9 * 4 * N as u64);
    let options = AdamOptions {
        beta1: 0.9,
        beta2: 0.999,
        eps: 1e-8,
        weight_decay: 0.01,
        clip: Some(1.0),
        zero_grads: false,
    };
    let state =
        State { lr: 1e-3, correction1: 10.0, correction2: 1000.0, ema_decay: 0.5, ..State::default() };
    bench(c, "adam", "2,000,000 parameters", work, |device| {
        let values = ["params", "grads", "m", "ema"].map(|s| (s, numbers(s.len() as u32, N)));
        let v: Vec<f32> = numbers(9, N).iter().map(|v| v * v).collect();
        let tape = Tape::new();
        let names = ["params", "grads", "m", "ema", "v"];
        let [params, grads, m, ema, v_in] = names.map(|store| tape.stored(store, 0, [N]));
        let tensors = AdamTensors { params: &params, grads: &grads, m: &m, v: &v_in, ema: &ema };
        let words = tape.stored_u32("state", [State::WORDS]);
        adam(options, tensors, &tape.stored("norm", 0, [1]), &words);
        let bits: Vec<f32> = state.words().map(f32::from_bits).to_vec();
        let norm = [4.0];
        let mut inputs: Vec<(&str, &[f32])> = values.iter().map(|(s, values)| (*s, &**values)).collect();
        inputs.extend([("v", &*v), ("norm", &norm), ("state", &*bits)]);
        let program = compiled(device, &tape, &[], &inputs);
        // The first step: m, v, parameter, moving average.
        let exact = |i: usize| {
            let [p, g, m, ema] = [0, 1, 2, 3].map(|of| f64::from(values[of].1[i]));
            let g = g * (1.0 / (f64::from(norm[0]) + 1e-6));
            let m = options.beta1 * m + (1.0 - options.beta1) * g;
            let v = options.beta2 * f64::from(v[i]) + (1.0 - options.beta2) * g * g;
            let correct = |value: f64, by: f32| value * f64::from(by);
            let direction =
                correct(m, state.correction1) / (correct(v, state.correction2).sqrt() + options.eps);
            let p = p - f64::from(state.lr) * (direction + options.weight_decay * p);
            [m, v, p, ema - (1.0 - f64::from(state.ema_decay)) * (ema - p)]
        };
        for (number, (name, tensor)) in
            [("m", &m), ("v", &v_in), ("params", &params), ("ema", &ema)].iter().enumerate()
        {
            check(&program, &format!("adam's {name}"), tensor, |i| {
                (exact(i)[number], 1.0 + exact(i)[number].abs())
            });
        }
        program
    });
}

criterion_group!(kernels, conv, conv_transpose, norm, attend, multiply, optimise);
criterion_main!(kernels);
