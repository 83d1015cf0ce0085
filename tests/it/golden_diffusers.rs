//! Folders and models of the diffusers library against that library. `tools/reference` makes the files.

use std::cell::RefCell;
use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use denoir::codec::Codec;
use denoir::device::Device;
use denoir::diffusers::config::{self, Model};
use denoir::diffusers::{self, Component};
use denoir::models::unet::unet;
use denoir::models::vae;
use denoir::nn::{self, Params, Scope};
use denoir::program::{Plan, Program, Sharing};
use denoir::recipe::{Recipe, System, params_of};
use denoir::tape::{Tape, Tensor};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command_line::{denoir, fails};
use crate::reference::{Golden, Judge, check_names, devices, flat_parameters, names, relative, to_f32};

/// The folder of the library's own pipeline tests.
fn tiny() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/tiny_ddpm")
}

/// A U-Net with its weights, for one image, at work.
struct Net {
    program: Program,
    out: Tensor,
}

impl Net {
    fn new(component: &Component, device: &Device) -> Net {
        let (tape, params) = (Tape::new(), params_of(&component.recipe));
        let [h, w, c] = component.recipe.diffused();
        let (x, t) = (tape.stored("x", 0, [1, h, w, c]), tape.stored("t", 0, [1]));
        let out = unet(&component.recipe.unet, &Scope::new(&tape, &params), &x, &t, None.into());
        let plan = Plan::new(&tape, &[&out], device);
        let program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();
        nn::write_parameters(&program, &component.weights.f32()).unwrap();
        Net { program, out }
    }

    fn run(&mut self, x: &[f32], t: f32) -> Vec<f32> {
        self.program.write("x", x).unwrap();
        self.program.write("t", &[t]).unwrap();
        self.program.run().unwrap();
        self.program.read(&self.out).unwrap()
    }
}

/// Products of `1 - beta` as the library has them: betas and products rounded to f32, summed up in f64.
fn alpha_bars() -> Vec<f32> {
    let mut product = 1.0_f64;
    let alpha = |i: usize| 1.0_f32 - (1e-4 + (0.02 - 1e-4) * i as f64 / 999.0) as f32;
    (0..1000)
        .map(|i| {
            product *= f64::from(alpha(i));
            product as f32
        })
        .collect()
}

/// An image of two steps, t = 500 and 0, in [0, 1]. `noise`: of the first step, for DDPM; none: DDIM.
fn two_steps(net: &mut Net, x: &[f32], noise: Option<&[f32]>) -> Vec<f32> {
    let bars = alpha_bars();
    let (bar, before) = (bars[500], bars[0]);
    let eps = net.run(x, 500.0);
    let guess = |x: f32, eps: f32, bar: f32| ((x - (1.0 - bar).sqrt() * eps) / bar.sqrt()).clamp(-1.0, 1.0);
    let alpha = bar / before;
    let (of_x0, of_x) =
        (before.sqrt() * (1.0 - alpha) / (1.0 - bar), alpha.sqrt() * (1.0 - before) / (1.0 - bar));
    let sigma = ((1.0 - before) / (1.0 - bar) * (1.0 - alpha)).max(1e-20).sqrt();
    let next: Vec<f32> = (0..x.len())
        .map(|i| {
            let x0 = guess(x[i], eps[i], bar);
            match noise {
                Some(noise) => of_x0 * x0 + of_x * x[i] + sigma * noise[i],
                None => before.sqrt() * x0 + (1.0 - before).sqrt() * eps[i],
            }
        })
        .collect();
    let eps = net.run(&next, 0.0);
    next.iter().zip(&eps).map(|(&x, &eps)| (guess(x, eps, bars[0]) / 2.0 + 0.5).clamp(0.0, 1.0)).collect()
}

