//! Single ops, forward and backward, at shapes that diffusion models have.

mod exact;

use std::time::Duration;

use serde::Serialize;

use super::measure::{Times, numbers};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::launch::Cost;
use crate::ops::activation::Activation;
use crate::ops::adam::{AdamOptions, AdamTensors, adam};
use crate::ops::attention::attention;
use crate::ops::conv_transpose2d::conv_transpose2d;
use crate::ops::conv2d::{Epilogue, Padding, conv2d};
use crate::ops::group_norm::group_norm;
use crate::ops::matmul::{Transpose, linear, matmul};
use crate::program::{Plan, Program, Sharing};
use crate::state::State;
use crate::tape::{Tape, Tensor};

/// Norm groups and the term under the root, everywhere here.
const GROUPS: usize = 32;
const EPS: f32 = 1e-5;
/// How far a result may be from a plain loop in f64, as a fraction of the magnitude of its terms.
const TOLERANCE: f64 = 1e-5;
/// How far the derivative may be from the difference of two forward passes, as a fraction.
const SLOPE_TOLERANCE: f64 = 2e-2;
/// Elements of a result that are held against plain loops.
const PROBES: usize = 8;

/// An op at a shape.
#[derive(Clone, Copy, Debug)]
enum Op {
    /// A square convolution of as many channels as it reads, with bias.
    Conv {
        n: usize,
        c: usize,
        side: usize,
        k: usize,
        stride: usize,
    },
    /// 4x4, which doubles the side, with bias.
    ConvTranspose {
        n: usize,
        c: usize,
        side: usize,
    },
    /// Group norm and SiLU.
    Norm {
        n: usize,
        c: usize,
        side: usize,
    },
    /// One head.
    Attention {
        n: usize,
        tokens: usize,
        d: usize,
    },
    /// With bias.
    Linear {
        rows: usize,
        cin: usize,
        cout: usize,
    },
    Product {
        side: usize,
    },
    /// Adam and EMA over flat parameters.
    Adam {
        n: usize,
    },
}

/// All that are timed, by the names that other programs give them.
const OPS: [(&str, Op); 18] = [
    ("conv3x3_n16_c64_h32", Op::Conv { n: 16, c: 64, side: 32, k: 3, stride: 1 }),
    ("conv3x3_n4_c128_h32", Op::Conv { n: 4, c: 128, side: 32, k: 3, stride: 1 }),
    ("conv3x3_n4_c256_h16", Op::Conv { n: 4, c: 256, side: 16, k: 3, stride: 1 }),
    ("conv3x3_n64_c256_h8", Op::Conv { n: 64, c: 256, side: 8, k: 3, stride: 1 }),
    ("conv3x3s2_n16_c64_h32", Op::Conv { n: 16, c: 64, side: 32, k: 3, stride: 2 }),
    ("conv3x3s2_n4_c128_h32", Op::Conv { n: 4, c: 128, side: 32, k: 3, stride: 2 }),
    ("convT4x4s2_n8_c128_h16", Op::ConvTranspose { n: 8, c: 128, side: 16 }),
    ("conv1x1_n16_c64_h32", Op::Conv { n: 16, c: 64, side: 32, k: 1, stride: 1 }),
    ("conv1x1_n4_c256_h16", Op::Conv { n: 4, c: 256, side: 16, k: 1, stride: 1 }),
    ("gn32_silu_n16_c64_h32", Op::Norm { n: 16, c: 64, side: 32 }),
    ("gn32_silu_n4_c128_h64", Op::Norm { n: 4, c: 128, side: 64 }),
    ("attn_b4_n256_d256", Op::Attention { n: 4, tokens: 256, d: 256 }),
    ("attn_b64_n64_d256", Op::Attention { n: 64, tokens: 64, d: 256 }),
    ("linear_128x512x512", Op::Linear { rows: 128, cin: 512, cout: 512 }),
    ("matmul_512", Op::Product { side: 512 }),
    ("matmul_1024", Op::Product { side: 1024 }),
    ("matmul_2048", Op::Product { side: 2048 }),
    ("adam_15M", Op::Adam { n: 15_000_000 }),
];

/// What is timed of an op.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    Forward,
    /// Gradients of all inputs and weights; the forward pass before it is not timed.
    Backward,
    /// Of an optimiser.
    Step,
}

