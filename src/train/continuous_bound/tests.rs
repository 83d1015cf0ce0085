//! The bound against plain loops in f64, and the truth for normal data: of x ~ N(0.1, 0.25) the exact model
//! is known, and with it the bound.

use std::cell::RefCell;
use std::rc::Rc;

use super::*;
use crate::check::devices;
use crate::diffusion::TimestepSampling;
use crate::models::gamma::{Gamma, LearnedSchedule};
use crate::nn::{Params, STORE, Scope};
use crate::ops::arithmetic::div;
use crate::ops::noising::tests::noise;
use crate::program::{Plan, Program, Sharing};
use crate::recipe::find;
use crate::state::State;
use crate::tape::Tape;
use crate::train::options::TrainOptions;
use crate::train::trainer::Trainer;

fn recipe(kind: LearnedSchedule, batch_size: usize) -> Recipe {
    let timestep_sampling = TimestepSampling::Stratified;
    Recipe { learned_schedule: kind, timestep_sampling, batch_size, ..find("digits").unwrap() }
}

fn sigmoid(x: f64) -> f64 {
    1.0 / (1.0 + (-x).exp())
}

/// `-ln p(x | z_0)` of a level among 256, which lie 2 / 255 from one another, by its definition.
fn reconstruction_of(level: i32, first: f64) -> f64 {
    let away = |k: i32| f64::from(k - level) * 2.0 / 255.0 * (-0.5 * first).exp();
    let nats = |e: f64| {
        let sum: f64 = (0..256).map(|k| (-away(k) * (e + 0.5 * away(k))).exp()).sum();
        sum.ln() * (-0.5 * e * e).exp() / TAU.sqrt()
    };
    (-900..=900).map(|i| nats(f64::from(i) / 100.0)).sum::<f64>() / 100.0
}

/// Samples, and values of each.
const SHAPE: [usize; 4] = [16, 2, 3, 1];
/// What the model says of the noise for `z`.
const SAYS: f64 = 0.7;

fn state() -> State {
    State { seed: 11, step: 3, ..State::default() }
}

fn levels() -> Vec<i32> {
    (0..SHAPE.iter().product::<usize>() as i32).map(|i| [0, 100, 255, 17 + i][i as usize % 4]).collect()
}

/// The bound of each sample, and what its ends cost, bits per dimension.
fn reference(recipe: &Recipe, params: &Params, flat: &[f32]) -> (Vec<f64>, f64) {
    let curve = Gamma::of(recipe.learned_schedule, recipe.gamma_ends(), params, flat);
    let (n, size) = (SHAPE[0], SHAPE[1..].iter().product::<usize>());
    let x0: Vec<f64> = levels().iter().map(|&k| f64::from(k) / 127.5 - 1.0).collect();
    let drawing = Drawing::of(recipe, &[]);
    let each = |sample: usize| {
        let t = (drawing.draw(&state(), sample as u32) as f64 + 0.5) / drawing.steps() as f64;
        let slope = (curve.at(t + 1e-5) - curve.at(t - 1e-5)) / 2e-5;
        let (a, b) = (sigmoid(-curve.at(t)).sqrt(), sigmoid(curve.at(t)).sqrt());
        let eps = noise(&state(), Stream::Noise, 3, sample, size);
        let errors = eps.iter().zip(&x0[sample * size..]).map(|(e, x)| (e - SAYS * (a * x + b * e)).powi(2));
        0.5 * slope * errors.sum::<f64>() / size as f64 / LN_2
    };
    let [first, last] = [curve.at(0.0), curve.at(1.0)];
    let prior = |x: &f64| 0.5 * (sigmoid(-last) * x * x + sigmoid(last) - sigmoid(last).ln() - 1.0);
    let total = x0.iter().map(prior).sum::<f64>()
        + levels().iter().map(|&level| reconstruction_of(level, first)).sum::<f64>();
    ((0..n).map(each).collect(), total / x0.len() as f64 / LN_2)
}

