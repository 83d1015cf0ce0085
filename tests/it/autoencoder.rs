//! VAEs, latent diffusion and figures as a user meets them: trained at tiny size, looked at, and misused.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use tempfile::TempDir;

use crate::command_line::{TINY, denoir, fails};

/// Settings that make a VAE of seconds.
pub const TINY_VAE: [&str; 16] = [
    "--set",
    "image_size=16",
    "--set",
    "vae.widths=[8,8]",
    "--set",
    "vae.norm_num_groups=4",
    "--set",
    "vae.latent=4",
    "--set",
    "evaluate_count=4",
    "--set",
    "evaluate_every=2",
    "--set",
    "sample_count=3",
    "--set",
    "checkpoint_every=2",
];
/// And of a latent diffusion model on it.
pub const TINY_LDM: [&str; 20] = [
    "--set",
    "evaluate_count=4",
    "--set",
    "image_size=16",
    "--set",
    "latent_size=4",
    "--set",
    "latent_count=6",
    "--set",
    "sample_count=2",
    "--set",
    "sample_steps=4",
    "--set",
    "unet.block_out_channels=[8,8]",
    "--set",
    "unet.norm_num_groups=4",
    "--set",
    "unet.attention_head_dim=4",
    "--set",
    "checkpoint_every=2",
];

/// Trains `recipe` for some steps at batch 2 and gives its folder.
pub fn train(at: &Path, recipe: &str, out: &str, steps: &str, tiny: &[&str], extra: &[&str]) -> PathBuf {
    let mut arguments = vec!["train", recipe, "--out", out, "--steps", steps, "--batch-size", "2"];
    arguments.extend(tiny);
    if !extra.contains(&"--device") {
        arguments.extend(["--device", "cpu"]);
    }
    arguments.extend(extra);
    succeeds(at, &arguments);
    at.join(out)
}

fn succeeds(at: &Path, arguments: &[&str]) -> String {
    let output = denoir(at, arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

/// A folder with a trained VAE of faces (`vae`), a vector VAE of digits (`mlp`), latent diffusion on the
/// first (`ldm`), and pixel diffusion (`ddpm`), made once for all tests, that only look at it.
fn trained() -> &'static Path {
    static TRAINED: OnceLock<TempDir> = OnceLock::new();
    let folder = TRAINED.get_or_init(|| {
        let folder = TempDir::new().unwrap();
        let at = folder.path();
        train(at, "faces-vae", "vae", "2", &TINY_VAE, &[]);
        let mlp = ["--data", "digits", "--set", "vae.widths=[16,8]", "--set", "evaluate_count=4"];
        train(at, "mnist-mlp-vae", "mlp", "2", &mlp, &["--set", "image_size=16"]);
        train(at, "faces-ldm", "ldm", "2", &TINY_LDM, &["--vae", "vae"]);
        let mut ddpm = vec!["train", "--out", "ddpm", "--steps", "2"];
        ddpm.extend(TINY);
        succeeds(at, &ddpm);
        folder
    });
    folder.path()
}

fn result(run: &Path, step: u64) -> Vec<u8> {
    fs::read(run.join(format!("checkpoints/step-{step:08}.safetensors"))).unwrap()
}

#[test]
fn a_vae_run_measures_itself_and_resumes_to_the_same_bytes() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let extra = ["--set", "kl_warmup=3", "--set", "corrupt_noise=0.2", "--set", "corrupt_mask=0.2"];
    let whole = train(at, "faces-vae", "whole", "4", &TINY_VAE, &extra);
    let parts = train(
        at,
        "faces-vae",
        "parts",
        "2",
        &TINY_VAE,
        &[&extra[..], &["--set", "lr_schedule=constant"]].concat(),
    );
    assert!(whole.join("samples/step-00000004.png").is_file());
    let lines = fs::read_to_string(whole.join("evaluations.jsonl")).unwrap();
    let evaluations: Vec<serde_json::Value> =
        lines.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    assert_eq!(evaluations.len(), 2, "steps 2 and 4");
    for key in ["reconstruction", "kl", "psnr", "ssim"] {
        assert!(evaluations[1][key].as_f64().is_some_and(f64::is_finite), "{key}: {lines}");
    }
    assert_eq!(evaluations[1]["units"], 4 * 4 * 4);
    let metrics = fs::read_to_string(whole.join("metrics.jsonl")).unwrap();
    let last: serde_json::Value = serde_json::from_str(metrics.lines().last().unwrap()).unwrap();
    let [loss, reconstruction, kl] = ["loss", "reconstruction", "kl"].map(|key| last[key].as_f64().unwrap());
    let sum = reconstruction + 0.1 * kl;
    assert!((loss - sum).abs() <= 1e-5 * loss.abs(), "{loss} is {reconstruction} and a tenth of {kl}");

    let steady = train(
        at,
        "faces-vae",
        "steady",
        "4",
        &TINY_VAE,
        &[&extra[..], &["--set", "lr_schedule=constant"]].concat(),
    );
    succeeds(at, &["train", "--resume", "parts", "--steps", "4", "--device", "cpu"]);
    assert!(result(&steady, 4) == result(&parts, 4), "a resumed VAE differs");
}

