//! Tests of the losses: shapes, weights, kinks, and logits far out.

use super::*;
use crate::check::{Check, devices, random};
use crate::program::{Plan, Program, Sharing};
use crate::tape::Tape;

const FORMS: [Form; 4] = [Form::Squared, Form::Absolute, Form::CrossEntropy, Form::Huber(0.4)];

/// The loss of one element, by the formula.
fn element(form: Form, p: f64, t: f64) -> f64 {
    match form {
        Form::Squared => (p - t).powi(2),
        Form::Absolute => (p - t).abs(),
        Form::CrossEntropy => p.max(0.0) - p * t + (-p.abs()).exp().ln_1p(),
        Form::Huber(delta) if (p - t).abs() < f64::from(delta) => 0.5 * (p - t).powi(2),
        Form::Huber(delta) => f64::from(delta) * ((p - t).abs() - 0.5 * f64::from(delta)),
    }
}

fn reference(form: Form, prediction: &[f64], target: &[f64], weight: Option<&[f64]>, samples: usize) -> f64 {
    let size = prediction.len() / samples;
    let mut sum = 0.0;
    for n in 0..samples {
        for i in n * size..(n + 1) * size {
            sum += weight.map_or(1.0, |w| w[n]) * element(form, prediction[i], target[i]);
        }
    }
    sum / prediction.len() as f64
}

fn record(form: Form, prediction: &Tensor, target: &Tensor, weight: Option<&Tensor>) -> Tensor {
    match form {
        Form::Squared => mse(prediction, target, weight),
        Form::Absolute => l1(prediction, target, weight),
        Form::CrossEntropy => bce_with_logits(prediction, target, weight),
        Form::Huber(_) => losses(form, prediction, target, weight).mean,
    }
}

fn targets(form: Form, n: usize) -> Vec<f32> {
    let t = random(50, n);
    if form == Form::CrossEntropy { t.into_iter().map(|t| 0.5 + 0.5 * t).collect() } else { t }
}

fn check(form: Form, shape: &[usize], probes: usize) {
    Check::new(form.name())
        .probes(probes)
        .input(shape)
        .fixed(shape, targets(form, shape.iter().product()))
        .run(|x| record(form, &x[0], &x[1], None), |x| vec![reference(form, &x[0], &x[1], None, shape[0])]);
}

fn check_weighted(form: Form, shape: &[usize], probes: usize) {
    Check::new(format!("weighted {}", form.name()))
        .probes(probes)
        .input(shape)
        .fixed(shape, targets(form, shape.iter().product()))
        .fixed(&[shape[0]], random(51, shape[0]).into_iter().map(|w| w + 1.1).collect())
        .run(
            |x| record(form, &x[0], &x[1], Some(&x[2])),
            |x| vec![reference(form, &x[0], &x[1], Some(&x[2]), shape[0])],
        );
}

#[test]
fn shapes() {
    let shapes: [&[usize]; 8] =
        [&[1], &[7], &[257, 2], &[3, 5, 7, 3], &[2, 257], &[3, 4099], &[2, CHUNK + 1], &[1, 300, 301, 3]];
    for form in FORMS {
        for shape in shapes {
            check(form, shape, 6);
            check_weighted(form, shape, 6);
        }
    }
}

/// Without their weights, of samples that are several slices too.
#[test]
fn losses_of_the_samples() {
    for form in FORMS {
        for shape in [&[1, 3][..], &[5], &[257, 2], &[3, 4099], &[2, 300, 301]] {
            let n: usize = shape.iter().product();
            Check::new(format!("{} of each sample", form.name()))
                .fixed(shape, random(7, n))
                .fixed(shape, targets(form, n))
                .fixed(&[shape[0]], vec![3.0; shape[0]])
                .run(
                    |x| losses(form, &x[0], &x[1], Some(&x[2])).each,
                    |x| {
                        let samples = x[0].chunks(n / shape[0]).zip(x[1].chunks(n / shape[0]));
                        samples.map(|(p, t)| reference(form, p, t, None, 1)).collect()
                    },
                );
        }
    }
}

/// The launches are the same for every form.
#[test]
fn past_65535_workgroups() {
    check_weighted(Form::Squared, &[65_539, 3], 2); // forward: one for each sample
    check(Form::Squared, &[7, 65_536 * 256 / 7 + 1], 2); // backward: one for 256 elements
}

#[test]
fn no_slope_where_the_absolute_error_is_zero() {
    let target = vec![0.25, -1.5, 0.0, 3.0, 2.0, -7.0];
    let prediction = vec![0.25, -1.0, 0.0, 2.0, 2.0, -7.5];
    Check::new("l1 at its kink")
        .values(&[2, 3], prediction)
        .fixed(&[2, 3], target)
        .run(|x| l1(&x[0], &x[1], None), |x| vec![reference(Form::Absolute, &x[0], &x[1], None, 2)]);
}

