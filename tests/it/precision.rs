//! Tensors of 16 bits between the launches of a GPU, the scale of the loss that they need, and products of
//! bf16 numbers on the CPU device.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use denoir::device::gpu::adapters;
use denoir::device::{Device, Precision};
use denoir::error::Result;
use denoir::nn::{Scope, linear};
use denoir::ops::activation::{Activation, activation};
use denoir::ops::loss::mse;
use denoir::recipe;
use denoir::tape::Tensor;
use denoir::train::{Batch, BatchWriter, DryRun, Input, Outcome, RecipeTrainer, TrainOptions, Trainer};
use safetensors::SafeTensors;
use safetensors::tensor::TensorView;
use tempfile::TempDir;

use crate::reference::devices;
use crate::training::{advance, digits, small};

const X: Input<f32, 2> = Input::new("x", [8, 3]);
const Y: Input<f32, 2> = Input::new("y", [8, 1]);

fn objective(net: &Scope, batch: &Batch) -> Tensor {
    let hidden = activation(&linear(&net.sub("a"), &batch.input(X), 16), Activation::Silu);
    mse(&linear(&net.sub("b"), &hidden, 1), &batch.input(Y), None)
}

fn write(batch: &mut BatchWriter) -> Result<()> {
    let numbers = (0..24).map(|i| ((i as f32 + 1.3 * (batch.step() % 2) as f32) * 0.7).sin());
    let x: Vec<f32> = numbers.collect();
    batch.write(X, &x)?;
    batch.write(Y, &x.chunks(3).map(|x| x[0] * x[1]).collect::<Vec<f32>>())
}

fn run(trainer: &mut Trainer, steps: u64) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = (0..steps).filter_map(|_| trainer.step(write).unwrap()).collect();
    outcomes.extend(std::iter::from_fn(|| trainer.collect().unwrap()));
    outcomes
}

/// Every GPU with tensors of 16 bits: in arrays of f16, where it has them, and packed in words.
pub fn half_devices() -> Vec<Device> {
    let mut all = Vec::new();
    for (adapter, has_f16) in adapters::list().iter().flat_map(|adapter| [(adapter, true), (adapter, false)])
    {
        let mut gpu = adapters::open(Some(&adapter.index.to_string())).unwrap();
        gpu.halves = true;
        if gpu.dialect.f16 || !has_f16 {
            gpu.dialect.f16 = has_f16;
            all.push(Device::Gpu(Arc::new(gpu)));
        }
    }
    assert!(!all.is_empty(), "no GPU here");
    all
}

#[test]
fn packed_in_words_the_numbers_are_the_same() {
    let trained = |device: &Device| {
        let mut trainer = Trainer::new(device, options(), objective).unwrap();
        let losses: Vec<f32> = run(&mut trainer, 20).iter().map(|outcome| outcome.loss).collect();
        (losses, trainer.values().unwrap().sets)
    };
    // Other drivers may fuse and round as they like, and do so differently in two texts.
    let is_software = |device: &&Device| matches!(device, Device::Gpu(gpu) if gpu.is_software());
    let devices = half_devices();
    let devices: Vec<&Device> = devices.iter().filter(is_software).collect();
    let is_native = |device: &Device| matches!(device, Device::Gpu(gpu) if gpu.dialect.f16);
    let Some([native, packed]) = devices.array_windows().find(|[native, _]| is_native(native)) else {
        return eprintln!("no software adapter here has f16: nothing to compare with");
    };
    assert!(trained(native) == trained(packed));
}

fn options() -> TrainOptions {
    TrainOptions { lr: 3e-2, steps: 40, batch_size: 8, ..TrainOptions::default() }
}

