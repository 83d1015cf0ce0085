//! Classes: guidance with and without them, classifiers, and what is measured with these.

use std::fs;
use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::command_line::{TINY, denoir, fails};

/// A run that knows its ten classes, and what it draws without one.
const CLASSES: [&str; 6] = [
    "--set",
    "unet.num_class_embeds=11",
    "--set",
    "label_dropout=0.25",
    // Else the class does not show after a few steps.
    "--set",
    "unet.zero_init=false",
];

fn runs(at: &Path, arguments: &[&str]) -> String {
    let output = denoir(at, arguments);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {told}");
    String::from_utf8(output.stdout).unwrap() + &told
}

fn train(at: &Path, out: &'static str, steps: &'static str, more: &[&'static str]) -> String {
    let head = ["train", "--out", out, "--steps", steps, "--set", "lr_schedule=constant"];
    runs(at, &[&head, &TINY[..], more].concat())
}

#[test]
fn samples_are_guided_with_one_model() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    train(at, "run", "4", &CLASSES);
    let drawn = |more: &[&'static str]| {
        let head = ["sample", "run", "--count", "4", "--sampler", "ddim", "--steps", "4", "--device", "cpu"];
        runs(at, &[&head, more, &["--out", "out.png"]].concat());
        fs::read(at.join("out.png")).unwrap()
    };
    let plain = drawn(&[]);
    let guided = drawn(&["--guidance", "3"]);
    assert_eq!(drawn(&["--guidance", "1"]), plain);
    assert!(guided != plain && drawn(&["--guidance", "0"]) != plain);
    assert_ne!(drawn(&["--guidance", "3", "--guidance-rescale", "0.7"]), guided);
    assert_eq!(drawn(&["--guidance", "3", "--guidance-interval", "0:1e9"]), guided);
    assert_eq!(drawn(&["--guidance", "3", "--guidance-interval", "1e8:1e9"]), plain);
    // The last row of the table is no class.
    let wrong = |more: &[&'static str], wanted: &[&str]| {
        let head = ["sample", "run", "--count", "1", "--steps", "2", "--device", "cpu"];
        fails(at, &[&head, more].concat(), 2, wanted);
    };
    wrong(&["--class", "10"], &["--class 10", "it must be below 10"]);
    wrong(&["--guidance-rescale", "0.5"], &["say how to guide", "--guidance 2"]);
    wrong(&["--guidance", "2", "--guidance-interval", "3:1"], &["--guidance-interval 3:1", "0.3:5"]);
    wrong(&["--guidance=-1"], &["guidance is -1", "from 0 to 1000"]);

    train(at, "plain", "2", &CLASSES[..0]);
    let guide = ["sample", "plain", "--guidance", "2", "--device", "cpu"];
    fails(at, &guide, 2, &["label_dropout and guidance go with a model that has classes"]);
    train(at, "told", "2", &["--set", "unet.num_class_embeds=10"]);
    let guide = ["sample", "told", "--guidance", "2", "--device", "cpu"];
    fails(at, &guide, 2, &["guidance is 2", "label_dropout"]);
    let data = ["train", "--steps", "2", "--set", "unet.num_class_embeds=10", "--set", "label_dropout=0.1"];
    fails(at, &[&data[..], &TINY].concat(), 2, &["one more row for no class", "unet.num_class_embeds=11"]);
}

#[test]
fn labels_are_dropped_alike_however_a_run_is_cut() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    train(at, "whole", "6", &CLASSES);
    train(at, "parts", "3", &CLASSES);
    runs(at, &["train", "--resume", "parts", "--steps", "6", "--device", "cpu"]);
    let last = |run: &str| fs::read(at.join(run).join("checkpoints/step-00000006.safetensors")).unwrap();
    assert_eq!(last("whole"), last("parts"));
    train(at, "never", "6", &["--set", "unet.num_class_embeds=11", "--set", "label_dropout=1e-9"]);
    assert_ne!(last("whole"), last("never"));
}

