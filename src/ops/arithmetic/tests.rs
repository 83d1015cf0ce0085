//! Every operation with every way to spread, against a loop over samples, positions and channels.

use super::*;
use crate::check::{Check, random};

/// `y = a op b`; `index` gives b's element for a sample and a channel, or `None` where b has a's shape.
fn reference(
    op: Op,
    a: &[f64],
    b: &[f64],
    [n, m, c]: [usize; 3],
    index: impl Fn(usize, usize) -> Option<usize>,
) -> Vec<f64> {
    let mut y = Vec::new();
    for sample in 0..n {
        for position in 0..m {
            for channel in 0..c {
                let i = (sample * m + position) * c + channel;
                let (a, b) = (a[i], b[index(sample, channel).unwrap_or(i)]);
                y.push(match op {
                    Op::Add => a + b,
                    Op::Sub => a - b,
                    Op::Mul => a * b,
                    Op::Div => a / b,
                });
            }
        }
    }
    y
}

fn record(op: Op, a: &Tensor, b: &Tensor) -> Tensor {
    let y = match op {
        Op::Add => add(a, b),
        Op::Sub => sub(a, b),
        Op::Mul => mul(a, b),
        Op::Div => div(a, b),
    };
    // The gradient of a sum is dy itself, which no launch writes; this way it is the result of one.
    affine(&y, 1.0, 0.0)
}

/// Checks `op` on `a` of [n, .., c] and `b`, whose shape must mean `broadcast`.
fn check(op: Op, a_shape: &[usize], b_shape: &[usize], broadcast: Broadcast) {
    assert_eq!(
        Broadcast::of(&a_shape.into(), &b_shape.into()),
        Some(broadcast),
        "{b_shape:?} over {a_shape:?}"
    );
    let (n, c) = (if a_shape.len() > 1 { a_shape[0] } else { 1 }, a_shape[a_shape.len() - 1]);
    let m = a_shape.iter().product::<usize>() / (n * c);
    // Kept away from 0, for the sake of the division.
    let b = random(77, b_shape.iter().product()).into_iter().map(|v| v + 0.5_f32.copysign(v)).collect();
    Check::new(format!("{op:?}, {broadcast:?}")).probes(6).input(a_shape).values(b_shape, b).run(
        |x| record(op, &x[0], &x[1]),
        |x| {
            reference(op, &x[0], &x[1], [n, m, c], |sample, channel| match broadcast {
                Broadcast::Same => None,
                Broadcast::Scalar => Some(0),
                Broadcast::Channel => Some(channel),
                Broadcast::SampleChannel => Some(sample * c + channel),
                Broadcast::Sample => Some(sample),
            })
        },
    );
}

const OPS: [Op; 4] = [Op::Add, Op::Sub, Op::Mul, Op::Div];

#[test]
fn every_operation_and_broadcast() {
    for op in OPS {
        // Channels that the kernel takes one by one, and by fours.
        for c in [7, 12] {
            check(op, &[3, 5, 2, c], &[3, 5, 2, c], Broadcast::Same);
            check(op, &[3, 5, 2, c], &[1], Broadcast::Scalar);
            check(op, &[3, 5, 2, c], &[c], Broadcast::Channel);
            check(op, &[3, 5, 2, c], &[3, c], Broadcast::SampleChannel);
            check(op, &[3, 5, 2, c], &[3, 1, 1, 1], Broadcast::Sample);
        }
    }
}

#[test]
fn sizes() {
    for op in [Op::Sub, Op::Div] {
        check(op, &[1], &[1], Broadcast::Same);
        check(op, &[1021], &[1021], Broadcast::Same);
        check(op, &[2, 1028], &[2, 1028], Broadcast::Same);
        check(op, &[2 * CHUNK + 1], &[1], Broadcast::Scalar);
        check(op, &[257, 3], &[3], Broadcast::Channel);
        check(op, &[2, 1], &[2], Broadcast::Sample);
        check(op, &[1, 31, 29, 1], &[1, 1], Broadcast::Scalar);
    }
    // Rows and samples that end within chunks of the CPU and within slices of the GPU; several slices.
    check(Op::Mul, &[2, 97, 89, 5], &[5], Broadcast::Channel);
    check(Op::Mul, &[3, 97, 41, 20], &[3, 20], Broadcast::SampleChannel);
    check(Op::Mul, &[3, 97, 89, 3], &[3, 1], Broadcast::Sample);
    check(Op::Mul, &[2, 3, CHUNK + 1], &[2, CHUNK + 1], Broadcast::SampleChannel);
}

#[test]
fn ambiguous_shapes() {
    let of = |a: &[usize], b: &[usize]| Broadcast::of(&a.into(), &b.into());
    assert_eq!(of(&[4, 5, 5, 4], &[4]), Some(Broadcast::Channel));
    assert_eq!(of(&[4, 5, 5, 4], &[4, 1]), Some(Broadcast::Sample));
    assert_eq!(of(&[4, 5, 5, 6], &[4]), Some(Broadcast::Sample));
    assert_eq!(of(&[4, 5, 5, 6], &[4, 1, 1, 6]), Some(Broadcast::SampleChannel));
    assert_eq!(of(&[4, 6], &[4, 6]), Some(Broadcast::Same));
    assert_eq!(of(&[4, 5, 6], &[5, 6]), None);
    assert_eq!(of(&[4, 5, 6], &[5]), None);
    assert_eq!(of(&[4], &[4, 4]), None);
}

#[test]
fn a_tensor_with_itself() {
    Check::new("x * x").input(&[3, 5]).run(|x| mul(&x[0], &x[0]), |x| x[0].iter().map(|x| x * x).collect());
    Check::new("x + x").input(&[3, 5]).run(|x| add(&x[0], &x[0]), |x| x[0].iter().map(|x| x + x).collect());
}

#[test]
fn scale_and_shift() {
    for n in [1, 1021, CHUNK + 1] {
        Check::new("affine")
            .input(&[n])
            .run(|x| affine(&x[0], -1.5, 0.25), |x| x[0].iter().map(|x| -1.5 * x + 0.25).collect());
    }
}

#[test]
fn past_65535_workgroups() {
    // Elementwise, by single elements; then the sums of `mul backward_b`, one workgroup for each sample.
    check(Op::Sub, &[65_536 * 256 + 3], &[1], Broadcast::Scalar);
    check(Op::Mul, &[65_539, 3], &[65_539, 1], Broadcast::Sample);
}

#[test]
#[should_panic(expected = "sub: [2] does not spread over [3, 4]")]
fn wrong_shapes() {
    let tape = crate::tape::Tape::new();
    let (a, b) = (tape.stored("a", 0, [3, 4]), tape.stored("b", 0, [2]));
    sub(&a, &b);
}
