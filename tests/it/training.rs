//! Training as a whole: it learns, it repeats to the byte, it survives, and it stops when it must.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use denoir::data::Batch;
use denoir::device::Device;
use denoir::device::gpu::adapters;
use denoir::recipe::{self, Recipe};
use denoir::sample::Options;
use denoir::train::{DryRun, Examples, Outcome, RecipeTrainer};
use tempfile::TempDir;

use crate::command_line::{TINY, denoir, tiny_run};
use crate::reference::devices;
#[cfg(unix)]
use crate::signals::start_and_wait;

pub fn small() -> Recipe {
    let mut recipe = recipe::find("digits").unwrap();
    for assignment in [
        "image_size=8",
        "batch_size=4",
        "lr=2e-3",
        "lr_schedule=constant",
        "lr_warmup=0",
        "sample_steps=4",
        "unet.block_out_channels=[16,16]",
        "unet.norm_num_groups=4",
        "unet.attention_head_dim=8",
    ] {
        recipe.set(assignment).unwrap();
    }
    recipe
}

pub fn digits(recipe: &Recipe) -> Batch {
    let options = denoir::data::Options {
        image_size: recipe.image_size,
        channels: Some(1),
        crop: None,
        resize: denoir::data::Resize::Bicubic,
        seed: 3,
        split: denoir::data::Split::Train,
    };
    let dataset = denoir::data::open("digits", &options).unwrap();
    let pixels = recipe.image_size * recipe.image_size;
    let samples = (0..recipe.batch_size as u64).collect();
    let mut batch = Batch { images: vec![0.0; recipe.batch_size * pixels], labels: Vec::new(), samples };
    for (i, image) in batch.images.chunks_exact_mut(pixels).enumerate() {
        batch.labels.push(dataset.read(i as u64, image).unwrap());
    }
    batch
}

/// One step to its end.
pub fn advance<B: Into<Examples>>(trainer: &mut RecipeTrainer, mut next: impl FnMut() -> B) -> Outcome {
    let outcome = trainer.step(|| Ok(next())).unwrap();
    let rest = std::iter::from_fn(|| trainer.collect().unwrap());
    outcome.into_iter().chain(rest).last().expect("a step was submitted")
}

#[test]
fn one_batch_is_overfitted() {
    let mut recipe = small();
    recipe.timesteps = 20; // few noise levels, so that the batch can be learnt by heart
    recipe.sample_steps = 4;
    let batch = digits(&recipe);
    let mut trainer = RecipeTrainer::new(&recipe, &Device::open("cpu").unwrap(), None, None).unwrap();
    let mean = |trainer: &mut RecipeTrainer, n: usize| {
        (0..n).map(|_| advance(trainer, || batch.clone()).loss).sum::<f32>() / n as f32
    };
    let first = mean(&mut trainer, 5);
    mean(&mut trainer, 900);
    let last = mean(&mut trainer, 100);
    assert!(first > 0.5, "the loss begins near 1, the variance of the noise: {first}");
    assert!(last < 0.12 * first, "from {first} to {last}");
}

#[test]
fn losses_agree_on_all_devices_over_the_first_steps() {
    for (dropout, accumulation) in [(0.0, 1), (0.3, 2)] {
        let mut recipe = small();
        recipe.unet.dropout = dropout;
        recipe.accumulation = accumulation;
        let batch = digits(&recipe);
        let mut all: Vec<Vec<f32>> = Vec::new();
        for device in devices() {
            let mut trainer = RecipeTrainer::new(&recipe, &device, None, None).unwrap();
            all.push((0..20).map(|_| advance(&mut trainer, || batch.clone()).loss).collect());
        }
        for other in &all[1..] {
            for (step, (a, b)) in all[0].iter().zip(other).enumerate() {
                assert!((a - b).abs() <= 2e-4 * a, "step {}: {a} on the CPU device, {b} on a GPU", step + 1);
            }
        }
    }
}

