//! Variational diffusion models from the command line: a noise schedule that is learned.

use std::fs;
use std::path::{Path, PathBuf};

use denoir::diffusion::{Betas, Rounding, Schedule};
use denoir::run::Run;
use tempfile::TempDir;

use crate::command_line::{TINY, denoir, fails};

const TIMESTEPS: usize = 20;

fn set(kind: &str) -> Vec<String> {
    let keys = [
        &format!("learned_schedule={kind}"),
        "timestep_sampling=stratified",
        "timesteps=20",
        "sample_steps=5",
        "lr_schedule=constant",
        "lr_warmup=0",
        "ema_decay=0.5",
    ];
    keys.iter().flat_map(|key| ["--set".to_owned(), (*key).to_owned()]).collect()
}

fn trained(at: &Path, kind: &str, steps: &str, more: &[&str]) -> PathBuf {
    let set = set(kind);
    let set: Vec<&str> = set.iter().map(String::as_str).collect();
    says(at, &[&["train", "--out", "run", "--steps", steps], &TINY[..], &set, more].concat());
    at.join("run")
}

fn says(at: &Path, arguments: &[&str]) -> String {
    let output = denoir(at, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn checkpoint(run: &Path, step: u64) -> PathBuf {
    run.join(format!("checkpoints/step-{step:08}.safetensors"))
}

/// log SNR at the timesteps that a checkpoint's samples go through.
fn levels(run: &Path) -> Vec<f64> {
    let recipe = denoir::checkpoint::load(&checkpoint(run, 4)).unwrap().recipe;
    assert!(matches!(recipe.beta_schedule, Betas::Given(_)), "the schedule is not written down");
    recipe.schedule().levels().iter().map(|level| level.log_snr()).collect()
}

/// Six steps at once are four and two; the schedule in the checkpoint is what was learned.
#[test]
fn a_learned_schedule_is_trained_resumed_sampled_and_measured() {
    for kind in ["network", "scalar"] {
        let folder = TempDir::new().unwrap();
        let at = folder.path();
        let features = ["--set", "unet.fourier_features=[6,7]"];
        let run = trained(at, kind, "4", &features);
        let metrics = Run::open(&run).unwrap().metrics().unwrap();
        assert!(metrics.iter().all(|m| m.bound == Some(m.loss) && m.loss_by_t.is_some()));
        let line = |t: usize| 13.3 - 18.3 * (t + 1) as f64 / TIMESTEPS as f64;
        let levels = levels(&run);
        assert!(levels.windows(2).all(|pair| pair[0] > pair[1]));
        let moved = |t: usize| (levels[t] - line(t)).abs();
        assert!((0..TIMESTEPS).any(|t| moved(t) > 1e-3), "{kind}: {levels:?} is where it began");
        // Ends that stay, and ends that are learned.
        assert_eq!(moved(TIMESTEPS - 1) < 1e-9, kind == "network", "{kind}: {levels:?}");
        says(at, &["train", "--resume", "run", "--steps", "6", "--device", "cpu"]);
        let resumed = fs::read(checkpoint(&run, 6)).unwrap();
        fs::rename(&run, at.join("resumed")).unwrap();
        let run = trained(at, kind, "6", &features);
        assert!(fs::read(checkpoint(&run, 6)).unwrap() == resumed, "{kind}: a resumed run is another");
        says(
            at,
            &["sample", "run", "--count", "2", "--steps", "4", "--sampler", "dpmpp-2m", "--device", "cpu"],
        );
        let report = says(at, &["likelihood", "run", "--count", "2", "--json", "--device", "cpu"]);
        let report: serde_json::Value = serde_json::from_str(&report).unwrap();
        assert_eq!(report["timesteps"], TIMESTEPS);
        assert!(report["bits_per_dim"].as_f64().unwrap() > 0.0);
        fails(at, &["export", "run", "theirs"], 1, &["unet.fourier_features, which diffusers has not"]);
        fails(
            at,
            &["train", "--resume", "run", "--steps", "8", "--set", "gamma_max=4", "--device", "cpu"],
            2,
            &["keeps the noise schedule that it learns"],
        );
    }
}

/// A schedule that was learned goes to the library as a list of betas, and the model without its parameters.
#[test]
fn an_exported_schedule_is_a_list() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let run = trained(at, "network", "4", &[]);
    says(at, &["export", "run", "theirs"]);
    let text = fs::read_to_string(at.join("theirs/scheduler/scheduler_config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&text).unwrap();
    let betas = serde_json::from_value(config["trained_betas"].clone()).unwrap();
    let schedule = Schedule::new(&Betas::Given(betas), TIMESTEPS, 0.0, 0.0, Rounding::Exact);
    for (ours, theirs) in levels(&run).into_iter().zip(schedule.levels()) {
        assert!((ours - theirs.log_snr()).abs() < 1e-9);
    }
    says(at, &["sample", "theirs", "--count", "1", "--steps", "2", "--device", "cpu"]);
}

#[test]
fn what_makes_no_sense_is_refused() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    for (key, wanted) in [
        ("gamma_max=-13", "gamma_max must be larger by 1 or more"),
        ("beta_schedule=vp", "leave beta_schedule"),
        ("loss=l1", "leave loss and loss_weight out"),
        ("prediction_type=v_prediction", "the model predicts noise"),
        ("timestep_sampling=log_normal", "timestep_sampling = stratified"),
        ("offset_noise=0.1", "leave offset_noise"),
        ("rng=torch", "leave rng = denoir"),
        ("unet.fourier_features=[7, 6]", "in rising order"),
    ] {
        fails(at, &["train", "digits-vdm", "--device", "cpu", "--set", key], 2, &[wanted]);
    }
    let ldm = ["train", "digits-ldm", "--set", "learned_schedule=scalar", "--device", "cpu"];
    fails(at, &ldm, 2, &["choose a recipe without a VAE"]);
}
