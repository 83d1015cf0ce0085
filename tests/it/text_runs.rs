//! Text-to-image from the command line: trained from nothing, exported, drawn from, adapted, resumed.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::command_line::{denoir, fails};
use crate::place::root;

/// Runs a command that must succeed.
fn run(at: &Path, arguments: &[&str]) {
    let arguments = [arguments, &["--device", "cpu"]].concat();
    let output = denoir(at, &arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
}

/// A picture's levels.
fn levels(path: &Path) -> Vec<u8> {
    image::open(path).unwrap_or_else(|e| panic!("{}: {e}", path.display())).into_rgb8().into_raw()
}

/// The largest difference between two pictures, in levels of 255.
fn apart(at: &Path, a: &str, b: &str) -> u8 {
    let (a, b) = (levels(&at.join(a)), levels(&at.join(b)));
    assert_eq!(a.len(), b.len());
    a.iter().zip(&b).map(|(a, b)| a.abs_diff(*b)).max().unwrap()
}

const QUICK: [&str; 8] =
    ["--steps", "2", "--batch-size", "2", "--sample-every", "never", "--set", "evaluate_count=2"];

/// A VAE and a text model of two steps, in `runs`, and the model as a folder of the library, `folder`.
fn trained(at: &Path) {
    let vae = ["--set", "vae.widths=[8,8,8]", "--set", "vae.norm_num_groups=4"];
    run(at, &[&["train", "shapes-vae"], &QUICK[..], &vae].concat());
    let text = [
        "--vae",
        "runs/shapes-vae",
        "--set",
        "unet.block_out_channels=[8,16]",
        "--set",
        "unet.norm_num_groups=4",
        "--set",
        "unet.zero_init=false",
        "--set",
        "text.num_hidden_layers=1",
        "--set",
        "latent_count=4",
    ];
    run(at, &[&["train", "shapes-text"], &QUICK[..], &text].concat());
    let output = denoir(at, &["export", "runs/shapes-text", "folder"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_model_from_nothing_its_folder_and_its_adapters() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    trained(at);
    // The run, and the folder that it became, draw the same.
    let prompt = ["--prompt", "a red circle", "--steps", "3", "--seed", "5"];
    let draw = |model: &str, more: &[&str], out: &str| {
        run(at, &[&["sample", model], &prompt[..], more, &["--out", out]].concat());
    };
    draw("runs/shapes-text", &["--guidance", "3"], "run.png");
    draw("folder", &["--guidance", "3"], "folder.png");
    assert!(apart(at, "run.png", "folder.png") <= 1);
    draw("folder", &["--guidance", "3", "--negative", "a blue square"], "negative.png");
    assert!(apart(at, "folder.png", "negative.png") > 0, "a negative prompt changes nothing");
    run(
        at,
        &[
            "sample", "folder", "--prompt", "a", "--prompt", "b", "--count", "2", "--steps", "2", "--out",
            "four",
        ],
    );
    assert_eq!(fs::read_dir(at.join("four")).unwrap().count(), 4);
    draw("folder", &["--width", "64", "--height", "32", "--save-every", "2"], "wide.png");
    assert_eq!(image::image_dimensions(at.join("wide.png")).unwrap(), (64, 32));
    assert!(at.join("wide.step-0002.png").is_file());

    let measured = fs::read_to_string(at.join("runs/shapes-text/evaluations.jsonl")).unwrap();
    assert!(measured.contains("\"images\":2,\"held_out\":true,\"held_out_loss\":"), "{measured}");
    for more in [&["--steps", "1", "--warmup", "0"][..], &["--steps", "1", "--warmup", "0", "--sample"]] {
        run(at, &[&["profile", "runs/shapes-text"], more].concat());
    }
    let plan = [
        "train",
        "text-to-image",
        "--base",
        "folder",
        "--image-size",
        "32",
        "--dry-run",
        "--set",
        "lora_rank=2",
    ];
    run(at, &plan);

    // Adapters of the folder: a small run that is drawn from, exported, and laid over the folder again.
    let lora =
        ["--base", "folder", "--data", "shapes", "--image-size", "32", "--set", "lora_rank=2", "--lr", "0.1"];
    let more = ["--set", "accumulation=1", "--set", "latent_count=4", "--set", "train_text_encoder=true"];
    let quick = ["--steps", "2", "--batch-size", "2"];
    run(at, &[&["train", "text-to-image"], &quick[..], &lora, &more].concat());
    let tuned = "runs/text-to-image";
    assert!(!at.join(tuned).join("vae.safetensors").exists(), "a run of adapters holds nothing else");
    draw(tuned, &["--guidance", "3"], "tuned.png");
    assert!(apart(at, "folder.png", "tuned.png") > 0, "adapters change nothing");
    assert!(denoir(at, &["export", tuned, "adapters"]).status.success());
    let file = "adapters/pytorch_lora_weights.safetensors";
    draw("folder", &["--guidance", "3", "--lora", file], "laid.png");
    assert!(apart(at, "tuned.png", "laid.png") <= 1);
    run(at, &["train", "--resume", tuned, "--steps", "3"]);

    // The whole model, and a few pictures of one thing beside those of its class.
    fs::create_dir(at.join("thing")).unwrap();
    fs::copy(at.join("run.png"), at.join("thing/a.png")).unwrap();
    let of = ["--base", "folder", "--data", "images:thing", "--image-size", "32", "--set", "accumulation=1"];
    let prior = [
        "--set",
        "instance_prompt=a cross",
        "--set",
        "class_prompt=a red circle",
        "--set",
        "class_folder=kind",
        "--set",
        "class_images=2",
        "--out",
        "dream",
    ];
    run(at, &[&["train", "text-to-image"], &quick[..], &of, &prior].concat());
    assert_eq!(fs::read_dir(at.join("kind")).unwrap().count(), 2);
    draw("dream", &["--guidance", "3"], "dream.png");
}

#[test]
fn a_word_is_learned_alone() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let tiny = crate::place::root().join("tests/golden/tiny_sd");
    let tiny = tiny.to_str().unwrap();
    fs::create_dir(at.join("things")).unwrap();
    for i in 0..3_u8 {
        let pixel = |x, y| image::Rgb([if x > y { 250 } else { 40 * i }, 20, 255 - 60 * i]);
        image::RgbImage::from_fn(16, 16, pixel).save(at.join(format!("things/{i}.png"))).unwrap();
    }
    let train = |out: &str, steps: &str, more: &[&str]| {
        let base =
            ["train", "text-to-image", "--base", tiny, "--data", "images:things", "--image-size", "16"];
        let word = ["placeholder_token=<cat>", "initializer_token=red", "num_vectors=2"];
        let rest = ["accumulation=1", "ema_decay=0", "checkpoint_every=2", "weight_decay=0"];
        let set: Vec<&str> = word.iter().chain(&rest).flat_map(|key| ["--set", key]).collect();
        let quick = ["--lr", "0.1", "--batch-size", "2", "--steps", steps, "--out", out];
        run(at, &[&base[..], &set, &quick, more].concat());
    };
    train("whole", "4", &["--sample-every", "2", "--set", "sample_steps=2"]);
    train("part", "2", &[]);
    run(at, &["train", "--resume", "part", "--steps", "4", "--sample-every", "2", "--set", "sample_steps=2"]);
    let last = |run: &str| fs::read(at.join(run).join("checkpoints/step-00000004.safetensors")).unwrap();
    assert!(last("whole") == last("part"), "a resumed run is another");
    assert!(last("whole").len() < 20_000, "the run holds more than its rows: {} bytes", last("whole").len());
    assert!(!at.join("whole/vae.safetensors").exists() && !at.join("whole/text_encoder").exists());

    // Drawn from, and exported: the same rows over the same model.
    let draw = |model: &str, prompt: &str, more: &[&str], out: &str| {
        let how = ["--prompt", prompt, "--steps", "3", "--seed", "5", "--guidance", "3", "--out", out];
        run(at, &[&["sample", model], &how[..], more].concat());
    };
    draw("whole", "a photo of <cat>", &[], "run.png");
    assert!(denoir(at, &["export", "whole", "word"]).status.success());
    let file = "word/learned_embeds.safetensors";
    draw(tiny, "a photo of <cat>", &["--embedding", file], "laid.png");
    assert_eq!(apart(at, "run.png", "laid.png"), 0);
    draw(tiny, "a photo of red red", &[], "begun.png");
    assert!(apart(at, "run.png", "begun.png") > 0, "the rows are those that they began as");
    draw("whole", "a photo of red red", &[], "others.png");
    assert_eq!(apart(at, "begun.png", "others.png"), 0, "other words mean what they meant");
    let bytes = fs::read(at.join(file)).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    assert_eq!((tensors.names(), tensors.tensor("<cat>").unwrap().shape()), (vec!["<cat>"], &[2, 24][..]));
}

/// A picture that cannot be read has another's in its place, and that one's caption, whether latents are
/// made or come from the run's file.
#[test]
fn captions_are_those_of_the_pictures_that_are_seen() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let tiny = crate::place::root().join("tests/golden/tiny_sd");
    let things = at.join("things");
    fs::create_dir(&things).unwrap();
    for (i, caption) in ["red", "blue", "a circle", "green"].iter().enumerate() {
        let pixel = image::Rgb([60 * i as u8, 20, 200]);
        image::RgbImage::from_pixel(16, 16, pixel).save(things.join(format!("{i}.png"))).unwrap();
        fs::write(things.join(format!("{i}.txt")), caption).unwrap();
    }
    let train = |out: &str, steps: &str| {
        let base = ["train", "text-to-image", "--base", tiny.to_str().unwrap(), "--data", "images:things"];
        let rest = ["accumulation=1", "checkpoint_every=2", "lora_rank=2", "evaluate_count=2"];
        let set: Vec<&str> = rest.iter().flat_map(|key| ["--set", key]).collect();
        let quick =
            ["--image-size", "16", "--lr", "0.1", "--batch-size", "2", "--steps", steps, "--out", out];
        run(at, &[&base[..], &set, &quick].concat());
    };
    let last = |run: &str, name: &str| fs::read(at.join(run).join(name)).unwrap();
    fs::write(things.join("1.png"), "no picture").unwrap();
    train("broken", "4");
    train("part", "2");
    assert!(at.join("part/latents.safetensors").exists());
    run(at, &["train", "--resume", "part", "--steps", "4"]);
    // The same pictures with the same captions, but none is broken.
    fs::copy(things.join("2.png"), things.join("1.png")).unwrap();
    fs::copy(things.join("2.txt"), things.join("1.txt")).unwrap();
    train("whole", "4");
    let weights = |run: &str| {
        let bytes = last(run, "checkpoints/step-00000004.safetensors");
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        bytes[8 + header..].to_vec()
    };
    assert!(weights("broken") == weights("part") && weights("broken") == weights("whole"));
    // Measured on the same two pictures with their captions.
    let measured = String::from_utf8(last("whole", "evaluations.jsonl")).unwrap();
    let measured: serde_json::Value = serde_json::from_str(measured.lines().last().unwrap()).unwrap();
    let loss = measured["held_out_loss"].as_f64().unwrap();
    assert!(measured["images"] == 2 && loss > 0.1 && loss < 10.0, "{measured}");

    fs::write(things.join("0.txt"), "another").unwrap();
    let again = ["train", "--resume", "whole", "--steps", "6", "--device", "cpu"];
    fails(at, &again, 1, &["was trained on other data: it has now other captions"]);
    run(at, &["train", "--resume", "whole", "--steps", "6", "--data-changed"]);
}

#[test]
fn what_does_not_go_together_is_refused() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let tiny = crate::place::root().join("tests/golden/tiny_sd");
    let tiny = tiny.to_str().unwrap();
    let word = ["--data", "shapes", "--set", "placeholder_token=<cat>", "--set", "initializer_token=blue"];
    for (arguments, status, wanted) in [
        (
            &["train", "text-to-image", "--set", "lora_rank=2"][..],
            2,
            "adapters are of a model, and none is given",
        ),
        (&["train", "text-to-image", "--set", "placeholder_token=<cat>"], 2, "goes with initializer_token"),
        (
            &[&["train", "text-to-image", "--base", tiny, "--image-size", "16"], &word[..]].concat(),
            2,
            "initializer_token is \"blue\", 4 tokens of this model",
        ),
        (
            &[&["train", "text-to-image", "--set", "lora_rank=2"], &word[..]].concat(),
            2,
            "rows of a new word are trained alone",
        ),
        (&["sample", tiny], 2, "the model draws what a text says"),
        (&["sample", tiny, "--prompt", "a", "--width", "20"], 2, "20x16 pixels"),
        (&["sample", tiny, "--prompts", "nowhere.txt"], 1, "cannot read nowhere.txt"),
        (
            &["sample", tiny, "--prompt", "a", "--negative", "b", "--negative", "c"],
            2,
            "2 --negative for 1 prompts",
        ),
        (&["sample", tiny, "--prompt", "a", "--clip-skip", "9"], 2, "--clip-skip 9 of 2 layers"),
        (&["sample", tiny, "--prompt", "a", "--image", "nowhere.png"], 1, "nowhere.png cannot be read"),
    ] {
        fails(at, &[arguments, &["--device", "cpu"]].concat(), status, &[wanted]);
    }
    // A prompt of a million characters is cut, with a warning.
    fs::write(at.join("long.txt"), format!("{}\n", "red \u{7} ".repeat(150_000))).unwrap();
    let output = denoir(at, &["sample", tiny, "--prompts", "long.txt", "--steps", "1", "--device", "cpu"]);
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && said.contains("warning: the model sees 77 tokens"), "{said}");
    assert!(said.len() < 4000, "{} bytes of warnings", said.len());
}

#[test]
fn a_picture_that_is_no_square_keeps_its_shape() {
    let folder = TempDir::new().unwrap();
    let (at, tiny) = (folder.path(), root().join("tests/golden/tiny_sd"));
    let picture = image::RgbImage::from_fn(40, 16, |x, y| image::Rgb([5 * x as u8, 9 * y as u8, 80]));
    picture.save(at.join("wide.png")).unwrap();
    let sample = ["sample", tiny.to_str().unwrap(), "--prompt", "a", "--steps", "2"];
    for (more, size) in [(&[][..], (40, 16)), (&["--width", "24", "--height", "32"], (24, 32))] {
        run(at, &[&sample[..], &["--image", "wide.png", "--out", "drawn.png"], more].concat());
        assert_eq!(image::image_dimensions(at.join("drawn.png")).unwrap(), size);
    }
}