#[test]
fn a_gpu_that_binds_little_takes_the_same_steps() {
    let mut recipe = small();
    (recipe.image_size, recipe.batch_size) = (32, 8);
    (recipe.unet.dropout, recipe.unet.zero_init) = (0.2, false);
    let batch = digits(&recipe);
    for adapter in adapters::list() {
        let open = |most: u64| {
            let mut gpu = adapters::open(Some(&adapter.index.to_string())).unwrap();
            gpu.use_max_binding(most);
            Device::Gpu(Arc::new(gpu))
        };
        let run = |device: &Device| {
            let mut trainer = RecipeTrainer::new(&recipe, device, None, None).unwrap();
            let options = Options { steps: 2, ..Options::of(&recipe).unwrap() };
            let images = trainer.source(None).draw(&options, 7, None, || Ok(())).unwrap();
            let steps: Vec<Outcome> = (0..3).map(|_| advance(&mut trainer, || batch.clone())).collect();
            (images, steps)
        };
        let device = open(u64::MAX);
        let whole_plan = DryRun::new(&recipe, &device, None);
        // The weights, and the tensors of two images.
        let two = DryRun::new(&Recipe { batch_size: 2, ..recipe.clone() }, &device, None);
        let most = two.largest_binding.max(two.parameter_bytes);
        assert!(whole_plan.largest_binding > most, "{whole_plan:?}");
        let little = open(most);
        let plan = DryRun::new(&recipe, &little, None);
        assert!(plan.largest_binding <= most && plan.launches > 2 * whole_plan.launches, "{plan:?}");
        let (whole, split) = (run(&device), run(&little));
        // Nothing is added up over the samples there.
        assert!(whole.0 == split.0 && split.0.iter().all(|v| v.is_finite()), "images on {}", adapter.name);
        for (a, b) in whole.1.iter().zip(&split.1) {
            let close = |a: f32, b: f32| (a - b).abs() <= 2e-5 * a;
            let close = close(a.loss, b.loss) && close(a.grad_norm, b.grad_norm);
            assert!(close, "{a:?}, in smaller batches {b:?} on {}", adapter.name);
        }
    }
}

#[test]
fn accumulated_batches_are_one_large_batch() {
    let cpu = Device::open("cpu").unwrap();
    let mut large = small();
    large.batch_size = 8;
    let batch = digits(&large);
    let mut split = large.clone();
    (split.batch_size, split.accumulation) = (2, 4);
    let mut a = RecipeTrainer::new(&large, &cpu, None, None).unwrap();
    let mut b = RecipeTrainer::new(&split, &cpu, None, None).unwrap();
    for step in 0..5 {
        let one = advance(&mut a, || batch.clone());
        let mut part = 0;
        let four = advance(&mut b, || {
            let images = batch.images.chunks_exact(128).nth(part).unwrap().to_vec();
            let samples = batch.samples[2 * part..][..2].to_vec();
            part += 1;
            Batch { images, labels: vec![0; 2], samples }
        });
        let close = |x: f32, y: f32| (x - y).abs() <= 1e-4 * x.abs();
        assert!(
            close(one.loss, four.loss) && close(one.grad_norm, four.grad_norm),
            "step {step}: {one:?} {four:?}"
        );
    }
}

#[test]
fn checkpointed_blocks_save_memory_and_change_no_bit() {
    let mut kept = small();
    kept.unet.dropout = 0.2;
    kept.unet.zero_init = false;
    let mut again = kept.clone();
    again.set("checkpoint_blocks=true").unwrap();
    let batch = digits(&kept);
    for device in devices() {
        let run = |recipe: &Recipe| {
            let mut trainer = RecipeTrainer::new(recipe, &device, None, None).unwrap();
            let losses: Vec<f32> = (0..3).map(|_| advance(&mut trainer, || batch.clone()).loss).collect();
            (losses, trainer.values().unwrap().sets)
        };
        assert!(run(&kept) == run(&again), "other bits on {}", device.describe());
        let (a, b) = (DryRun::new(&kept, &device, None), DryRun::new(&again, &device, None));
        assert!(a.repeated < b.repeated && a.launches < b.launches, "{a:?} {b:?}");
        assert_eq!(a.activation_bytes_kept, b.activation_bytes_kept);
    }
    let cpu = Device::open("cpu").unwrap();
    for (name, factor) in [("celeba64", 2.5), ("celeba64-vae", 1.7)] {
        let mut recipe = recipe::find(name).unwrap();
        recipe.checkpoint_blocks = true;
        let plan = DryRun::new(&recipe, &cpu, None);
        let saved = plan.activation_bytes_kept as f64 / plan.activation_bytes_shared as f64;
        assert!(saved > factor, "{name}: only {saved} times less: {plan:?}");
        recipe.checkpoint_blocks = false;
        let plan = DryRun::new(&recipe, &cpu, None);
        let saved = plan.activation_bytes_kept as f64 / plan.activation_bytes_shared as f64;
        assert!(saved > 1.3, "{name}: only {saved} times less without blocks: {plan:?}");
    }
}

