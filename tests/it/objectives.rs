//! Targets, weights, learned variances and schedules from the command line.

use std::fs;

use denoir::run::Run;
use tempfile::TempDir;

use crate::command_line::{TINY, denoir, fails, tiny_run};

/// Trains with these `--set`s, and gives the run's folder.
fn trained(at: &std::path::Path, keys: &[&str]) -> std::path::PathBuf {
    let set: Vec<&str> = keys.iter().flat_map(|key| ["--set", key]).collect();
    tiny_run(at, &set)
}

const LEARNED: [&str; 2] = ["variance=learned_range", "unet.out_channels=2"];

#[test]
fn metrics_have_the_loss_by_quarter() {
    let folder = TempDir::new().unwrap();
    let run = trained(folder.path(), &["prediction_type=v_prediction", "loss_weight=min_snr"]);
    let all = Run::open(&run).unwrap().metrics().unwrap();
    for metrics in &all {
        let (plain, weighted) = (metrics.loss_by_t.unwrap(), metrics.weighted_by_t.unwrap());
        assert!(plain.iter().any(Option::is_some));
        for (plain, weighted) in plain.iter().zip(weighted) {
            assert_eq!(plain.is_some(), weighted.is_some());
            // Weights of min-SNR on v are below 1.
            assert!(plain.unwrap_or(1.0) > weighted.unwrap_or(0.0));
        }
        assert_eq!(metrics.bound, None);
    }
    let figure = denoir(folder.path(), &["figure", "loss", "run", "--out", "loss.png"]);
    assert!(figure.status.success(), "{}", String::from_utf8_lossy(&figure.stderr));
}

#[test]
fn a_learned_variance_from_training_to_samples() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    for (loss, name) in [("mse", "hybrid"), ("bound", "full")] {
        let run = trained(at, &[&LEARNED[..], &[&format!("loss={loss}")]].concat());
        let all = Run::open(&run).unwrap().metrics().unwrap();
        assert!(all.iter().all(|metrics| metrics.bound.unwrap() > 0.0), "{loss}");
        assert_eq!(all.iter().all(|metrics| metrics.bound.unwrap() == metrics.loss), loss == "bound");
        for sampler in ["ddpm", "ddim", "dpmpp-2m"] {
            let sampled = denoir(
                at,
                &["sample", "run", "--count", "2", "--steps", "3", "--sampler", sampler, "--device", "cpu"],
            );
            assert!(sampled.status.success(), "{sampler}: {}", String::from_utf8_lossy(&sampled.stderr));
        }
        fs::rename(&run, at.join(name)).unwrap();
    }
    fails(
        at,
        &["sample", "full", "--count", "1", "--rng", "torch", "--device", "cpu"],
        2,
        &["a variance that the model learned", "ddim"],
    );
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    for (keys, wanted) in [
        (&["variance=learned"][..], "unet.out_channels must be 2"),
        (&["loss=bound"], "loss = mse, loss_weight = variational"),
        (&["variance=learned", "unet.out_channels=2", "loss_weight=variational"], "loss = bound trains both"),
        (&["variance=learned", "unet.out_channels=2", "offset_noise=0.1"], "leave them at 0"),
        (&["variance=learned", "unet.out_channels=2", "timestep_sampling=log_normal"], "stratified"),
        (&["rescale_betas_zero_snr=true"], "v_prediction"),
    ] {
        let set = keys.iter().flat_map(|key| ["--set", key]);
        let arguments: Vec<&str> = ["train", "digits", "--device", "cpu"].into_iter().chain(set).collect();
        fails(at, &arguments, 2, &[wanted]);
    }
}

#[test]
fn schedules_are_compared() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let names = ["linear", "vp", "sigmoid_chen", "edm", "squaredcos_cap_v2", "digits"];
    let figure = denoir(at, &[&["figure", "schedule"], &names[..], &["--out", "all.png"]].concat());
    assert!(figure.status.success(), "{}", String::from_utf8_lossy(&figure.stderr));
    let all = image::open(at.join("all.png")).unwrap().to_rgb8();
    assert!(all.width() > 3 * 480 && all.pixels().any(|pixel| pixel.0 != [255; 3]));
    // Below the curves a row of pictures for each.
    assert!(all.height() > 360 + 6 * 64, "{}", all.height());
    fails(
        at,
        &["figure", "schedule", "linear", "nothing"],
        2,
        &["nothing is no run, recipe or schedule", "vp"],
    );
    fails(at, &["figure", "loss", "a", "b"], 1, &["a does not exist"]);
}

/// A schedule that the library lacks goes there as a list; a target that it lacks does not.
#[test]
fn exports() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let run = trained(at, &["beta_schedule=vp", "prediction_type=sample"]);
    let says = |arguments: &[&str]| {
        let output = denoir(at, arguments);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    says(&["export", "run", "theirs"]);
    let text = fs::read_to_string(at.join("theirs/scheduler/scheduler_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(config["trained_betas"].as_array().map(Vec::len), Some(1000), "{text}");
    assert_eq!(config["beta_schedule"], "linear");
    says(&["sample", "theirs", "--count", "1", "--steps", "2", "--device", "cpu"]);
    fs::rename(run, at.join("sample")).unwrap();
    trained(at, &["prediction_type=mean"]);
    says(&["sample", "run", "--count", "1", "--steps", "2", "--device", "cpu"]);
    fails(at, &["export", "run", "mean"], 1, &["prediction_type = mean"]);
    fails(at, &["sample", "run", "--count", "1", "--sampler", "ddim", "--device", "cpu"], 2, &["ancestral"]);
}

/// What training draws by chance or keeps beside the weights goes on where it stopped.
#[test]
fn states_and_estimates_are_resumed() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let all: [&[&str]; 2] = [
        &["self_conditioning=true", "unet.in_channels=2", "prediction_type=v_prediction"],
        // Few timesteps: each has its ten losses soon.
        &["timestep_sampling=loss_second_moment", "timesteps=4", "accumulation=2", "loss_weight=min_snr"],
    ];
    for (i, keys) in all.into_iter().enumerate() {
        let [whole, parts] = ["whole", "parts"].map(|name| format!("{name}{i}"));
        let set: Vec<&str> = keys.iter().flat_map(|key| ["--set", key]).collect();
        let train = |out: &str, steps: &str| {
            let head = ["train", "--steps", steps, "--out", out];
            let same = ["--set", "lr_schedule=constant"];
            let output = denoir(at, &[&head[..], &TINY, &same, &set].concat());
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        };
        train(&whole, "24");
        train(&parts, "11");
        let resumed = denoir(at, &["train", "--resume", &parts, "--steps", "24", "--device", "cpu"]);
        assert!(resumed.status.success(), "{}", String::from_utf8_lossy(&resumed.stderr));
        let last = |run: &str| fs::read(at.join(run).join("checkpoints/step-00000024.safetensors")).unwrap();
        assert!(last(&whole) == last(&parts), "{keys:?}: a resumed run differs");
        let drawn = denoir(at, &["sample", &whole, "--count", "2", "--steps", "3", "--device", "cpu"]);
        assert!(drawn.status.success(), "{}", String::from_utf8_lossy(&drawn.stderr));
        let bound = ["likelihood", &whole, "--count", "2", "--data", "digits", "--device", "cpu", "--ode"];
        let bound = denoir(at, &[&bound[..], &["--steps", "2"]].concat());
        assert!(bound.status.success(), "{}", String::from_utf8_lossy(&bound.stderr));
    }
    fails(
        at,
        &["train", "digits", "--set", "self_conditioning=true", "--device", "cpu"],
        2,
        &["set unet.in_channels = 2"],
    );
}
