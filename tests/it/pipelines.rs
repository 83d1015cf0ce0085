//! Pipelines of the diffusers library, whole: the pictures of a seed, runs that keep what a folder says, and
//! the way from pictures to noise and back. `tools/reference/formats.py` makes the folders.

use std::fs;
use std::path::{Path, PathBuf};

use denoir::device::Device;
use denoir::recipe::Rng;
use denoir::sample::inversion::InversionConfig;
use denoir::sample::{Options, Trained};
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::command_line::fails;
use crate::golden_diffusers::{copy, succeeds};
use crate::reference::{Golden, devices};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

fn json_in(path: &Path) -> Value {
    serde_json::from_str(&fs::read_to_string(path).unwrap()).unwrap()
}

/// Changes keys of a scheduler's configuration, or writes one of a class with its defaults.
fn set_scheduler(folder: &Path, class: &str, keys: Value) {
    let index = folder.join("model_index.json");
    let mut parts = json_in(&index);
    parts["scheduler"] = json!(["diffusers", class]);
    fs::write(&index, parts.to_string()).unwrap();
    let mut config = json!({ "_class_name": class });
    config.as_object_mut().unwrap().extend(keys.as_object().unwrap().clone());
    fs::write(folder.join("scheduler/scheduler_config.json"), config.to_string()).unwrap();
}

/// A picture `[3, side, side]` of a golden file in the order of ours.
fn picture(file: &str, name: &str) -> Vec<f64> {
    let golden = Golden::named(file);
    let (shape, values) = &golden.tensors[name];
    let pixels = shape[1] * shape[2];
    (0..3 * pixels).map(|i| values[i % 3 * pixels + i / 3]).collect()
}

/// Holds a PNG against values in [0, 1]: the same bytes, but where rounding to them is a close call.
fn check_png(path: &Path, wanted: &[f64]) {
    let png = image::open(path).unwrap().to_rgb8().into_raw();
    assert_eq!(png.len(), wanted.len(), "{}", path.display());
    for (i, (&got, wanted)) in png.iter().zip(wanted).enumerate() {
        let off = (f64::from(got) - 255.0 * wanted).abs();
        assert!(off <= 0.5 + 255.0 * 1e-5, "{}: {i} is {got}, wanted {}", path.display(), 255.0 * wanted);
    }
}

#[test]
fn a_latent_diffusion_folder_draws_the_librarys_picture_everywhere() {
    for name in ["tiny_ldm", "tiny_ldm_kl"] {
        draws_the_librarys_picture(name);
    }
}

fn draws_the_librarys_picture(name: &str) {
    let file = format!("{name}.safetensors");
    let (f64s, f32s) = (picture(&file, "f64/image"), picture(&file, "f32/image"));
    for device in devices() {
        let trained = Trained::open(&golden(name), &device).unwrap();
        let own = Options::of(trained.recipe()).unwrap();
        assert_eq!(own.steps, 50, "DDIM's usual");
        let options = Options { seed: 0, steps: 4, ..own }.with_rng(Rng::Torch);
        let image = trained.source().draw(&options, 1, None, || Ok(())).unwrap();
        // PyTorch's own f32 is off by 8e-7.
        let tolerance = if matches!(device, Device::Cpu(_)) { 2e-6 } else { 1e-5 };
        let mut worst: f64 = 0.0;
        for (i, (got, (f64, f32))) in image.iter().zip(f64s.iter().zip(&f32s)).enumerate() {
            let got = (f64::from(*got) / 2.0 + 0.5).clamp(0.0, 1.0);
            let err = (got - f64).abs().min((got - f32).abs());
            assert!(err <= tolerance, "{name}, {}: {i} is {got}, wanted {f64}", device.describe());
            worst = worst.max(err);
        }
        eprintln!("{name}, {}: {worst:e}", device.describe());
    }
}