/// An op's time in one direction.
#[derive(Clone, Debug, Serialize)]
pub struct OpReport {
    pub op: &'static str,
    pub direction: Direction,
    pub median_ms: f64,
    pub min_ms: f64,
    pub max_ms: f64,
    pub quartiles_ms: [f64; 2],
    /// Timed runs.
    pub n: usize,
    /// Of products and convolutions; 0 where there are none.
    pub flops: u64,
    /// That must move even if each tensor is read or written only once: of a norm two tensors forward and
    /// three backward; of Adam and EMA 36 for each parameter.
    pub bytes: u64,
    /// At the median.
    pub gflops: f64,
    pub gb_s: f64,
}

/// Times the ops that have `part` in their names: each is checked against plain loops in f64 and against
/// differences first. `progress` is told the name of each.
///
/// # Errors
/// When none has, a result is wrong, memory is too small, or the device cannot time its kernels.
pub fn time_ops(
    part: &str,
    device: &Device,
    [warmup, steps]: [usize; 2],
    progress: &mut dyn FnMut(&str),
) -> Result<Vec<OpReport>> {
    let wanted: Vec<_> = OPS.iter().filter(|(name, _)| name.contains(part)).collect();
    if wanted.is_empty() {
        let names: Vec<&str> = OPS.iter().map(|(name, _)| *name).collect();
        return Err(Error::usage(format!("no op has {part:?} in its name"))
            .hint(format!("there are {}", names.join(", "))));
    }
    let mut reports = Vec::new();
    for (name, op) in wanted {
        progress(name);
        for direction in op.directions() {
            let mut ready = Ready::new(name, *op, *direction, device)?;
            ready.check()?;
            reports.push(ready.time(warmup, steps)?);
        }
    }
    Ok(reports)
}

impl Op {
    fn directions(self) -> &'static [Direction] {
        match self {
            Op::Adam { .. } => &[Direction::Step],
            _ => &[Direction::Forward, Direction::Backward],
        }
    }

    /// Shapes of its inputs and weights.
    fn inputs(self) -> Vec<Vec<usize>> {
        match self {
            Op::Conv { n, c, side, k, .. } => vec![vec![n, side, side, c], vec![k, k, c, c], vec![c]],
            Op::ConvTranspose { n, c, side } => vec![vec![n, side, side, c], vec![4, 4, c, c], vec![c]],
            Op::Norm { n, c, side } => vec![vec![n, side, side, c], vec![c], vec![c]],
            Op::Attention { n, tokens, d } => vec![vec![n, tokens, d]; 3],
            Op::Linear { rows, cin, cout } => vec![vec![rows, cin], vec![cin, cout], vec![cout]],
            Op::Product { side } => vec![vec![side, side]; 2],
            Op::Adam { n } => vec![vec![n]; 5],
        }
    }

    /// Values of input number `i`.
    fn values(self, i: usize) -> Vec<f32> {
        let count = self.inputs()[i].iter().product();
        let mut values = numbers(10 + i as u32, count);
        match self {
            // Second moments are not negative.
            Op::Adam { .. } if i == 3 => values.iter_mut().for_each(|v| *v *= *v),
            // As after a usual initialisation.
            Op::Conv { .. } | Op::ConvTranspose { .. } | Op::Linear { .. } if i == 1 => {
                values.iter_mut().for_each(|v| *v *= 0.05);
            }
            _ => {}
        }
        values
    }

    fn record(self, x: &[Tensor]) -> Tensor {
        match self {
            Op::Conv { k, stride, .. } => {
                let epilogue = Epilogue { bias: Some(&x[2]), ..Epilogue::default() };
                conv2d(&x[0], &x[1], stride, Padding::same(k / 2), epilogue)
            }
            Op::ConvTranspose { .. } => {
                conv_transpose2d(&x[0], &x[1], 2, Padding::same(1), 0, Epilogue::bias(&x[2]))
            }
            Op::Norm { .. } => group_norm(&x[0], &x[1], &x[2], GROUPS, EPS, Activation::Silu),
            Op::Attention { .. } => attention(&x[0], &x[1], &x[2], 1),
            Op::Linear { .. } => linear(&x[0], &x[1], Some(&x[2])),
            Op::Product { .. } => matmul(&x[0], &x[1], Transpose::default(), None),
            Op::Adam { .. } => {
                let tape = x[0].tape();
                let state = tape.stored_u32("state", [State::WORDS]);
                let tensors = AdamTensors { params: &x[0], grads: &x[1], m: &x[2], v: &x[3], ema: &x[4] };
                adam(ADAM, tensors, &tape.stored("norm", 0, [1]), &state);
                x[0].clone()
            }
        }
    }

    /// The forward pass: its tape, inputs and result.
    fn recording(self) -> (Tape, Vec<Tensor>, Tensor) {
        let tape = Tape::new();
        let input = |(i, shape): (usize, Vec<usize>)| tape.variable(&format!("x{i}"), 0, shape.as_slice());
        let inputs: Vec<Tensor> = self.inputs().into_iter().enumerate().map(input).collect();
        let y = self.record(&inputs);
        (tape, inputs, y)
    }

    /// Bytes that must move, where that is told; else those that the launches count.
    fn bytes(self, direction: Direction, counted: u64) -> u64 {
        match self {
            Op::Norm { n, c, side } => {
                let tensor = (4 * n * c * side * side) as u64;
                tensor * if direction == Direction::Backward { 3 } else { 2 }
            }
            _ => counted,
        }
    }
}

