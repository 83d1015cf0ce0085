//! Tests of reparameterise: noise drawn and given, what it depends on, and its distribution.

use super::*;
use crate::check::{Check, devices, random};
use crate::device::Device;
use crate::launch::CHUNK;
use crate::ops::reduce::sum;
use crate::philox::{draw, normal_f64};
use crate::program::{Plan, Program, Sharing};
use crate::tape::Tape;

const STATE: State = State {
    seed: 0x0fed_cba9_8765_4321,
    step: 31,
    first_sample: 500,
    lr: 0.0,
    correction1: 0.0,
    correction2: 0.0,
    ema_decay: 0.0,
    row: 3,
    loss_exponent: 0,
};

const SHAPES: [&[usize]; 9] = [
    &[1, 1],
    &[3, 5],
    &[5],
    &[2, 3, 4, 7],
    &[257, 3],
    &[3, 4 * 257],
    &[2, AT_A_TIME + 1],
    &[2, CHUNK + 3],
    &[4, 65, 63],
];

/// The noise of sample `n` of the batch, by the formula.
fn noise(state: &State, n: usize, elements: usize) -> Vec<f64> {
    let sample = state.first_sample + n as u32;
    let block = |e: usize| draw(state.seed, STREAM, state.step, sample, e as u32 / 4);
    (0..elements).map(|e| normal_f64(block(e))[e % 4]).collect()
}

fn exact_noise(state: &State, samples: usize, elements: usize) -> Vec<f64> {
    (0..samples).flat_map(|n| noise(state, n, elements)).collect()
}

fn reference(mean: &[f64], log_var: &[f64], eps: &[f64]) -> Vec<f64> {
    mean.iter().zip(log_var).zip(eps).map(|((m, l), eps)| m + (0.5 * l).exp() * eps).collect()
}

/// From -2 to 2.
fn log_vars(n: usize) -> Vec<f32> {
    random(8, n).into_iter().map(|l| 2.0 * l).collect()
}

#[test]
fn drawn_noise() {
    for shape in SHAPES {
        let n: usize = shape.iter().product();
        let eps = exact_noise(&STATE, shape[0], n / shape[0]);
        Check::new("reparameterise, drawn")
            .probes(8)
            .input(shape)
            .values(shape, log_vars(n))
            .words(&[State::WORDS], STATE.words().to_vec())
            .run(|x| reparameterise(&x[0], &x[1], Noise::Drawn(&x[2])), |x| reference(&x[0], &x[1], &eps));
    }
}

#[test]
fn given_noise() {
    for shape in SHAPES {
        let n: usize = shape.iter().product();
        let eps = exact_noise(&STATE, shape[0], n / shape[0]);
        Check::new("reparameterise, given")
            .probes(8)
            .input(shape)
            .values(shape, log_vars(n))
            .fixed(shape, eps.into_iter().map(|eps| eps as f32).collect())
            .run(|x| reparameterise(&x[0], &x[1], Noise::Given(&x[2])), |x| reference(&x[0], &x[1], &x[2]));
    }
}

/// Each number relative to its own parts: the largest would hide the others.
#[test]
fn log_var_from_minus_30_to_20() {
    let eps = exact_noise(&STATE, 2, 7);
    let given: Vec<f32> = eps.iter().map(|&eps| eps as f32).collect();
    for (name, device) in devices() {
        for l in [-30.0_f32, -10.0, -1.0, 0.0, 1.0, 10.0, 20.0] {
            let deviation = (0.5 * f64::from(l)).exp();
            let mean = deviation as f32;
            for given in [None, Some(&given[..])] {
                let [z, dl] = run(device, [2, 7], &STATE, given, mean, l);
                for (i, eps) in eps.iter().enumerate() {
                    // The noise is right to 1e-6, the exponential of a GPU to (3 + |l|) / 2^23.
                    let error = deviation * (1.5e-6 + eps.abs() * (1e-6 + 1.2e-7 * f64::from(l.abs())));
                    for (what, got, wanted) in [
                        ("z", z[i], f64::from(mean) + deviation * eps),
                        ("dlog_var", dl[i], 0.5 * deviation * eps),
                    ] {
                        assert!(
                            (f64::from(got) - wanted).abs() <= error,
                            "on {name}: {what} at {i} for log_var {l} is {got}, wanted {wanted}"
                        );
                    }
                }
            }
        }
    }
}

