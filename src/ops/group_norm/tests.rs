//! Group norm against plain loops in f64.

use super::*;
use crate::check::{Check, random};
use crate::ops::activation::activation;
use crate::ops::arithmetic::{add, affine};
use crate::ops::concat::concat;
use crate::tape::Tape;

fn reference_activation(kind: Activation, z: f64) -> f64 {
    match kind {
        Activation::Identity => z,
        Activation::Silu => z / (1.0 + (-z).exp()),
        Activation::Relu => z.max(0.0),
        Activation::Gelu => 0.5 * z * (1.0 + libm::erf(z / 2.0_f64.sqrt())),
        Activation::Tanh => z.tanh(),
        Activation::GeluTanh => {
            0.5 * z * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (z + 0.044715 * z.powi(3))).tanh())
        }
        Activation::Sigmoid => 1.0 / (1.0 + (-z).exp()),
        Activation::Exp => z.exp(),
        Activation::RootSigmoid => (1.0 / (1.0 + (-z).exp())).sqrt(),
        Activation::QuickGelu => z / (1.0 + (-1.702 * z).exp()),
    }
}

/// `n` samples of `p` pixels and `c` channels.
fn reference([n, p, c, groups]: [usize; 4], eps: f32, kind: Activation, inputs: &[Vec<f64>]) -> Vec<f64> {
    let (x, gamma, beta) = (&inputs[0], &inputs[1], &inputs[2]);
    let width = c / groups;
    let mut y = vec![0.0; n * p * c];
    for sample in 0..n {
        for group in 0..groups {
            let mut elements = Vec::new();
            for pixel in 0..p {
                for channel in group * width..(group + 1) * width {
                    elements.push(((sample * p + pixel) * c + channel, channel));
                }
            }
            let count = elements.len() as f64;
            let mean = elements.iter().map(|&(at, _)| x[at]).sum::<f64>() / count;
            let var = elements.iter().map(|&(at, _)| (x[at] - mean).powi(2)).sum::<f64>() / count;
            for (at, channel) in elements {
                let xhat = (x[at] - mean) / (var + f64::from(eps)).sqrt();
                y[at] = reference_activation(kind, gamma[channel] * xhat + beta[channel]);
            }
        }
    }
    y
}

/// Runs a check that already holds `x` of this shape, with random `gamma` and `beta`.
fn check(check: Check, shape: &[usize], groups: usize, eps: f32, kind: Activation) {
    let c = shape[shape.len() - 1];
    let p = shape[1..shape.len() - 1].iter().product();
    check.input(&[c]).input(&[c]).run(
        |t| group_norm(&t[0], &t[1], &t[2], groups, eps, kind),
        |v| reference([shape[0], p, c, groups], eps, kind, v),
    );
}

fn name(groups: usize, kind: Activation) -> String {
    format!("group_norm, {groups} groups, {kind:?}")
}

#[test]
fn shapes() {
    let shapes: [(&[usize], usize); 14] = [
        (&[2, 3, 5, 12], 4),    // width 3
        (&[3, 2, 7, 6], 6),     // one channel a group
        (&[2, 5, 3, 7], 1),     // one group, prime
        (&[2, 4, 4, 64], 32),   // width 2
        (&[1, 17, 16, 32], 8),  // one row past a chunk of the CPU twin
        (&[2, 13, 5, 33], 3),   // one past a workgroup's columns, and its rows
        (&[1, 9, 57, 8], 2),    // 513 x 4: one row past a GPU chunk of moments
        (&[2, 1, 1, 514], 2),   // width past a workgroup
        (&[2, 3, 1, 300], 300), // channels past a workgroup's step
        (&[3, 16], 4),          // no pixels
        (&[2, 7, 1], 1),        // one channel
        (&[1, 1025, 2], 2),
        (&[1, 4097, 3], 3),  // chunks of the sums grow from here
        (&[1, 2113, 64], 1), // and those of the moments
    ];
    for (shape, groups) in shapes {
        // Small groups have little gradient left at a small eps: x moves with its own mean and deviation.
        let eps = if shape.len() == 2 { 0.1 } else { 1e-5 };
        let kind = Activation::Silu;
        check(Check::new(name(groups, kind)).probes(20).input(shape), shape, groups, eps, kind);
    }
}

