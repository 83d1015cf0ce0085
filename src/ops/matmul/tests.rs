//! Products of every kind against a plain triple loop.

use super::*;
use crate::check::{Check, random};

/// `y[i] = A[i] B[i] + bias` for each item, one sum after the other.
struct Reference {
    batch: usize,
    m: usize,
    n: usize,
    k: usize,
    transpose: Transpose,
}

impl Reference {
    fn of(&self, inputs: &[Vec<f64>]) -> Vec<f64> {
        let Reference { batch, m, n, k, transpose } = *self;
        let (a, b) = (&inputs[0], &inputs[1]);
        let mut y = Vec::new();
        for item in 0..batch {
            for row in 0..m {
                for col in 0..n {
                    let mut sum = inputs.get(2).map_or(0.0, |bias| bias[col]);
                    for i in 0..k {
                        let at_a = if transpose.a { i * m + row } else { row * k + i };
                        let at_b = if transpose.b { col * k + i } else { i * n + col };
                        sum += a[item * m * k + at_a] * b[item * k * n + at_b];
                    }
                    y.push(sum);
                }
            }
        }
        y
    }
}

/// Error of sums grows with their length; 4e-6 holds up to some thousand terms.
fn check(lead: &[usize], [m, n, k]: [usize; 3], transpose: Transpose, bias: bool, probes: usize) {
    let of = |rows, cols, swap: bool| {
        let mut shape = lead.to_vec();
        shape.extend(if swap { [cols, rows] } else { [rows, cols] });
        shape
    };
    let mut check = Check::new(format!("matmul {m} x {n} x {k} {transpose:?}"))
        .probes(probes)
        .input(&of(m, k, transpose.a))
        .input(&of(k, n, transpose.b));
    if bias {
        check = check.input(&[n]);
    }
    let reference = Reference { batch: lead.iter().product(), m, n, k, transpose };
    check.run(|x| matmul(&x[0], &x[1], transpose, x.get(2)), |x| reference.of(x));
}

const ALL: [Transpose; 4] = [
    Transpose::NONE,
    Transpose { a: true, b: false },
    Transpose { a: false, b: true },
    Transpose { a: true, b: true },
];

#[test]
fn every_transpose_of_ragged_and_wide_sizes() {
    for transpose in ALL {
        for sizes in [[1, 1, 1], [5, 3, 7], [8, 12, 4], [65, 68, 12], [7, 64, 8]] {
            check(&[], sizes, transpose, true, 20);
        }
    }
}

#[test]
fn batches() {
    for transpose in ALL {
        check(&[3], [4, 8, 12], transpose, false, 20);
        check(&[2, 3], [5, 2, 9], transpose, true, 20);
    }
}

#[test]
fn one_past_every_tile() {
    check(&[], [257, 65, 33], Transpose::NONE, true, 5);
    check(&[], [31, 516, 36], Transpose::NONE, false, 5);
    check(&[2], [130, 132, 12], Transpose::NONE, true, 5);
    check(&[], [130, 515, 64], Transpose { a: false, b: true }, true, 5);
}

#[test]
fn long_sums_are_cut_into_parts() {
    check(&[], [12, 8, 5001], Transpose { a: true, b: false }, true, 5);
    check(&[], [12, 8, 8192], Transpose { a: true, b: false }, false, 5);
    check(&[2], [5, 3, 2050], Transpose::NONE, true, 5);
    check(&[2], [4, 4, 1028], Transpose { a: false, b: true }, true, 5);
}

#[test]
fn a_shared_matrix_and_its_gradient_over_all_items() {
    for (dims, cin, cout) in [([2, 3, 5], 7, 11), ([2, 9, 13], 8, 12), ([3, 31, 29], 4, 64)] {
        let [n, h, w] = dims;
        let reference = Reference { batch: 1, m: n * h * w, n: cout, k: cin, transpose: Transpose::NONE };
        Check::new("linear")
            .probes(10)
            .input(&[n, h, w, cin])
            .input(&[cin, cout])
            .input(&[cout])
            .run(|x| linear(&x[0], &x[1], Some(&x[2])), |x| reference.of(x));
    }
}

#[test]
fn past_65535_workgroups() {
    let m = 64 * 65_536 + 3;
    // Small whole numbers, so that sums of millions of them are exact.
    let x = random(7, m).into_iter().map(|v| (v * 2.0).round()).collect();
    Check::new("matmul")
        .untuned()
        .probes(2)
        .values(&[m, 1], x)
        .values(&[1, 1], vec![0.5])
        .run(|x| linear(&x[0], &x[1], None), |x| x[0].iter().map(|v| v * x[1][0]).collect());
}

#[test]
#[should_panic(expected = "inner dimensions 3 and 4 differ")]
fn shapes_that_do_not_fit() {
    let tape = crate::tape::Tape::new();
    linear(&tape.stored("x", 0, [2, 3]), &tape.stored("w", 0, [4, 5]), None);
}
