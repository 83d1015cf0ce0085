//! A learned variance on normal data: its bound, its training, and sampling by it.

use std::rc::Rc;

use super::tests::{MU, S2, SAMPLES, TARGETS, best_variance, data, exact, model, of_x_t, recipe, run, state};
use super::*;
use crate::check::devices;
use crate::device::Device;
use crate::diffusion::{Betas, Prediction, Scheduler, Told, Variance};
use crate::nn::{Init, Layout, Scope};
use crate::ops::concat::concat;
use crate::sample::{Denoiser, Options};
use crate::tape::Tape;
use crate::train::{Input, TrainOptions, Trainer};

/// Nats of the terms at t = 1, 2 and 3 for the best variance and two fixed ones, by the closed form.
#[test]
fn terms_of_the_bound_have_their_means() {
    let recipe = Recipe {
        variance: Variance::LearnedRange,
        loss: LossKind::Bound,
        batch_size: SAMPLES,
        ..recipe(Betas::Cosine, 4)
    };
    let levels = recipe.schedule().levels();
    let best = |at: &NoiseLevel| {
        let (bt, variance) = (at.posterior_variance, best_variance(at, S2));
        let error = at.posterior_mean()[0].powi(2) * S2 * at.noise() / of_x_t(at, S2);
        0.5 * ((variance / bt).ln() + (bt + error) / variance - 1.0)
    };
    let sum: f64 = levels[1..].iter().map(best).sum();
    assert!((sum - 0.434_396_337_96).abs() < 1e-9, "{sum}");
    let drawing = Drawing::of(&recipe, &levels);
    for prediction_type in TARGETS {
        let recipe = Recipe { prediction_type, ..recipe.clone() };
        for (name, device) in devices() {
            let (loss, each) = run(&recipe, device);
            assert!((each.iter().sum::<f64>() / SAMPLES as f64 - loss).abs() <= 1e-5 * loss);
            for (t, at) in levels.iter().enumerate().skip(1) {
                let of_t = |n: &usize| drawing.draw.of(&state(), *n as u32, None) == t;
                let terms: Vec<f64> = (0..SAMPLES).filter(of_t).map(|n| each[n]).collect();
                let mean = terms.iter().sum::<f64>() / terms.len() as f64 * std::f64::consts::LN_2 / 4.0;
                // Only the squared error varies: chi-square, of this share.
                let share = 0.5 * at.posterior_mean()[0].powi(2) * S2 * at.noise()
                    / of_x_t(at, S2)
                    / best_variance(at, S2);
                let allowed = 4.0 * share * (2.0 / terms.len() as f64).sqrt();
                let wanted = best(at);
                assert!(
                    (mean - wanted).abs() <= allowed + 1e-6,
                    "{prediction_type:?} at {t} on {name}: {mean}, wanted {wanted} to {allowed}"
                );
            }
        }
    }
}

/// A variance for each timestep, trained beside the exact mean, arrives at the best one: by the hybrid loss,
/// whose bound has no say in the mean, and by the bound.
#[test]
fn a_learned_variance_arrives_at_the_best() {
    const X0: Input<f32, 2> = Input::new("x0", [2048, 1]);
    let of_data = [0.0, 0.0225]; // far from the open bins at -1 and 1
    for (variance, loss, prediction_type) in [
        (Variance::LearnedRange, LossKind::Mse, Prediction::Epsilon),
        (Variance::LearnedRange, LossKind::Bound, Prediction::V),
        (Variance::Learned, LossKind::Mse, Prediction::Sample),
    ] {
        let bound_weight = 1.0;
        let recipe = Recipe { variance, loss, prediction_type, bound_weight, ..recipe(Betas::Cosine, 4) };
        let options = TrainOptions {
            lr: 0.3, // far to go where the range is narrow
            steps: 400,
            batch_size: 2048,
            clip_norm: None,
            seed: 5,
            ..TrainOptions::of(&recipe)
        };
        let theirs = recipe.clone();
        let mut trainer = Trainer::new(&Device::open("cpu").unwrap(), options, move |scope, batch| {
            diffusion_loss(&theirs, batch, &batch.input(X0), [None; 2], &|x, t| {
                let mean = model(batch, &theirs, of_data, x, t);
                let table = scope.param("variance", [4, 1], Layout::Plain, Init::Zeros);
                concat(&[&mean, &embedding(&table, t)])
            })
        })
        .unwrap();
        let x0 = data(2048, of_data);
        for _ in 0..400 {
            trainer.step(|batch| batch.write(X0, &x0)).unwrap();
        }
        let got = trainer.values().unwrap().sets[0].clone();
        for (t, (at, got)) in recipe.schedule().levels().iter().zip(got).enumerate() {
            let [_, _, middle, half] = at.bound(prediction_type, variance).unwrap();
            let got = middle + half * f64::from(got);
            let wanted = best_variance(at, of_data[1]).ln();
            assert!((got - wanted).abs() <= 0.15, "{variance:?} {loss:?} at {t}: ln {got}, wanted {wanted}");
        }
    }
}