/// Values, and the gradients of the schedule's parameters: of a scalar that of the bound, of a network that
/// of the mean square of the samples' losses.
#[test]
fn values_and_gradients_are_those_of_plain_loops() {
    for kind in [LearnedSchedule::Scalar, LearnedSchedule::Network] {
        let recipe = recipe(kind, SHAPE[0]);
        let (tape, params) = (Tape::new(), Rc::new(RefCell::new(Params::default())));
        let state_tensor = tape.stored_u32("state", [State::WORDS]);
        let scope = Scope::training(&tape, &params, &state_tensor);
        let batch = Batch::new(&tape, state_tensor);
        let x0 = tape.stored("x0", 0, SHAPE);
        let loss =
            continuous_bound(&recipe, &kind.ask(&scope), &batch, &x0, &|z, _| affine(z, SAYS as f32, 0.0));
        let gradients = tape.backward(&loss.total).of_store(STORE);
        let params = params.borrow();
        // Ends that have moved, units that have grown.
        let mut flat = params.initial(3);
        for spec in params.specs() {
            let values = &mut flat[spec.first..][..spec.shape.elements()];
            match &*spec.name {
                "schedule.start" => values[0] = 0.11,
                "schedule.end" => values[0] = -0.05,
                "schedule.w3" => values.iter_mut().for_each(|w| *w *= 400.0),
                _ => {}
            }
        }
        let (each, ends) = reference(&recipe, &params, &flat);
        let total = each.iter().sum::<f64>() / each.len() as f64 + ends;
        let objective = |flat: &[f32]| {
            let (each, ends) = reference(&recipe, &params, flat);
            match kind {
                LearnedSchedule::Network => each.iter().map(|l| l * l).sum::<f64>() / each.len() as f64,
                _ => each.iter().sum::<f64>() / each.len() as f64 + ends,
            }
        };
        let constants = batch.into_declared().constants;
        let samples = loss.samples.unwrap();
        let read: Vec<&Tensor> = gradients.iter().map(|(_, g)| g).chain([&loss.total, &samples]).collect();
        for (name, device) in devices() {
            let plan = Plan::new(&tape, &read, device);
            let mut program = Program::compile(&plan, device, &[], Sharing::Guarded).unwrap();
            for (name, values) in
                constants.iter().filter(|(name, _)| plan.stores().any(|(used, _)| used == *name))
            {
                program.write(name, values).unwrap();
            }
            program.write("state", &state().words()).unwrap();
            let x: Vec<f32> = levels().iter().map(|&k| (f64::from(k) / 127.5 - 1.0) as f32).collect();
            program.write("x0", &x).unwrap();
            program.write(STORE, &flat[..program.elements(STORE)]).unwrap();
            program.run().unwrap();
            let got = f64::from(program.read(&loss.total).unwrap()[0]);
            assert!((got / total - 1.0).abs() < 1e-5, "{name}, {kind:?}: {got} instead of {total}");
            for (got, wanted) in program.read(&samples).unwrap().into_iter().zip(&each) {
                assert!((f64::from(got) - wanted).abs() < 2e-5 * total, "{name}: {got} instead of {wanted}");
            }
            for (first, gradient) in &gradients {
                let got = program.read(gradient).unwrap();
                let slopes: Vec<f64> = (0..got.len())
                    .map(|i| {
                        let mut moved = flat.clone();
                        let at = |moved: &mut Vec<f32>, by: f32| {
                            moved[first + i] = flat[first + i] + by;
                            (objective(moved), f64::from(moved[first + i]))
                        };
                        let ((above, high), (below, low)) = (at(&mut moved, 0.01), at(&mut moved, -0.01));
                        (above - below) / (high - low)
                    })
                    .collect();
                let scale = slopes.iter().map(|s| s.abs()).fold(1e-3, f64::max);
                for (i, (got, slope)) in got.iter().zip(&slopes).enumerate() {
                    let close = (f64::from(*got) - slope).abs() <= 2e-3 * scale;
                    assert!(close, "{name}, {kind:?}, element {}: {got} instead of {slope}", first + i);
                }
            }
        }
    }
}

