//! Training shared by processes, through a real `mpirun` where there is one (`tools/test` installs Open MPI).
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::command_line::{denoir, fails};
use crate::place::program;

/// `denoir` on so many ranks.
fn mpirun(at: &Path, ranks: usize) -> Command {
    let mut command = Command::new("mpirun");
    // Open MPI refuses to run as root, and more ranks than cores, unless told that this is meant.
    command.env("OMPI_ALLOW_RUN_AS_ROOT", "1").env("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1");
    command.env("OMPI_MCA_rmaps_base_oversubscribe", "1").current_dir(at);
    command.args(["-n", &ranks.to_string()]).arg(program());
    command
}

fn trains(at: &Path, ranks: usize, arguments: &[&str]) -> Output {
    let output = match ranks {
        1 => denoir(at, &[&["train"], arguments].concat()),
        _ => mpirun(at, ranks).arg("train").args(arguments).args(["--distributed", "mpi"]).output().unwrap(),
    };
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{arguments:?} on {ranks}: {errors}");
    output
}

const SMALL: [&str; 15] = [
    "--device",
    "cpu",
    "--sample-every",
    "never",
    "--batch-size",
    "8",
    "--image-size",
    "16",
    "--set",
    "shards=4",
    "--set",
    "evaluate_count=4",
    "--set",
    "checkpoint_every=25",
    "--steps",
];

fn last(run: &Path, step: u64) -> Vec<u8> {
    fs::read(run.join(format!("checkpoints/step-{step:08}.safetensors"))).unwrap()
}

#[test]
#[ignore = "needs mpirun: tools/test installs it"]
fn one_two_and_four_ranks_train_to_the_same_bytes() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    for recipe in ["digits", "faces-vae"] {
        let train = |ranks: usize, name: &str, steps: &str| {
            trains(at, ranks, &[&[recipe], &SMALL[..], &[steps, "--out", name]].concat())
        };
        let names = [1, 2, 4].map(|ranks| (ranks, format!("{recipe}-{ranks}")));
        names.iter().for_each(|(ranks, name)| {
            let told = train(*ranks, name, "50");
            // One of them talks.
            let told = String::from_utf8_lossy(&told.stdout);
            assert_eq!(told.lines().count(), 1, "{told}");
        });
        let [one, two, four] = names.map(|(_, name)| last(&at.join(name), 50));
        assert!(one == two && one == four, "{recipe}");
    }
    // Four begin, two go on: as if one had done it all.
    trains(at, 4, &[&["digits"], &SMALL[..], &["30", "--out", "again"]].concat());
    trains(at, 2, &["--resume", "again", "--steps", "50"]);
    assert!(last(&at.join("again"), 50) == last(&at.join("digits-1"), 50));
}

#[test]
#[ignore = "needs mpirun: tools/test installs it"]
fn a_rank_that_dies_ends_the_run_with_a_line_and_its_last_checkpoint() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let settings = ["--set", "checkpoint_every=2", "--out", "run", "--distributed", "mpi"];
    let small = [&["train", "digits"][..], &SMALL[..12], &settings, &["--steps", "4000"]].concat();
    let child = mpirun(at, 2).args(small).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (began, run) = (Instant::now(), at.join("run"));
    let saved = || {
        denoir::run::Run::open(&run)
            .is_ok_and(|run| run.checkpoints().unwrap().last().is_some_and(|last| last.0 >= 4))
    };
    while !saved() {
        assert!(began.elapsed() < Duration::from_secs(120), "no checkpoint");
        std::thread::sleep(Duration::from_millis(10));
    }
    // The ranks are children of mpirun; the second was started last.
    let children = Command::new("pgrep").args(["-P", &child.id().to_string()]).output().unwrap();
    let children = String::from_utf8(children.stdout).unwrap();
    let second = children.lines().last().unwrap();
    assert!(Command::new("kill").args(["-KILL", second]).status().unwrap().success());
    let output = child.wait_with_output().unwrap();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success());
    let lines = errors.lines().filter(|line| line.contains("another rank does not answer"));
    assert_eq!(lines.count(), 1, "{errors}");
    assert!(!errors.contains("error: ") && !errors.contains("panicked"), "{errors}");
    trains(at, 1, &["--resume", "run", "--steps", "60", "--device", "cpu"]);
}

#[test]
#[ignore = "needs mpirun: tools/test installs it"]
fn mistakes_are_told_once() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let told = |ranks: usize, arguments: &[&str]| {
        let mut run = mpirun(at, ranks);
        let output = run.args(["train", "--device", "cpu", "--distributed", "mpi"]).args(arguments);
        let output = output.output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{arguments:?}: {errors}");
        let lines = errors.lines().filter(|line| line.starts_with("error: "));
        assert_eq!(lines.count(), 1, "{arguments:?}: {errors}");
        errors
    };
    let sharing = "3 ranks with shards = 4; 4 shards can be shared by 1, 2, 4 ranks";
    assert!(told(3, &["digits", "--set", "shards=4"]).contains(sharing));
    assert!(told(2, &["digitz"]).contains("digitz"));
    assert!(told(2, &["digits", "--data", "images:missing"]).contains("missing"));
    assert!(told(2, &["digits", "--batch-size", "3"]).contains("2 ranks do not divide a batch of 3"));
    let taken = || told(4, &["digits", "--out", "taken"]);
    fs::create_dir(at.join("taken")).unwrap();
    fs::write(at.join("taken/recipe.toml"), "").unwrap();
    assert!((0..3).all(|_| taken().contains("taken holds a run already")));
    fs::remove_dir_all(at.join("taken")).unwrap();
    assert_eq!(fs::read_dir(at).unwrap().count(), 0);
}

#[test]
fn shards_divide_a_batch_that_they_do_not_change() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    fails(at, &["train", "digits", "--set", "shards=5"], 2, &["5 shards do not divide a batch of 64"]);
    let history = ["--set", "timestep_sampling=loss_second_moment"];
    let of_whole = [&["train", "digits", "--set", "shards=4"][..], &history].concat();
    fails(at, &of_whole, 2, &["from whole batches", "leave shards at 1"]);
    fails(at, &["train", "digits-vq", "--set", "shards=4"], 2, &["a codebook learns from whole batches"]);
    let losses = ["1", "8"].map(|shards| {
        let shards = format!("shards={shards}");
        trains(
            at,
            1,
            &[&["digits"], &SMALL[..8], &["--set", &shards, "--steps", "1", "--out", &shards]].concat(),
        );
        let metrics = fs::read_to_string(at.join(&shards).join("metrics.jsonl")).unwrap();
        let line: serde_json::Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
        line["loss"].as_f64().unwrap()
    });
    assert!((losses[0] - losses[1]).abs() < 1e-5 * losses[0], "{losses:?}");
}
