//! Folders of the diffusers library, read as a user's are, and what PyTorch answers in f64: forward passes of
//! every form of UNet2DModel, AutoencoderKL and VQModel. `tools/reference/folders.py` makes them.

use std::fs;
use std::path::{Path, PathBuf};

use denoir::codec::Codec;
use denoir::device::Device;
use denoir::diffusers::{self, Component};
use denoir::models::unet::{Class, unet};
use denoir::nn::{self, Scope};
use denoir::program::{Plan, Program, Sharing};
use denoir::recipe::{System, params_of};
use denoir::tape::Tape;
use denoir::weights::Weights;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command_line::fails;
use crate::golden_diffusers::{copy, succeeds};
use crate::place::root;
use crate::reference::{Golden, Judge, devices, relative, to_f32};

fn answer_of_unet(component: &Component, golden: &Golden, device: &Device, judge: &mut Judge) {
    let (shape, x) = golden.nhwc("in/x");
    let config = &component.recipe.unet;
    let (tape, params) = (Tape::new(), params_of(&component.recipe));
    let (x_in, t) = (tape.stored("x", 0, shape), tape.stored("t", 0, [shape[0]]));
    let labels = config.class().tensor(&tape, shape[0]);
    let y = unet(config, &Scope::new(&tape, &params), &x_in, &t, labels.as_ref().into());
    let plan = Plan::new(&tape, &[&y], device);
    let mut program = Program::compile(&plan, device, &[], Sharing::Shared).unwrap();
    nn::write_parameters(&program, &component.weights.f32()).unwrap();
    program.write("x", &to_f32(&x)).unwrap();
    program.write("t", &golden.f32("in/t")).unwrap();
    match config.class() {
        Class::None => {}
        Class::Number(_) => {
            let words: Vec<u32> = golden.get("in/labels").iter().map(|&v| v as u32).collect();
            program.write("labels", &words).unwrap();
        }
        Class::Value | Class::Embedding(_) => program.write("labels", &golden.f32("in/labels")).unwrap(),
    }
    program.run().unwrap();
    let err = relative(&program.read(&y).unwrap(), &golden.nhwc("f64/out").1);
    judge.error("out", err, judge.error_of(&["out"]));
}

/// Both halves, each of exact input: the decoder gets the exact means.
fn answer_of_vae(component: &Component, golden: &Golden, device: &Device, judge: &mut Judge) {
    let codec = Codec::of_component(component.clone(), device).unwrap();
    let encoded = codec.encode(&to_f32(&golden.nhwc("in/x").1)).unwrap();
    let mean = golden.nhwc("f64/mean").1;
    let mut results = vec![("mean", encoded.mean), ("out", codec.decode(&to_f32(&mean)).unwrap())];
    results.extend(encoded.log_var.map(|log_var| ("log_var", log_var)));
    assert_eq!(results.len(), 2 + usize::from(golden.tensors.contains_key("f64/log_var")));
    for (what, got) in results {
        let err = relative(&got, &golden.nhwc(&format!("f64/{what}")).1);
        judge.error(what, err, judge.error_of(&[what]));
    }
}

/// Checks every folder in a folder, and says how many those were.
fn check_all(parent: &Path, devices: &[Device]) -> usize {
    let mut folders: Vec<PathBuf> = std::fs::read_dir(parent).unwrap().map(|e| e.unwrap().path()).collect();
    folders.sort();
    for folder in &folders {
        let golden = Golden::read(&folder.join("answer.safetensors"));
        let name = folder.file_name().unwrap().to_string_lossy();
        let opened = diffusers::open(folder).unwrap_or_else(|e| panic!("{name}: {e:?}"));
        // A bare model does not say what its process is.
        let others = opened.remarks.iter().filter(|remark| !remark.contains("has no scheduler_config.json"));
        assert_eq!(others.count(), 0, "{name}: {:?}", opened.remarks);
        for device in devices {
            let mut judge = Judge::new(&name, &golden, device);
            match opened.model.recipe.system {
                System::Vae => answer_of_vae(&opened.model, &golden, device, &mut judge),
                _ => answer_of_unet(&opened.model, &golden, device, &mut judge),
            }
            judge.verdict();
        }
    }
    folders.len()
}

#[test]
fn folders_answer_as_in_f64() {
    let parent = root().join("tests/golden/folders");
    assert!(check_all(&parent, &devices()) >= 5);
}

