//! The program as a user meets it: every mistake gets one clear line, a non-zero status, and loses nothing.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::place::program;
use crate::whole_files::without_sum;

/// Runs denoir in `folder`.
pub fn denoir(folder: &Path, arguments: &[&str]) -> Output {
    // What a GPU is tuned to here is not the user's.
    let cache = std::env::temp_dir().join("denoir-tests");
    Command::new(program()).current_dir(folder).args(arguments).env("XDG_CACHE_HOME", cache).output().unwrap()
}

/// Settings that make a run of seconds.
pub const TINY: [&str; 21] = [
    "digits",
    "--set",
    "evaluate_count=4",
    "--set",
    "image_size=8",
    "--set",
    "batch_size=2",
    "--set",
    "sample_count=2",
    "--set",
    "sample_steps=2",
    "--set",
    "unet.block_out_channels=[8,8]",
    "--set",
    "unet.norm_num_groups=4",
    "--set",
    "unet.attention_head_dim=4",
    "--set",
    "checkpoint_every=2",
    "--device",
    "cpu",
];

/// Trains a tiny run and gives its folder.
pub fn tiny_run(folder: &Path, extra: &[&str]) -> PathBuf {
    let mut arguments = vec!["train", "--out", "run", "--steps", "4"];
    arguments.extend(TINY);
    arguments.extend(extra);
    let output = denoir(folder, &arguments);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    folder.join("run")
}

/// Asserts that the command fails with this status and one `error:` line that holds each of `wanted`.
pub fn fails(folder: &Path, arguments: &[&str], status: i32, wanted: &[&str]) {
    let output = denoir(folder, arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(status), "{arguments:?}: {text}");
    let errors: Vec<&str> = text.lines().filter(|l| l.starts_with("error: ")).collect();
    assert_eq!(errors.len(), 1, "{arguments:?}: {text}");
    assert!(!text.contains("panicked") && !text.contains("defect"), "{arguments:?}: {text}");
    for wanted in wanted {
        assert!(text.contains(wanted), "{arguments:?} must say {wanted:?}: {text}");
    }
}

#[test]
fn mistakes_in_the_command() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    fails(at, &["train", "nothing"], 2, &["no recipe called \"nothing\"", "choose digits-classes, digits, "]);
    fails(at, &["train", "missing.toml"], 2, &["cannot read the recipe missing.toml"]);
    fails(at, &["train", "--set", "stepps=3"], 2, &["no key called \"stepps\"", "did you mean steps?"]);
    fails(at, &["train", "--set", "lr=fast"], 2, &["--set lr=fast", "does not fit"]);
    fails(at, &["train", "--batch-size", "0"], 2, &["batch_size is 0"]);
    fails(at, &["train", "--steps", "many"], 2, &["--steps many: the value does not fit"]);
    fails(at, &["train", "--lr", "1", "--set", "lr=2"], 2, &["--set lr=2 and --lr 1 both set lr"]);
    fails(at, &["train", "--steps", "9", "--epochs", "2"], 2, &["both say how long"]);
    fails(
        at,
        &["train", "--sample-every", "often"],
        2,
        &["--sample-every often", "(at the end only) or never"],
    );
    fails(at, &["train", "--set", "unet.norm_num_groups=7"], 2, &["norm_num_groups = 7 does not divide"]);
    fails(at, &["train", "--set", "image_size=17"], 2, &["17x17 pixels cannot be halved"]);
    fails(at, &["train", "--device", "gpu:no-such-card"], 1, &["no GPU called no-such-card"]);
    fails(at, &["train", "--device", "gpu:99"], 1, &["no GPU called 99"]);
    fails(at, &["train", "--device", "tpu"], 2, &["no device called \"tpu\"", "choose auto, cpu"]);
    fails(
        at,
        &["train", "--seed", "18446744073709551615"],
        2,
        &["--seed 18446744073709551615", "at most 9223372036854775807"],
    );
    fails(at, &["train", "digits", "--set", "beta_start=0.9"], 2, &["nothing but noise"]);
    fails(at, &["train", "--set", "name=../../elsewhere"], 2, &["it names a folder"]);
    fails(at, &["train", "--set", "unet.freq_shift=nan"], 2, &["unet.freq_shift"]);
    fails(at, &["train", "--set", "unet.attention_head_dim=600"], 2, &["unet.attention_head_dim is 600"]);
    fails(at, &["train", "--data", "mnist:nowhere"], 1, &["nowhere"]);
    fails(at, &["train", "--data", "pictures"], 2, &["pictures"]);
    fails(at, &["sample", "runs/none"], 1, &["runs/none does not exist"]);
    fails(at, &["sample", "."], 1, &["is not a run"]);
    fails(at, &["recipes", "nothing"], 2, &["no recipe called"]);
    fails(at, &["data", "digits", "--image-size", "0"], 2, &["0"]);
    assert!(fs::read_dir(at).unwrap().next().is_none(), "a refused command left something behind");
    // What clap itself refuses has the same status.
    for wrong in [&["fly"][..], &["train", "--stepps", "3"], &["sample", "x", "--steps", "many"], &["sample"]]
    {
        assert_eq!(denoir(at, wrong).status.code(), Some(2), "{wrong:?}");
    }
}