/// The reference library's AutoencoderKL, small: a short training makes both parts of its loss smaller, and
/// what is exported is the folder that the library's class reads.
#[test]
fn an_autoencoder_kl_is_trained_and_exported() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let tiny = [
        &TINY_VAE[..],
        &["--set", "vae.widths=[8,8,8]", "--set", "lr_warmup=0", "--set", "lr_schedule=constant"],
        &["--set", "kl_warmup=0", "--set", "evaluate_every=60", "--set", "checkpoint_every=60"],
    ]
    .concat();
    let run = train(at, "digits-kl", "kl", "60", &tiny, &["--set", "lr=2e-3", "--set", "kl_weight=1.0"]);
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = metrics.lines().map(|l| serde_json::from_str(l).unwrap()).collect();
    let mean = |key: &str, lines: &[serde_json::Value]| {
        lines.iter().map(|l| l[key].as_f64().unwrap()).sum::<f64>() / lines.len() as f64
    };
    for key in ["loss", "reconstruction"] {
        let [first, last] = [mean(key, &lines[..10]), mean(key, &lines[50..])];
        assert!(last < 0.8 * first, "{key} went from {first} to {last}");
    }
    succeeds(at, &["export", "kl", "out"]);
    let config: serde_json::Value =
        serde_json::from_str(&fs::read_to_string(at.join("out/config.json")).unwrap()).unwrap();
    assert_eq!(config["_class_name"], "AutoencoderKL");
    assert_eq!((&config["latent_channels"], &config["sample_size"]), (&4.into(), &16.into()));
    succeeds(at, &["import", "out", "back"]);
    assert!(at.join("out/diffusion_pytorch_model.safetensors").is_file());
}

#[test]
fn settings_of_the_autoencoders() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let plain = train(at, "faces-vae", "plain", "2", &TINY_VAE, &["--set", "vae.variational=false"]);
    let metrics = fs::read_to_string(plain.join("metrics.jsonl")).unwrap();
    assert!(metrics.contains("\"reconstruction\"") && !metrics.contains("\"kl\""), "{metrics}");
    train(at, "faces-vae", "l1", "2", &TINY_VAE, &["--set", "reconstruction=l1"]);
    train(
        at,
        "digits-vae",
        "bce",
        "2",
        &TINY_VAE,
        &["--set", "reconstruction=bce", "--set", "accumulation=2"],
    );
    train(at, "faces-ldm", "ldm", "2", &TINY_LDM, &["--vae", "plain"]);
    let drawn = ["--vae", "plain", "--set", "latents=drawn"];
    train(at, "faces-ldm", "drawn", "2", &TINY_LDM, &drawn);
    crate::classes::bounds_of_vaes(at);
    fails(at, &["figure", "hallucination", "plain", "--device", "cpu"], 1, &["without sigma"]);
    fails(at, &["figure", "grid", "plain", "--device", "cpu"], 1, &["without a prior"]);
    fails(at, &["encode", "plain", "--draw", "--device", "cpu"], 2, &["nothing to draw from"]);
}