/// `tools/reference/forms.py` makes them: checkpoints of `train_unconditional.py`, names behind those of
/// wrappers, JSON behind a byte order mark.
#[test]
fn other_forms_of_the_same_weights() {
    let forms = root().join("tests/golden/forms");
    let open = |path: &Path| diffusers::open(path).unwrap_or_else(|e| panic!("{}: {e:?}", path.display()));
    let average = open(&forms.join("checkpoint-3/unet_ema"));
    assert!(average.remarks[0].contains("has no scheduler_config.json"), "{:?}", average.remarks);
    for name in ["checkpoint-3", "compiled", "parallel"] {
        assert!(diffusers::is_folder(&forms.join(name)), "{name}");
        let opened = open(&forms.join(name));
        assert_eq!(opened.model.weights, average.model.weights, "{name}");
        assert_eq!(opened.model.recipe.unet, average.model.recipe.unet, "{name}");
        assert_eq!(opened.remarks.len(), 1, "{name}: {:?}", opened.remarks);
        let said =
            if name == "checkpoint-3" { "there is no ../scheduler" } else { "has no scheduler_config.json" };
        assert!(opened.remarks[0].contains(said), "{name}: {:?}", opened.remarks);
    }
    let last = open(&forms.join("checkpoint-3/unet"));
    assert_ne!(last.model.weights, average.model.weights);

    // Without an average, and beside the pipeline that the script saves at its end.
    let folder = TempDir::new().unwrap();
    let at = folder.path().join("checkpoint-3");
    copy(&forms.join("checkpoint-3"), &at);
    fs::remove_dir_all(at.join("unet_ema")).unwrap();
    let config = json!({ "_class_name": "DDPMScheduler", "prediction_type": "sample" });
    fs::create_dir(folder.path().join("scheduler")).unwrap();
    fs::write(folder.path().join("scheduler/scheduler_config.json"), config.to_string()).unwrap();
    let opened = open(&at);
    assert_eq!(opened.model.weights, last.model.weights);
    assert_eq!(opened.model.recipe.prediction_type, denoir::diffusion::Prediction::Sample);
    assert!(opened.remarks.is_empty(), "{:?}", opened.remarks);
    // A pipeline that lost its index is none of these.
    fs::remove_file(at.join("optimizer.bin")).unwrap();
    assert!(!diffusers::is_folder(&at));
}

#[test]
fn a_file_of_torch_save_before_its_archives() {
    let golden = |name: &str| Weights::open(&root().join("tests/golden").join(name)).unwrap();
    let (old, new) = (golden("torch_save_legacy.bin"), golden("torch_save.bin"));
    assert_eq!(old.shapes().collect::<Vec<_>>(), new.shapes().collect::<Vec<_>>());
    for (name, _) in new.shapes() {
        assert_eq!(old.values(name).unwrap(), new.values(name).unwrap(), "{name}");
    }
}

