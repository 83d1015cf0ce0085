//! The recipe `diffusers-unconditional` against the objects of diffusers' `train_unconditional.py`:
//! `tools/reference/unconditional_golden.py` makes the file.

use denoir::data::{Resize, read_picture};
use denoir::diffusers::config::{Model, text_of};
use denoir::diffusion::Keys;
use denoir::ops::adam::{AdamTensors, adam};
use denoir::ops::grad_norm::grad_norm;
use denoir::program::{Plan, Program, Sharing};
use denoir::recipe::{Optimizer, Recipe, find};
use denoir::state::State;
use denoir::tape::Tape;
use denoir::train::TrainOptions;
use serde_json::Value;
use tempfile::TempDir;

use crate::reference::{Golden, devices, relative};

fn both() -> (Golden, Recipe) {
    (Golden::named("unconditional.safetensors"), find("diffusers-unconditional").unwrap())
}

#[test]
fn every_number_is_the_scripts() {
    let (golden, recipe) = both();
    let theirs = &golden.metadata["arguments"];
    let numbers = [
        ("resolution", recipe.image_size as f64),
        ("train_batch_size", recipe.batch_size as f64),
        ("eval_batch_size", recipe.sample_count as f64),
        ("num_epochs", recipe.epochs as f64),
        ("gradient_accumulation_steps", recipe.accumulation as f64),
        ("learning_rate", recipe.lr),
        ("lr_warmup_steps", recipe.lr_warmup as f64),
        ("adam_beta1", recipe.beta1),
        ("adam_beta2", recipe.beta2),
        ("adam_weight_decay", recipe.weight_decay),
        ("adam_epsilon", recipe.adam_eps),
        ("ema_inv_gamma", recipe.ema_inv_gamma),
        ("ema_power", recipe.ema_power),
        ("ema_max_decay", recipe.ema_decay),
        ("ddpm_num_steps", recipe.timesteps as f64),
        ("ddpm_num_inference_steps", recipe.sample_steps as f64),
        ("checkpointing_steps", recipe.checkpoint_every as f64),
    ];
    for (key, ours) in numbers {
        assert_eq!(theirs[key].as_f64(), Some(ours), "{key}");
    }
    for (key, value) in theirs.as_object().unwrap() {
        let told = numbers.iter().any(|(known, _)| known == key);
        let words =
            [("lr_scheduler", "cosine"), ("ddpm_beta_schedule", "linear"), ("prediction_type", "epsilon")];
        assert!(
            told || words.iter().any(|(k, v)| k == key && value == v),
            "{key} = {value} is not looked at"
        );
    }
    assert_eq!(recipe.optimizer, Optimizer::Adamw);
    assert!(recipe.flip && recipe.ema_warmup && recipe.resize == Resize::Bilinear && recipe.crop == 0);
    let images = golden.metadata["images"].as_u64().unwrap();
    assert_eq!(golden.metadata["steps"], recipe.steps_of_a_pass(images) * recipe.epochs);
    assert_eq!(golden.metadata["steps"], recipe.steps);

    // The network and the process, as they are exported.
    let json = |text: &str| -> Value { serde_json::from_str(text).unwrap() };
    let ours = json(&text_of(&Model::UNet(Box::new(recipe.unet.clone())), recipe.image_size).unwrap());
    for (key, value) in golden.metadata["config"].as_object().unwrap() {
        let same =
            &ours[key] == value || ours[key].as_f64().is_some() && ours[key].as_f64() == value.as_f64();
        assert!(same || key.starts_with('_'), "config.json: {key} is {} and must be {value}", ours[key]);
    }
    let keys = Keys::parse(&golden.metadata["scheduler"].to_string()).unwrap();
    let process = keys.with_class("DDPMScheduler").scheduler().unwrap();
    assert_eq!(recipe.scheduler().unwrap().to_config(), process.to_config());
    assert_eq!(denoir::recipe::params_of(&recipe).borrow().count(), 113_673_219);
}