#[test]
fn a_latent_diffusion_run_is_complete_in_itself_and_resumes_to_the_same_bytes() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    train(at, "faces-vae", "vae", "2", &TINY_VAE, &[]);
    // Measuring the scale encodes all of these few images; where it is given, steps encode what they meet.
    let kinds = [("cached", "latents=cached"), ("drawn", "latents=drawn"), ("grown", "scaling_factor=0.9")];
    for (latents, mode) in kinds {
        let extra = ["--vae", "vae", "--set", mode, "--set", "lr_schedule=constant", "--set", "flip=true"];
        let name = |part: &str| format!("{part}-{latents}");
        let whole = train(at, "faces-ldm", &name("whole"), "4", &TINY_LDM, &extra);
        train(at, "faces-ldm", &name("parts"), "2", &TINY_LDM, &extra);
        assert_eq!(whole.join("latents.safetensors").is_file(), latents == "cached");
    }
    fs::remove_dir_all(at.join("vae")).unwrap();
    for (latents, _) in kinds {
        let parts = format!("parts-{latents}");
        succeeds(at, &["train", "--resume", &parts, "--steps", "4", "--device", "cpu"]);
        let whole = at.join(format!("whole-{latents}"));
        assert!(result(&whole, 4) == result(&at.join(&parts), 4), "{latents}: a resumed run differs");
        let out = format!("{latents}.png");
        succeeds(at, &["sample", &parts, "--count", "2", "--steps", "2", "--out", &out, "--device", "cpu"]);
        let picture = image::open(at.join(&out)).unwrap();
        assert!(picture.width() >= 2 * 16, "decoded images are larger than latents");
    }
    let to = |run: &str, steps: &str| {
        succeeds(at, &["train", "--resume", run, "--steps", steps, "--device", "cpu"]);
    };
    // Whether steps encode images or find their latents in a file makes no difference. After the images of
    // twelve steps none is missing: those of an epoch whose first third this process did not see, and the
    // next.
    let kept = at.join("parts-cached/latents.safetensors");
    let whole = fs::read(&kept).unwrap();
    fs::copy(&kept, at.join("whole-grown/latents.safetensors")).unwrap();
    to("whole-grown", "12");
    to("parts-grown", "12");
    assert!(
        result(&at.join("whole-grown"), 12) == result(&at.join("parts-grown"), 12),
        "the file's latents differ"
    );
    assert!(
        fs::read(at.join("parts-grown/latents.safetensors")).unwrap() == whole,
        "steps make the same file"
    );
    // A lost or damaged file of latents is only made again, as are the folders.
    fs::remove_file(&kept).unwrap();
    fs::remove_dir_all(at.join("parts-cached/samples")).unwrap();
    to("parts-cached", "12");
    assert!(fs::read(&kept).unwrap() == whole, "encoding again gives the same bytes");
    let mut damaged = whole.clone();
    let middle = damaged.len() / 2;
    damaged[middle] ^= 4;
    fs::write(&kept, damaged).unwrap();
    to("parts-cached", "24");
    assert!(fs::read(&kept).unwrap() == whole, "damage is found");
    // One sample is the bare image, in the size of the VAE's images.
    succeeds(
        at,
        &["sample", "whole-cached", "--count", "1", "--steps", "2", "--out", "one.png", "--device", "cpu"],
    );
    assert_eq!(image::image_dimensions(at.join("one.png")).unwrap(), (16, 16));
}

/// Every figure, on the CPU device and on a GPU.
fn figures_on(device: &str) {
    let at = trained();
    let folder = TempDir::new().unwrap();
    let make = |kind: &str, run: &str, extra: &[&str]| {
        let ending = if kind == "hallucination" { "gif" } else { "png" };
        let out = folder.path().join(format!("{kind}-{run}.{ending}"));
        let out = out.to_str().unwrap();
        let mut arguments = vec!["figure", kind, run, "--out", out, "--device", device];
        arguments.extend(extra);
        succeeds(at, &arguments);
        let picture = image::open(out).unwrap().into_rgb8();
        let first = *picture.get_pixel(0, 0);
        assert!(picture.pixels().any(|p| *p != first), "{kind} of {run} is one colour");
        (picture.width(), picture.height())
    };
    let (count, steps) = (["--count", "2"], ["--steps", "3"]);
    let times = ["--columns", "2", "--t", "100,700"];
    for run in ["ddpm", "ldm"] {
        make("forward", run, &count);
        for kind in ["backward", "progressive", "grid"] {
            make(kind, run, &[count, steps].concat());
        }
        for kind in ["interpolation", "coarse-to-fine"] {
            make(kind, run, &[&count[..], &steps, &times].concat());
        }
        make("branches", run, &[&steps[..], &times].concat());
    }
    for run in ["vae", "ldm"] {
        for kind in ["reconstruction", "mean", "channels"] {
            make(kind, run, &count);
        }
        make("posterior", run, &["--count", "2", "--columns", "2"]);
    }
    let (small, _) = make("mean", "vae", &["--count", "2", "--size", "16", "--seed", "3"]);
    let (large, _) = make("mean", "vae", &["--count", "2", "--size", "128", "--seed", "3"]);
    assert!(large > small + 200, "{large} and {small}");
    make("grid", "vae", &["--count", "3"]);
    make("grid", "ddpm", &["--count", "2", "--steps", "2", "--with", "ldm"]);
    make("manifold", "mlp", &["--count", "3"]);
    make("mean", "mlp", &["--count", "2", "--data", "digits"]);
    make("hallucination", "vae", &["--count", "1"]);
    make("schedule", "ddpm", &[]);
    for run in ["ddpm", "ldm", "vae"] {
        make("loss", run, &["--size", "200"]);
    }
}