const ADAM: AdamOptions = AdamOptions {
    beta1: 0.9,
    beta2: 0.999,
    eps: 1e-8,
    weight_decay: 0.0,
    clip: Some(1.0),
    zero_grads: false,
};
/// Norm of the gradient that the update is told.
const ADAM_NORM: f32 = 4.0;

/// The state of Adam's third step.
fn adam_state() -> State {
    let of = |beta: f64| (1.0 / (1.0 - beta.powi(3))) as f32;
    State { lr: 1e-3, correction1: of(0.9), correction2: of(0.999), ema_decay: 0.75, ..State::default() }
}

/// An op compiled in one direction.
struct Ready {
    name: &'static str,
    op: Op,
    direction: Direction,
    program: Program,
    y: Tensor,
    gradients: Vec<Tensor>,
    values: Vec<Vec<f32>>,
    dy: Vec<f32>,
    /// Launches of the forward pass, which come first.
    before: usize,
}

impl Ready {
    fn new(name: &'static str, op: Op, direction: Direction, device: &Device) -> Result<Ready> {
        let (tape, inputs, y) = op.recording();
        let (mut gradients, mut before, mut dy) = (Vec::new(), 0, Vec::new());
        if direction == Direction::Backward {
            // Of a recording of its own: a plan forgets what backward needs.
            let (forward, _, y_alone) = op.recording();
            let plan = Plan::new(&forward, &[&y_alone], device);
            before = Program::compile(&plan, device, &[], Sharing::Shared)?.compiled().len();
            let found = tape.backward_from(&y, &tape.stored("dy", 0, y.shape().clone()));
            gradients = inputs.iter().filter_map(|x| found.get(x).cloned()).collect();
            dy = numbers(9, y.elements());
        }
        // Without y the forward pass would be left out where the gradients need none of it.
        let outputs: Vec<&Tensor> = gradients.iter().chain([&y]).collect();
        let plan = Plan::new(&tape, &outputs, device);
        let program = Program::compile(&plan, device, &[], Sharing::Shared)?;
        let values: Vec<Vec<f32>> = (0..inputs.len()).map(|i| op.values(i)).collect();
        let ready = Ready { name, op, direction, program, y, gradients, values, dy, before };
        ready.write_inputs()?;
        Ok(ready)
    }

    fn write_inputs(&self) -> Result<()> {
        for (i, values) in self.values.iter().enumerate() {
            self.program.write(&format!("x{i}"), values)?;
        }
        if self.direction == Direction::Backward {
            self.program.write("dy", &self.dy)?;
        }
        if let Op::Adam { .. } = self.op {
            self.program.write("norm", &[ADAM_NORM])?;
            self.program.write("state", &adam_state().words())?;
        }
        Ok(())
    }

