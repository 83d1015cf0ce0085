//! The check that every op passes: values and gradients, on every device of this machine, against an f64
//! reference.
//!
//! Buffers are handed out filled with NaN between guard words, comparisons are of the form `err <= tol` so
//! that NaN fails, and a failure prints everything that repeats it.

mod devices;
mod input;

use rand::RngExt as _;

pub use self::devices::devices;
use self::devices::{BF16, HALVES, half_devices};
use self::input::{Input, to_half_and_back};
use crate::device::Device;
use crate::ops::arithmetic::affine;
use crate::philox::{Sequence, Stream};
use crate::program::{Plan, Program};
use crate::tape::{Tape, Tensor};
use crate::tensor::DType;

/// Random numbers in (-1, 1) that depend on `salt` alone.
pub fn random(salt: u32, n: usize) -> Vec<f32> {
    let mut rng = Sequence::new(2026, Stream::Generate, salt, 0);
    (0..n).map(|_| rng.random_range(-1.0..1.0_f32)).collect()
}

/// By how much of itself rounding to 16 bits changes a number, with room for what is made of two.
const HALF_ROUNDING: f64 = 1e-3;

/// The same for bf16, which has three bits less.
const BF16_ROUNDING: f64 = 8.0 * HALF_ROUNDING;

/// A check under construction: the name and shapes that a failure prints, the inputs, the tolerance.
pub struct Check {
    name: String,
    inputs: Vec<Input>,
    tolerance: f64,
    /// At most this many elements of each input are differentiated numerically.
    probes: usize,
    /// Only the variants that run untuned, not every one.
    untuned: bool,
    half_rounding: f64,
    bf16_rounding: f64,
}

impl Check {
    /// Without inputs yet, of a tolerance of 4e-6 and 40 probes.
    pub fn new(name: impl Into<String>) -> Self {
        Check {
            name: name.into(),
            inputs: Vec::new(),
            tolerance: 4e-6,
            probes: 40,
            untuned: false,
            half_rounding: HALF_ROUNDING,
            bf16_rounding: BF16_ROUNDING,
        }
    }

    /// Largest error allowed, as a fraction of the largest magnitude of the reference.
    pub fn tolerance(mut self, tolerance: f64) -> Self {
        self.tolerance = tolerance;
        self
    }

    /// Leaves out the variants that only tuning would pick: for shapes so large that a software driver would
    /// spend minutes on tiles made for GPUs.
    pub fn untuned(mut self) -> Self {
        self.untuned = true;
        self
    }

    /// By how much of itself rounding to 16 bits changes a number, where that meets differences of numbers
    /// that are close.
    pub fn half_rounding(mut self, rounding: f64) -> Self {
        self.half_rounding = rounding;
        self
    }

    /// As [`Check::half_rounding`], for the factors of products rounded to bf16.
    pub fn bf16_rounding(mut self, rounding: f64) -> Self {
        self.bf16_rounding = rounding;
        self
    }

    /// How many elements of each input are differentiated numerically (each costs two runs of the
    /// reference).
    pub fn probes(mut self, probes: usize) -> Self {
        self.probes = probes;
        self
    }

    /// A random differentiable input.
    pub fn input(self, shape: &[usize]) -> Self {
        let values = random(self.inputs.len() as u32, shape.iter().product());
        self.values(shape, values)
    }

    /// A differentiable input with these values.
    pub fn values(mut self, shape: &[usize], values: Vec<f32>) -> Self {
        self.inputs.push(Input::Values(shape.to_vec(), values));
        self
    }

    /// An input that no gradient is asked of.
    pub fn fixed(mut self, shape: &[usize], values: Vec<f32>) -> Self {
        self.inputs.push(Input::Fixed(shape.to_vec(), values));
        self
    }

    /// An input of `u32`.
    pub fn words(mut self, shape: &[usize], words: Vec<u32>) -> Self {
        self.inputs.push(Input::Words(shape.to_vec(), words));
        self
    }

