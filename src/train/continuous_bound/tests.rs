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
    (-400..=400).map(|i| nats(f64::from(i) / 50.0)).sum::<f64>() / 50.0
}

/// Samples, and values of each.
const SHAPE: [usize; 4] = [16, 2, 3, 1];
/// What the model says of the noise for `z`.
const SAYS: f64 = 0.7;

fn state() -> State {
    State { seed: 11, step: 3, ..State::default() }
}

/// Levels of the pixels, in turn.
const LEVELS: [i32; 4] = [0, 100, 255, 17];

fn images() -> Vec<f64> {
    let elements = SHAPE.iter().product();
    LEVELS.iter().cycle().take(elements).map(|&level| f64::from(level) / 127.5 - 1.0).collect()
}

/// The bound of each sample, bits per dimension.
fn each_of(recipe: &Recipe, curve: &Gamma) -> Vec<f64> {
    let (n, size) = (SHAPE[0], SHAPE[1..].iter().product::<usize>());
    let (x0, drawing) = (images(), Drawing::of(recipe, &[]));
    let each = |sample: usize| {
        let t = (drawing.draw(&state(), sample as u32) as f64 + 0.5) / drawing.steps() as f64;
        let slope = (curve.at(t + 1e-5) - curve.at(t - 1e-5)) / 2e-5;
        let (a, b) = (sigmoid(-curve.at(t)).sqrt(), sigmoid(curve.at(t)).sqrt());
        let eps = noise(&state(), Stream::Noise, 3, sample, size);
        let errors = eps.iter().zip(&x0[sample * size..]).map(|(e, x)| (e - SAYS * (a * x + b * e)).powi(2));
        0.5 * slope * errors.sum::<f64>() / size as f64 / LN_2
    };
    (0..n).map(each).collect()
}

/// What the ends cost, bits per dimension.
fn ends_of(curve: &Gamma) -> f64 {
    let [first, last] = [curve.at(0.0), curve.at(1.0)];
    let prior = |level: i32| {
        let x = f64::from(level) / 127.5 - 1.0;
        0.5 * (sigmoid(-last) * x * x + sigmoid(last) - sigmoid(last).ln() - 1.0)
    };
    LEVELS.map(|level| prior(level) + reconstruction_of(level, first)).iter().sum::<f64>() / 4.0 / LN_2
}

fn mean_of(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

/// Values, and the gradients of the schedule's parameters: of a scalar that of the bound, of a network that
/// of the mean square of the samples' losses.
#[test]
fn values_and_gradients_are_those_of_plain_loops() {
    for kind in [LearnedSchedule::Scalar, LearnedSchedule::Network] {
        let recipe = recipe(kind, SHAPE[0]);
        let (tape, params) = (Tape::new(), Rc::new(RefCell::new(Params::default())));
        let state_words = tape.stored_u32("state", [State::WORDS]);
        let parameters = kind.ask(&Scope::training(&tape, &params, &state_words));
        let batch = Batch::new(&tape, state_words);
        let x0 = tape.stored("x0", 0, SHAPE);
        let model = |z: &Tensor, _: &Tensor| affine(z, SAYS as f32, 0.0);
        let loss = continuous_bound(&recipe, &parameters, &batch, &x0, &model);
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
        let curve = |flat: &[f32]| Gamma::of(kind, recipe.gamma_ends(), &params, flat);
        let each = each_of(&recipe, &curve(&flat));
        let total = mean_of(&each) + ends_of(&curve(&flat));
        let objective = |flat: &[f32]| match kind {
            LearnedSchedule::Network => {
                mean_of(&each_of(&recipe, &curve(flat)).iter().map(|l| l * l).collect::<Vec<_>>())
            }
            _ => mean_of(&each_of(&recipe, &curve(flat))) + ends_of(&curve(flat)),
        };
        let slope = |i: usize| {
            let moved = [0.001_f32, -0.001].map(|by| {
                let mut flat = flat.clone();
                flat[i] += by;
                (objective(&flat), f64::from(flat[i]))
            });
            (moved[0].0 - moved[1].0) / (moved[0].1 - moved[1].1)
        };
        let slopes: Vec<Vec<f64>> =
            gradients.iter().map(|(first, g)| (*first..first + g.elements()).map(slope).collect()).collect();
        let constants = batch.into_declared().constants;
        let [samples, _] = loss.samples.unwrap();
        let read: Vec<&Tensor> = gradients.iter().map(|(_, g)| g).chain([&loss.total, &samples]).collect();
        for (name, device) in devices() {
            let plan = Plan::new(&tape, &read, device);
            let mut program = Program::compile(&plan, device, &[], Sharing::Guarded).unwrap();
            let is_used = |name: &str| plan.stores().any(|(used, _)| used == name);
            for (name, values) in constants.iter().filter(|(name, _)| is_used(name)) {
                program.write(name, values).unwrap();
            }
            program.write("state", &state().words()).unwrap();
            program.write("x0", &images().iter().map(|&x| x as f32).collect::<Vec<_>>()).unwrap();
            program.write(STORE, &flat[..program.elements(STORE)]).unwrap();
            program.run().unwrap();
            let got = f64::from(program.read(&loss.total).unwrap()[0]);
            assert!((got / total - 1.0).abs() < 1e-5, "{name}, {kind:?}: {got} instead of {total}");
            for (got, wanted) in program.read(&samples).unwrap().into_iter().zip(&each) {
                assert!((f64::from(got) - wanted).abs() < 2e-5 * total, "{name}: {got} instead of {wanted}");
            }
            for ((first, gradient), slopes) in gradients.iter().zip(&slopes) {
                let scale = slopes.iter().map(|s| s.abs()).fold(1e-3, f64::max);
                for (i, (got, slope)) in program.read(gradient).unwrap().iter().zip(slopes).enumerate() {
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