#[test]
fn a_sample_does_not_depend_on_its_company() {
    let mut recipe = small();
    // Untrained, a net that starts from zero predicts nothing; and wide layers have long sums.
    recipe.unet.zero_init = false;
    recipe.unet.time_embedding_dim = 1024;
    for device in devices() {
        let trainer = RecipeTrainer::new(&recipe, &device, None, None).unwrap();
        let source = trainer.source(None);
        let options = Options { steps: 6, ..Options::of(&recipe).unwrap() };
        let draw = |count| source.draw(&options, count, None, || Ok(())).unwrap();
        let (one, five, many) = (draw(1), draw(5), draw(67));
        let bits = |v: &[f32]| v.iter().map(|v| v.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(&one), bits(&five[..64]), "1 and 5 on {}", device.describe());
        assert_eq!(bits(&five), bits(&many[..5 * 64]), "5 and 67 on {}", device.describe());
        assert!(one.iter().all(|v| v.is_finite()));
        assert_ne!(bits(&five[..64]), bits(&five[64..128]), "two samples are the same");
    }
}

/// The bytes of the last checkpoint.
fn result(run: &Path, step: u64) -> Vec<u8> {
    fs::read(run.join(format!("checkpoints/step-{step:08}.safetensors"))).unwrap()
}

#[test]
fn the_same_seed_gives_the_same_bytes_and_so_does_a_resumed_run() {
    let folder = TempDir::new().unwrap();
    let (a, b, c) = (folder.path().join("a"), folder.path().join("b"), folder.path().join("c"));
    for at in [&a, &b, &c] {
        fs::create_dir(at).unwrap();
    }
    let extra = ["--set", "unet.dropout=0.2", "--set", "lr_schedule=constant"];
    let (whole, again) = (tiny_run(&a, &extra), tiny_run(&b, &extra));
    assert!(result(&whole, 4) == result(&again, 4), "two runs of one seed differ");
    let sheet = |run: &Path| fs::read(run.join("samples/step-00000004.png")).unwrap();
    assert_eq!(sheet(&whole), sheet(&again));

    // Two steps, then two more.
    let mut arguments = vec!["train", "--out", "run", "--steps", "2"];
    arguments.extend(TINY);
    arguments.extend(extra);
    assert!(denoir(&c, &arguments).status.success());
    let resumed = denoir(&c, &["train", "--resume", "run", "--steps", "4", "--device", "cpu"]);
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    assert!(result(&whole, 4) == result(&c.join("run"), 4), "a resumed run differs");
    let losses = |run: &Path| -> Vec<String> {
        let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
        let parse = |l: &str| serde_json::from_str::<serde_json::Value>(l).unwrap();
        text.lines().map(|l| format!("{} {}", parse(l)["step"], parse(l)["loss"])).collect()
    };
    assert_eq!(losses(&whole), losses(&c.join("run")));
    assert_eq!(losses(&whole).len(), 4);
}

pub fn steps_done(run: &Path) -> u64 {
    denoir::run::Run::open(run).unwrap().checkpoints().unwrap().last().unwrap().0
}

#[cfg(unix)]
#[test]
fn killed_at_any_moment_the_run_goes_on_to_the_same_bytes() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let mut child = start_and_wait(at, "run", "");
    child.kill().unwrap();
    child.wait().unwrap();
    let run = at.join("run");
    let end = (steps_done(&run) + 4).to_string();
    let resumed = denoir(at, &["train", "--resume", "run", "--steps", &end, "--device", "cpu"]);
    assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
    let mut arguments = vec!["train", "--out", "whole", "--steps", &end];
    arguments.extend(TINY);
    arguments.extend(["--set", "lr_schedule=constant"]);
    assert!(denoir(at, &arguments).status.success());
    let end: u64 = end.parse().unwrap();
    assert!(result(&run, end) == result(&at.join("whole"), end), "killed and resumed, the run differs");
}

#[test]
fn a_loss_that_is_no_number_stops_the_run() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let run = tiny_run(at, &[]);
    let kept = result(&run, 4);
    let wild =
        ["--set", "lr=1e20", "--set", "clip_norm=0", "--set", "lr_warmup=0", "--set", "lr_schedule=constant"];
    // lr has an upper bound; within it a few steps are enough to overflow.
    let mut arguments = vec!["train", "--resume", "run", "--steps", "500", "--device", "cpu"];
    arguments.extend(["--set", "lr=999", "--set", "checkpoint_every=1000"]);
    arguments.extend(&wild[2..]);
    let output = denoir(at, &arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(
        text.contains("error: step ") && text.contains("the first bad tensor is the result of "),
        "{text}"
    );
    assert!(result(&run, 4) == kept, "the last good checkpoint is kept");
    assert_eq!(steps_done(&run), 4);
    let refused = denoir(at, &["train", "--resume", "run", "--set", wild[1], "--steps", "9"]);
    assert_eq!(refused.status.code(), Some(2), "a learning rate out of range");
}
