//! The truth for normal data: of x_0 ~ N(mu, s2) per dimension every prediction, its least error and the best
//! variance of a reverse step are known in closed form.

use super::*;
use crate::check::devices;
use crate::device::Device;
use crate::diffusion::{Betas, Prediction, Variance};
use crate::ops::concat::concat;
use crate::ops::loss_history::ROW;
use crate::philox::{draw, normal_f64};
use crate::program::{Plan, Program, Sharing};
use crate::recipe::find;
use crate::state::State;
use crate::tape::Tape;

/// Mean and variance of the data.
pub(super) const MU: f64 = 0.1;
pub(super) const S2: f64 = 0.25;

pub(super) const TARGETS: [Prediction; 4] =
    [Prediction::Epsilon, Prediction::Sample, Prediction::V, Prediction::Mean];

/// Variance of x_t.
pub(super) fn of_x_t(at: &NoiseLevel, s2: f64) -> f64 {
    at.signal() * s2 + at.noise()
}

/// `[k0, k1]` of the exact prediction `k0 + k1 x_t`.
pub(super) fn exact(prediction: Prediction, at: &NoiseLevel, [mu, s2]: [f64; 2]) -> [f64; 2] {
    let ([p, q], a, v) = (prediction.target(at), at.signal().sqrt(), of_x_t(at, s2));
    let slope = p * a * s2 / v + q * at.noise().sqrt() / v;
    [p * mu - slope * a * mu, slope]
}

/// The least error of a prediction.
fn floor(prediction: Prediction, at: &NoiseLevel) -> f64 {
    prediction.error_of_x0(at) * S2 * at.noise() / of_x_t(at, S2)
}

/// The variance of the exact reverse step.
pub(super) fn best_variance(at: &NoiseLevel, s2: f64) -> f64 {
    let before = at.log_bar_before.exp() * s2 - at.log_bar_before.exp_m1();
    before * at.beta / of_x_t(at, s2)
}

pub(super) fn data(n: usize, [mu, s2]: [f64; 2]) -> Vec<f32> {
    let z = |n: usize| normal_f64(draw(7, Stream::Generate as u32, 0, n as u32, 0))[0];
    (0..n).map(|n| (mu + s2.sqrt() * z(n)) as f32).collect()
}

pub(super) fn state() -> State {
    State { seed: 11, step: 3, ..State::default() }
}

pub(super) fn recipe(schedule: Betas, timesteps: usize) -> Recipe {
    Recipe { beta_schedule: schedule, timesteps, batch_size: SAMPLES, ..find("digits").unwrap() }
}

pub(super) const SAMPLES: usize = 8192;

/// The exact model in the place of a U-Net.
pub(super) fn model(batch: &Batch, recipe: &Recipe, data: [f64; 2], x: &Tensor, t: &Tensor) -> Tensor {
    let levels = recipe.schedule().levels();
    let of = |which: usize| levels.iter().map(move |at| exact(recipe.prediction_type, at, data)[which]);
    add(&by_t(batch, "k0", of(0), t), &mul(&by_t(batch, "k1", of(1), t), x))
}

/// The loss of a batch and of its samples, with the exact model and, if it is learned, the best variance.
pub(super) fn run(recipe: &Recipe, device: &Device) -> (f64, Vec<f64>) {
    run_by(recipe, device, None)
}