#[test]
fn tiles_of_every_width_and_one_past_them() {
    let shapes: [(&[usize], usize); 12] = [
        (&[2, 3, 3, 32], 32), // one channel a group
        (&[2, 8, 8, 36], 18), // two; a tile with four channels
        (&[3, 65, 4], 1),     // four; one row past a thread's two
        (&[2, 7, 7, 96], 12), // eight
        (&[2, 5, 7, 48], 3),  // sixteen, in a half tile
        (&[2, 5, 7, 64], 2),  // a whole tile
        (&[1, 256, 8], 2),    // as many rows as eight a thread hold
        (&[2, 257, 8], 4),    // one past them
        (&[2, 600, 40], 20),  // three chunks, and a tile with eight channels
        (&[5, 1, 1, 32], 4),  // one row
        (&[2, 513, 64], 32),  // a chunk of one row
        (&[1, 1025, 32], 1),
    ];
    for (shape, groups) in shapes {
        // Of many numbers one is so near zero that a difference meets ReLU's kink.
        let few = shape.iter().product::<usize>() < 300;
        let relu = few.then_some(Activation::Relu);
        for kind in [Activation::Silu, Activation::Identity].into_iter().chain(relu) {
            check(Check::new(name(groups, kind)).probes(20).input(shape), shape, groups, 1e-2, kind);
        }
    }
    let beside: [(&[usize], [usize; 2], usize); 3] =
        [(&[2, 5, 3], [32, 8], 10), (&[2, 9, 30], [64, 96], 20), (&[1, 300], [32, 32], 64)];
    for (outer, widths, groups) in beside {
        let shapes = widths.map(|width| [outer, &[width]].concat());
        let check = Check::new(name(groups, Activation::Silu)).probes(20).input(&shapes[0]).input(&shapes[1]);
        check_parts(check, outer, widths, groups, 1e-2);
    }
}

#[test]
fn one_launch_where_a_tile_has_all_rows_of_its_groups() {
    let norm = |p, c, groups, left| {
        let norm = Norm { n: 2, p, c, groups, left, eps: 1e-5, activation: Activation::Silu };
        forward(norm).dispatches(0).len()
    };
    assert_eq!(norm(256, 64, 32, 64), 1);
    assert_eq!(norm(1, 36, 18, 36), 1); // a tile with four channels
    assert_eq!(norm(49, 64, 32, 32), 2); // one for each input
    assert_eq!(norm(257, 64, 32, 64), 3); // two chunks
    assert_eq!(norm(49, 96, 32, 96), 3); // groups of three channels
    assert_eq!(norm(49, 64, 32, 36), 5); // a tile in both inputs
}

/// `left` and `right` channels of as many pixels side by side.
fn beside([left, right]: [usize; 2], parts: &[Vec<f64>]) -> Vec<f64> {
    let pixels = parts[0].chunks(left).zip(parts[1].chunks(right));
    pixels.flat_map(|(left, right)| [left, right].concat()).collect()
}

/// Runs a check that already holds the two parts `[outer, widths]`, with random `gamma` and `beta`.
fn check_parts(check: Check, outer: &[usize], widths: [usize; 2], groups: usize, eps: f32) {
    let (c, kind) = (widths[0] + widths[1], Activation::Silu);
    let size = [outer[0], outer[1..].iter().product(), c, groups];
    check.input(&[c]).input(&[c]).run(
        |t| group_norm_of(&[&t[0], &t[1]], &t[2], &t[3], groups, eps, kind),
        |v| reference(size, eps, kind, &[beside(widths, v), v[2].clone(), v[3].clone()]),
    );
}