#[test]
fn data_that_cannot_be_used() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    fs::create_dir_all(at.join("empty")).unwrap();
    fails(at, &["train", "--data", "images:empty"], 1, &["empty"]);
    fails(at, &["data", "cifar10:empty"], 1, &["empty"]);
    let idx = |count: u32, bytes: usize| -> Vec<u8> {
        let header = [0x803_u32, count, 8, 8];
        header.iter().flat_map(|w| w.to_be_bytes()).chain(std::iter::repeat_n(7, bytes)).collect()
    };
    let file = "train-images-idx3-ubyte";
    for (name, content) in [("short", idx(10, 100)), ("huge", idx(u32::MAX, 64)), ("header", vec![0, 0, 8])] {
        fs::create_dir_all(at.join(name)).unwrap();
        fs::write(at.join(name).join(file), content).unwrap();
        fails(at, &["train", "--data", &format!("mnist:{name}")], 1, &[file]);
    }
    let mut wrong = idx(10, 640);
    wrong[2] = 0x0d;
    fs::create_dir_all(at.join("magic")).unwrap();
    fs::write(at.join("magic").join(file), wrong).unwrap();
    fails(at, &["train", "--data", "mnist:magic"], 1, &[file, "magic"]);
    assert!(!at.join("runs").exists(), "a refused command made a run folder");
}

#[test]
fn a_batch_too_large_for_memory() {
    let folder = TempDir::new().unwrap();
    for device in ["cpu", "gpu"] {
        let arguments = [
            "train",
            "celeba64",
            "--data",
            "faces",
            "--batch-size",
            "60000",
            "--device",
            device,
            "--out",
            "run",
        ];
        fails(folder.path(), &arguments, 1, &["memory", "lower the batch size"]);
    }
    assert!(!folder.path().join("run").exists());
}

#[test]
fn checkpoints_that_cannot_be_used() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let run = tiny_run(at, &[]);
    let newest = run.join("checkpoints/step-00000004.safetensors");
    let whole = fs::read(&newest).unwrap();
    let sample = ["sample", "run", "--device", "cpu", "--out", "out.png"];

    // Cut short, at several places.
    for keep in [0, 4, 100, whole.len() / 2, whole.len() - 1] {
        fs::write(&newest, &whole[..keep]).unwrap();
        fails(at, &sample, 1, &["is damaged"]);
        fails(at, &["train", "--resume", "run", "--device", "cpu"], 1, &["is damaged"]);
    }
    // A NaN in a weight, in a file of denoir 0.1.0.
    let older = without_sum(&whole);
    let mut poisoned = older.clone();
    let header = 8 + u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for value in poisoned[header..].chunks_exact_mut(4) {
        value.copy_from_slice(&f32::NAN.to_le_bytes());
    }
    fs::write(&newest, &poisoned).unwrap();
    fails(at, &sample, 1, &["holds NaN in ema."]);
    // Of another model: the recipe inside says other widths than the tensors have.
    let text = String::from_utf8_lossy(&older[8..header]).replace("[8, 8]", "[4, 4]");
    let mut other = (text.len() as u64).to_le_bytes().to_vec();
    other.extend(text.as_bytes());
    other.extend(&whole[header..]);
    fs::write(&newest, &other).unwrap();
    fails(at, &sample, 1, &["is of another model"]);
    // Somebody else's safetensors.
    let foreign =
        safetensors::serialize(Vec::<(String, safetensors::tensor::TensorView)>::new(), None).unwrap();
    fs::write(&newest, foreign).unwrap();
    fails(at, &sample, 1, &["is not a checkpoint of denoir"]);

    let recipe = fs::read(run.join("recipe.toml")).unwrap();
    fs::write(run.join("recipe.toml"), "steps = many").unwrap();
    fails(
        at,
        &["train", "--resume", "run", "--device", "cpu"],
        1,
        &["recipe.toml is not a recipe", "line 1"],
    );
    fs::write(run.join("recipe.toml"), recipe).unwrap();

    fs::write(&newest, &whole).unwrap();
    assert!(!at.join("out.png").exists(), "a refused command left a picture");
    assert!(denoir(at, &sample).status.success());
}