/// A folder whose scheduler is of another class than the sampler that is asked for, from the command line;
/// the same of the run that is imported from it, and of what that is exported to.
#[test]
fn another_sampler_has_its_own_defaults_everywhere() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let with = |name: &str, config: &Value| {
        let path = at.join(name);
        copy(&root().join("tests/golden/tiny_ddpm"), &path);
        let class = config["_class_name"].as_str().unwrap();
        let index = json!({ "_class_name": "DDPMPipeline", "scheduler": ["diffusers", class],
                            "unet": ["diffusers", "UNet2DModel"] });
        fs::write(path.join("model_index.json"), index.to_string()).unwrap();
        fs::write(path.join("scheduler/scheduler_config.json"), config.to_string()).unwrap();
    };
    let drawn = |of: &str, more: &[&str]| {
        let out = format!("{}-drawn.png", of.replace('/', "-"));
        let base =
            ["sample", of, "--steps", "3", "--count", "1", "--seed", "5", "--device", "cpu", "--out", &out];
        succeeds(at, &[&base[..], more].concat());
        image::open(at.join(out)).unwrap().to_rgb8().into_raw()
    };
    let heun = ["--sampler", "heun"];
    fs::create_dir(at.join("pictures")).unwrap();
    for level in [40, 200] {
        let picture = image::RgbImage::from_pixel(8, 8, image::Rgb([level; 3]));
        picture.save(at.join(format!("pictures/{level}.png"))).unwrap();
    }
    // The class's file as the library saves it by default, and a file that leaves all to the class; beside
    // each what HeunDiscreteScheduler.from_config makes of it (diffusers 0.42.1).
    let saved = json!({ "_class_name": "DPMSolverMultistepScheduler", "_diffusers_version": "0.42.1",
        "algorithm_type": "dpmsolver++", "beta_end": 0.02, "beta_schedule": "linear", "beta_start": 0.0001,
        "dynamic_thresholding_ratio": 0.995, "euler_at_final": false, "final_sigmas_type": "zero",
        "flow_shift": 1.0, "lower_order_final": true, "num_train_timesteps": 1000,
        "prediction_type": "epsilon", "rescale_betas_zero_snr": false, "sample_max_value": 1.0,
        "solver_order": 2, "solver_type": "midpoint", "steps_offset": 0, "thresholding": false,
        "time_shift_type": "exponential", "timestep_spacing": "linspace", "trained_betas": null,
        "use_beta_sigmas": false, "use_dynamic_shifting": false, "use_exponential_sigmas": false,
        "use_flow_sigmas": false, "use_karras_sigmas": false, "use_lu_lambdas": false,
        "variance_type": null });
    let of_saved = json!({ "_class_name": "HeunDiscreteScheduler", "beta_start": 0.0001, "beta_end": 0.02,
        "clip_sample": false, "timestep_spacing": "linspace" });
    let bare = json!({ "_class_name": "DPMSolverMultistepScheduler" });
    let of_bare = json!({ "_class_name": "HeunDiscreteScheduler", "beta_start": 0.00085, "beta_end": 0.012,
        "clip_sample": false, "timestep_spacing": "linspace" });
    for (name, config, wanted) in [("saved", saved, of_saved), ("bare", bare, of_bare)] {
        with(name, &config);
        with("wanted", &wanted);
        let picture = drawn("wanted", &[]);
        assert_eq!(drawn(name, &heun), picture, "{name}");
        let (run, exported) = (format!("{name}-run"), format!("{name}-exported"));
        succeeds(at, &["import", name, &run]);
        assert_eq!(drawn(&run, &heun), picture, "{run}");
        succeeds(at, &["export", &run, &exported]);
        assert_eq!(drawn(&exported, &heun), picture, "{exported}");
        fs::remove_dir_all(at.join("wanted")).unwrap();
        // Trained on, the betas are those of the training, whatever a class would take.
        let few = ["--set", "batch_size=2", "--set", "sample_steps=2", "--set", "sample_count=1"];
        let train =
            ["train", "--resume", &run, "--steps", "1", "--data", "images:pictures", "--device", "cpu"];
        succeeds(at, &[&train[..], &few].concat());
        let recipe = fs::read_to_string(at.join(&run).join("recipe.toml")).unwrap();
        let left: Vec<&str> = recipe.lines().filter(|line| line.starts_with("class_defaults")).collect();
        assert_eq!(left, ["class_defaults = [\"clip_sample\", \"clip_sample_range\"]"], "{recipe}");
        let exported = format!("{name}-trained");
        succeeds(at, &["export", &run, &exported]);
        let keys = fs::read_to_string(at.join(&exported).join("scheduler/scheduler_config.json")).unwrap();
        let keys: Value = serde_json::from_str(&keys).unwrap();
        assert_eq!((&keys["beta_start"], &keys["beta_end"]), (&json!(0.0001), &json!(0.02)));
        assert!(keys.get("clip_sample").is_none(), "{keys}");
        assert_eq!(drawn(&exported, &heun), drawn(&run, &heun), "{exported}");
    }
}

#[test]
fn what_cannot_be_exported_says_what_can() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let few = ["--set", "batch_size=2", "--set", "sample_count=1", "--set", "evaluate_count=2"];
    succeeds(
        at,
        &[&["train", "digits-vae", "--out", "run", "--steps", "1", "--device", "cpu"], &few[..]].concat(),
    );
    fails(at, &["export", "run", "out"], 1, &["denoir's own", "denoir train digits-kl", "vae.kind=kl"]);
    assert!(!at.join("out").exists());
}

/// For many random folders, which are not committed: `DENOIR_FOLDERS=DIR cargo test many_folders --
/// --ignored --nocapture`, with what `tools/reference/folders.py DIR` wrote.
#[test]
#[ignore = "needs folders of tools/reference/folders.py"]
fn many_folders() {
    let parent = std::env::var_os("DENOIR_FOLDERS").expect("DENOIR_FOLDERS names the folder");
    let cpu = Device::open("cpu").unwrap();
    eprintln!("{} folders", check_all(Path::new(&parent), &[cpu]));
}