#[test]
fn of_two_side_by_side() {
    let cases: [(&[usize], [usize; 2], usize); 9] = [
        (&[2, 3, 5], [8, 4], 3),      // the border between groups
        (&[3, 2, 7], [5, 7], 4),      // a group in both, neither a multiple of 4
        (&[2, 4, 3], [1, 11], 2),     // most of the straddling group on the right
        (&[2, 4, 3], [11, 1], 2),     // and on the left
        (&[2, 5, 3], [3, 4], 1),      // one group
        (&[1, 9, 57], [3, 5], 2),     // one row past a GPU chunk of moments
        (&[2, 13, 5], [33, 31], 8),   // one channel past a workgroup's columns, and one short
        (&[1, 17, 16], [257, 31], 4), // past a workgroup's step, and past a chunk of the CPU twin
        (&[1, 2113], [40, 24], 1),    // chunks of the moments grow from here
    ];
    for (outer, widths, groups) in cases {
        let shapes = widths.map(|width| [outer, &[width]].concat());
        let check = Check::new(name(groups, Activation::Silu)).probes(20).input(&shapes[0]).input(&shapes[1]);
        check_parts(check, outer, widths, groups, 1e-5);
    }
}

/// The norm of images side by side, and the images, whose gradients come on two ways.
fn beside_its_images(x: &[Tensor], images: usize, groups: usize) -> Tensor {
    let kind = Activation::Silu;
    let images: Vec<Tensor> = x[..images].iter().map(|x| affine(x, 2.0, 0.0)).collect();
    let images: Vec<&Tensor> = images.iter().collect();
    let [gamma, beta] = [&x[images.len()], &x[images.len() + 1]];
    let norm = group_norm_of(&images, gamma, beta, groups, 1e-2, Activation::Identity);
    activation(&add(&norm, &if images.len() == 1 { images[0].clone() } else { concat(&images) }), kind)
}

#[test]
fn its_gradients_are_added_to_others() {
    let cases: [(&[usize], &[usize], usize); 5] = [
        (&[2, 3, 5], &[12], 4),   // no tiles
        (&[2, 9, 8], &[32], 8),   // a tile a sample
        (&[2, 300], &[8], 2),     // two
        (&[2, 5, 4], &[5, 7], 4), // a group in both
        (&[2, 70], &[32, 16], 12),
    ];
    for (outer, widths, groups) in cases {
        let c: usize = widths.iter().sum();
        let shapes: Vec<Vec<usize>> = widths.iter().map(|&width| [outer, &[width]].concat()).collect();
        let check =
            shapes.iter().fold(Check::new("group_norm beside its images"), |check, shape| check.input(shape));
        check.probes(20).input(&[c]).input(&[c]).run(
            |x| beside_its_images(x, widths.len(), groups),
            |v| {
                let doubled = |v: &Vec<f64>| v.iter().map(|v| 2.0 * v).collect::<Vec<f64>>();
                let images: Vec<Vec<f64>> = v[..widths.len()].iter().map(doubled).collect();
                let whole = match widths {
                    [_] => images[0].clone(),
                    _ => beside([widths[0], widths[1]], &images),
                };
                let size = [outer[0], outer[1..].iter().product(), c, groups];
                let inputs = [whole.clone(), v[widths.len()].clone(), v[widths.len() + 1].clone()];
                let norm = reference(size, 1e-2, Activation::Identity, &inputs).into_iter();
                norm.zip(whole).map(|(y, x)| reference_activation(Activation::Silu, x + y)).collect()
            },
        );
        let tape = Tape::new();
        let x: Vec<Tensor> = shapes.iter().map(|shape| tape.variable("x", 0, shape.as_slice())).collect();
        let parameters = [0, 1].map(|i| tape.variable("p", i * c, [c]));
        let y = beside_its_images(&[x, parameters.to_vec()].concat(), widths.len(), groups);
        tape.backward_from(&y, &tape.stored("dy", 0, y.shape().clone()));
        tape.recorded(|all| {
            assert!(all.entries.iter().all(|e| e.recorded.launch().name() != "accumulate"), "{widths:?}")
        });
    }
}

#[test]
fn two_whose_means_are_far_apart() {
    // The group in both has its first element in the left part, far from most that it holds on the right.
    let (outer, widths) = ([2, 7, 9], [7, 9]);
    let values = |salt, mean: f32, width: usize| {
        random(salt, 2 * 7 * 9 * width).into_iter().map(|v| mean + 3.0 * v).collect::<Vec<f32>>()
    };
    let check = Check::new("group_norm, two means")
        .values(&[2, 7, 9, 7], values(0, -900.0, 7))
        .values(&[2, 7, 9, 9], values(1, 1000.0, 9));
    check_parts(check, &outer, widths, 4, 1e-5);
}

