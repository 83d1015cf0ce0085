//! A whole training step of the `mnist` recipe at batch 16, and one pass of its U-Net as sampling makes it.
//! Images a second.
//!
//! `cargo bench --bench step`; `DENOIR_BENCH_DEVICE=gpu` adds a GPU.

mod common;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use denoir::data::{self, Batch, Split};
use denoir::device::Device;
use denoir::nn::{self, Scope};
use denoir::program::{Plan, Program, Sharing};
use denoir::recipe::{self, Recipe};
use denoir::tape::{Tape, Tensor};
use denoir::train::Trainer;

use common::{devices, numbers, time};

const BATCH: usize = 16;

/// The recipe with its full learning rate from the first step on, so that a few steps show that it learns.
fn recipe() -> Recipe {
    let mut recipe = recipe::find("mnist").expect("a built-in recipe");
    recipe.batch_size = BATCH;
    for assignment in ["lr_warmup=0", "lr_schedule=constant"] {
        recipe.set(assignment).expect("a key of recipes");
    }
    recipe
}

/// Generated digits, so that the benchmark needs no files.
fn batch(recipe: &Recipe) -> Batch {
    let channels = recipe.unet.in_channels;
    let options = data::Options {
        image_size: recipe.image_size,
        channels: Some(channels),
        crop: None,
        seed: 0,
        split: Split::Train,
    };
    let digits = data::open("digits", &options).expect("digits are built in");
    let size = recipe.image_size * recipe.image_size * channels;
    let mut batch = Batch { images: vec![0.0; BATCH * size], labels: Vec::new() };
    for (index, image) in batch.images.chunks_exact_mut(size).enumerate() {
        batch.labels.push(digits.read(index as u64, image).expect("a generated image"));
    }
    batch
}

/// Losses of some more steps on one batch.
fn losses(trainer: &mut Trainer, batch: &Batch, steps: usize) -> Vec<f32> {
    (0..steps).map(|_| trainer.advance(|| Ok(batch.clone())).expect("a step").loss).collect()
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|v| v.to_bits()).collect()
}

/// A trainer whose first steps were right: the loss is finite and falls, another run's losses are the same
/// to the bit, and those of the CPU device are the same but for rounding.
fn learning(recipe: &Recipe, batch: &Batch, device: &Device) -> Trainer {
    const STEPS: usize = 12;
    let on = device.describe();
    let new = |device: &Device| Trainer::new(recipe, device, None, None).expect("the step compiles");
    let mut trainer = new(device);
    let first = losses(&mut trainer, batch, STEPS);
    assert!(first.iter().all(|loss| loss.is_finite()), "{on}: losses {first:?}");
    let last = first[STEPS - 3..].iter().sum::<f32>() / 3.0;
    assert!(last <= 0.8 * first[0], "{on}: the loss does not fall: {first:?}");
    let again = losses(&mut new(device), batch, 3);
    assert_eq!(bits(&again), bits(&first[..3]), "{on}: a second run differs: {again:?} {first:?}");
    if let Device::Gpu(_) = device {
        let on_cpu = losses(&mut new(&Device::open("cpu").expect("the CPU device")), batch, 3);
        for (step, (got, wanted)) in first.iter().zip(&on_cpu).enumerate() {
            let err = (got - wanted).abs() / wanted;
            assert!(err <= 1e-3, "{on}: loss {got} of step {}, {wanted} on the CPU device", step + 1);
        }
    }
    trainer
}

fn train(c: &mut Criterion) {
    let recipe = recipe();
    let batch = batch(&recipe);
    let mut group = c.benchmark_group("training step");
    group.throughput(Throughput::Elements(BATCH as u64)).sample_size(10);
    for (name, device) in devices() {
        let mut ready = None;
        group.bench_function(BenchmarkId::new(format!("mnist batch {BATCH}"), name), |b| {
            let trainer = ready.get_or_insert_with(|| learning(&recipe, &batch, device));
            b.iter_custom(|runs| {
                time(device, runs, || {
                    trainer.advance(|| Ok(batch.clone())).expect("a step");
                })
            });
        });
    }
    group.finish();
}

/// The U-Net with its initial weights, as sampling runs it, and its prediction, after one run.
fn prediction(recipe: &Recipe, device: &Device) -> (Program, Tensor) {
    let trainer = Trainer::new(recipe, device, None, None).expect("the step compiles");
    let source = trainer.source(None);
    let [h, w, channels] = source.image();
    let tape = Tape::new();
    let (x, t) = (tape.stored("x", 0, [BATCH, h, w, channels]), tape.stored("t", 0, [BATCH]));
    let eps = (source.model)(&Scope::new(&tape, source.params), &x, &t, None);
    let plan = Plan::new(&tape, &[&eps], device);
    let bound = [(nn::STORE, source.weights)];
    let mut program = Program::compile(&plan, device, &bound, Sharing::Shared).expect("the program compiles");
    program.write("x", &numbers(1, x.elements())).expect("inputs are written");
    program.write("t", &[500.0_f32; BATCH]).expect("inputs are written");
    program.run().expect("the program runs");
    (program, eps)
}

/// A program whose prediction is finite, the same to the bit when it runs again, and on a GPU that of the
/// CPU device but for rounding.
fn predicting(recipe: &Recipe, device: &Device) -> Program {
    let on = device.describe();
    let read = |(program, eps): &(Program, Tensor)| program.read(eps).expect("results are read");
    let mut ready = prediction(recipe, device);
    let first = read(&ready);
    assert!(first.iter().all(|v| v.is_finite()), "{on}: a prediction that is not finite");
    ready.0.run().expect("the program runs");
    assert!(bits(&read(&ready)) == bits(&first), "{on}: a second run differs");
    if let Device::Gpu(_) = device {
        let wanted = read(&prediction(recipe, &Device::open("cpu").expect("the CPU device")));
        let norm =
            |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let err =
            norm(&mut first.iter().zip(&wanted).map(|(a, b)| a - b)) / norm(&mut wanted.iter().copied());
        assert!(err <= 1e-4, "{on}: off by {err:.1e} from the CPU device");
    }
    ready.0
}

fn sample(c: &mut Criterion) {
    let recipe = recipe();
    let mut group = c.benchmark_group("sampling forward");
    group.throughput(Throughput::Elements(BATCH as u64)).sample_size(10);
    for (name, device) in devices() {
        let mut ready = None;
        group.bench_function(BenchmarkId::new(format!("mnist batch {BATCH}"), name), |b| {
            let program = ready.get_or_insert_with(|| predicting(&recipe, device));
            b.iter_custom(|runs| time(device, runs, || program.run().expect("the program runs")));
        });
    }
    group.finish();
}

criterion_group!(steps, train, sample);
criterion_main!(steps);
