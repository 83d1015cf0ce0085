//! Single ops, forward and backward, at shapes that diffusion models have: checked, then timed.

mod list;

use std::time::Duration;

use serde::Serialize;

pub use list::Op;

use super::measure::{Setting, Times, below, numbers};
use crate::device::{Device, Precision};
use crate::error::{Error, Result};
use crate::launch::Cost;
use crate::program::{Plan, Program, Sharing, Span};
use crate::tape::{Tape, Tensor};

/// Largest error of a result, as a fraction of the magnitude of its terms.
const TOLERANCE: f64 = 1e-5;
/// The same where the factors of products are rounded to bf16.
const BF16_TOLERANCE: f64 = 1e-2;
/// And to f16, by a GPU's variant.
const HALF_TOLERANCE: f64 = 1e-3;
/// Largest error of a derivative against the difference of two forward passes, as a fraction.
const GRADIENT_TOLERANCE: f64 = 2e-2;
/// Elements of a result that are compared with plain loops.
const PROBES: usize = 8;

/// The launches of an op that are timed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Direction {
    /// The op itself.
    Forward,
    /// Gradients of all inputs and weights; the forward pass before them is not timed.
    Backward,
    /// One step of an optimiser.
    Step,
}

/// An op's time in one direction.
#[derive(Clone, Debug, Serialize)]
pub struct OpReport {
    pub op: &'static str,
    pub direction: Direction,
    #[serde(flatten)]
    pub times: Times,
    /// Of products and convolutions; 0 where there are none.
    pub flops: u64,
    /// Bytes that must move even if each tensor is read or written only once: of a norm two tensors forward
    /// and three backward; of Adam and EMA 36 for each parameter.
    pub bytes: u64,
    /// At the median.
    pub gflops: f64,
    pub gb_s: f64,
}

/// Times of single ops on a device; its JSON object.
#[derive(Clone, Debug, Serialize)]
pub struct OpsReport {
    #[serde(flatten)]
    pub setting: Setting,
    pub warmup: usize,
    pub ops: Vec<OpReport>,
    pub dtype: &'static str,
}

/// The ops that have `part` in their names.
///
/// # Errors
/// When there is none.
pub fn ops(part: &str) -> Result<Vec<Op>> {
    let (wanted, others): (Vec<Op>, Vec<Op>) = list::all().into_iter().partition(|op| op.name.contains(part));
    if wanted.is_empty() {
        let names: Vec<&str> = others.iter().map(|op| op.name).collect();
        return Err(Error::usage(format!("no op has {part:?} in its name"))
            .hint(format!("choose part of {}", names.join(", "))));
    }
    Ok(wanted)
}

/// Times `ops` in each of their directions, after a check. `progress` receives the name of each.
pub(crate) fn time_ops(
    ops: &[Op],
    device: &Device,
    [warmup, steps]: [usize; 2],
    progress: &mut dyn FnMut(&str),
) -> Result<OpsReport> {
    let mut reports = Vec::new();
    for op in ops {
        progress(op.name);
        for &direction in op.directions {
            reports.push(op.checked(direction, device)?.time(warmup, steps)?);
        }
    }
    Ok(OpsReport { setting: Setting::of(device), warmup, ops: reports, dtype: device.precision().name() })
}

impl Op {
    /// Work of one run: operations of products and convolutions, and bytes that must move.
    pub fn cost(&self, direction: Direction, device: &Device) -> Cost {
        let forward = match direction {
            Direction::Backward => self.recorded(Direction::Forward, device).plan.cost(),
            _ => Cost::default(),
        };
        let all = self.recorded(direction, device).plan.cost();
        let counted = Cost { flops: all.flops - forward.flops, bytes: all.bytes - forward.bytes };
        let known = self.bytes.map(|bytes| bytes[usize::from(direction == Direction::Backward)]);
        Cost { bytes: known.unwrap_or(counted.bytes), ..counted }
    }

    fn recorded(&self, direction: Direction, device: &Device) -> Recorded {
        let tape = Tape::new();
        let inputs = self.inputs.iter().enumerate();
        let x: Vec<Tensor> =
            inputs.map(|(i, shape)| tape.variable(&format!("x{i}"), 0, shape.as_slice())).collect();
        let y = (self.record)(&x);
        let mut gradients = Vec::new();
        if direction == Direction::Backward {
            let found = tape.backward_from(&y, &tape.stored("dy", 0, y.shape().clone()));
            gradients = x.iter().filter_map(|x| found.get(x).cloned()).collect();
        }
        // With `y` among the outputs: gradients alone may need none of the forward pass.
        let outputs: Vec<&Tensor> = gradients.iter().chain([&y]).collect();
        Recorded { plan: Plan::new(&tape, &outputs, device), y, gradients }
    }