#[test]
fn the_command_line_draws_the_pictures_of_a_torch_seed() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    copy(&golden("tiny_ddpm"), &at.join("ddpm"));
    copy(&golden("tiny_ddpm"), &at.join("ddim"));
    set_scheduler(&at.join("ddim"), "DDIMScheduler", json!({}));
    // DDIMPipeline makes a DDIMScheduler of what it is given.
    copy(&golden("tiny_ddpm"), &at.join("made"));
    let mut index = json_in(&at.join("made/model_index.json"));
    index["_class_name"] = json!("DDIMPipeline");
    fs::write(at.join("made/model_index.json"), index.to_string()).unwrap();
    // As the oldest folders are: all at the root.
    fs::create_dir(at.join("root")).unwrap();
    fs::copy(at.join("ddim/model_index.json"), at.join("root/model_index.json")).unwrap();
    for part in ["unet", "scheduler"] {
        for entry in fs::read_dir(at.join("ddim").join(part)).unwrap() {
            let entry = entry.unwrap();
            fs::copy(entry.path(), at.join("root").join(entry.file_name())).unwrap();
        }
    }
    copy(&golden("tiny_ldm"), &at.join("ldm"));
    let draw = |of: &str, steps: &str, wanted: &[f64]| {
        let out = format!("{of}.png");
        let options = ["--rng", "torch", "--seed", "0", "--count", "1", "--device", "cpu"];
        succeeds(at, &[&["sample", of, "--steps", steps, "--out", &out][..], &options].concat());
        check_png(&at.join(out), wanted);
    };
    let tiny = |name| picture("tiny_ddpm.safetensors", name);
    draw("ddpm", "2", &tiny("f32/ddpm"));
    for of in ["ddim", "made", "root"] {
        draw(of, "2", &tiny("f32/ddim"));
    }
    let of_ldm = picture("tiny_ldm.safetensors", "f64/image");
    draw("ldm", "4", &of_ldm);
    // Runs and exported folders keep it all.
    for of in ["ddim", "root", "ldm"] {
        let (run, out) = (format!("{of}-run"), format!("{of}-out"));
        succeeds(at, &["import", of, &run]);
        succeeds(at, &["export", &run, &out]);
        let (steps, wanted) = if of == "ldm" { ("4", of_ldm.clone()) } else { ("2", tiny("f32/ddim")) };
        draw(&run, steps, &wanted);
        draw(&out, steps, &wanted);
        let class = if of == "ldm" { "LDMPipeline" } else { "DDIMPipeline" };
        assert_eq!(json_in(&at.join(&out).join("model_index.json"))["_class_name"], class);
    }
    for file in ["scheduler/scheduler_config.json", "unet/config.json", "vqvae/config.json"] {
        let (theirs, ours) = (json_in(&at.join("ldm").join(file)), json_in(&at.join("ldm-out").join(file)));
        for (key, value) in theirs.as_object().unwrap() {
            let same =
                ours[key] == *value || ours[key].as_f64().is_some() && ours[key].as_f64() == value.as_f64();
            // Of DDIM without thresholding, what is never read; and VQModel's width, which it has itself.
            let idle = ["dynamic_thresholding_ratio", "sample_max_value"].contains(&key.as_str());
            assert!(same || idle, "{file}: {key} is {} and was {value}", ours[key]);
        }
    }
}

/// Each class, with options of its own, through a run to a folder: the same picture by the folder's own
/// sampler, and the same keys.
#[test]
fn every_class_of_scheduler_survives_import_and_export() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    for (class, keys) in [
        ("DDPMScheduler", json!({"variance_type": "fixed_large", "beta_schedule": "squaredcos_cap_v2"})),
        ("DDIMScheduler", json!({"rescale_betas_zero_snr": true, "prediction_type": "v_prediction"})),
        ("EulerDiscreteScheduler", json!({"use_karras_sigmas": true, "beta_schedule": "scaled_linear"})),
        ("EulerAncestralDiscreteScheduler", json!({"prediction_type": "sample"})),
        ("HeunDiscreteScheduler", json!({"clip_sample": true, "clip_sample_range": 0.75})),
        ("LMSDiscreteScheduler", json!({"timestep_spacing": "trailing"})),
        ("DPMSolverMultistepScheduler", json!({"algorithm_type": "sde-dpmsolver++", "solver_order": 3})),
        ("PNDMScheduler", json!({"skip_prk_steps": true, "clip_sample": false, "steps_offset": 1})),
        (
            "UniPCMultistepScheduler",
            json!({"thresholding": true, "trained_betas": [0.01, 0.02, 0.1, 0.3, 0.5],
            "num_train_timesteps": 5, "solver_type": "bh1"}),
        ),
    ] {
        for old in ["f", "run", "out"] {
            let _ = fs::remove_dir_all(at.join(old));
        }
        copy(&golden("tiny_ddpm"), &at.join("f"));
        set_scheduler(&at.join("f"), class, keys.clone());
        succeeds(at, &["import", "f", "run"]);
        succeeds(at, &["export", "run", "out"]);
        let written = json_in(&at.join("out/scheduler/scheduler_config.json"));
        assert_eq!(written["_class_name"], class);
        for (key, value) in keys.as_object().unwrap() {
            assert_eq!(&written[key], value, "{class}: {key}");
        }
        let pictures = ["f", "run", "out"].map(|of| {
            let options =
                ["--steps", "4", "--count", "1", "--seed", "5", "--device", "cpu", "--out", "a.png"];
            succeeds(at, &[&["sample", of][..], &options].concat());
            fs::read(at.join("a.png")).unwrap()
        });
        assert!(pictures[0] == pictures[1] && pictures[1] == pictures[2], "{class} draws otherwise");
    }
}