/// Published in the library's tests (to more digits than it compares), seed 0: the last channel's lower
/// right corner.
#[test]
fn the_librarys_own_tiny_pipeline() {
    let ddpm = [0.0, 0.999_667_2, 0.003_291_16, 1.0, 0.999_599_1, 1.0, 0.006_090_7, 0.001_150_37, 0.0];
    let ddim = [0.0, 0.9979, 0.0, 0.9999, 0.9986, 0.9991, 7.106e-4, 0.0, 0.0];
    let golden = Golden::named("tiny_ddpm.safetensors");
    let folder = diffusers::open(&tiny()).unwrap();
    assert!(folder.vae.is_none() && folder.remarks.is_empty(), "{:?}", folder.remarks);
    let params = params_of(&folder.model.recipe);
    assert_eq!(params.borrow().count(), 11_767);
    let first = params.borrow().find("conv_in.weight").unwrap().first;
    assert!((folder.model.weights.f32()[first] + 0.001_440_84).abs() <= 1e-8, "conv_in.weight[0]");
    let (x, noise) = (to_f32(&golden.nhwc("noise/x").1), to_f32(&golden.nhwc("noise/step").1));
    for device in devices() {
        let shown = device.describe();
        let tolerance = if matches!(device, Device::Cpu(_)) { 1e-6 } else { 1e-5 };
        let close = |what: &str, got: &[f32], wanted: &[f64], tolerance: f64| {
            assert_eq!(got.len(), wanted.len());
            for (i, (got, wanted)) in got.iter().zip(wanted).enumerate() {
                let err = (f64::from(*got) - wanted).abs();
                assert!(err <= tolerance, "{shown}: {what}[{i}] is {got}, wanted {wanted}"); // false for NaN
            }
        };
        let mut net = Net::new(&folder.model, &device);
        let eps = net.run(&x, 500.0);
        close("eps", &eps, &golden.nhwc("f64/eps").1, tolerance);
        // Computed by another program in f64: [0, 0, 0, :4] and [0, 2, 7, 5:8] in the library's order.
        let channel = |c: usize, y: usize, from: usize, n: usize| -> Vec<f32> {
            (from..from + n).map(|x| eps[(y * 8 + x) * 3 + c]).collect()
        };
        close(
            "eps",
            &channel(0, 0, 0, 4),
            &[0.458_036_40, 0.371_171_06, 0.277_410_98, 0.326_946_63],
            tolerance,
        );
        close("eps", &channel(2, 7, 5, 3), &[-0.521_206_7, -0.535_301_0, -0.333_009_1], tolerance);
        let squares: f64 = eps.iter().map(|&v| f64::from(v).powi(2)).sum();
        assert!((squares - 22.520_834).abs() <= 22.5 * tolerance, "{squares}");
        // The DDIM values are printed to four digits, cut off.
        for (what, noise, published, printed) in
            [("ddpm", Some(&noise[..]), ddpm, tolerance), ("ddim", None, ddim, 1e-4)]
        {
            let image = two_steps(&mut net, &x, noise);
            let chw = &golden.tensors[&format!("f32/{what}")];
            assert_eq!(chw.0, [3, 8, 8]);
            let wanted: Vec<f64> = (0..64 * 3).map(|i| chw.1[i % 3 * 64 + i / 3]).collect();
            close(what, &image, &wanted, tolerance);
            let corner: Vec<f32> = (0..9).map(|i| image[((5 + i / 3) * 8 + 5 + i % 3) * 3 + 2]).collect();
            close(what, &corner, &published, printed);
        }
    }
}

/// A recipe around a configuration of the library.
fn recipe_of(config: &Value) -> Recipe {
    let parsed = config::model(&config.to_string()).unwrap();
    let side = parsed.side.unwrap_or(32);
    match parsed.model {
        Model::UNet(unet) => Recipe { image_size: side, batch_size: 1, unet: *unet, ..Recipe::default() },
        Model::Dit(_) => unreachable!("no configuration here is one of a DiT"),
        Model::Vae(vae, _) => {
            Recipe { system: System::Vae, image_size: side, batch_size: 1, vae, ..Recipe::default() }
        }
    }
}

#[test]
fn names_shapes_and_numbers_of_parameters() {
    let models = names("diffusers_names.json");
    for (model, entry) in &models {
        let recipe = recipe_of(&entry["config"]);
        recipe.validate().unwrap();
        check_names(&models, model, &params_of(&recipe).borrow());
    }
    assert_eq!(models["stable_diffusion_1"]["parameters"], 83_653_863);
    assert_eq!(models["autoencoder_kl"]["parameters"], 563_175);
}

#[test]
fn a_vq_model_both_ways() {
    let golden = Golden::named("vq.safetensors");
    let recipe = recipe_of(&golden.metadata["config"]);
    let params = params_of(&recipe);
    let weights = flat_parameters("vq", &golden, &params.borrow());
    let component = Component { recipe, weights: weights.into() };
    for device in devices() {
        let codec = Codec::of_component(component.clone(), &device).unwrap();
        let encoded =
            codec.encode(&golden.nhwc("in/x").1.iter().map(|&v| v as f32).collect::<Vec<_>>()).unwrap();
        assert_eq!(encoded.log_var, None);
        let (_, h) = golden.nhwc("f64/h");
        let decoded = codec.decode(&to_f32(&h)).unwrap();
        let mut judge = Judge::new("vq", &golden, &device);
        judge.error("h", relative(&encoded.mean, &h), judge.error_of(&["h"]));
        judge.error("out", relative(&decoded, &golden.nhwc("f64/out").1), judge.error_of(&["out"]));
        judge.verdict();
    }
}