#[test]
fn a_gradient_for_one_of_the_two() {
    let eps = exact_noise(&STATE, 2, 3);
    let words = STATE.words().to_vec();
    Check::new("reparameterise of a given mean")
        .fixed(&[2, 3], random(1, 6))
        .input(&[2, 3])
        .words(&[State::WORDS], words.clone())
        .run(|x| reparameterise(&x[0], &x[1], Noise::Drawn(&x[2])), |x| reference(&x[0], &x[1], &eps));
    // The sum of it, because the gradient of the mean alone is dz itself, which nothing would have to
    // compute.
    Check::new("sum of reparameterise of a given log_var")
        .input(&[2, 3])
        .fixed(&[2, 3], random(1, 6))
        .words(&[State::WORDS], words)
        .run(
            |x| sum(&reparameterise(&x[0], &x[1], Noise::Drawn(&x[2]))),
            |x| vec![reference(&x[0], &x[1], &eps).iter().sum()],
        );
}

/// `z` of `N(mean, exp(log_var))`, the same for every element, and the gradient of log_var for dz = 1. The
/// noise is `eps`, or drawn.
fn run(
    device: &Device,
    shape: [usize; 2],
    state: &State,
    eps: Option<&[f32]>,
    mean: f32,
    log_var: f32,
) -> [Vec<f32>; 2] {
    let tape = Tape::new();
    let (m, l) = (tape.stored("mean", 0, shape), tape.variable("log_var", 0, shape));
    let (words, given) = (tape.stored_u32("state", [State::WORDS]), tape.stored("eps", 0, shape));
    let z = reparameterise(&m, &l, if eps.is_some() { Noise::Given(&given) } else { Noise::Drawn(&words) });
    let gradients = tape.backward_from(&z, &tape.stored("dz", 0, shape));
    let dl = gradients.get(&l).expect("log_var is differentiable");
    let plan = Plan::new(&tape, &[&z, dl], device);
    let mut program = Program::compile(&plan, device, &[], Sharing::Guarded).expect("compiles");
    let n = shape[0] * shape[1];
    for (store, value) in [("mean", mean), ("log_var", log_var), ("dz", 1.0)] {
        program.write(store, &vec![value; n]).expect("writes");
    }
    match eps {
        Some(eps) => program.write("eps", eps).expect("writes"),
        None => program.write("state", &state.words()).expect("writes"),
    }
    program.run().expect("runs");
    assert!(program.guards_intact().expect("reads"), "wrote outside its tensors");
    [&z, dl].map(|tensor| program.read(tensor).expect("reads"))
}

fn drawn(device: &Device, shape: [usize; 2], state: &State, mean: f32, log_var: f32) -> [Vec<f32>; 2] {
    run(device, shape, state, None, mean, log_var)
}

#[test]
fn a_sample_does_not_depend_on_its_batch() {
    for (name, device) in devices() {
        for elements in [1, 7, 300] {
            let whole = drawn(device, [5, elements], &STATE, 0.5, -1.0);
            let later = State { first_sample: STATE.first_sample + 2, ..STATE };
            let part = drawn(device, [2, elements], &later, 0.5, -1.0);
            for (whole, part) in whole.iter().zip(&part) {
                assert_eq!(whole[2 * elements..4 * elements], part[..], "on {name}");
            }
        }
    }
}