    /// Records the op with `record` on every device, and compares with `reference`, which gets the inputs
    /// as f64.
    ///
    /// Gradients are those of `sum(y * dy)` for a random `dy`; the reference's are central differences of
    /// itself.
    pub fn run(self, record: impl Fn(&[Tensor]) -> Tensor, reference: impl Fn(&[Vec<f64>]) -> Vec<f64>) {
        let exact: Vec<Vec<f64>> = self
            .inputs
            .iter()
            .map(|input| match input {
                Input::Values(_, v) | Input::Fixed(_, v) => v.iter().map(|&v| f64::from(v)).collect(),
                Input::Words(_, w) => w.iter().map(|&w| f64::from(w)).collect(),
            })
            .collect();
        let y = reference(&exact);
        let dy = random(999, y.len());
        let slopes = self.slopes(&exact, &dy, &reference);
        let mut first: Option<Vec<Vec<f32>>> = None;
        let everywhere = devices().iter().flat_map(|(name, device)| self.on(device, name, &record, &dy));
        for (device_name, results) in everywhere {
            let device_name = device_name.as_str();
            self.compare(device_name, "y", &results[0], &y, self.tolerance);
            for (i, slopes) in slopes.iter().enumerate() {
                let scale = slopes.iter().map(|(_, s)| s.abs()).fold(1e-3, f64::max);
                for (index, slope) in slopes {
                    let got = f64::from(results[i + 1][*index]);
                    let err = (got - slope).abs() / scale;
                    assert!(
                        err <= self.tolerance.max(1e-6) * 4.0,
                        "{}\n  on {device_name}: gradient of input {i} at {index} is {got}, the reference gives {slope}",
                        self.describe()
                    );
                }
            }
            match &first {
                None => first = Some(results),
                Some(first) => self.agree(device_name, first, &results),
            }
        }
        let rounded = Check { inputs: self.inputs.iter().map(Input::rounded).collect(), ..self };
        if half_devices().is_empty() || !rounded.inputs.iter().all(Input::is_finite) {
            return;
        }
        rounded.in_halves(&record, &dy.into_iter().map(to_half_and_back).collect::<Vec<_>>());
    }

    /// Tensors of 16 bits, and products of bf16 numbers, against the CPU device with 32 bits. The inputs fit
    /// 16 bits.
    fn in_halves(&self, record: &impl Fn(&[Tensor]) -> Tensor, dy: &[f32]) {
        let mut wanted: Vec<Vec<f64>> = Vec::new();
        for (name, device) in devices().iter().take(1).chain(half_devices()) {
            for (name, results) in self.on(device, name, record, dy) {
                if wanted.is_empty() {
                    wanted =
                        results.iter().map(|values| values.iter().map(|&v| v.into()).collect()).collect();
                }
                for (i, (got, wanted)) in results.iter().zip(&wanted).enumerate() {
                    let what = if i == 0 { "y".to_owned() } else { format!("gradient of input {}", i - 1) };
                    let rounding = if name.contains(BF16) { self.bf16_rounding } else { self.half_rounding };
                    let tolerance = self.tolerance * 4.0 + if i == 0 { 1.0 } else { 10.0 } * rounding;
                    self.compare(&name, &what, got, wanted, tolerance);
                }
            }
        }
    }

    /// All elements of all results against those of the first device, to the bit where both are CPU
    /// devices.
    fn agree(&self, device: &str, first: &[Vec<f32>], results: &[Vec<f32>]) {
        for (i, (a, b)) in first.iter().zip(results).enumerate() {
            let what = if i == 0 { "y".to_owned() } else { format!("gradient of input {}", i - 1) };
            if device.starts_with("cpu") {
                let same = a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
                assert!(same, "{}\n  {what} depends on the number of threads", self.describe());
            }
            let a: Vec<f64> = a.iter().map(|&v| f64::from(v)).collect();
            self.compare(device, &format!("{what}, against the CPU device,"), b, &a, self.tolerance * 4.0);
        }
    }

    fn compare(&self, device: &str, what: &str, got: &[f32], wanted: &[f64], tolerance: f64) {
        assert_eq!(got.len(), wanted.len(), "{}: number of elements of {what}", self.describe());
        let scale = wanted.iter().map(|v| v.abs()).fold(1e-3, f64::max);
        for (index, (got, wanted)) in got.iter().zip(wanted).enumerate() {
            let err = (f64::from(*got) - wanted).abs() / scale;
            let overflows = device.contains(HALVES) && wanted.abs() >= 65_520.0 && got.is_infinite();
            assert!(
                err <= tolerance || overflows,
                "{}\n  on {device}: {what} at {index} is {got}, wanted {wanted}; off by {err:.2e} of {scale:.3}",
                self.describe()
            );
        }
    }

    fn describe(&self) -> String {
        let shapes: Vec<String> = self
            .inputs
            .iter()
            .map(|i| match i {
                Input::Values(s, _) => format!("{s:?}"),
                Input::Fixed(s, _) => format!("{s:?} fixed"),
                Input::Words(s, _) => format!("{s:?} u32"),
            })
            .collect();
        format!("{} of {}", self.name, shapes.join(", "))
    }