/// What a VAE's encoder gives may be anything; the log-variance is held within bounds, and only there has
/// it a gradient.
#[test]
fn log_variances_are_bounded() {
    let config =
        recipe_of(&json!({ "_class_name": "AutoencoderKL", "norm_num_groups": 2, "block_out_channels": [4],
        "latent_channels": 1, "use_quant_conv": true, "sample_size": 4 }));
    for device in devices() {
        let (tape, params) = (Tape::new(), Rc::new(RefCell::new(Params::default())));
        let state = tape.stored_u32("state", [denoir::state::State::WORDS]);
        let scope = Scope::training(&tape, &params, &state);
        let (mean, log_var) = vae::encode(&config.vae, &scope, &tape.stored("x", 0, [1, 4, 4, 3]));
        let log_var = log_var.unwrap();
        let gradients = tape.backward_from(&log_var, &tape.stored("dy", 0, log_var.shape().clone()));
        nn::place_gradients(&tape, &gradients);
        let plan = Plan::new(&tape, &[&mean, &log_var], &device);
        let mut program = Program::compile(&plan, &device, &[], Sharing::Shared).unwrap();
        let params = params.borrow();
        // All weights are zero, so the last bias is the result.
        let bias = params.find("quant_conv.bias").unwrap().first;
        for (value, wanted, slope) in [(-31.0, -30.0, 0.0), (1.234_567, 1.234_567, 16.0), (20.5, 20.0, 0.0)] {
            let mut flat = vec![0.0_f32; params.elements()];
            flat[bias..bias + 2].fill(value);
            nn::write_parameters(&program, &flat).unwrap();
            program.write("dy", &[1.0_f32; 16]).unwrap();
            program.run().unwrap();
            assert_eq!(program.read(&mean).unwrap(), [value; 16]);
            assert_eq!(program.read(&log_var).unwrap(), [wanted; 16]);
            let gradient = crate::reference::flat_gradients(&program, &params)[bias + 1];
            assert_eq!(gradient, slope, "at {value}");
        }
    }
}