#[test]
fn folders_that_cannot_be_written() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let run = tiny_run(at, &[]);
    let before = fs::read(run.join("recipe.toml")).unwrap();
    fails(at, &["train", "--out", "run", "--device", "cpu"], 1, &["run holds a run already", "--resume run"]);
    assert_eq!(fs::read(run.join("recipe.toml")).unwrap(), before);
    // A file stands where the folder should be: this refuses root too, which permissions do not.
    fs::write(at.join("file"), "x").unwrap();
    fails(
        at,
        &["train", "--out", "file/run", "--device", "cpu"],
        1,
        &["cannot write into the folder file/run"],
    );
    fails(
        at,
        &["sample", "run", "--out", "none/out.png", "--device", "cpu"],
        1,
        &["there is no folder none"],
    );
    fails(at, &["sample", "run", "--out", "out.jpg", "--device", "cpu"], 2, &["written as PNG"]);
    fails(at, &["sample", "run", "--steps", "0", "--device", "cpu"], 2, &["--steps 0"]);
    fails(at, &["sample", "run", "--class", "3", "--device", "cpu"], 2, &["this model has no classes"]);
    fails(at, &["train", "--resume", "run", "--device", "cpu"], 2, &["has 4 of 4 steps done"]);
    fails(
        at,
        &["train", "--resume", "run", "--steps", "9", "--set", "unet.dropout=0.5"],
        2,
        &["keeps its model"],
    );
}

#[test]
fn a_run_without_a_checkpoint_begins_again_and_only_one_program_trains_into_a_folder() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let run = tiny_run(at, &[]);
    let whole = fs::read(run.join("checkpoints/step-00000004.safetensors")).unwrap();
    fs::remove_dir_all(run.join("checkpoints")).unwrap();
    fs::create_dir(run.join("checkpoints")).unwrap();
    fails(at, &["sample", "run", "--device", "cpu"], 1, &["holds no checkpoint yet", "--resume run"]);
    let lock = fs::File::create(run.join(".lock")).unwrap();
    lock.lock().unwrap();
    fails(at, &["train", "--resume", "run", "--device", "cpu"], 1, &["another denoir is training into run"]);
    drop(lock);
    assert!(denoir(at, &["train", "--resume", "run", "--device", "cpu"]).status.success());
    assert!(
        fs::read(run.join("checkpoints/step-00000004.safetensors")).unwrap() == whole,
        "begun again, it differs"
    );
    // Pictures that a stopped program left out are made by the next.
    fs::remove_file(run.join("backward.png")).unwrap();
    assert!(denoir(at, &["train", "--resume", "run", "--device", "cpu"]).status.success());
    assert!(run.join("backward.png").exists());
}

/// The terminal may go away; what is done must not.
#[cfg(unix)]
#[test]
fn closed_outputs() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let shell = |command: &str| {
        let command = format!("'{}' {command}", program().display());
        Command::new("bash").args(["-c", &command]).current_dir(at).output().unwrap()
    };
    let train = format!("train --steps 2 --out run '{}' 2>/dev/full", TINY.join("' '"));
    assert!(shell(&train).status.success(), "training stopped because nobody listened");
    assert!(at.join("run/checkpoints/step-00000002.safetensors").exists());
    for command in [
        "recipes digits",
        "recipes",
        "--help",
        "help",
        "--version",
        "train -h",
        "train --dry-run --device cpu",
    ] {
        let full = shell(&format!("{command} >/dev/full"));
        assert_eq!(full.status.code(), Some(1), "{command}");
        let text = String::from_utf8_lossy(&full.stderr).into_owned();
        assert!(text.starts_with("error: cannot write to standard output"), "{command}: {text}");
    }
    assert!(shell("--help | head -c 1").status.success());
    assert!(shell("recipes digits | head -c 1").status.success());
}

