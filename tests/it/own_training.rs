//! Training of a program's own objective: the trainer that recipes use, called without one.

use std::path::Path;

use denoir::checkpoint;
use denoir::device::Device;
use denoir::diffusion::Told;
use denoir::error::Result;
use denoir::nn::{Scope, linear};
use denoir::ops::activation::{Activation, activation};
use denoir::ops::loss::mse;
use denoir::recipe::model_of;
use denoir::sample::{Denoiser, Options};
use denoir::tape::Tensor;
use denoir::train::{Batch, BatchWriter, Input, Loss, Outcome, RecipeTrainer, TrainOptions, Trainer};
use tempfile::TempDir;

use crate::reference::devices;
use crate::training::{advance, digits, small};

const X: Input<f32, 2> = Input::new("x", [8, 3]);
const Y: Input<f32, 2> = Input::new("y", [8, 1]);

/// A net of two layers with dropout, and a second number.
fn objective(s: &Scope, batch: &Batch) -> Loss {
    let hidden = activation(&linear(&s.sub("a"), &batch.input(X), 16), Activation::Silu);
    let out = linear(&s.sub("b"), &s.dropout(&hidden, 0.1), 1);
    let error = mse(&out, &batch.input(Y), None);
    Loss::from(error.clone()).with("error", &error)
}

fn options(accumulation: u64) -> TrainOptions {
    TrainOptions { lr: 3e-2, steps: 40, batch_size: 8, accumulation, ..TrainOptions::default() }
}

fn numbers(step: u64, n: usize) -> Vec<f32> {
    (0..n).map(|i| ((i as f32 + 1.3 * step as f32) * 0.7).sin()).collect()
}

fn write(batch: &mut BatchWriter) -> Result<()> {
    let x = numbers(batch.step() % 2, 24);
    batch.write(X, &x)?;
    batch.write(Y, &x.chunks(3).map(|x| x[0] * x[1]).collect::<Vec<f32>>())
}

/// Outcomes of `steps` steps.
fn run(trainer: &mut Trainer, steps: u64) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = (0..steps).filter_map(|_| trainer.step(write).unwrap()).collect();
    outcomes.extend(std::iter::from_fn(|| trainer.collect().unwrap()));
    assert_eq!(outcomes.len() as u64, steps);
    outcomes
}

#[test]
fn an_interrupted_training_goes_on_to_the_same_bytes() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("own.safetensors");
    for (accumulation, device) in devices().into_iter().flat_map(|d| [(1, d.clone()), (2, d)]) {
        let new = || Trainer::new(&device, options(accumulation), objective).unwrap();
        let mut whole = new();
        let first = run(&mut whole, 15);
        whole.save(&path).unwrap();
        let second = run(&mut whole, 25);
        let mean = |all: &[Outcome]| all.iter().map(|o| o.loss).sum::<f32>() / all.len() as f32;
        assert!(mean(&second[15..]) < 0.7 * mean(&first[..2]), "{} {}", first[0], second[24]);
        assert_eq!(first[3].part("error"), Some(first[3].loss));
        let mut resumed = new();
        resumed.resume(&path).unwrap();
        assert_eq!(resumed.done(), 15);
        let again = run(&mut resumed, 25);
        let bits = |all: &[Outcome]| -> Vec<_> {
            all.iter().map(|o| (o.step, o.loss.to_bits(), o.grad_norm.to_bits(), o.lr)).collect()
        };
        assert_eq!(bits(&again), bits(&second), "on {}", device.describe());
        assert!(whole.values().unwrap().sets == resumed.values().unwrap().sets);
    }
}