#[test]
fn the_scale_of_a_bare_vaes_latents_survives() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    copy(&golden("tiny_ldm").join("vqvae"), &at.join("vae"));
    succeeds(at, &["import", "vae", "run"]);
    succeeds(at, &["export", "run", "out"]);
    assert_eq!(json_in(&at.join("out/config.json"))["scaling_factor"], 0.6);
}

/// The root of the mean square of the difference.
fn rms(a: &[f32], b: &[f32]) -> f64 {
    let squares = a.iter().zip(b).map(|(a, b)| f64::from(a - b).powi(2)).sum::<f64>();
    (squares / a.len() as f64).sqrt()
}

/// The tiny pipeline with a schedule that ends at sigma = 0.5: its weights are random, and what is no
/// prediction of noise leads astray by as much as sigma times its error, 157 times at the usual end.
fn with_little_noise(folder: &Path) {
    copy(&golden("tiny_ddpm"), folder);
    set_scheduler(folder, "DDPMScheduler", json!({"beta_start": 1e-5, "beta_end": 4e-4}));
}

#[test]
fn inversion_finds_the_noise_that_leads_back() {
    let folder = TempDir::new().unwrap();
    with_little_noise(folder.path());
    for device in devices() {
        let trained = Trained::open(folder.path(), &device).unwrap();
        let source = trained.source();
        let images: Vec<f32> = (0..2 * 192).map(|i| 0.8 * (i as f32 * 0.37).sin()).collect();
        let error = |steps| {
            let config = InversionConfig { steps, spacing: denoir::diffusion::Spacing::Leading, class: None };
            let noise = source.invert(&config, &images, || Ok(())).unwrap();
            assert!(rms(&noise, &images) > 0.05, "nothing was done");
            let down = config.options(trained.recipe(), "ddim").unwrap();
            rms(&source.sample(&down, 2, Some(&noise), None, |_, _| Ok(())).unwrap(), &images)
        };
        let errors = [20, 50, 200].map(error);
        eprintln!("{}: round trips of 20, 50 and 200 steps are off by {errors:?}", device.describe());
        // Of first order.
        assert!(errors[1] < errors[0] / 2.0 && errors[2] < errors[1] / 3.0, "{errors:?}");
        assert!(errors[2] <= 1e-3, "{errors:?}");
    }
}

/// The tiny pipeline with little noise, of a model that knows three classes.
fn with_classes(folder: &Path) {
    with_little_noise(folder);
    let [config, weights] =
        ["config.json", "diffusion_pytorch_model.safetensors"].map(|file| folder.join("unet").join(file));
    let mut keys = json_in(&config);
    keys["num_class_embeds"] = json!(3);
    fs::write(&config, keys.to_string()).unwrap();
    let table: Vec<u8> = (0..3 * 16).flat_map(|i| (2.0 * (i as f32 * 1.3).sin()).to_le_bytes()).collect();
    let table = TensorView::new(Dtype::F32, vec![3, 16], &table).unwrap();
    let bytes = fs::read(&weights).unwrap();
    let mut tensors = SafeTensors::deserialize(&bytes).unwrap().tensors();
    tensors.push(("class_embedding.weight".to_owned(), table));
    fs::write(&weights, safetensors::serialize(tensors, None).unwrap()).unwrap();
}