/// A disk that fills up, as a limit on the size of files (which also fails in the middle of a write).
#[cfg(unix)]
#[test]
fn a_disk_that_fills_up() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let run = tiny_run(at, &[]);
    let newest = fs::read(run.join("checkpoints/step-00000004.safetensors")).unwrap();
    let command =
        format!("ulimit -f 16; exec '{}' train --resume run --steps 8 --device cpu", program().display());
    let output = Command::new("bash").args(["-c", &command]).current_dir(at).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("cannot write") && text.contains("raise the limit on the size of files"), "{text}");
    assert_eq!(
        fs::read(run.join("checkpoints/step-00000004.safetensors")).unwrap(),
        newest,
        "the old one is whole"
    );
    let left: Vec<_> =
        fs::read_dir(run.join("checkpoints")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(left.iter().all(|n| n.to_string_lossy().ends_with(".safetensors")), "{left:?}");
    // With room again the run goes on.
    assert!(denoir(at, &["train", "--resume", "run", "--steps", "8", "--device", "cpu"]).status.success());
}

#[test]
fn a_broken_picture_among_good_ones_is_named_and_skipped() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let made = denoir(at, &["data", "faces", "--count", "6", "--out", "pictures", "--image-size", "16"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::write(at.join("pictures").join("broken.png"), b"\x89PNG\r\n\x1a\nno picture").unwrap();
    let mut arguments = vec!["train", "--out", "run", "--steps", "4", "--data", "images:pictures"];
    arguments.extend(TINY);
    arguments.extend(["--set", "unet.in_channels=3", "--set", "unet.out_channels=3"]);
    let output = denoir(at, &arguments);
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}");
    assert!(text.contains("broken.png"), "{text}");
    assert!(text.contains("unreadable pictures: 1 "), "{text}");
}

#[test]
fn devices_recipes_and_data_answer() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let out = |arguments: &[&str]| {
        let output = denoir(at, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let devices: serde_json::Value = serde_json::from_str(&out(&["devices", "--json"])).unwrap();
    assert!(devices["cpu"]["threads"].as_u64().unwrap() > 0);
    assert!(devices["adapters"].as_array().unwrap().iter().all(|a| a["name"].is_string()));
    assert!(out(&["devices"]).contains("auto takes this one"));
    for recipe in ["digits", "mnist", "celeba64", "cifar10"] {
        assert!(out(&["recipes"]).contains(recipe));
        // What is printed can be trained from.
        fs::write(at.join("r.toml"), out(&["recipes", recipe])).unwrap();
        let plan =
            out(&["train", "r.toml", "--data", "faces", "--dry-run", "--batch-size", "2", "--device", "cpu"]);
        assert!(plan.contains("launches per step") && plan.contains("largest binding"), "{plan}");
    }
    let text = out(&["data", "digits", "--count", "20", "--out", "sheet.png"]);
    assert!(text.contains("endless") && text.contains("mean"), "{text}");
    assert!(image::open(at.join("sheet.png")).unwrap().width() > 5 * 32);
    out(&["data", "digits", "--count", "5", "--out", "folder"]);
    assert_eq!(fs::read_to_string(at.join("folder/labels.csv")).unwrap().lines().count(), 6);
    assert!(out(&["data", "images:folder"]).contains("5 images"));
}

#[test]
fn samplers_of_the_command_line() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    tiny_run(at, &[]);
    let sample =
        |more: &[&'static str]| [&["sample", "run", "--count", "2", "--device", "cpu"], more].concat();
    for (i, more) in [
        &["--sampler", "dpmpp-2m", "--steps", "4", "--sigmas", "karras"][..],
        &["--sampler", "ddim", "--steps", "3", "--eta", "0.5", "--spacing", "trailing"],
        &["--sampler", "heun", "--steps", "3", "--sigmas", "exponential"],
        &["--sampler", "unipc", "--steps", "3", "--rng", "torch"],
    ]
    .into_iter()
    .enumerate()
    {
        let out = format!("{i}.png");
        let mut arguments = sample(more);
        arguments.extend(["--out", &out]);
        let output = denoir(at, &arguments);
        assert!(output.status.success(), "{more:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert!(at.join(out).is_file());
    }
    fails(at, &sample(&["--sampler", "fast"]), 2, &["no sampler called \"fast\"", "choose ddpm,", "unipc"]);
    fails(at, &sample(&["--sampler", "ddim-inverse"]), 2, &["from a picture to its noise"]);
    fails(at, &sample(&["--eta", "0.5"]), 2, &["--eta has no meaning for ddpm;"]);
    fails(at, &sample(&["--sampler", "ddim", "--eta", "2"]), 2, &["it must be from 0 to 1"]);
    fails(at, &sample(&["--sampler", "pndm", "--steps", "3"]), 2, &["take 4 or more"]);
    fails(at, &sample(&["--sampler", "plms", "--sigmas", "karras"]), 2, &["leave --sigmas out"]);
    fails(at, &sample(&["--sampler", "euler", "--steps", "1001"]), 2, &["--steps 1001"]);
}