    /// Compiles the op and checks its results, ready to be timed.
    ///
    /// # Errors
    /// When a result is wrong, memory is too small, or the driver cannot build a kernel.
    pub fn checked(&self, direction: Direction, device: &Device) -> Result<CheckedOp<'_>> {
        let compiled = |recorded: &Recorded| Program::compile(&recorded.plan, device, &[], Sharing::Shared);
        // A plan of its own: one with gradients may order the forward launches otherwise.
        let forward = match direction {
            Direction::Backward => compiled(&self.recorded(Direction::Forward, device))?.compiled().len(),
            _ => 0,
        };
        let recorded = self.recorded(direction, device);
        let program = compiled(&recorded)?;
        let inputs = self.inputs.iter().enumerate();
        let mut values: Vec<_> =
            inputs.map(|(i, shape)| numbers(10 + i as u32, shape.iter().product())).collect();
        if let Some(squared) = self.squared {
            values[squared].iter_mut().for_each(|v| *v *= *v);
        }
        let dy = numbers(9, recorded.y.elements());
        let mut op =
            CheckedOp { op: self, direction, program, recorded, values, dy, forward, spans: Vec::new() };
        op.check()?;
        Ok(op)
    }
}

struct Recorded {
    plan: Plan,
    y: Tensor,
    gradients: Vec<Tensor>,
}

/// An op compiled in one direction, whose results are right.
pub struct CheckedOp<'a> {
    op: &'a Op,
    direction: Direction,
    program: Program,
    recorded: Recorded,
    values: Vec<Vec<f32>>,
    dy: Vec<f32>,
    /// Launches of the forward pass, which come first and are not timed.
    forward: usize,
    spans: Vec<Span>,
}

impl CheckedOp<'_> {
    /// Time of one run: the sum of its launches.
    ///
    /// # Errors
    /// When the driver reports an error, or the device cannot time its kernels.
    pub fn run(&mut self) -> Result<Duration> {
        self.program.run_timed(&mut self.spans)?;
        Ok(self.spans[self.forward..].iter().map(|span| span.time).sum())
    }

    fn time(&mut self, warmup: usize, steps: usize) -> Result<OpReport> {
        for _ in 0..warmup {
            self.run()?;
        }
        let times = Times::new((0..steps).map(|_| self.run()).collect::<Result<_>>()?);
        let cost = self.op.cost(self.direction, self.program.device());
        let per_second = |amount: u64| amount as f64 / times.median_ms * 1e-6;
        Ok(OpReport {
            op: self.op.name,
            direction: self.direction,
            flops: cost.flops,
            bytes: cost.bytes,
            gflops: per_second(cost.flops),
            gb_s: per_second(cost.bytes),
            times,
        })
    }

    fn write_inputs(&self) -> Result<()> {
        for (i, values) in self.values.iter().enumerate() {
            self.program.write(&format!("x{i}"), values)?;
        }
        if self.direction == Direction::Backward {
            self.program.write("dy", &self.dy)?;
        }
        self.op.stores.iter().try_for_each(|(store, words)| self.program.write(store, words))
    }

    fn wrong(&self, what: String) -> Error {
        let (name, direction) = (self.op.name, self.direction);
        Error::new(format!("{name}, {direction:?}, on {}: {what}", self.program.device().describe()))
            .hint("nothing was timed; please report it with the command and `denoir devices`")
    }

    /// The result of one run from the inputs as they are.
    fn result(&mut self) -> Result<Vec<f32>> {
        self.program.run()?;
        self.program.read(&self.recorded.y)
    }

    /// Results are finite and repeat bit for bit; some elements equal plain loops; gradients equal
    /// differences.
    fn check(&mut self) -> Result<()> {
        self.write_inputs()?;
        let y = self.result()?;
        let gradients: Vec<Vec<f32>> =
            self.recorded.gradients.iter().map(|g| self.program.read(g)).collect::<Result<_>>()?;
        self.write_inputs()?;
        let again = self.result()?;
        if gradients.iter().chain([&y]).flatten().any(|v| !v.is_finite()) {
            return Err(self.wrong("a result is not finite".to_owned()));
        }
        if y.iter().zip(&again).any(|(a, b)| a.to_bits() != b.to_bits()) {
            return Err(self.wrong("a second run differs from the first".to_owned()));
        }
        for probe in 0..PROBES {
            let index = probe * (y.len() - 1) / (PROBES - 1);
            let (wanted, magnitude) = (self.op.exact)(&self.values, index);
            let err = (f64::from(y[index]) - wanted).abs() / magnitude;
            let tolerance = match self.program.factors() {
                Precision::F32 => TOLERANCE,
                Precision::F16 => HALF_TOLERANCE,
                Precision::Bf16 => BF16_TOLERANCE,
            };
            if !below(err, tolerance) {
                let got = y[index];
                return Err(self.wrong(format!("element {index} is {got}, not {wanted}: off by {err:.1e}")));
            }
        }
        self.check_gradients(&gradients)?;
        self.write_inputs()
    }

    /// Moves each input along its gradient: the result, weighted with dy, must change by the gradient's
    /// length times that of the move.
    fn check_gradients(&mut self, gradients: &[Vec<f32>]) -> Result<()> {
        let norm = |values: &[f32]| values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>().sqrt();
        for (i, gradient) in gradients.iter().enumerate() {
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
            if !below(err, GRADIENT_TOLERANCE) {
                let what = "is not the derivative of the result";
                return Err(self.wrong(format!("the gradient of input {i} {what}: off by {err:.1e}")));
            }
        }
        Ok(())
    }
}
