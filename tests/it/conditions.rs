//! Models that draw from conditions: what they learn, what samples keep, and what commands make of them.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use denoir::data::{self, ConditionKind, Dataset, Loader, Partner};
use denoir::device::Device;
use denoir::diffusion::Prediction;
use denoir::error::Result;
use denoir::sample::{Given, Guidance, Options};
use denoir::train::RecipeTrainer;
use tempfile::TempDir;

use crate::command_line::{TINY, denoir, fails};
use crate::reference::devices;
use crate::training::{advance, small};

/// Digits, each beside its negative.
struct Negatives(Arc<dyn Dataset>);

impl Dataset for Negatives {
    fn len(&self) -> Option<u64> {
        None
    }

    fn shape(&self) -> [usize; 3] {
        self.0.shape()
    }

    fn classes(&self) -> &[String] {
        &[]
    }

    fn read(&self, index: u64, out: &mut [f32]) -> Result<u32> {
        self.0.read(index, out)
    }

    fn partner(&self) -> Option<Partner> {
        Some(Partner { shape: self.shape(), is_map: false })
    }

    fn read_pair(&self, index: u64, out: &mut [f32], partner: &mut [f32]) -> Result<u32> {
        let label = self.read(index, out)?;
        partner.iter_mut().zip(out).for_each(|(partner, v)| *partner = -*v);
        Ok(label)
    }
}

/// Samples of a model that was told come near what they were made of; samples of the same model, not told, do
/// not.
#[test]
fn a_model_learns_what_its_condition_says() {
    let mut recipe = small();
    (recipe.batch_size, recipe.unet.in_channels) = (16, 2);
    (recipe.condition.kind, recipe.condition.channels) = (ConditionKind::Pair, 1);
    (recipe.condition.dropout, recipe.prediction_type) = (0.2, Prediction::Sample);
    recipe.validate().unwrap();
    let pictures = data::Options {
        image_size: 8,
        channels: Some(1),
        crop: None,
        resize: data::Resize::Bicubic,
        seed: 0,
        split: data::Split::Train,
    };
    let negatives = Arc::new(Negatives(data::open("digits", &pictures).unwrap()));
    let batches = |first| {
        Loader::conditioned(negatives.clone(), recipe.condition.clone(), 16, 0, false, first).unwrap()
    };
    let mut losses: Vec<Vec<f32>> = Vec::new();
    for device in devices() {
        let (mut loader, mut trainer) =
            (batches(0), RecipeTrainer::new(&recipe, &device, None, None).unwrap());
        losses.push((0..3).map(|_| advance(&mut trainer, || loader.next().unwrap()).loss).collect());
    }
    let differ = |other: &Vec<f32>| other.iter().zip(&losses[0]).any(|(a, b)| (a - b).abs() > 2e-4 * b);
    assert!(!losses.iter().any(differ), "{losses:?}");
    let mut loader = batches(0);
    let mut trainer = RecipeTrainer::new(&recipe, &Device::open("cpu").unwrap(), None, None).unwrap();
    for _ in 0..300 {
        advance(&mut trainer, || loader.next().unwrap());
    }
    // Twelve that training did not come to.
    let (mut images, mut conditions) = (vec![0.0; 12 * 64], vec![0.0; 12 * 64]);
    let both = images.chunks_exact_mut(64).zip(conditions.chunks_exact_mut(64));
    both.zip(100_000..).for_each(|((image, condition), number)| {
        negatives.read_pair(number, image, condition).unwrap();
    });
    let (images, conditions) = (images.into(), conditions.into());
    let given = Given { images, labels: Vec::new(), conditions, trained_on: false };
    let quality = |scale| {
        let guidance = Guidance { scale, ..Guidance::default() };
        let options = Options { guidance, ..Options::new(recipe.sampler("ddim").unwrap(), 8, 1) };
        let source = trainer.source(None).conditioned_on(given.clone());
        let [quality, _] = source.psnr(&source.draw(&options, 24, None, || Ok(())).unwrap()).unwrap();
        quality
    };
    let (told, guided, not_told) = (quality(1.0), quality(1.2), quality(0.0));
    println!("PSNR {told:.2} dB, guided {guided:.2} dB, without conditions {not_told:.2} dB");
    assert!(told > not_told + 6.0 && guided > not_told + 6.0, "{told}, {guided} and {not_told} dB");
}

fn runs(at: &Path, arguments: &[&str]) -> String {
    let output = denoir(at, arguments);
    let told = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {told}");
    String::from_utf8(output.stdout).unwrap() + &told
}

fn train(at: &Path, out: &str, steps: &str, more: &[&str]) {
    let head = ["train", "--out", out, "--steps", steps, "--set", "lr_schedule=constant"];
    runs(at, &[&head, &TINY[..], more].concat());
}

const MASK: [&str; 4] = ["--set", "condition.kind=mask", "--set", "unet.in_channels=3"];