/// The same, with timesteps drawn by a history of losses, to which the batch's own come.
fn run_by(recipe: &Recipe, device: &Device, history: Option<&mut [f32]>) -> (f64, Vec<f64>) {
    let tape = Tape::new();
    let stored = history.as_ref().map(|_| tape.stored("history", 0, [recipe.timesteps, ROW]));
    let batch = Batch::new(&tape, tape.stored_u32("state", [State::WORDS]));
    let x0 = tape.stored("x0", 0, [SAMPLES, 1]);
    let levels = recipe.schedule().levels();
    let loss = diffusion_loss(recipe, &batch, &x0, [stored.as_ref(), None], &|x, t| {
        let mean = model(&batch, recipe, [MU, S2], x, t);
        if !recipe.variance.is_learned() {
            return mean;
        }
        let said = levels.iter().map(|at| said(at, recipe.variance, S2));
        concat(&[&mean, &by_t(&batch, "said", said, t)])
    });
    let [each, _] = loss.samples.unwrap();
    let plan = Plan::new(&tape, &[&loss.total, &each], device);
    let mut program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();
    for (name, values) in batch.into_declared().constants {
        program.write(name, &values).unwrap();
    }
    program.write("state", &state().words()).unwrap();
    program.write("x0", &data(SAMPLES, [MU, S2])).unwrap();
    if let Some(history) = &history {
        program.write("history", history).unwrap();
    }
    program.run().unwrap();
    if let (Some(stored), Some(history)) = (&stored, history) {
        history.copy_from_slice(&program.read(stored).unwrap());
    }
    let each = program.read(&each).unwrap().into_iter().map(f64::from).collect();
    (f64::from(program.read(&loss.total).unwrap()[0]), each)
}

/// What the model must say for the best variance.
fn said(at: &NoiseLevel, variance: Variance, s2: f64) -> f64 {
    let [_, _, middle, half] = at.bound(Prediction::Epsilon, variance).unwrap();
    (best_variance(at, s2).ln() - middle) / half
}

/// However uneven the draws, the expectation stays; and where losses differ, it is found sooner than by even
/// draws.
#[test]
fn draws_by_losses_estimate_the_same_bound() {
    let mut recipe = recipe(Betas::Linear, 100);
    (recipe.variance, recipe.loss) = (Variance::LearnedRange, LossKind::Bound);
    recipe.timestep_sampling = TimestepSampling::LossSecondMoment;
    let levels = recipe.schedule().levels();
    let of = |each: &[f64]| {
        let mean = each.iter().sum::<f64>() / each.len() as f64;
        (mean, each.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / each.len() as f64)
    };
    for (name, device) in devices() {
        let mut history = vec![0.0_f32; levels.len() * ROW];
        // Cold: timesteps are drawn alike.
        let (even, each) = run_by(&recipe, device, Some(&mut history));
        assert!((of(&each).0 / even - 1.0).abs() < 1e-5, "{name}");
        let counts: Vec<f32> = history.chunks(ROW).map(|row| row[ROW - 1]).collect();
        assert!(counts.iter().all(|&count| count >= 10.0), "{name}: of 8192 draws each has ten, {counts:?}");
        let (drawn, more) = run_by(&recipe, device, Some(&mut history));
        // The large ones are drawn more often.
        let squares = |each: &[f64]| each.iter().map(|v| v * v).sum::<f64>();
        assert!(squares(&more) > 1.5 * squares(&each), "{name}: {} and {}", squares(&more), squares(&each));
        let error = (of(&each).1 / SAMPLES as f64).sqrt();
        assert!((drawn - even).abs() < 4.0 * error, "{name}: {drawn} and {even} +- {error}");
    }
}