#[test]
fn samples_steps_seeds_and_elements_differ() {
    let others = [
        State { step: STATE.step + 1, ..STATE },
        State { seed: STATE.seed + 1, ..STATE },
        State { seed: STATE.seed + (1 << 32), ..STATE },
    ];
    for (name, device) in devices() {
        let [z, dl] = drawn(device, [3, 101], &STATE, 0.0, 0.0);
        let mut all = z.clone();
        for state in &others {
            all.extend(&drawn(device, [3, 101], state, 0.0, 0.0)[0]);
        }
        let count = all.len();
        all.sort_by(f32::total_cmp);
        all.dedup();
        assert_eq!(all.len(), count, "on {name}: some are equal");
        // The backward pass drew what the forward pass drew.
        assert!(z.iter().zip(&dl).all(|(z, dl)| (0.5 * z - dl).abs() <= 1e-6), "on {name}");
    }
}

#[test]
fn many_draws_have_the_mean_and_variance_asked_for() {
    for (name, device) in devices() {
        let (mean, log_var) = (1.5, (0.25_f32).ln());
        let [z, _] = drawn(device, [7, 40_003], &STATE, mean, log_var);
        let count = z.len() as f64;
        let found = z.iter().map(|&z| f64::from(z)).sum::<f64>() / count;
        let variance = z.iter().map(|&z| (f64::from(z) - found).powi(2)).sum::<f64>() / count;
        // Four standard errors, of deviation 0.5 and of the variance 0.25.
        assert!((found - 1.5).abs() < 4.0 * 0.5 / count.sqrt(), "on {name}: mean {found}");
        let error = 4.0 * 0.25 * (2.0 / count).sqrt();
        assert!((variance - 0.25).abs() < error, "on {name}: variance {variance}");
    }
}

#[test]
fn past_65535_workgroups() {
    // On GPUs alone, and a few samples of it: all of them would take the f64 formula half a minute.
    let samples = 65_536 * 256 + 3; // one block each
    for (name, device) in devices().iter().filter(|(_, device)| matches!(device, Device::Gpu(_))) {
        let [z, dl] = drawn(device, [samples, 1], &STATE, 0.0, 0.0);
        for n in [0, 65_535 * 256 - 1, 65_535 * 256, 65_536 * 256 - 1, samples - 1] {
            let wanted = noise(&STATE, n, 1)[0];
            assert!((f64::from(z[n]) - wanted).abs() <= 2e-6, "on {name}: sample {n} is {}", z[n]);
        }
        assert!(z.iter().zip(&dl).all(|(z, dl)| (0.5 * z - dl).abs() <= 1e-6), "on {name}");
    }
    let n = 65_536 * 256 + 3; // one element each
    Check::new("reparameterise, given")
        .probes(2)
        .values(&[1, n], vec![0.5; n])
        .values(&[1, n], vec![-0.25; n])
        .fixed(&[1, n], random(2, n))
        .run(|x| reparameterise(&x[0], &x[1], Noise::Given(&x[2])), |x| reference(&x[0], &x[1], &x[2]));
}

#[test]
#[should_panic(expected = "reparameterise: expected mean and log_var of one shape [N, ..], got [3, 4]")]
fn shapes_must_agree() {
    let tape = Tape::new();
    let (mean, log_var) = (tape.stored("mean", 0, [3, 4]), tape.stored("log_var", 0, [4, 3]));
    reparameterise(&mean, &log_var, Noise::Given(&mean));
}

#[test]
#[should_panic(expected = "reparameterise: expected eps of the shape of mean [3, 4], got [3, 2]")]
fn given_noise_must_fit() {
    let tape = Tape::new();
    let (mean, eps) = (tape.stored("mean", 0, [3, 4]), tape.stored("eps", 0, [3, 2]));
    reparameterise(&mean, &mean, Noise::Given(&eps));
}

#[test]
#[should_panic(expected = "reparameterise: the state must be 16 u32")]
fn drawing_needs_a_state() {
    let tape = Tape::new();
    let mean = tape.stored("mean", 0, [3, 4]);
    reparameterise(&mean, &mean, Noise::Drawn(&mean));
}