    /// Central differences of `sum(reference * dy)` at some elements of each differentiable input.
    fn slopes(
        &self,
        exact: &[Vec<f64>],
        dy: &[f32],
        reference: &impl Fn(&[Vec<f64>]) -> Vec<f64>,
    ) -> Vec<Vec<(usize, f64)>> {
        let loss = |inputs: &[Vec<f64>]| -> f64 {
            reference(inputs).iter().zip(dy).map(|(y, dy)| y * f64::from(*dy)).sum()
        };
        let mut rng = Sequence::new(5, Stream::Generate, 0, 0);
        let mut slopes = Vec::new();
        for (i, input) in self.inputs.iter().enumerate() {
            let Input::Values(_, values) = input else { continue };
            let n = values.len();
            let mut picks: Vec<usize> = if n <= self.probes {
                (0..n).collect()
            } else {
                (0..self.probes.saturating_sub(2)).map(|_| rng.random_range(0..n)).chain([0, n - 1]).collect()
            };
            picks.sort_unstable();
            picks.dedup();
            let mut moved = exact.to_vec();
            let step = 1e-4;
            let slope = |index: usize| {
                let at = exact[i][index];
                moved[i][index] = at + step;
                let above = loss(&moved);
                moved[i][index] = at - step;
                let below = loss(&moved);
                moved[i][index] = at;
                (index, (above - below) / (2.0 * step))
            };
            slopes.push(picks.into_iter().map(slope).collect());
        }
        slopes
    }

    /// Values and gradients of all differentiable inputs on one device; on a GPU by every variant of the op's
    /// launches, each with a name of its own.
    fn on(
        &self,
        device: &Device,
        name: &str,
        record: &impl Fn(&[Tensor]) -> Tensor,
        dy: &[f32],
    ) -> Vec<(String, Vec<Vec<f32>>)> {
        let tape = Tape::new();
        let store = |i: usize| format!("input {i}");
        let tensors: Vec<Tensor> = self
            .inputs
            .iter()
            .enumerate()
            .map(|(i, input)| match input {
                Input::Values(s, _) => tape.variable(&store(i), 0, s.as_slice()),
                Input::Fixed(s, _) => tape.stored(&store(i), 0, s.as_slice()),
                Input::Words(s, _) => tape.stored_u32(&store(i), s.as_slice()),
            })
            .collect();
        // What a program is given and what is read of it has 32 bits: copies between have what is checked.
        let copy = |x: &Tensor| match x.dtype() == DType::F32 && x.dims().len() >= 2 {
            true if matches!(device, Device::Gpu(gpu) if gpu.halves) => affine(x, 1.0, 0.0),
            _ => x.clone(),
        };
        let y = copy(&record(&tensors.iter().map(copy).collect::<Vec<_>>()));
        let cotangent = tape.stored("dy", 0, y.shape().clone());
        let gradients = tape.backward_from(&y, &cotangent);
        let differentiable = tensors.iter().filter(|t| t.needs_grad());
        let of: Vec<Option<&Tensor>> = differentiable.map(|t| gradients.get(t)).collect();
        let mut outputs = vec![&y];
        outputs.extend(of.iter().flatten());
        let plan = Plan::new(&tape, &outputs, device);
        let run = |name: &str, variant: usize| -> crate::error::Result<Vec<Vec<f32>>> {
            let mut program = Program::compile_variant(&plan, device, variant)?;
            let is_used = |store: &str| plan.stores().any(|(used, _)| used == store);
            for (i, input) in self.inputs.iter().enumerate().filter(|(i, _)| is_used(&store(*i))) {
                match input {
                    Input::Values(_, v) | Input::Fixed(_, v) => program.write(&store(i), v)?,
                    Input::Words(_, w) => program.write(&store(i), w)?,
                }
            }
            if is_used("dy") {
                program.write("dy", dy)?;
            }
            program.run()?;
            let mut results = vec![program.read(&y)?];
            for (gradient, input) in of.iter().zip(tensors.iter().filter(|t| t.needs_grad())) {
                results.push(match gradient {
                    Some(gradient) => program.read(gradient)?,
                    None => vec![0.0; input.elements()],
                });
            }
            assert!(program.guards_intact()?, "{}\n  on {name}: wrote outside its tensors", self.describe());
            Ok(results)
        };
        // All variants are checked with packed numbers where the adapter has no f16; here the default.
        let is_packed = matches!(device, Device::Gpu(gpu) if gpu.halves && gpu.has_f16() && !gpu.dialect.f16);
        let variants = if self.untuned || is_packed { 1 } else { Program::variants_of(&plan) };
        let run = |variant: usize| {
            let name = if variant == 0 { name.to_owned() } else { format!("{name}, variant {variant}") };
            let results =
                run(&name, variant).unwrap_or_else(|e| panic!("{}\n  on {name}: {e:?}", self.describe()));
            (name, results)
        };
        (0..variants).map(run).collect()
    }
}