/// The largest difference between the bytes of two pictures.
fn apart(a: &Path, b: &Path) -> u8 {
    let [a, b] = [a, b].map(|file| image::open(file).unwrap().to_rgb8().into_raw());
    a.iter().zip(&b).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

#[test]
fn a_picture_of_a_class_leads_to_noise_and_back() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    with_classes(&at.join("f"));
    let picture = image::RgbImage::from_fn(8, 8, |x, y| image::Rgb([20 * x as u8, 20 * y as u8, 128]));
    picture.save(at.join("a.png")).unwrap();
    let invert = ["invert", "f", "a.png", "--steps", "200", "--device", "cpu", "--out", "n.safetensors"];
    fails(at, &invert, 2, &["this model has classes", "--class"]);
    fails(at, &[&invert[..], &["--class", "3"]].concat(), 2, &["--class 3", "must be below 3"]);
    succeeds(at, &[&invert[..], &["--class", "1"]].concat());
    let back = ["sample", "f", "--noise", "n.safetensors", "--device", "cpu", "--out"];
    // The file says of which class it is.
    succeeds(at, &[&back[..], &["same.png"]].concat());
    let off = apart(&at.join("a.png"), &at.join("same.png"));
    assert!(off <= 2, "it comes back off by {off} of 255");
    succeeds(at, &[&back[..], &["other.png", "--class", "2"]].concat());
    let off = apart(&at.join("a.png"), &at.join("other.png"));
    assert!(off >= 8, "another class gives the same picture, off by {off} of 255");
}

#[test]
fn pictures_to_noise_and_back_on_the_command_line() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    with_little_noise(&at.join("f"));
    for (name, shift) in [("a.png", 0), ("b.png", 90)] {
        let picture =
            image::RgbImage::from_fn(8, 8, |x, y| image::Rgb([(20 * x + shift) as u8, (20 * y) as u8, 128]));
        picture.save(at.join(name)).unwrap();
    }
    let on = ["--device", "cpu"];
    succeeds(
        at,
        &[&["invert", "f", "a.png", "b.png", "--steps", "200", "--out", "n.safetensors"][..], &on].concat(),
    );
    succeeds(at, &[&["sample", "f", "--noise", "n.safetensors", "--out", "back/"][..], &on].concat());
    for (name, back) in [("a.png", "back/000000.png"), ("b.png", "back/000001.png")] {
        let worst = apart(&at.join(name), &at.join(back));
        assert!(worst <= 2, "{name} comes back off by {worst} of 255");
    }
    // To say which sampler it is changes nothing: its bound of x0 would, which no step up takes back.
    let said = ["sample", "f", "--noise", "n.safetensors", "--sampler", "ddim", "--out", "said/"];
    succeeds(at, &[&said[..], &on].concat());
    for name in ["000000.png", "000001.png"] {
        assert_eq!(apart(&at.join("back").join(name), &at.join("said").join(name)), 0, "{name}");
    }
    fails(at, &[&["invert", "f", "a.png", "--out", "a.png"][..], &on].concat(), 1, &["does not hold noise"]);
    fails(
        at,
        &[&["invert", "f", "a.png", "--class", "1"][..], &on].concat(),
        2,
        &["this model has no classes"],
    );
    fails(at, &[&["invert", "f", "a.png", "--steps", "0"][..], &on].concat(), 2, &["0 sampling steps"]);
    fails(at, &[&["sample", "f", "--noise", "a.png"][..], &on].concat(), 1, &["a.png is damaged"]);
    copy(&golden("tiny_ldm"), &at.join("ldm"));
    succeeds(
        at,
        &[&["invert", "ldm", "faces", "--count", "3", "--steps", "5", "--out", "l.safetensors"][..], &on]
            .concat(),
    );
    succeeds(at, &[&["sample", "ldm", "--noise", "l.safetensors", "--out", "l.png"][..], &on].concat());
}