/// Section H of the paper has levels 2 / 256 from one another: a little more noise makes up for that.
#[test]
fn what_ends_cost_is_what_is_published() {
    let tape = Tape::new();
    let batch = Batch::new(&tape, tape.stored_u32("state", [State::WORDS]));
    let [x, first, last] = [("x", 2), ("first", 1), ("last", 1)].map(|(name, n)| tape.stored(name, 0, [n]));
    let costs = [prior(&x, &last), reconstruction(&batch, &x, &first)];
    let constants = batch.into_declared().constants;
    for (name, device) in devices() {
        let plan = Plan::new(&tape, &costs.each_ref()[..], device);
        let mut program = Program::compile(&plan, device, &[], Sharing::Guarded).unwrap();
        let first = -13.3 + 2.0 * (256.0_f64 / 255.0).ln();
        for (x, which, wanted) in [
            ([-0.4_f32, 0.6], 0, 8.81319402574e-4 / LN_2),
            ([-1.0, 1.0], 1, 0.005226594015),
            ([-55.0 / 255.0; 2], 1, 0.01045318803),
            ([-1.0, -55.0 / 255.0], 1, 0.007839891023),
        ] {
            for (name, values) in &constants {
                program.write(name, values).unwrap();
            }
            program.write("x", &x).unwrap();
            program.write("first", &[first as f32]).unwrap();
            program.write("last", &[5.0_f32]).unwrap();
            program.run().unwrap();
            let got = f64::from(program.read(&costs[which]).unwrap()[0]);
            assert!((got / wanted - 1.0).abs() < 1e-4, "{name}, {x:?}: {got} instead of {wanted}");
        }
    }
}

const MU: f32 = 0.1;
const S2: f32 = 0.25;

/// The exact noise in `z [N, ..]` of normal data, `b (z - a mu) / (a^2 s2 + b^2)`, at the timestep `time`.
fn exact(recipe: &Recipe, params: &Rc<RefCell<Params>>, z: &Tensor, time: &Tensor) -> Tensor {
    let step = 1.0 / recipe.timesteps as f32;
    let t = affine(time, step, step).reshape([z.dims()[0], 1]);
    let parameters = recipe.learned_schedule.ask(&Scope::frozen(z.tape(), params, STORE));
    let at = gamma(recipe.learned_schedule, recipe.gamma_ends(), &parameters, &t).gamma;
    let [a, b] = [affine(&at, -1.0, 0.0), at].map(|of| activation(&of, Activation::RootSigmoid));
    let variance = add(&affine(&mul(&a, &a), S2, 0.0), &mul(&b, &b));
    mul(&sub(z, &affine(&a, MU, 0.0)), &div(&b, &variance))
}

/// The bound depends on the ends alone; training makes its samples alike.
#[test]
fn training_what_lies_between_the_ends_keeps_the_mean_and_lowers_the_variance() {
    let recipe = recipe(LearnedSchedule::Network, 512);
    let params = Rc::default();
    let (of_step, known) = (recipe.clone(), Rc::clone(&params));
    let record = move |scope: &Scope, batch: &Batch| {
        let z = gaussian([512, 16], Stream::Start, batch.state());
        let x0 = affine(&z, S2.sqrt(), MU);
        let parameters = of_step.learned_schedule.ask(scope);
        continuous_bound(&of_step, &parameters, batch, &x0, &|z, t| exact(&of_step, &known, z, t))
    };
    let options = TrainOptions { lr: 0.02, batch_size: 512, ..TrainOptions::default() };
    let device = &devices()[0].1;
    let mut trainer =
        Trainer::compile(device, options, params, Box::new(record), None, |params| params.initial(1))
            .unwrap();
    let mut run = |steps: usize| {
        let mut all = Vec::new();
        for _ in 0..steps {
            all.extend(trainer.step(|_| Ok(())).unwrap().unwrap().samples);
        }
        let mean = all.iter().map(|&l| f64::from(l)).sum::<f64>() / all.len() as f64;
        (mean, all.iter().map(|&l| (f64::from(l) - mean).powi(2)).sum::<f64>() / all.len() as f64)
    };
    let (before, _, after) = (run(20), run(200), run(20));
    for (mean, variance) in [before, after] {
        assert!((mean / 8.59271277538 - 1.0).abs() < 0.01, "mean {mean}, variance {variance}");
    }
    assert!(after.1 < 0.5 * before.1, "variance {} after {}", after.1, before.1);
}