/// Copies a folder.
pub fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// Runs the program, which must succeed, and gives what it says on standard error.
pub fn succeeds(at: &Path, arguments: &[&str]) -> String {
    let output = denoir(at, arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

#[test]
fn a_pipeline_is_sampled_imported_trained_and_exported() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    copy(&tiny(), &at.join("tiny"));
    let sample = |of: &str, out: &str| {
        let options = ["--steps", "2", "--count", "2", "--seed", "3", "--device", "cpu"];
        succeeds(at, &[&["sample", of, "--out", out][..], &options].concat());
        fs::read(at.join(out)).unwrap()
    };
    let from_folder = sample("tiny", "folder.png");
    succeeds(at, &["import", "tiny", "run"]);
    assert!(sample("run", "run.png") == from_folder, "an imported run samples otherwise");
    succeeds(at, &["export", "run", "out"]);
    assert!(sample("out", "out.png") == from_folder, "an exported folder samples otherwise");
    for name in ["unet/config.json", "scheduler/scheduler_config.json", "model_index.json"] {
        let [theirs, ours]: [Value; 2] = ["tiny", "out"].map(|root| {
            serde_json::from_str(&fs::read_to_string(at.join(root).join(name)).unwrap()).unwrap()
        });
        for (key, value) in theirs.as_object().unwrap() {
            let same = &ours[key] == value
                || ours[key].as_f64().is_some() && ours[key].as_f64() == value.as_f64()
                || ["_diffusers_version", "dynamic_thresholding_ratio", "sample_max_value"]
                    .contains(&key.as_str());
            assert!(same, "{name}: {key} is {} and was {value}", ours[key]);
        }
    }
    // The files at the root, as the oldest pipelines have them, and a bare model.
    fs::create_dir(at.join("old")).unwrap();
    for file in ["model_index.json", "unet/config.json", "unet/diffusion_pytorch_model.safetensors"] {
        fs::copy(at.join("tiny").join(file), at.join("old").join(Path::new(file).file_name().unwrap()))
            .unwrap();
    }
    fs::copy(at.join("tiny/scheduler/scheduler_config.json"), at.join("old/scheduler_config.json")).unwrap();
    assert!(sample("old", "old.png") == from_folder, "files at the root");
    assert!(sample("tiny/unet", "bare.png") == from_folder, "a bare model");

    // The generated pictures need 16 pixels, and this model has 8.
    let mut picture = image::RgbImage::new(8, 8);
    fs::create_dir(at.join("pictures")).unwrap();
    for name in ["pictures/a.png", "pictures/b.png"] {
        picture.pixels_mut().for_each(|p| p.0[0] += 99);
        picture.save(at.join(name)).unwrap();
    }
    let set = ["--set", "batch_size=2", "--set", "sample_steps=2", "--set", "sample_count=2"];
    succeeds(at, &[&["import", "tiny", "run2", "--data", "images:pictures"][..], &set].concat());
    succeeds(at, &["train", "--resume", "run2", "--steps", "2", "--device", "cpu"]);
    succeeds(at, &["export", "run2", "trained", "--weights", "model"]);
    assert!(sample("trained", "trained.png") != from_folder, "training changed nothing");
    fails(at, &["import", "tiny", "run"], 1, &["holds a run already"]);
    fails(at, &["export", "run", "out"], 1, &["out is not empty"]);
    fails(at, &["import", "run", "other"], 1, &["no model_index.json"]);
    let set = ["import", "tiny", "other", "--set", "unet.norm_eps=1e-3"];
    fails(at, &set, 2, &["weights are those of the folder's own model"]);
}

/// Embeddings of time and of classes that not every sampler, and no training, can serve.
#[test]
fn folders_that_are_asked_the_wrong_way() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    for name in ["unet_fourier_timestep", "unet_odd"] {
        copy(&crate::place::root().join("tests/golden/folders").join(name), &at.join(name));
    }
    let sample = |of: &'static str, options: &[&'static str]| {
        [&["sample", of, "--device", "cpu", "--count", "2"][..], options].concat()
    };
    let few = ["--sampler", "ddim", "--steps", "3", "--spacing", "trailing"];
    let fourier = "unet_fourier_timestep";
    fails(at, &sample(fourier, &few), 2, &["the model takes a number", "sample with --class N"]);
    fails(at, &sample(fourier, &["--class", "3"]), 2, &["down to timestep 0", "--spacing trailing"]);
    assert!(!at.join("samples.png").exists());
    let of_class = |class: &'static str, out: &'static str| {
        succeeds(at, &[&sample(fourier, &few)[..], &["--class", class, "--out", out]].concat());
        fs::read(at.join(out)).unwrap()
    };
    assert!(of_class("3", "three.png") != of_class("900", "other.png"), "the class changes nothing");
    let rows = "with a row for each timestep from 0 to 69, and the sampler needs 999";
    fails(at, &sample("unet_odd", &few), 2, &[rows]);
    succeeds(at, &["import", fourier, "run"]);
    fails(at, &["train", "--resume", "run", "--device", "cpu"], 2, &["a timestep 0, which has no logarithm"]);
}