#[test]
fn floors_and_best_variances_are_the_published_ones() {
    let levels = recipe(Betas::Linear, 1000).schedule().levels();
    let close = |got: f64, wanted: f64, what: &str| {
        assert!((got - wanted).abs() <= 1e-9 * wanted.abs(), "{what}: {got:e}, wanted {wanted:e}");
    };
    for (t, eps, x0, v, variance, v_out) in [
        (1, 0.999_120_948_22, 2.197_629_450_86e-4, 0.999_340_711_165, 1.198_768_103_13e-4, 0.999_087_478_258),
        (
            100,
            0.680_935_995_372,
            0.079_766_001_157_1,
            0.760_701_996_529,
            0.002_083_033_042_78,
            0.524_680_874_546,
        ),
        (999, 1.008_987_982_12e-5, 0.249_997_477_53, 0.250_007_567_41, 0.019_999_987_645, -0.499_984_710_568),
    ] {
        let at = &levels[t];
        for (prediction, wanted) in TARGETS.into_iter().zip([eps, x0, v]) {
            close(floor(prediction, at), wanted, &format!("{prediction:?} at {t}"));
        }
        close(best_variance(at, S2), variance, "variance");
        close(said(at, Variance::LearnedRange, S2), v_out, "v_out");
    }
    let log_variance = |at: &NoiseLevel, v: f64| {
        let [_, _, middle, half] = at.bound(Prediction::V, Variance::LearnedRange).unwrap();
        middle + half * v
    };
    close(log_variance(&levels[500], 0.3), -4.599_492_270_38, "learned range at 500");
    close(log_variance(&levels[0], 0.3), -9.422_575_039_14, "learned range at 0");
    let mean = |recipe: &Recipe| {
        let levels = recipe.schedule().levels();
        let weights = weights(recipe, &levels).unwrap_or_else(|| vec![1.0; levels.len()]);
        let all = levels.iter().zip(weights).map(|(at, w)| w * floor(recipe.prediction_type, at));
        all.sum::<f64>() / levels.len() as f64
    };
    for (betas, prediction_type, loss_weight, wanted) in [
        (Betas::Linear, Prediction::Epsilon, LossWeight::Simple, 0.173_053_406_084),
        (Betas::Cosine, Prediction::Epsilon, LossWeight::Simple, 0.327_653_427_278),
        (Betas::Linear, Prediction::V, LossWeight::Snr, 0.173_053_406_084),
        (Betas::Linear, Prediction::Sample, LossWeight::Simple, 0.206_736_648_479),
        (Betas::Linear, Prediction::V, LossWeight::Simple, 0.379_790_054_563),
        (Betas::Linear, Prediction::Epsilon, LossWeight::P2, 0.034_153_275_771),
        (Betas::Linear, Prediction::Mean, LossWeight::P2, 0.034_153_275_771),
        (Betas::Linear, Prediction::Epsilon, LossWeight::MinSnr, 0.096_940_876_396_5),
        (Betas::Linear, Prediction::Sample, LossWeight::MinSnr, 0.096_940_876_396_5),
        (Betas::Linear, Prediction::V, LossWeight::MinSnr, 0.096_940_876_396_5),
    ] {
        let what = format!("{betas:?} {prediction_type:?} {loss_weight:?}");
        close(mean(&Recipe { prediction_type, loss_weight, ..recipe(betas, 1000) }), wanted, &what);
    }
    // With the best variance the bound is tight: nats of the four terms of a cosine of 4 steps.
    let levels = recipe(Betas::Cosine, 4).schedule().levels();
    let v_outs = [-2.896_896_895_05, 0.087_453_739_878, -0.325_921_467_688, -0.470_009_198_148];
    for (at, wanted) in levels.iter().zip(v_outs) {
        close(said(at, Variance::LearnedRange, S2), wanted, "v_out of the cosine");
    }
}

/// The exact model's loss is what theory says, for every target and weight, on every device; and each part of
/// it at the timesteps that the host says were drawn.
fn check(recipe: &Recipe) {
    check_on(recipe, devices());
}

fn check_on(recipe: &Recipe, devices: &[(String, Device)]) {
    let levels = recipe.schedule().levels();
    let drawing = Drawing::of(recipe, &levels);
    let t: Vec<usize> =
        (0..SAMPLES).map(|n| drawing.draw.of(&state(), n as u32, drawing.sums.as_deref())).collect();
    let weights = weights(recipe, &levels).unwrap_or_else(|| vec![1.0; levels.len()]);
    let with_noise = |at: &NoiseLevel| {
        // The error that noise makes which the model takes for its own.
        let ([_, slope], b) = (exact(recipe.prediction_type, at, [MU, S2]), at.noise().sqrt());
        let offset = recipe.offset_noise * (recipe.prediction_type.target(at)[1] - slope * b);
        offset.powi(2) + (recipe.input_perturbation * slope * b).powi(2)
    };
    let floors: Vec<f64> =
        levels.iter().map(|at| floor(recipe.prediction_type, at) + with_noise(at)).collect();
    for (name, device) in devices {
        let (loss, each) = run(recipe, device);
        let what = format!(
            "{:?} {:?} {:?} on {name}",
            recipe.prediction_type, recipe.loss_weight, recipe.timestep_sampling
        );
        let mean: f64 = each.iter().zip(&t).map(|(e, &t)| weights[t] * e).sum::<f64>() / SAMPLES as f64;
        assert!((loss - mean).abs() <= 2e-5 * mean, "{what}: {loss}, and {mean} by its samples");
        // A squared error is a chi-square variable times its mean.
        let ratio = each.iter().zip(&t).map(|(e, &t)| e / floors[t]).sum::<f64>() / SAMPLES as f64;
        let sigma = (2.0 / SAMPLES as f64).sqrt();
        assert!((ratio - 1.0).abs() <= 4.0 * sigma, "{what}: {ratio} times the floor");
    }
}