#[test]
fn beside_itself() {
    // Two gradients of one tensor.
    let kind = Activation::Identity;
    Check::new("group_norm, x beside x")
        .input(&[2, 5, 3])
        .fixed(&[6], random(1, 6))
        .fixed(&[6], random(2, 6))
        .run(
            |t| group_norm_of(&[&t[0], &t[0]], &t[1], &t[2], 2, 1e-5, kind),
            |v| {
                let x = beside([3, 3], &[v[0].clone(), v[0].clone()]);
                reference([2, 5, 6, 2], 1e-5, kind, &[x, v[1].clone(), v[2].clone()])
            },
        );
}

#[test]
fn activations() {
    let shape = [2, 4, 3, 10];
    for kind in Activation::ALL {
        check(Check::new(name(5, kind)).input(&shape), &shape, 5, 1e-6, kind);
    }
}

#[test]
fn one_element_a_group() {
    // The gradient of x is zero, which leaves nothing to compare rounding with.
    let shape = [3, 1, 1, 5];
    let x = random(0, 15);
    check(Check::new(name(5, Activation::Silu)).fixed(&shape, x), &shape, 5, 1e-5, Activation::Silu);
}

#[test]
fn mean_far_from_zero() {
    // Values and reference share the inputs, rounded to f32. With the mean as an offset from an element
    // nothing more is lost, so that the tolerance is the usual one.
    let shape = [2, 9, 11, 12];
    for (mean, deviation) in [(1000.0, 1.0), (-1e5, 3.0)] {
        let x = random(0, shape.iter().product()).into_iter().map(|v| mean + deviation * v).collect();
        check(
            Check::new(format!("group_norm, mean {mean}")).values(&shape, x),
            &shape,
            4,
            1e-5,
            Activation::Silu,
        );
    }
}

#[test]
fn first_element_far_from_the_mean() {
    // The worst case for the offset: one element, the first, decides the variance.
    let shape = [2, 20, 20, 8];
    let mut x: Vec<f32> = random(0, shape.iter().product()).into_iter().map(|v| 10.0 + 0.01 * v).collect();
    x[0] = -500.0;
    check(Check::new("group_norm, outlier").values(&shape, x), &shape, 2, 1e-5, Activation::Identity);
}

#[test]
fn constant_input_stays_finite() {
    // A variance of zero: y is f(beta). No gradient of x: the reference has no step small enough for it.
    let shape = [2, 3, 3, 4];
    let x = vec![3.0; shape.iter().product()];
    check(Check::new("group_norm, constant").fixed(&shape, x), &shape, 2, 1e-5, Activation::Silu);
}

#[test]
fn past_65535_workgroups() {
    // One workgroup a (sample, group) in the statistics, and one a sample elsewhere.
    let shape = [65_537, 2, 2];
    let size = [65_537, 2, 2, 1];
    let kind = Activation::Identity;
    Check::new("group_norm")
        .probes(2)
        .tolerance(1.6e-5)
        .input(&shape)
        .input(&[2])
        .input(&[2])
        .run(|t| group_norm(&t[0], &t[1], &t[2], 1, 1e-2, kind), |v| reference(size, 1e-2, kind, v));
}

#[test]
#[should_panic(expected = "group_norm: x [2, 3, 12] beside [2, 4, 12]")]
fn pixels_must_agree() {
    let tape = crate::tape::Tape::new();
    let [x, y, g] = [[2, 3, 12].as_slice(), &[2, 4, 12], &[24]].map(|shape| tape.variable("x", 0, shape));
    group_norm_of(&[&x, &y], &g, &g, 2, 1e-5, Activation::Silu);
}

#[test]
#[should_panic(expected = "group_norm: 5 groups do not divide the channels of x [2, 3, 12]")]
fn groups_must_divide() {
    let tape = crate::tape::Tape::new();
    let tensor = |name, shape: &[usize]| tape.variable(name, 0, shape);
    group_norm(
        &tensor("x", &[2, 3, 12]),
        &tensor("g", &[12]),
        &tensor("b", &[12]),
        5,
        1e-5,
        Activation::Silu,
    );
}