#[test]
fn a_classifier_is_trained_and_measures_samples() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    for (out, noisy) in [("noisy", "classifier.noisy=true"), ("clean", "classifier.noisy=false")] {
        let head = ["train", "digits-classifier", "--out", out, "--steps", "30", "--device", "cpu"];
        let small = ["--image-size", "8", "--set", "unet.block_out_channels=[8,8,8]", "--set", noisy];
        let said = runs(at, &[&head[..], &small].concat());
        assert!(said.contains("next: denoir figure loss"), "{said}");
        let metrics = fs::read_to_string(at.join(out).join("metrics.jsonl")).unwrap();
        let lines: Vec<Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(lines.len(), 30);
        let accuracy = |lines: &[Value]| {
            lines.iter().map(|line| line["accuracy"].as_f64().unwrap()).sum::<f64>() / lines.len() as f64
        };
        let (first, last) = (accuracy(&lines[..5]), accuracy(&lines[25..]));
        assert!(last > first && first < 0.3, "{out}: {first} to {last}");
    }
    fails(at, &["sample", "clean", "--device", "cpu"], 1, &["is a classifier", "denoir evaluate"]);

    train(at, "run", "4", &CLASSES);
    train(at, "blind", "2", &CLASSES[..0]);
    let head = ["evaluate", "run", "blind", "--classifier", "clean", "--count", "20", "--device", "cpu"];
    let short = ["--sampler", "ddim", "--steps", "2"];
    let measured = runs(at, &[&head[..], &short, &["--json", "--neighbours", "near.png"]].concat());
    let report: Value = serde_json::from_str(measured.lines().next().unwrap()).unwrap();
    let rows = report["rows"].as_array().unwrap();
    let names: Vec<&str> = rows.iter().map(|row| row["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["run", "blind", "training images", "noise"]);
    assert_eq!(
        (&report["images"], &report["features"], &report["data"]),
        (&20.into(), &64.into(), &"digits".into())
    );
    let frechet = |row: usize| rows[row]["frechet"].as_f64().unwrap();
    assert!(frechet(2) < frechet(3), "{report}");
    // A model without classes has none to be right about.
    let has = |row: usize, key: &str| rows[row].get(key).is_some();
    assert!(
        has(0, "accuracy") && !has(1, "accuracy") && has(2, "accuracy") && !has(3, "accuracy"),
        "{report}"
    );
    assert!(image::open(at.join("near.png")).unwrap().width() > 500);
    let table = runs(at, &[&head[..], &short].concat());
    assert!(
        table.contains("they are no FID") && table.lines().any(|line| line.starts_with("training images ")),
        "{table}"
    );

    let not = ["evaluate", "run", "--classifier", "run", "--device", "cpu"];
    fails(at, &not, 1, &["run is no classifier", "denoir train digits-classifier"]);
    train(at, "large", "2", &["--set", "image_size=16"]);
    let not = ["evaluate", "large", "--classifier", "clean", "--device", "cpu"];
    fails(at, &not, 2, &["large draws images of 16 x 16", "the classifier takes 8 x 8", "--image-size"]);
}

#[test]
fn the_bound_is_told_in_bits_and_its_parts_add_up() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    train(
        at,
        "run",
        "4",
        &[&CLASSES[..], &["--set", "timesteps=50", "--set", "beta_schedule=squaredcos_cap_v2"]].concat(),
    );
    let head = ["likelihood", "run", "--count", "3", "--device", "cpu"];
    let report = |more: &[&str]| -> Value {
        let said = runs(at, &[&head[..], &["--json"], more].concat());
        serde_json::from_str(said.lines().next().unwrap()).unwrap()
    };
    let first = report(&["--out", "curves.png"]);
    let number = |report: &Value, key: &str| report[key].as_f64().unwrap();
    let parts: f64 = ["prior", "steps", "decoder"].iter().map(|key| number(&first, key)).sum();
    assert!((parts - number(&first, "bits_per_dim")).abs() < 1e-9 && parts > 1.0, "{first}");
    assert_eq!((first["bits"].as_array().unwrap().len(), &first["timesteps"]), (50, &50.into()));
    assert!(image::open(at.join("curves.png")).unwrap().width() > 1000);
    assert_eq!(report(&[]), first, "the same seed gives the same number");
    // Four steps have taught it nothing: that it predicts too little noise is not kept from showing.
    assert!(number(&report(&["--no-clip"]), "bits_per_dim") > number(&first, "bits_per_dim"));
    let tanh = number(&report(&["--tanh"]), "decoder");
    assert!(tanh != number(&first, "decoder") && (tanh - number(&first, "decoder")).abs() < 0.1);
    assert!(
        runs(at, &head).contains(" bits/dim, an upper bound: 3 images of the held-out part of digits, 50 ")
    );
    let flow = report(&["--ode", "--steps", "3"]);
    assert!(number(&flow, "bits_per_dim").is_finite() && number(&flow, "standard_error") > 0.0, "{flow}");
    assert_eq!(report(&["--ode", "--steps", "3"]), flow, "the same seed gives the same number");
    fails(at, &[&head[..], &["--ode", "--tanh"]].concat(), 2, &["--tanh has no meaning for --ode"]);
    fails(at, &[&head[..], &["--draws", "2"]].concat(), 2, &["--draws has no meaning for the bound"]);
    // What each class looks like at each scale: with the classes and without.
    let figure = ["figure", "guidance", "run", "--device", "cpu", "--steps", "2", "--out", "scales.png"];
    runs(at, &[&figure[..], &["--scale", "0,1,3", "--count", "4"]].concat());
    let [width, height] =
        [image::open(at.join("scales.png")).unwrap()].map(|picture| [picture.width(), picture.height()])[0];
    assert!(width > 3 * 64 && height > 4 * 64 && height > width, "{width} x {height}");
    fails(at, &[&figure[..], &["--scale=-1"]].concat(), 2, &["--scale -1", "from 0"]);
    fails(at, &["likelihood", "nothing"], 1, &["nothing does not exist"]);
    fails(at, &["likelihood", "run", "--count", "1"], 2, &["--count", "from 2 to"]);
}

/// The bounds of the VAEs `l1` and `bce`, whose decoders have other laws; `plain` is an autoencoder.
pub fn bounds_of_vaes(at: &std::path::Path) {
    for (run, decoder) in [("l1", "Laplace"), ("bce", "continuous Bernoulli")] {
        let head = ["likelihood", run, "--count", "3", "--draws", "5", "--device", "cpu", "--json"];
        let report: Value = serde_json::from_str(runs(at, &head).lines().next().unwrap()).unwrap();
        let number = |key: &str| report[key].as_f64().unwrap();
        let sum = number("decoder_bits") + number("kl_bits");
        assert!((sum - number("bits_per_dim")).abs() < 1e-9 && report["decoder"] == decoder, "{report}");
        // Of 256 levels alike it would be 8 bits.
        assert!((1.0..12.0).contains(&number("importance_bits_per_dim")), "{report}");
    }
    fails(at, &["likelihood", "plain", "--device", "cpu"], 2, &["without a Gaussian"]);
    fails(at, &["likelihood", "l1", "--ode"], 2, &["--ode has no meaning for a VAE"]);
}