/// Ancestral sampling with the exact mean and the best variance gives back the data, in ten steps and in
/// fifty; with beta-tilde its deviation would be 0.333 and 0.444.
#[test]
fn sampling_by_a_learned_variance_gives_back_the_data() {
    for (steps, prediction) in [(10, Prediction::Epsilon), (50, Prediction::V)] {
        let mut scheduler = Scheduler::ddpm(1000, [1e-4, 0.02], Variance::LearnedRange, 0.0);
        scheduler.process.prediction = prediction;
        let plan = scheduler.plan(steps).unwrap();
        let levels = scheduler.schedule().levels();
        let mut tables = levels.iter().map(|at| exact(prediction, at, [MU, S2])).collect::<Vec<_>>();
        let mut said = vec![0.0; levels.len()];
        for pair in plan.steps.windows(2) {
            let [at, before] = [&pair[0], &pair[1]].map(|step| levels[step.t as usize]);
            let [middle, half] = pair[0].log_variance.unwrap();
            let beta = 1.0 - at.signal() / before.signal();
            let best = of_x_t(&before, S2) * beta / of_x_t(&at, S2);
            said[pair[0].t as usize] = (best.ln() - middle) / half;
        }
        assert_eq!(plan.steps.last().unwrap().log_variance, None);
        let weights: Vec<f32> =
            tables.drain(..).zip(said).flat_map(|([k0, k1], v)| [k0, k1, v]).map(|k| k as f32).collect();
        let model = |scope: &Scope, x: &Tensor, t: &Tensor, _: Told| {
            let samples = x.dims()[0];
            let rows = embedding(&scope.param("k", [1000, 3], Layout::Plain, Init::Zeros), t);
            let [k0, k1, v] = split(&rows, &[1, 1, 1]).try_into().unwrap();
            let mean = add(&k0, &mul(&k1, &x.reshape([samples, 1])));
            concat(&[&mean, &v]).reshape([samples, 1, 1, 2])
        };
        for (name, device) in devices() {
            let params = Rc::default();
            let tape = Tape::new();
            let (x, t) = (tape.stored("x", 0, [1, 1, 1, 1]), tape.stored("t", 0, [1]));
            model(&Scope::new(&tape, &params), &x, &t, None.into());
            let buffer = device.alloc("params", weights.len() * 4).unwrap();
            device.write(&buffer, 0, bytemuck::cast_slice(&weights)).unwrap();
            let denoiser = Denoiser::new(device.clone(), &model, params, buffer, [1, 1, 1]);
            let options = Options::new(scheduler.clone(), steps, 3);
            let drawn = denoiser.draw(&options, SAMPLES).unwrap();
            let n = SAMPLES as f64;
            let mean = drawn.iter().map(|&x| f64::from(x)).sum::<f64>() / n;
            let square = drawn.iter().map(|&x| (f64::from(x) - mean).powi(2)).sum::<f64>() / n;
            let (deviation, sigma) = (square.sqrt(), 0.5 / n.sqrt());
            assert!((mean - MU).abs() <= 4.0 * sigma, "{steps} on {name}: mean {mean}");
            assert!(
                (deviation - 0.4999).abs() <= 4.0 * sigma / 2.0_f64.sqrt(),
                "{steps} on {name}: {deviation}"
            );
        }
    }
}