/// Loss and derivative of a single element on every device: `(device, values)`, two for each pair.
fn one_by_one(form: Form, pairs: &[(f32, f32)]) -> Vec<(&'static str, Vec<[f32; 2]>)> {
    let run = |device| {
        let tape = Tape::new();
        let (x, t) = (tape.variable("x", 0, [1]), tape.stored("t", 0, [1]));
        let y = record(form, &x, &t, None);
        let gradients = tape.backward_from(&y, &tape.stored("dy", 0, [1]));
        let dx = gradients.get(&x).expect("x is differentiable");
        let plan = Plan::new(&tape, &[&y, dx], device);
        let mut program = Program::compile(&plan, device, &[], Sharing::Guarded).expect("compiles");
        program.write("dy", &[1.0_f32]).expect("writes");
        let mut values = Vec::new();
        for &(x, t) in pairs {
            program.write("x", &[x]).expect("writes");
            program.write("t", &[t]).expect("writes");
            program.run().expect("runs");
            values.push([program.read(&y).expect("reads")[0], program.read(dx).expect("reads")[0]]);
        }
        values
    };
    devices().iter().map(|(name, device)| (name.as_str(), run(device))).collect()
}

/// Relative accuracy of the cross entropy, however close to 0 it is: far out on the right side it is
/// `e^-|x|`, where a naive `ln(1 + e^-|x|)` gives 0.
#[test]
fn cross_entropy_far_out_and_near_zero() {
    let sizes = [0.0, 1e-3, 0.5, 5.0, 20.0, 60.0, 90.0, 1e4];
    let logits = sizes.into_iter().flat_map(|x| [x, -x]);
    let pairs: Vec<(f32, f32)> =
        logits.flat_map(|x| [0.0, 1e-6, 0.25, 0.5, 1.0].map(|target| (x, target))).collect();
    for (device, values) in one_by_one(Form::CrossEntropy, &pairs) {
        // WGSL allows its exp an error of (3 + 2 |x|) units in the last place.
        let allowed =
            |x: f64| if device.starts_with("cpu") { 6e-7 } else { 1e-6 + 2.4e-7 * x.abs().min(87.0) };
        for (&(x, t), [y, dx]) in pairs.iter().zip(values) {
            let (wide_x, wide_t) = (f64::from(x), f64::from(t));
            // sigmoid(x) - t is the difference of these two, from either side, and is right to a fraction of
            // them: of itself where the target is 0 or 1 and the model agrees.
            let far = (-wide_x.abs()).exp() / (1.0 + (-wide_x.abs()).exp());
            let near = if x > 0.0 { 1.0 - wide_t } else { wide_t };
            let slope = if x > 0.0 { near - far } else { far - near };
            // As `element`, but for what cancels in f64 too.
            let loss = wide_x.abs() * near + (-wide_x.abs()).exp().ln_1p();
            for (what, got, wanted, error) in [
                ("loss", y, loss, allowed(wide_x) * loss),
                ("derivative", dx, slope, allowed(wide_x) * (near + far)),
            ] {
                let off = (f64::from(got) - wanted).abs();
                // Numbers below 1e-37 may be flushed to zero.
                assert!(
                    off <= error + 1e-37,
                    "on {device}: {what} of logit {x}, target {t} is {got}, wanted {wanted}; off by {off:e}"
                );
            }
        }
    }
}

#[test]
fn cross_entropy_of_large_logits_in_a_batch() {
    let logits: Vec<f32> = [0.0, 1e-3, 5.0, 20.0, 90.0, 1e4].into_iter().flat_map(|x: f32| [x, -x]).collect();
    for (i, target) in [0.0, 0.25, 1.0].into_iter().enumerate() {
        Check::new(format!("bce_with_logits, targets around {target}"))
            .values(&[4, 3], logits.clone())
            .fixed(&[4, 3], (0..12).map(|n| [0.0, 0.25, 1.0][(n + i) % 3]).collect())
            .run(
                |x| bce_with_logits(&x[0], &x[1], None),
                |x| vec![reference(Form::CrossEntropy, &x[0], &x[1], None, 4)],
            );
    }
}

/// A model that has gone bad must show in the loss and in its gradient.
#[test]
fn a_bad_prediction_shows() {
    for form in FORMS {
        for (device, values) in one_by_one(form, &[(f32::NAN, 0.5), (0.25, 0.5)]) {
            assert!(values[0].iter().all(|v| v.is_nan()), "{}, {device}: {values:?}", form.name());
            assert!(values[1].iter().all(|v| v.is_finite()), "{}, {device}: {values:?}", form.name());
        }
    }
}

#[test]
fn the_logarithm_is_relatively_exact() {
    for i in 0..=1_000_000 {
        for x in [i as f32 * 1e-6, i as f32 * 1e-20] {
            let wanted = f64::from(x).ln_1p();
            let off = (f64::from(ln_1p(x)) - wanted).abs();
            assert!(off <= 2e-7 * wanted, "ln(1 + {x}) is {}, wanted {wanted}", ln_1p(x));
        }
    }
}

#[test]
#[should_panic(expected = "mse: expected prediction and target of one shape")]
fn wrong_shapes() {
    let tape = Tape::new();
    mse(&tape.stored("a", 0, [3, 4]), &tape.stored("b", 0, [4, 3]), None);
}

#[test]
#[should_panic(expected = "bce_with_logits: expected prediction and target of one shape")]
fn wrong_weight() {
    let tape = Tape::new();
    let (a, b) = (tape.stored("a", 0, [3, 4]), tape.stored("b", 0, [3, 4]));
    bce_with_logits(&a, &b, Some(&tape.stored("w", 0, [4])));
}