#[test]
fn every_figure_on_the_cpu_device() {
    figures_on("cpu");
}

#[test]
fn every_figure_on_a_gpu() {
    figures_on("gpu:0");
}

#[test]
fn encoding_and_decoding() {
    let at = trained();
    let folder = TempDir::new().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for (run, shape) in [("vae", vec![3, 4, 4, 4]), ("ldm", vec![3, 4, 4, 4]), ("mlp", vec![3, 2])] {
        let file = path(&format!("{run}.safetensors"));
        // The second time it replaces its own file.
        for _ in 0..2 {
            succeeds(at, &["encode", run, "--count", "3", "--out", &file, "--device", "cpu"]);
        }
        let bytes = fs::read(&file).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        for name in ["latents", "mean", "log_var"] {
            assert_eq!(tensors.tensor(name).unwrap().shape(), shape, "{name} of {run}");
        }
        let out = path(run);
        succeeds(at, &["decode", run, &file, "--out", &out, "--device", "cpu"]);
        assert_eq!(image::image_dimensions(Path::new(&out).join("000002.png")).unwrap(), (16, 16));
        fails(at, &["decode", run, &file, "--out", &out, "--device", "cpu"], 1, &["is not empty"]);
    }
    // Pictures of any size, one by one; drawn latents are others.
    let picture = path("wide.png");
    image::RgbImage::from_fn(50, 20, |x, y| image::Rgb([x as u8 * 5, y as u8 * 9, 77]))
        .save(&picture)
        .unwrap();
    let (mean, drawn) = (path("mean.safetensors"), path("drawn.safetensors"));
    succeeds(at, &["encode", "vae", &picture, &picture, "--out", &mean, "--device", "cpu"]);
    succeeds(at, &["encode", "vae", &picture, &picture, "--out", &drawn, "--draw", "--device", "gpu:0"]);
    let values = |file: &str| -> Vec<f32> {
        let bytes = fs::read(file).unwrap();
        let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        bytemuck::pod_collect_to_vec(tensors.tensor("latents").unwrap().data())
    };
    let (mean_of, drawn_of) = (values(&mean), values(&drawn));
    assert!(mean_of[..64] == mean_of[64..], "the same picture twice");
    assert!(drawn_of[..64] != drawn_of[64..] && drawn_of.iter().zip(&mean_of).all(|(d, m)| d != m));
}

