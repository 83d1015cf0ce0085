//! Tuning as a user meets it: what is timed ahead decides what runs, and a file of choices the bytes of a
//! run.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;
use tempfile::TempDir;

use crate::command_line::{denoir, fails};
use crate::place::program;

/// A model of attention, and little else.
const RECIPE: &str = "\
name = \"small\"
data = \"digits\"
image_size = 8
batch_size = 2
steps = 2
sample_count = 2
sample_steps = 2
checkpoint_every = 2

[unet]
block_out_channels = [8, 8]
down_block_types = [\"DownBlock2D\", \"AttnDownBlock2D\"]
up_block_types = [\"AttnUpBlock2D\", \"UpBlock2D\"]
norm_num_groups = 4
attention_head_dim = 8
";

fn succeeds(at: &Path, arguments: &[&str]) -> Output {
    let output = denoir(at, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output
}

fn object(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The variants by name of their launches, and whether all of them were timed.
fn variants(report: &Value) -> (Vec<String>, bool) {
    let rows = report["variants"].as_array().unwrap();
    let timed = rows.iter().all(|row| row["ms"].is_number() && row["default_ms"].is_number());
    let attention = rows.iter().filter(|row| row["name"].as_str().unwrap().starts_with("attention"));
    (attention.map(|row| row["variant"].as_str().unwrap().to_owned()).collect(), timed)
}

fn checkpoint(run: &Path) -> Vec<u8> {
    fs::read(run.join("checkpoints/step-00000002.safetensors")).unwrap()
}

#[test]
fn a_file_of_choices_decides_what_runs_and_repeats_its_bytes() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    fs::write(at.join("small.toml"), RECIPE).unwrap();
    let tuned =
        object(&succeeds(at, &["tune", "small.toml", "--device", "gpu:0", "--tuning", "t.json", "--json"]));
    let (names, timed) = variants(&tuned);
    assert!(names.len() >= 2 && timed, "{tuned}");
    // The other variant everywhere, whichever was the faster.
    let mut file: Value = serde_json::from_slice(&fs::read(at.join("t.json")).unwrap()).unwrap();
    for choice in file["choices"].as_array_mut().unwrap() {
        if choice["launch"].as_str().unwrap().starts_with("attention") {
            assert_eq!(choice["default"], "1 lanes of 2 vec4", "{choice}");
            choice["variant"] = "2 lanes of 1 vec4".into();
        }
    }
    fs::write(at.join("t.json"), file.to_string()).unwrap();
    let whole = fs::read(at.join("t.json")).unwrap();
    for run in ["a", "b"] {
        let on = ["--device", "gpu:0", "--no-tune", "--tuning", "t.json"];
        succeeds(at, &[&["train", "small.toml", "--out", run], &on[..]].concat());
    }
    assert!(checkpoint(&at.join("a")) == checkpoint(&at.join("b")), "two runs with one tuning file differ");
    assert_eq!(fs::read(at.join("t.json")).unwrap(), whole, "training changed the file");

    let profile = |tuning: &[&str]| {
        let short = ["--device", "gpu:0", "--json", "--steps", "1", "--warmup", "0"];
        variants(&object(&succeeds(at, &[&["profile", "a"], &short[..], tuning].concat())))
    };
    let (names, timed) = profile(&["--tuning", "t.json"]);
    assert!(timed && names.iter().all(|name| name == "2 lanes of 1 vec4"), "{names:?}");
    let (names, timed) = profile(&["--no-tune"]);
    assert!(!timed && names.iter().all(|name| name == "1 lanes of 2 vec4"), "{names:?}");
    let text = succeeds(at, &["profile", "a", "--device", "gpu:0", "--no-tune", "--steps", "1"]);
    let text = String::from_utf8(text.stdout).unwrap();
    assert!(text.contains("1 lanes of 2 vec4 (default, not timed)"), "{text}");
}

#[test]
fn the_cache_is_found_again_and_made_anew_when_it_is_damaged() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    fs::write(at.join("small.toml"), RECIPE).unwrap();
    let tune = || {
        let arguments = ["tune", "small.toml", "--device", "gpu:0"];
        let output = Command::new(program())
            .current_dir(at)
            .args(arguments)
            .env("XDG_CACHE_HOME", at.join("cache"))
            .output()
            .unwrap();
        let [text, errors] = [output.stdout, output.stderr].map(|t| String::from_utf8(t).unwrap());
        assert!(output.status.success(), "{errors}");
        assert!(text.contains("remembered in") && text.contains("vec4"), "{text}");
        errors
    };
    assert!(tune().contains("tuning kernels: 0 of"), "it says what takes long");
    let files: Vec<PathBuf> =
        fs::read_dir(at.join("cache/denoir")).unwrap().map(|entry| entry.unwrap().path()).collect();
    let [file] = &files[..] else { panic!("one file an adapter: {files:?}") };
    let whole = fs::read(file).unwrap();
    assert!(!tune().contains("tuning kernels"), "everything was remembered");
    assert_eq!(fs::read(file).unwrap(), whole);
    fs::write(file, &whole[..whole.len() / 2]).unwrap();
    let errors = tune();
    let warnings: Vec<&str> = errors.lines().filter(|line| line.starts_with("warning: ")).collect();
    assert!(warnings.len() == 1 && warnings[0].contains("is damaged"), "{errors}");
    let mut anew: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    // Times of another driver say nothing.
    anew["driver"] = "an older one".into();
    fs::write(file, anew.to_string()).unwrap();
    let errors = tune();
    assert!(errors.contains("tuning kernels") && !errors.contains("warning"), "{errors}");
    let anew: Value = serde_json::from_slice(&fs::read(file).unwrap()).unwrap();
    assert_ne!(anew["driver"], "an older one");
}

#[test]
fn mistakes_in_tuning() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    fs::write(at.join("small.toml"), RECIPE).unwrap();
    fs::write(at.join("bad.json"), "{").unwrap();
    let gpu = ["--device", "gpu:0"];
    fails(at, &["tune", "mnist", "--device", "cpu"], 2, &["nothing to tune", "--device"]);
    fails(at, &[&["tune", "mnistt"], &gpu[..]].concat(), 2, &["no workload called \"mnistt\""]);
    fails(at, &[&["tune", "none.toml"], &gpu[..]].concat(), 2, &["cannot read the recipe none.toml"]);
    fails(at, &[&["tune", "small.toml", "--tuning", "no/t.json"], &gpu[..]].concat(), 1, &["no folder no"]);
    for file in ["bad.json", "none.json"] {
        let fixed = ["train", "small.toml", "--no-tune", "--tuning", file];
        fails(at, &[&fixed, &gpu[..]].concat(), 1, &[file, "denoir tune"]);
    }
    assert!(!at.join("runs").exists(), "a refused command left something behind");
}