#[test]
fn a_recipe_is_one_caller() {
    let recipe = small();
    let batch = digits(&recipe);
    let images = Input::<f32, 4>::new("images", [recipe.batch_size, 8, 8, 1]);
    for device in devices() {
        let mut theirs = RecipeTrainer::new(&recipe, &device, None, None).unwrap();
        let (model, schedule) = (model_of(&recipe), recipe.schedule());
        let mut ours = Trainer::new(&device, TrainOptions::of(&recipe), move |s, batch| {
            let (x_t, eps, t) = batch.noised(&batch.input(images), &schedule);
            mse(&model(s, &x_t, &t, None.into()), &eps, None)
        })
        .unwrap();
        for _ in 0..3 {
            ours.step(|writer| writer.write(images, &batch.images)).unwrap();
            advance(&mut theirs, || batch.clone());
        }
        assert!(ours.values().unwrap().sets == theirs.values().unwrap().sets, "on {}", device.describe());
        // And so are its samples, without a word on U-Nets.
        let options = Options { steps: 3, ..Options::of(&recipe).unwrap() };
        let model = model_of(&recipe);
        let drawn = ours.denoiser(&*model, [8, 8, 1]).draw(&options, 2).unwrap();
        assert!(drawn == theirs.source(None).draw(&options, 2, None, || Ok(())).unwrap());
    }
}

#[test]
fn a_checkpoint_without_a_recipe_is_its_programs_alone() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("own.safetensors");
    let cpu = Device::open("cpu").unwrap();
    let mut trainer = Trainer::new(&cpu, options(1), objective).unwrap();
    run(&mut trainer, 1);
    trainer.save(&path).unwrap();
    let says = |result: Result<()>, wanted: &str| {
        let error = result.expect_err(wanted).report();
        assert!(error.contains(wanted), "{error}");
    };
    says(checkpoint::load(&path).map(drop), "holds a model without a recipe");
    let other = |s: &Scope, x: &Tensor, _: &Tensor, _: Told| {
        linear(&s.sub("a"), &x.reshape([1, 3]), 3).reshape([1, 1, 1, 3])
    };
    says(Denoiser::open(&path, &cpu, &other, [1, 1, 3]).map(drop), "is of another model");
    says(trainer.resume(Path::new("nowhere")), "cannot read the checkpoint nowhere");
}

#[test]
fn a_loss_that_diverges_is_named() {
    for device in devices() {
        let mut trainer = Trainer::new(&device, options(1), objective).unwrap();
        let mut step = || {
            trainer.step(|batch| {
                write(batch)?;
                let bad = if batch.step() == 2 { f32::INFINITY } else { 1.0 };
                batch.write(Y, &[bad; 8])
            })?;
            trainer.collect()
        };
        let error = (0..5).find_map(|_| step().err()).expect("the third step diverges").report();
        assert!(error.contains("step 3: the loss became inf; the first bad tensor is"), "{error}");
    }
}

fn trainer() -> Trainer {
    Trainer::new(&Device::open("cpu").unwrap(), options(1), objective).unwrap()
}

#[test]
#[should_panic(expected = "input x [8, 3]: the number of values")]
fn too_few_values_panic() {
    let _ = trainer().step(|batch| batch.write(X, &[1.0; 23]));
}

#[test]
#[should_panic(expected = "step 1: the input y was never written")]
fn a_forgotten_input_panics() {
    let _ = trainer().step(|batch| batch.write(X, &[1.0; 24]));
}

#[test]
#[should_panic(expected = "the objective has no input z [1]")]
fn an_unknown_input_panics() {
    let _ = trainer().step(|batch| batch.write(Input::<f32, 1>::new("z", [1]), &[1.0]));
}

#[test]
#[should_panic(expected = "the objective's loss is [8, 1], not one number")]
fn a_loss_of_many_numbers_panics() {
    let of_many = |s: &Scope, batch: &Batch| linear(s, &batch.input(X), 1);
    let _ = Trainer::new(&Device::open("cpu").unwrap(), options(1), of_many);
}

#[test]
#[should_panic(expected = "the objective asks its scope for no parameter")]
fn nothing_to_train_panics() {
    let of_data = |_: &Scope, batch: &Batch| mse(&batch.input(Y), &batch.input(Y), None);
    let _ = Trainer::new(&Device::open("cpu").unwrap(), options(1), of_data);
}