    fn wrong(&self, what: String) -> Error {
        let (name, direction) = (self.name, self.direction);
        Error::new(format!("{name}, {direction:?}, on {}: {what}", self.program.device().describe()))
            .hint("nothing was timed; please report it with the command and `denoir devices`")
    }

    /// The result of one run from the inputs as they are.
    fn result(&mut self) -> Result<Vec<f32>> {
        self.program.run()?;
        self.program.read(&self.y)
    }

    /// Finite, the same bits again, right at some elements; and the gradients are slopes of the result.
    fn check(&mut self) -> Result<()> {
        let y = self.result()?;
        let gradients: Vec<Vec<f32>> =
            self.gradients.iter().map(|g| self.program.read(g)).collect::<Result<_>>()?;
        self.write_inputs()?;
        let again = self.result()?;
        let finite = |values: &[f32]| values.iter().all(|v| v.is_finite());
        if !finite(&y) || !gradients.iter().all(|g| finite(g)) {
            return Err(self.wrong("a result is not finite".to_owned()));
        }
        if y.iter().zip(&again).any(|(a, b)| a.to_bits() != b.to_bits()) {
            return Err(self.wrong("a second run differs from the first".to_owned()));
        }
        for probe in 0..PROBES {
            let index = probe * (y.len() - 1) / (PROBES - 1);
            let (wanted, magnitude) = exact::value(self.op, &self.values, index);
            let err = (f64::from(y[index]) - wanted).abs() / magnitude;
            // Not `err > tolerance`, which a NaN would pass.
            if !matches!(err.partial_cmp(&TOLERANCE), Some(std::cmp::Ordering::Less)) {
                let got = y[index];
                return Err(self.wrong(format!("element {index} is {got}, not {wanted}: off by {err:.1e}")));
            }
        }
        if self.direction == Direction::Backward {
            self.check_slopes(&gradients)?;
        }
        self.write_inputs()
    }

    /// Moves each input along its gradient: the result, weighted with dy, must change by the gradient's
    /// length times that of the move.
    fn check_slopes(&mut self, gradients: &[Vec<f32>]) -> Result<()> {
        for (i, gradient) in gradients.iter().enumerate() {
            let norm = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
            let length = 1e-2 * norm(&self.values[i]);
            let factor = (length / norm(gradient)) as f32;
            let mut weighted = |sign: f32| -> Result<f64> {
                let moved: Vec<f32> =
                    self.values[i].iter().zip(gradient).map(|(x, g)| x + sign * factor * g).collect();
                self.program.write(&format!("x{i}"), &moved)?;
                let y = self.result()?;
                Ok(y.iter().zip(&self.dy).map(|(y, dy)| f64::from(*y) * f64::from(*dy)).sum())
            };
            let change = 0.5 * (weighted(1.0)? - weighted(-1.0)?);
            self.program.write(&format!("x{i}"), &self.values[i])?;
            let err = (change / (length * norm(gradient)) - 1.0).abs();
            if !matches!(err.partial_cmp(&SLOPE_TOLERANCE), Some(std::cmp::Ordering::Less)) {
                let what =
                    format!("the gradient of input {i} is not the slope of the result: off by {err:.1e}");
                return Err(self.wrong(what));
            }
        }
        Ok(())
    }

    fn time(&mut self, warmup: usize, steps: usize) -> Result<OpReport> {
        let (mut spans, mut readings) = (Vec::new(), Vec::new());
        for number in 0..warmup + steps {
            self.program.run_timed(&mut spans)?;
            if number >= warmup {
                readings.push(spans[self.before..].iter().map(|span| span.time).sum::<Duration>());
            }
        }
        let times = Times::new(readings);
        let cost: Cost = self.program.compiled()[self.before..].iter().map(|part| part.cost).sum();
        let bytes = self.op.bytes(self.direction, cost.bytes);
        let median = times.median();
        Ok(OpReport {
            op: self.name,
            direction: self.direction,
            median_ms: median,
            min_ms: times.quantile(0.0),
            max_ms: times.quantile(1.0),
            quartiles_ms: [times.quantile(0.25), times.quantile(0.75)],
            n: times.count(),
            flops: cost.flops,
            bytes,
            gflops: cost.flops as f64 / median * 1e-6,
            gb_s: bytes as f64 / median * 1e-6,
        })
    }
}