/// Sets the exponent of the loss's scale in a checkpoint, less 16.
fn set_scale(path: &Path, exponent: f32) {
    let bytes = std::fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let scaler: Vec<u8> = bytemuck::cast_slice(&[exponent, 0.0_f32, 0.0]).to_vec();
    let tensors = file.tensors().into_iter().map(|(name, view)| match &*name {
        "state.loss_scale" => (name, TensorView::new(view.dtype(), vec![3], &scaler).unwrap()),
        _ => (name, view),
    });
    // Without its sum, as other programs write files.
    let kept = |(key, _): &(&String, &String)| *key == "denoir";
    let metadata = header.metadata().iter().flatten().filter(kept);
    let metadata: HashMap<String, String> = metadata.map(|(k, v)| (k.clone(), v.clone())).collect();
    let tensors: Vec<_> = tensors.collect();
    assert!(tensors.iter().any(|(name, _)| name == "state.loss_scale"));
    std::fs::write(path, safetensors::serialize(tensors, Some(metadata)).unwrap()).unwrap();
}

#[test]
fn a_scale_that_overflows_changes_no_weight_and_is_halved() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("own.safetensors");
    let steps = [[1, 1], [2, 1], [2, 2]];
    for (device, [accumulation, shards]) in half_devices().iter().flat_map(|d| steps.map(|s| (d, s))) {
        let options = || TrainOptions { accumulation, shards: shards as usize, ..options() };
        let new = || Trainer::new(device, options(), objective).unwrap();
        let mut trainer = new();
        let first = run(&mut trainer, 5);
        assert_eq!((first[4].part("loss_scale"), first[4].part("skipped")), (Some(65_536.0), Some(0.0)));
        trainer.save(&path).unwrap();
        set_scale(&path, 24.0);
        trainer.resume(&path).unwrap();
        let before = trainer.values().unwrap().sets;
        let skipped = run(&mut trainer, 1).remove(0);
        assert_eq!(skipped.part("loss_scale"), Some(2.0_f32.powi(40)));
        assert_eq!(skipped.grad_norm, f32::INFINITY);
        let after = trainer.values().unwrap().sets;
        let changed: Vec<(usize, f32)> = before[0]
            .iter()
            .zip(&after[0])
            .enumerate()
            .filter(|(_, (old, new))| old.to_bits() != new.to_bits())
            .map(|(i, (_, new))| (i, *new))
            .collect();
        // The scaler alone lies in the first set: its exponent, and the number of skipped steps.
        assert_eq!(changed.iter().map(|(_, new)| *new).collect::<Vec<_>>(), [23.0, 1.0]);
        assert_eq!(changed[0].0 + 2, changed[1].0);
        assert!(before[1..] == after[1..], "moments or moving average changed");
        // Resumed right after it, the same bytes.
        trainer.save(&path).unwrap();
        let went_on = run(&mut trainer, 30);
        let mut resumed = new();
        resumed.resume(&path).unwrap();
        let timeless = |outcomes: &[Outcome]| -> Vec<Outcome> {
            outcomes.iter().map(|outcome| Outcome { device_ms: None, ..outcome.clone() }).collect()
        };
        assert_eq!(timeless(&run(&mut resumed, 30)), timeless(&went_on));
        assert!(trainer.values().unwrap().sets == resumed.values().unwrap().sets);
        let last = went_on.last().unwrap();
        assert!(last.part("skipped").unwrap() > 5.0 && last.loss < 0.9 * first[1].loss, "{last}");
    }
}

#[test]
fn a_scaled_loss_trains_to_the_same_bytes_where_nothing_overflows() {
    let device = Device::open("cpu").unwrap();
    let trained = |loss_scaling, accumulation| {
        let options = TrainOptions { loss_scaling, accumulation, clip_norm: Some(0.3), ..options() };
        let mut trainer = Trainer::new(&device, options, objective).unwrap();
        let norms: Vec<f32> = run(&mut trainer, 12).iter().map(|outcome| outcome.grad_norm).collect();
        let sets = trainer.values().unwrap().sets;
        let elements = trainer.params().borrow().trained();
        (norms, sets.map(|set| set[..elements].to_vec()))
    };
    for accumulation in [1, 2] {
        assert!(trained(true, accumulation) == trained(false, accumulation), "{accumulation} batches");
    }
}