#[test]
fn learning_rates_and_ema_decays() {
    let (golden, recipe) = both();
    for (step, wanted) in golden.get("lr/step").iter().zip(golden.get("lr/value")) {
        let got = TrainOptions::of(&recipe).lr_at(*step as u64);
        assert!((got - wanted).abs() <= 1e-15, "learning rate of step {step}: {got}, wanted {wanted}");
    }
    for (step, wanted) in golden.get("ema/step").iter().zip(golden.get("ema/decay")) {
        let got = TrainOptions::of(&recipe).ema.decay_at(*step as u64);
        assert!((got - wanted).abs() <= 1e-12, "decay at {step}: {got}, wanted {wanted}");
    }
}

#[test]
fn the_first_updates() {
    let (golden, recipe) = both();
    let options = TrainOptions::of(&recipe);
    let (start, grads) = (golden.f32("in/param"), golden.f32("in/grad"));
    let n = start.len();
    for device in devices() {
        let tape = Tape::new();
        let [p, g, m, v, e] = ["p", "g", "m", "v", "e"].map(|s| tape.stored(s, 0, [n]));
        let state = tape.stored_u32("state", [State::WORDS]);
        let norm = grad_norm(&g);
        let tensors = AdamTensors { params: &p, grads: &g, m: &m, v: &v, ema: &e };
        adam(options.adam(), tensors, &norm, &state);
        tape.place(&norm, "norm", 0);
        let plan = Plan::new(&tape, &[], &device);
        let mut program = Program::compile(&plan, &device, &[], Sharing::Shared).unwrap();
        program.write("p", &start).unwrap();
        program.write("e", &start).unwrap();
        for (step, grads) in grads.chunks_exact(n).enumerate() {
            program.write("state", &options.state_at(step as u64, 0).words()).unwrap();
            program.write("g", grads).unwrap();
            program.run().unwrap();
            for (store, key) in [("norm", "norm"), ("p", "param"), ("m", "m"), ("v", "v"), ("e", "ema")] {
                let all = golden.get(&format!("step/{key}"));
                let width = all.len() / (golden.get("in/grad").len() / n);
                let wanted = &all[step * width..(step + 1) * width];
                let mut got = vec![0.0_f32; width];
                device.read(program.store(store), 0, bytemuck::cast_slice_mut(&mut got)).unwrap();
                let err = relative(&got, wanted);
                let on = device.describe();
                assert!(err <= 1e-6, "on {on}, step {}: {key} off by {err:.1e}", step + 1);
            }
        }
    }
}

/// Pillow rounds to bytes after the rows and again after the columns, this program once: a byte may differ by
/// one, in an enlarged picture one in six does, and the picture as a whole is no lighter or darker.
#[test]
fn pictures_are_torchvisions() {
    let (golden, recipe) = both();
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("picture.png");
    let names: Vec<&String> = golden.tensors.keys().filter(|name| name.starts_with("picture/")).collect();
    assert_eq!(names.len(), 12);
    for given in names.iter().filter(|name| name.ends_with("/in")) {
        let (shape, pixels) = &golden.tensors[*given];
        let bytes: Vec<u8> = pixels.iter().map(|&v| v as u8).collect();
        image::RgbImage::from_raw(shape[1] as u32, shape[0] as u32, bytes).unwrap().save(&path).unwrap();
        let got = read_picture(&path, 16, 3, None, recipe.resize).unwrap();
        let wanted = golden.get(&given.replace("/in", "/out"));
        assert_eq!(got.len(), wanted.len());
        let off: Vec<f64> = got.iter().zip(wanted).map(|(g, w)| (f64::from(*g) + 1.0) * 127.5 - w).collect();
        let worst = off.iter().fold(0.0_f64, |worst, off| worst.max(off.abs()));
        let different = off.iter().filter(|off| off.abs() > 0.5).count();
        let lighter = off.iter().sum::<f64>() / off.len() as f64;
        assert!(
            worst <= 1.001 && different <= off.len() / 4 && lighter.abs() <= 0.1,
            "{given}: {different} of {} bytes differ, by up to {worst} and {lighter} in the mean",
            off.len()
        );
        // The default is another filter, and its pictures are not these.
        let bicubic = read_picture(&path, 16, 3, None, Resize::Bicubic).unwrap();
        assert!(shape[..2] == [16, 16] || bicubic != got, "{given}");
    }
}