#[test]
fn holes_are_filled_and_nothing_else_changes() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    train(at, "run", "4", &MASK);
    // A run that was stopped meets the same holes.
    train(at, "parts", "2", &MASK);
    runs(at, &["train", "--resume", "parts", "--steps", "4", "--device", "cpu"]);
    let last = |run: &str| fs::read(at.join(run).join("checkpoints/step-00000004.safetensors")).unwrap();
    assert_eq!(last("run"), last("parts"));

    let picture = image::GrayImage::from_fn(8, 8, |x, y| image::Luma([(x * 20 + y * 7) as u8]));
    picture.save(at.join("picture.png")).unwrap();
    let is_hole = |x, y| (2..6).contains(&x) && y > 4;
    let white = |x, y| image::Luma([if is_hole(x, y) { 255 } else { 0 }]);
    image::GrayImage::from_fn(8, 8, white).save(at.join("mask.png")).unwrap();
    let sample = ["sample", "run", "--device", "cpu", "--steps", "2"];
    let with = ["--condition", "picture.png", "--mask", "mask.png", "--count", "2", "--out", "filled"];
    let told = runs(at, &[&sample[..], &with].concat());
    assert!(told.contains("of the conditions themselves"), "{told}");
    let [first, second] = ["filled/000000.png", "filled/000001.png"]
        .map(|name| image::open(at.join(name)).unwrap().into_luma8());
    let mut differ = 0;
    for (x, y, pixel) in picture.enumerate_pixels() {
        let [a, b] = [&first, &second].map(|sample| sample.get_pixel(x, y));
        assert!(is_hole(x, y) || (a == pixel && b == pixel), "pixel {x}, {y}: {a:?} and {b:?} of {pixel:?}");
        differ += usize::from(is_hole(x, y) && a != b);
    }
    assert!(differ > 6, "{differ} of 12 pixels of the hole differ between two samples");
    // Three columns: condition, sample and original, 64 pixels each, with labels above.
    runs(at, &[&sample[..], &["--count", "3", "--out", "grid.png"]].concat());
    let grid = image::open(at.join("grid.png")).unwrap();
    assert!((200..230).contains(&grid.width()) && (200..240).contains(&grid.height()), "{grid:?}");
    runs(at, &["figure", "backward", "run", "--count", "2", "--device", "cpu"]);
    for of in [&[][..], &["--sample"]] {
        runs(at, &[&["profile", "run", "--steps", "1", "--device", "cpu"], of].concat());
    }
}

#[test]
fn what_conditions_do_not_go_with_is_refused() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    train(at, "run", "2", &MASK);
    train(at, "plain", "2", &[]);
    let wrong = |arguments: &[&str], wanted: &[&str]| {
        let code = if wanted[0].contains("does not exist") { 1 } else { 2 };
        fails(at, &[arguments, &["--device", "cpu"]].concat(), code, wanted);
    };
    wrong(&["sample", "run", "--condition", "nothing"], &["unknown data `nothing`"]);
    wrong(&["sample", "run", "--condition", "a.png", "b.png"], &["a.png is no picture"]);
    wrong(&["sample", "run", "--guidance", "2"], &["guidance is 2", "condition.dropout"]);
    wrong(&["sample", "plain", "--condition", "digits"], &["draws from noise alone", "leave --condition"]);
    wrong(&["likelihood", "run", "--count", "2"], &["no likelihood is measured"]);
    wrong(&["invert", "run", "digits", "--count", "2"], &["draws from conditions"]);
    wrong(&["figure", "branches", "run"], &["branches shows what noise decides"]);
    let set = |settings: &[&'static str], wanted: &[&str]| {
        let more: Vec<&str> = settings.iter().flat_map(|&setting| ["--set", setting]).collect();
        fails(at, &[&["train", "--steps", "2"], &TINY[..], &more].concat(), 2, wanted);
    };
    set(
        &["condition.kind=mask", "unet.in_channels=3", "condition.dropout=0.1"],
        &["condition.dropout is for"],
    );
    set(&["condition.kind=mask"], &["unet.in_channels is 1", "set unet.in_channels = 3"]);
    set(&["condition.kind=grey", "unet.in_channels=2"], &["condition.kind is grey, and so are the images"]);
    set(&["condition.kind=pair", "unet.in_channels=4"], &["the data has no pairs", "pairs:A,B"]);
    set(&["condition.kind=low_resolution", "unet.in_channels=2", "condition.factor=3"], &["must divide"]);
    set(&["condition.noise=0.1"], &["goes with condition.kind = low_resolution"]);
    set(&["condition.dropout=0.1"], &["set condition.kind"]);
    // Without a pipeline: the model, and its scheduler beside it.
    let told = runs(at, &["export", "run", "exported"]);
    assert!(told.contains("no pipeline gives it conditions"), "{told}");
    let config = fs::read_to_string(at.join("exported/config.json")).unwrap();
    let config: serde_json::Value = serde_json::from_str(&config).unwrap();
    assert_eq!([&config["in_channels"], &config["out_channels"]], [3, 1]);
    assert!(!at.join("exported/model_index.json").exists());
}

#[test]
fn pairs_of_folders_are_trained_and_drawn_from() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    for name in ["a", "b"] {
        let data = ["data", "digits", "--image-size", "8", "--count", "6", "--out", name];
        runs(at, &data);
    }
    let pair = [
        "--data",
        "pairs:a,b",
        "--set",
        "condition.kind=pair",
        "--set",
        "condition.channels=1",
        "--set",
        "unet.in_channels=2",
    ];
    train(at, "run", "2", &pair);
    // The folders in it are the classes.
    let mut class = fs::read_dir(at.join("a")).unwrap().map(|entry| entry.unwrap().path());
    let class = class.find(|path| path.is_dir()).unwrap();
    let picture = fs::read_dir(class).unwrap().next().unwrap().unwrap().path();
    let picture = picture.to_str().unwrap();
    let sample = ["sample", "run", "--device", "cpu", "--steps", "2", "--condition"];
    let told = runs(at, &[&sample[..], &[picture, "--out", "one.png"]].concat());
    assert!(!told.contains("dB"), "nobody knows the image: {told}");
    let told = runs(at, &[&sample[..], &["pairs:a,b", "--count", "2", "--out", "two.png"]].concat());
    assert!(told.contains("dB"), "{told}");
    let images = ["train", "--steps", "2", "--data", "pairs:a,b"];
    fails(at, &[&images[..], &TINY].concat(), 2, &["condition.kind is not pair", "images:B alone"]);
}