#[test]
fn a_model_of_denoising_learns_in_16_bits_as_in_32() {
    let mut recipe = small();
    recipe.timesteps = 20;
    let batch = digits(&recipe);
    for half in half_devices() {
        let full = Device::open(&format!("gpu:{}", half.describe())).unwrap();
        let losses = |device: &Device| -> Vec<f32> {
            let mut trainer = RecipeTrainer::new(&recipe, device, None, None).unwrap();
            (0..60).map(|_| advance(&mut trainer, || batch.clone()).loss).collect()
        };
        let (full, half) = (losses(&full), losses(&half));
        let apart = |(full, half): (&f32, &f32)| (full / half - 1.0).abs();
        assert!(apart((&full[0], &half[0])) < 2e-3, "{} and {}", full[0], half[0]);
        assert!(
            full.iter().zip(&half).any(|two| apart(two) > 0.0),
            "the same to the bit: nothing has 16 bits"
        );
        let mean = |losses: &[f32]| losses[40..].iter().sum::<f32>() / 20.0;
        assert!(apart((&mean(&full), &mean(&half))) < 0.02, "{} and {}", mean(&full), mean(&half));
        assert!(mean(&half) < 0.5 * half[0], "{} after {}", mean(&half), half[0]);
    }
}

#[test]
fn tensors_of_16_bits_take_half_the_memory() {
    let mut recipe = recipe::find("celeba64").unwrap();
    // As many as a software driver can bind the tensors of in 32 bits.
    recipe.batch_size = 32;
    for half in half_devices() {
        let full = Device::open(&format!("gpu:{}", half.describe())).unwrap();
        let [full, half] = [&full, &half].map(|device| DryRun::new(&recipe, device, None));
        let ratio = |a: u64, b: u64| a as f64 / b as f64;
        let activations = ratio(half.activation_bytes_shared, full.activation_bytes_shared);
        assert!(activations < 0.56, "{activations}");
        assert_eq!(full.activation_bytes_halved, Some(half.activation_bytes_shared));
        assert_eq!(half.activation_bytes_halved, None);
        let all = |plan: &DryRun| {
            let weights = plan.parameter_bytes + plan.gradient_bytes + plan.optimiser_bytes;
            // Of 64 images.
            weights + 2 * plan.activation_bytes_shared
        };
        assert!(ratio(all(&half), all(&full)) < 0.62, "{}", ratio(all(&half), all(&full)));
    }
}

/// Products of bf16 numbers train nearly as f32 does; where a device has none, one line says so.
#[test]
fn bf16_products_train_nearly_as_f32_does() {
    let mut losses = Vec::new();
    for precision in [Precision::F32, Precision::Bf16] {
        let device = match Device::open("cpu").unwrap().with_precision(precision) {
            Ok(device) => device,
            Err(e) => {
                assert!(e.to_string().contains("has no AVX-512 BF16") && e.exit_code() == 2, "{e}");
                continue;
            }
        };
        assert_eq!(device.precision(), precision);
        let mut trainer = Trainer::new(&device, options(), objective).unwrap();
        losses.push(run(&mut trainer, 40).iter().map(|outcome| outcome.loss).collect::<Vec<_>>());
    }
    if let [exact, rounded] = &losses[..] {
        assert!(exact[39] < 0.2 * exact[0] && exact != rounded, "{exact:?} {rounded:?}");
        for (exact, rounded) in exact.iter().zip(rounded) {
            assert!((exact - rounded).abs() <= 0.02 * exact + 0.02 * losses[0][0], "{exact} and {rounded}");
        }
    }
    for device in devices().into_iter().filter(|device| matches!(device, Device::Gpu(_))) {
        let name = format!("gpu:{}", device.describe());
        let refused = Device::open(&name).unwrap().with_precision(Precision::Bf16).err().unwrap();
        assert!(refused.to_string().contains("a precision of the CPU device"), "{refused}");
    }
}
