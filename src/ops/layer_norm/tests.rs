//! Layer norm against plain loops in f64.

use super::*;
use crate::check::{Check, random};
use crate::ops::arithmetic::add;
use crate::tape::Tape;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Form {
    Alone,
    Channels,
    Samples,
}

const FORMS: [Form; 3] = [Form::Alone, Form::Channels, Form::Samples];

/// `x` of `n` samples, rows `c` wide.
fn reference(form: Form, n: usize, c: usize, eps: f32, inputs: &[Vec<f64>]) -> Vec<f64> {
    let x = &inputs[0];
    let per = x.len() / c / n;
    let mut y = Vec::new();
    for (row, x) in x.chunks(c).enumerate() {
        let mean = x.iter().sum::<f64>() / c as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / c as f64;
        for (i, x) in x.iter().enumerate() {
            let xhat = (x - mean) / (variance + f64::from(eps)).sqrt();
            y.push(match form {
                Form::Alone => xhat,
                Form::Channels => inputs[1][i] * xhat + inputs[2][i],
                Form::Samples => (1.0 + inputs[1][row / per * c + i]) * xhat + inputs[2][row / per * c + i],
            });
        }
    }
    y
}

fn record(form: Form, t: &[Tensor], eps: f32) -> Tensor {
    match form {
        Form::Alone => layer_norm(&t[0], Affine::None, eps),
        Form::Channels => layer_norm(&t[0], Affine::Channels { scale: &t[1], shift: &t[2] }, eps),
        Form::Samples => layer_norm(&t[0], Affine::Samples { scale: &t[1], shift: &t[2] }, eps),
    }
}

/// Runs a check that already holds `x` of this shape, with random scale and shift.
fn check(check: Check, form: Form, shape: &[usize], eps: f32) {
    let (n, c) = (shape[0], shape[shape.len() - 1]);
    let check = match form {
        Form::Alone => check,
        Form::Channels => check.input(&[c]).input(&[c]),
        Form::Samples => check.input(&[n, c]).input(&[n, c]),
    };
    check.run(|t| record(form, t, eps), |v| reference(form, n, c, eps, v));
}

fn named(form: Form) -> Check {
    Check::new(format!("layer_norm, {form:?}"))
}

#[test]
fn shapes() {
    let shapes: [&[usize]; 11] = [
        &[1, 3],
        &[3, 7],
        &[2, 3, 5, 16],
        &[2, 64, 24],
        &[3, 65, 33],
        &[2, 129, 63],
        &[5, 3, 65],
        &[2, 17, 257],
        &[2, 5, 1021],
        &[2, 3, 8209], // one row is more than a task
        &[2, 700, 12],
    ];
    for form in FORMS {
        for shape in shapes {
            check(named(form).probes(12).input(shape), form, shape, 1e-5);
        }
    }
}

#[test]
fn large_epsilon() {
    for form in FORMS {
        check(named(form).input(&[2, 3, 8]), form, &[2, 3, 8], 0.5);
    }
}

#[test]
fn one_channel() {
    // The gradient of x is zero, which leaves nothing to compare rounding with.
    for form in FORMS {
        check(named(form).fixed(&[3, 5, 1], random(0, 15)), form, &[3, 5, 1], 1e-5);
    }
}

#[test]
fn mean_far_from_zero() {
    let shape = [2, 9, 24];
    for (mean, deviation) in [(1000.0, 1.0), (-1e5, 3.0)] {
        for form in FORMS {
            let x = random(0, 2 * 9 * 24).into_iter().map(|v| mean + deviation * v).collect();
            check(named(form).values(&shape, x), form, &shape, 1e-6);
        }
    }
}

#[test]
fn first_element_far_from_the_mean() {
    let shape = [2, 3, 40];
    let mut x: Vec<f32> = random(0, 240).into_iter().map(|v| 10.0 + 0.01 * v).collect();
    x[0] = -500.0;
    check(named(Form::Channels).values(&shape, x), Form::Channels, &shape, 1e-5);
}

#[test]
fn constant_rows_stay_finite() {
    for form in FORMS {
        check(named(form).fixed(&[2, 3, 20], vec![3.0; 120]), form, &[2, 3, 20], 1e-5);
    }
}

#[test]
fn a_gradient_is_added_to_that_of_x() {
    // x goes around the norm too, as in a residual block.
    let shape = [2, 5, 12];
    for form in FORMS {
        let parameters: &[usize] = if form == Form::Samples { &[2, 12] } else { &[12] };
        let mut check = named(form).input(&shape);
        if form != Form::Alone {
            check = check.input(parameters).input(parameters);
        }
        check.run(
            |t| add(&record(form, t, 1e-5), &t[0]),
            |v| reference(form, 2, 12, 1e-5, v).iter().zip(&v[0]).map(|(y, x)| y + x).collect(),
        );
    }
}

#[test]
fn past_65535_workgroups() {
    for form in [Form::Channels, Form::Samples] {
        let shape = [65_537, 4];
        let check_of = named(form).probes(2).tolerance(1.6e-5).input(&shape);
        check(check_of, form, &shape, 1e-2);
    }
}

#[test]
#[should_panic(expected = "layer_norm: x [2, 3, 8] wants scale and shift [2, 8], got [8]")]
fn modulation_must_be_of_samples() {
    let tape = Tape::new();
    let (x, g) = (tape.variable("x", 0, [2, 3, 8]), tape.variable("g", 0, [8]));
    layer_norm(&x, Affine::Samples { scale: &g, shift: &g }, 1e-5);
}