#[test]
fn mistakes_with_vaes_and_latents() {
    let at = trained();
    let cpu = ["--device", "cpu"];
    let says = |arguments: &[&str], status: i32, wanted: &[&str]| {
        fails(at, &[arguments, &cpu].concat(), status, wanted);
    };
    says(&["sample", "vae"], 1, &["vae is a VAE", "denoir figure grid vae"]);
    says(&["figure", "backward", "vae"], 1, &["vae is a VAE"]);
    says(&["figure", "schedule", "vae"], 1, &["no noise schedule"]);
    says(&["figure", "mean", "ddpm"], 1, &["ddpm holds a diffusion model, not a VAE"]);
    says(&["figure", "manifold", "vae"], 1, &["latents of this VAE are 64 numbers"]);
    says(&["figure", "channels", "mlp"], 1, &["are vectors"]);
    says(&["figure", "branches", "ddpm", "--t", "5000"], 2, &["--t 5000", "0 to 999"]);
    says(&["figure", "mean", "vae", "--t", "5"], 2, &["--t has no meaning for mean"]);
    says(&["figure", "forward", "ddpm", "--steps", "5"], 2, &["--steps has no meaning for forward"]);
    says(&["figure", "loss", "ddpm", "--count", "5"], 2, &["--count has no meaning for loss"]);
    says(&["figure", "mean", "vae", "--out", "x.gif"], 2, &["written as .png"]);
    says(&["figure", "hallucination", "vae", "--out", "x.png"], 2, &["written as .gif"]);
    says(&["figure", "mean", "vae", "--out", "nowhere/x.png"], 1, &["no folder nowhere"]);
    says(&["figure", "grid", "vae", "--with", "nothing"], 1, &["nothing does not exist"]);
    says(&["train", "faces-ldm"], 2, &["give its run with --vae"]);
    says(&["train", "faces-ldm", "--vae", "ddpm"], 1, &["not a VAE"]);
    says(&["train", "faces-ldm", "--vae", "nothing"], 1, &["nothing does not exist"]);
    says(&["train", "faces-ldm", "--vae", "mlp"], 2, &["vectors"]);
    says(&["train", "faces-ldm", "--vae", "vae"], 2, &["--set image_size=16 --set latent_size=4"]);
    says(&["train", "digits", "--vae", "vae"], 2, &["does not train on latents"]);
    says(&["train", "faces-ldm", "--dry-run"], 2, &["--vae"]);
    says(&["train", "faces-vae", "--set", "unet.dropout=0.1"], 2, &["unet has no meaning for system = vae"]);
    says(&["train", "faces-vae", "--set", "image_size=30"], 2, &["cannot be halved"]);
    says(&["train", "faces-vae", "--set", "vae.norm_num_groups=5"], 2, &["does not divide"]);
    says(&["encode", "ddpm"], 1, &["not a VAE"]);
    says(&["encode", "vae", "--out", "vae/recipe.toml"], 1, &["does not hold latents"]);
    says(&["train", "faces-vae", "--set", "system=ddpm"], 2, &["choose another recipe"]);
    says(
        &["train", "--resume", "vae", "--steps", "9", "--set", "reconstruction=l1"],
        2,
        &["keeps its image_size"],
    );
    says(&["figure", "manifold", "mlp", "--count", "1000", "--size", "512"], 2, &["million pixels"]);
    says(&["encode", "vae", "no.png", "neither.png"], 2, &["no.png is no picture"]);
    says(&["decode", "vae", "no.safetensors"], 1, &["cannot read no.safetensors"]);
    assert!(!at.join("x.gif").exists() && !at.join("latents.safetensors").exists());
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)
        } else {
            fs::copy(entry.path(), target).map(|_| ()).unwrap()
        }
    }
}

#[test]
fn a_lost_or_exchanged_vae_and_foreign_latents() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    copy(trained(), at);
    let cpu = ["--device", "cpu"];
    let says = |arguments: &[&str], wanted: &[&str]| fails(at, &[arguments, &cpu].concat(), 1, wanted);
    let other = train(at, "faces-vae", "other", "2", &TINY_VAE, &["--seed", "5"]);
    succeeds(at, &["encode", "vae", "--count", "2", "--out", "of-vae.safetensors", "--device", "cpu"]);
    says(&["decode", "other", "of-vae.safetensors"], &["those of another VAE"]);
    succeeds(at, &["encode", "mlp", "--count", "2", "--out", "of-mlp.safetensors", "--device", "cpu"]);
    says(&["decode", "vae", "of-mlp.safetensors"], &["F32 [2, 2]", "takes F32 [N, 4, 4, 4]"]);
    let whole = fs::read(at.join("of-vae.safetensors")).unwrap();
    fs::write(at.join("cut.safetensors"), &whole[..whole.len() - 7]).unwrap();
    says(&["decode", "vae", "cut.safetensors"], &["damaged"]);
    let mut changed = whole.clone();
    changed[whole.len() - 7] ^= 1;
    fs::write(at.join("changed.safetensors"), changed).unwrap();
    says(&["decode", "vae", "changed.safetensors"], &["damaged", "it has changed since it was written"]);
    fs::write(at.join("text.safetensors"), "latents").unwrap();
    says(&["decode", "vae", "text.safetensors"], &["damaged"]);

    let lost = at.join("ldm/vae.safetensors");
    fs::remove_file(&lost).unwrap();
    for command in
        [&["sample", "ldm"][..], &["figure", "mean", "ldm"], &["train", "--resume", "ldm", "--steps", "9"]]
    {
        says(command, &["the VAE of this run is missing"]);
    }
    fs::copy(other.join("checkpoints/step-00000002.safetensors"), &lost).unwrap();
    for command in [&["sample", "ldm"][..], &["train", "--resume", "ldm", "--steps", "9"]] {
        says(command, &["not the VAE that this run was trained with"]);
    }
    fs::write(&lost, "nonsense").unwrap();
    // The only VAE of the run must not be thrown away.
    says(&["sample", "ldm"], &["damaged", "put a copy of it in its place", "from where it came from"]);
    let output = denoir(at, &["sample", "ldm"]);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(["delete", "remove", "move it"].iter().all(|word| !text.contains(word)), "{text}");
}