#[test]
fn every_target_and_weight_reaches_its_floor() {
    for prediction_type in TARGETS {
        for loss_weight in [
            LossWeight::Simple,
            LossWeight::Snr,
            LossWeight::Variational,
            LossWeight::P2,
            LossWeight::MinSnr,
            LossWeight::SoftMinSnr,
            LossWeight::TruncatedSnr,
            LossWeight::Edm,
        ] {
            // The kernels are the same for all weights.
            let simple = loss_weight == LossWeight::Simple || loss_weight == LossWeight::MinSnr;
            let devices = if simple { devices() } else { &devices()[..1] };
            check_on(&Recipe { prediction_type, loss_weight, ..recipe(Betas::Linear, 1000) }, devices);
        }
    }
    let zero = Recipe { rescale_betas_zero_snr: true, ..recipe(Betas::Linear, 1000) };
    for prediction_type in [Prediction::Sample, Prediction::V] {
        check(&Recipe { prediction_type, loss_weight: LossWeight::Edm, ..zero.clone() });
    }
}

#[test]
fn every_way_to_draw_timesteps() {
    for timestep_sampling in
        [TimestepSampling::Stratified, TimestepSampling::LogNormal, TimestepSampling::LogitNormal]
    {
        let prediction_type = Prediction::V;
        check(&Recipe { timestep_sampling, prediction_type, ..recipe(Betas::Cosine, 1000) });
    }
}

#[test]
fn offset_noise_and_perturbed_inputs() {
    for prediction_type in TARGETS {
        let plain = Recipe { prediction_type, ..recipe(Betas::Linear, 1000) };
        check(&Recipe { offset_noise: 0.7, ..plain.clone() });
        check(&Recipe { input_perturbation: 0.7, ..plain });
    }
}

/// One number for each channel of a sample, which is left where the pixels of one are averaged.
#[test]
fn offset_noise_is_alike_for_the_pixels_of_a_channel() {
    let recipe = Recipe { offset_noise: 2.0, ..recipe(Betas::Linear, 1000) };
    let tape = Tape::new();
    let batch = Batch::new(&tape, tape.stored_u32("state", [State::WORDS]));
    let x0 = tape.stored("x0", 0, [64, 32, 32, 2]);
    let schedule = recipe.schedule();
    let table = schedule.noising_table(recipe.prediction_type);
    let (x_t, target, t) = batch.noised_at(&x0, table, None);
    let (_, target) = with_more_noise(&recipe, &batch, &schedule.levels(), [x_t, target], &t);
    let device = Device::open("cpu").unwrap();
    let plan = Plan::new(&tape, &[&target], &device);
    let mut program = Program::compile(&plan, &device, &[], Sharing::Shared).unwrap();
    for (name, values) in batch.into_declared().constants {
        if plan.stores().any(|(used, _)| used == name) {
            program.write(name, &values).unwrap();
        }
    }
    program.write("state", &state().words()).unwrap();
    program.write("x0", &vec![0.0_f32; 64 * 2048]).unwrap();
    program.run().unwrap();
    let target = program.read(&target).unwrap();
    let mut of_means = 0.0;
    for sample in target.chunks(2048) {
        for channel in 0..2 {
            let mean = sample.iter().skip(channel).step_by(2).map(|&e| f64::from(e)).sum::<f64>() / 1024.0;
            let of = |e: &f32| (f64::from(*e) - mean).powi(2);
            let rest = sample.iter().skip(channel).step_by(2).map(of).sum::<f64>() / 1024.0;
            assert!((rest - 1.0).abs() < 0.25, "{rest}");
            of_means += mean * mean / 128.0;
        }
    }
    assert!((of_means / 4.0 - 1.0).abs() < 4.0 * (2.0_f64 / 128.0).sqrt(), "{of_means}");
}