#[test]
fn folders_that_cannot_be_used() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    // Changes a JSON file of a copy, and says what sampling from it must answer.
    let with = |file: &str, key: &str, value: Value, wanted: &[&str]| {
        let _ = fs::remove_dir_all(at.join("f"));
        copy(&tiny(), &at.join("f"));
        let path = at.join("f").join(file);
        let mut json: Value = serde_json::from_str(&fs::read_to_string(&path).unwrap()).unwrap();
        json[key] = value;
        fs::write(&path, json.to_string()).unwrap();
        fails(at, &["sample", "f", "--device", "cpu"], 1, wanted);
    };
    let unet = "unet/config.json";
    with(
        unet,
        "down_block_types",
        json!(["DownBlock2D", "KDownBlock2D"]),
        &["down_block_types does not fit", "`KDownBlock2D`, expected", "`DownBlock2D`", "`AttnDownBlock2D`"],
    );
    with(unet, "time_embedding_type", json!("fourier"), &["missing: time_proj.weight"]);
    with(
        unet,
        "time_embedding_type",
        json!("spatial"),
        &["time_embedding_type does not fit", "`spatial`, expected", "`learned`"],
    );
    with(unet, "time_embedding_type", json!("learned"), &["unet.num_train_timesteps is 0"]);
    with(unet, "class_embed_type", json!("timestep"), &["missing: class_embedding.linear_1"]);
    with(unet, "_class_name", json!("UNet2DConditionModel"), &["its unet sees texts, and it has no"]);
    with(unet, "sample_size", Value::Null, &["has no sample_size"]);
    with(unet, "sample_size", json!(1_u64 << 40), &["image_size is 1099511627776"]);
    with(unet, "block_out_channels", json!([1_u64 << 40, 8]), &["widths must be from 1 to 16384"]);
    with(unet, "block_out_channels", json!([16384, 16384]), &["not those of its config.json"]);
    with(unet, "layers_per_block", json!(u64::MAX), &["unet.layers_per_block is 18446744073709551615"]);
    with(unet, "layers_per_block", json!(64), &["missing: ", "more"]);
    with(unet, "num_class_embeds", json!(1 << 20), &["missing: class_embedding.weight"]);
    with(unet, "attention_head_dim", json!(16), &["wider than a level of 8 channels"]);
    with(unet, "block_out_channels", json!([4, 12]), &["of another shape: ", "conv_norm_out"][..1]);
    with(
        "model_index.json",
        "text_encoder",
        json!(["transformers", "CLIPTextModel"]),
        &["there is no folder text_encoder"],
    );
    with("model_index.json", "unet", json!([null, null]), &["it has no unet"]);
    with(
        "model_index.json",
        "unet",
        json!(["os", "system"]),
        &["its unet is a system: denoir has UNet2DModel"],
    );
    with(
        "scheduler/scheduler_config.json",
        "prediction_type",
        json!("flow_prediction"),
        &["scheduler_config.json: prediction_type = \"flow_prediction\"", "denoir knows epsilon"],
    );
    for (key, value, wanted) in [
        ("num_train_timesteps", json!(1_u64 << 50), "num_train_timesteps = 1125899906842624"),
        ("num_train_timesteps", json!(0), "it must be at least 1"),
        ("beta_end", json!(1.5), "beta_end = 1.5"),
        ("beta_schedule", json!("quad"), "beta_schedule = \"quad\""),
        ("trained_betas", json!([0.1, 0.2]), "num_train_timesteps = 1000"),
        ("variance_type", json!("learnt"), "variance_type = \"learnt\""),
        ("rescale_betas_zero_snr", json!(true), "cannot be left by predicting noise"),
        ("steps_offset", json!(2000), "visit timestep 2000"),
        ("beta_shedule", json!("linear"), "no sampler has such a key"),
    ] {
        with("scheduler/scheduler_config.json", key, value, &["scheduler/scheduler_config.json: ", wanted]);
    }
    let index = |class: &str, wanted| {
        with("model_index.json", "scheduler", json!(["diffusers", class]), &[wanted]);
    };
    index("KDPM2DiscreteScheduler", "_class_name is \"KDPM2DiscreteScheduler\"; denoir has DDPMScheduler");
    index("DDIMInverseScheduler", "goes from a picture to its noise");

    // Names, each said once: one gone, one too many, one of another shape.
    let _ = fs::remove_dir_all(at.join("f"));
    copy(&tiny(), &at.join("f"));
    let weights = at.join("f/unet/diffusion_pytorch_model.safetensors");
    let bytes = fs::read(&weights).unwrap();
    let at_name = bytes.windows(14).position(|w| w == b"\"conv_in.bias\"").unwrap();
    let mut renamed = bytes.clone();
    renamed[at_name + 1..at_name + 13].copy_from_slice(b"conv_in.bier");
    fs::write(&weights, renamed).unwrap();
    fails(at, &["sample", "f", "--device", "cpu"], 1, &["missing: conv_in.bias", "left over: conv_in.bier"]);
    fs::write(&weights, &bytes[..bytes.len() - 4]).unwrap();
    fails(at, &["sample", "f", "--device", "cpu"], 1, &["diffusion_pytorch_model.safetensors", "bytes"]);
    fs::remove_file(&weights).unwrap();
    fails(at, &["sample", "f", "--device", "cpu"], 1, &["no diffusion_pytorch_model"]);
    fs::write(at.join("f/unet/diffusion_pytorch_model.bin"), b"\x80\x02cos\nsystem\n.").unwrap();
    fails(at, &["sample", "f", "--device", "cpu"], 1, &["bare pickle"]);
    fs::write(at.join("f/model_index.json"), "[".repeat(10_000)).unwrap();
    fails(at, &["sample", "f", "--device", "cpu"], 1, &["model_index.json"]);
    fs::write(at.join("f/model_index.json"), " ".repeat(2 << 20)).unwrap();
    fails(at, &["sample", "f", "--device", "cpu"], 1, &["2097152 bytes"]);
    assert!(!at.join("samples.png").exists());
}
