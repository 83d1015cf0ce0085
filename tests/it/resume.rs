//! A run that goes on: it knows its data, its learning rate and its clock, and does what a kill left undone.

use std::fs;
use std::path::{Path, PathBuf};

use denoir::data::{self, Loader};
use denoir::device::Device;
use denoir::run::{Metrics, Run};
use denoir::train::RecipeTrainer;
use tempfile::TempDir;

use crate::autoencoder::{TINY_LDM, TINY_VAE, train};
use crate::command_line::{TINY, denoir, fails, tiny_run};
use crate::training::advance;

/// A grey picture of its own.
fn picture(path: &Path, number: u8) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let pixel = |x: u32, y: u32| image::Luma([(x * u32::from(number) + y * 31) as u8]);
    image::GrayImage::from_fn(8, 8, pixel).save(path).unwrap();
}

/// Two classes of three pictures in `at/data`.
fn orchard(at: &Path) -> PathBuf {
    let data = at.join("data");
    for i in 0..3 {
        picture(&data.join(format!("apple/{i}.png")), 3 * i);
        picture(&data.join(format!("pear/{i}.png")), 3 * i + 1);
    }
    data
}

const OF_ORCHARD: [&str; 6] =
    ["--data", "images:data", "--set", "unet.num_class_embeds=2", "--set", "lr_schedule=constant"];

/// Goes on with `run` and gives what was said.
fn goes_on(at: &Path, steps: &str, extra: &[&str]) -> String {
    let arguments = [&["train", "--resume", "run", "--steps", steps, "--device", "cpu"][..], extra].concat();
    let output = denoir(at, &arguments);
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

fn stops(at: &Path, steps: &str, wanted: &[&str]) {
    let before = fs::read(at.join("run/recipe.toml")).unwrap();
    fails(at, &["train", "--resume", "run", "--steps", steps, "--device", "cpu"], 1, wanted);
    assert!(fs::read(at.join("run/recipe.toml")).unwrap() == before, "a refused run was changed");
}

fn metrics(run: &Path) -> Vec<Metrics> {
    Run::open(run).unwrap().metrics().unwrap()
}

fn losses(run: &Path) -> Vec<f32> {
    metrics(run).iter().map(|m| m.loss).collect()
}

#[test]
fn other_data_is_told_and_stops() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let data = orchard(at);
    let run = tiny_run(at, &OF_ORCHARD);
    let record = fs::read_to_string(run.join("data.toml")).unwrap();
    assert!(record.contains(r#"classes = ["apple", "pear"]"#) && record.contains("pictures = 6"), "{record}");

    let meant = "or go on with --data-changed";
    fs::rename(data.join("apple"), data.join("zapple")).unwrap();
    stops(at, "5", &[r#"no class "apple", a new class "zapple""#, meant]);
    fs::rename(data.join("zapple"), data.join("apple")).unwrap();
    picture(&data.join("apple/0.png"), 99);
    stops(at, "5", &["other pictures", meant]);
    picture(&data.join("apple/0.png"), 0);
    picture(&data.join("apple/3.png"), 9);
    stops(at, "5", &["7 pictures instead of 6", meant]);
    fs::remove_file(data.join("apple/3.png")).unwrap();
    fs::rename(data.join("pear/2.png"), data.join("apple/2b.png")).unwrap();
    stops(at, "5", &["other pictures, or the same under other names", meant]);
    fs::rename(data.join("apple/2b.png"), data.join("pear/2.png")).unwrap();

    // The same data in another place, with other times, is the same data.
    fs::create_dir(at.join("moved")).unwrap();
    for class in ["pear", "apple"] {
        fs::create_dir(at.join("moved").join(class)).unwrap();
        for i in 0..3 {
            let name = format!("{class}/{i}.png");
            fs::write(at.join("moved").join(&name), fs::read(data.join(&name)).unwrap()).unwrap();
        }
    }
    let said = goes_on(at, "5", &["--data", "images:moved"]);
    assert!(!said.contains("note: "), "{said}");
    let sized = ["train", "--resume", "run", "--steps", "6", "--set", "image_size=16", "--device", "cpu"];
    fails(at, &sized, 1, &["image_size 16 instead of 8", meant]);

    picture(&at.join("moved/pear/0.png"), 77);
    let said = goes_on(at, "6", &["--data-changed"]);
    assert!(said.contains("note: run was trained on other data"), "{said}");
}

/// The class of a folder that was renamed takes the number that became free, and the others keep theirs,
/// wherever their names stand: the losses are those of the data as it was.
#[test]
fn classes_keep_the_numbers_that_the_run_has_recorded() {
    let folder = TempDir::new().unwrap();
    let (a, b) = (folder.path().join("a"), folder.path().join("b"));
    for at in [&a, &b] {
        orchard(at);
        tiny_run(at, &OF_ORCHARD);
    }
    // In a record of another order classes keep its numbers: as if the folders had other names.
    let record = b.join("run/data.toml");
    let text = fs::read_to_string(&record).unwrap();
    fs::write(&record, text.replace(r#"["apple", "pear"]"#, r#"["pear", "apple"]"#)).unwrap();
    for at in [&a, &b] {
        let said = goes_on(at, "8", &[]);
        assert!(!said.contains("note: "), "{said}");
    }
    assert_eq!(losses(&a.join("run"))[..4], losses(&b.join("run"))[..4]);
    assert_ne!(losses(&a.join("run")), losses(&b.join("run")), "the labels of b are the recorded ones");
    let text = fs::read_to_string(&record).unwrap();
    assert!(text.contains(r#"["pear", "apple"]"#), "{text}");

    // One more class before the others, and one renamed: no number but the free one is given anew.
    fs::rename(b.join("data/pear"), b.join("data/0pear")).unwrap();
    let said = goes_on(&b, "9", &["--data-changed"]);
    assert!(said.contains(r#"no class "pear", a new class "0pear""#), "{said}");
    let text = fs::read_to_string(&record).unwrap();
    assert!(text.contains(r#"["0pear", "apple"]"#), "{text}");
}

#[test]
fn a_run_without_a_record_says_so_and_goes_on() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let run = tiny_run(at, &[]);
    fs::remove_file(run.join("data.toml")).unwrap();
    assert!(goes_on(at, "5", &[]).contains("note: the run does not say what data it was trained on"));
    assert!(!goes_on(at, "6", &[]).contains("note: the run does not say"));
    fs::write(run.join("data.toml"), "batches = []").unwrap();
    stops(at, "7", &["data.toml is damaged", "delete it"]);
}

#[test]
fn a_jump_of_the_learning_rate_is_told_and_can_be_held() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let run = tiny_run(at, &["--set", "lr_schedule=cosine", "--set", "lr_warmup=0", "--set", "lr=1e-3"]);
    let lr = || metrics(&run).iter().map(|m| m.lr).collect::<Vec<f64>>();
    let held = lr()[3];
    assert!(held > 0.0 && held < 2e-4, "{held}");
    let wrong =
        ["train", "--resume", "run", "--steps", "6", "--hold-lr", "--set", "lr=2e-3", "--device", "cpu"];
    fails(at, &wrong, 2, &["a key changes it"]);
    fails(at, &["train", "digits", "--hold-lr"], 2, &["are for a run that goes on; name it with --resume"]);
    let said = goes_on(at, "6", &["--hold-lr"]);
    assert!(said.contains("note: the learning rate stays at 1.5e-4, that of step 4"), "{said}");
    let said = goes_on(at, "8", &[]);
    assert!(!said.contains("learning rate"), "held is held: {said}");
    assert_eq!(lr()[4..], [held; 4]);
    let said = goes_on(at, "12", &["--set", "lr_schedule=cosine", "--set", "lr=1e-3"]);
    let wanted =
        "note: the learning rate goes from 1.5e-4 in step 8 to 2.5e-4 in the next, as 12 steps have it";
    assert!(said.contains(wanted) && said.contains("--hold-lr keeps it"), "{said}");
}

#[test]
fn the_clock_goes_on_and_damaged_lines_hide_nothing() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let run = tiny_run(at, &[]);
    // Of a run that took long.
    let path = run.join("metrics.jsonl");
    let mut all = metrics(&run);
    for m in &mut all {
        (m.seconds, m.images_per_s) = (1000.0 * m.step as f64, 0.001);
    }
    let line = |m: &Metrics| serde_json::to_string(m).unwrap() + "\n";
    let mut bytes: Vec<u8> = all.iter().map(line).collect::<String>().into_bytes();
    bytes[10] = 0xff; // in the first line
    let late = line(&Metrics { step: 5, ..all[3].clone() });
    bytes.extend(late.as_bytes());
    bytes.extend(&late.as_bytes()[..20]); // cut
    fs::write(&path, bytes).unwrap();
    assert_eq!(metrics(&run).len(), 4);
    goes_on(at, "6", &[]);
    let all = metrics(&run);
    assert_eq!(all.iter().map(|m| m.step).collect::<Vec<_>>(), [2, 3, 4, 5, 6]);
    assert!(all.windows(2).all(|two| two[0].seconds < two[1].seconds), "{all:?}");
    // 8 images in 8000 seconds, then 4 in no time.
    let last = &all[4];
    assert!(last.seconds > 4000.0 && (last.images_per_s - 12.0 / 8000.0).abs() < 2e-5, "{last:?}");
    let figure = denoir(at, &["figure", "loss", "run", "--out", "loss.png"]);
    assert!(figure.status.success(), "{}", String::from_utf8_lossy(&figure.stderr));

    fs::remove_file(&path).unwrap();
    fs::create_dir(&path).unwrap();
    fails(at, &["figure", "loss", "run", "--out", "loss.png"], 1, &["cannot read", "metrics.jsonl"]);
    fails(at, &["train", "--resume", "run", "--steps", "7", "--device", "cpu"], 1, &["metrics.jsonl"]);
    fs::remove_dir_all(run.join("checkpoints")).unwrap();
    fs::write(run.join("checkpoints"), "no folder").unwrap();
    fails(at, &["sample", "run", "--device", "cpu"], 1, &["checkpoints cannot be listed"]);
}

#[test]
fn another_batch_size_goes_on_with_the_next_images() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let begin = ["train", "--out", "run", "--steps", "2", "--set", "lr_schedule=constant"];
    let output = denoir(at, &[&begin[..], &TINY].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let run = at.join("run");
    goes_on(at, "3", &["--batch-size", "3", "--set", "accumulation=2"]);
    goes_on(at, "4", &["--batch-size", "2", "--set", "accumulation=1", "--set", "keep_checkpoints=9"]);
    // 2 * 2 + 6 images were seen before the fourth step.
    let recipe = Run::open(&run).unwrap().recipe().unwrap();
    let options = data::Options {
        image_size: 8,
        channels: Some(1),
        crop: None,
        resize: recipe.resize,
        seed: recipe.seed,
        split: data::Split::Train,
    };
    let fourth = |seen: u64| {
        let mut trainer = RecipeTrainer::new(&recipe, &Device::open("cpu").unwrap(), None, None).unwrap();
        trainer.resume(&run.join("checkpoints/step-00000003.safetensors")).unwrap();
        let images = data::open("digits", &options).unwrap();
        let mut loader = Loader::new(images, 2, recipe.seed, recipe.flip, seen).unwrap();
        advance(&mut trainer, || loader.next().unwrap()).loss
    };
    let got = losses(&run)[3];
    assert_eq!(got, fourth(10));
    assert_ne!(got, fourth(6));
}

#[test]
fn passes_are_counted_through_another_batch_size() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    orchard(at);
    let begin = ["train", "--out", "run", "--data", "images:data", "--set", "epochs=2"];
    let output = denoir(at, &[&begin[..], &TINY, &["--set", "checkpoint_every=3"]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let run = at.join("run");
    assert_eq!(metrics(&run).len(), 6, "two passes of three batches");
    fs::remove_file(run.join("checkpoints/step-00000006.safetensors")).unwrap();
    let output = denoir(at, &["train", "--resume", "run", "--batch-size", "3", "--device", "cpu"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(metrics(&run).len(), 5, "one of three batches, one of two larger ones");
}

#[test]
fn what_the_last_step_owed_is_done() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let settings = ["--set", "sample_every=2", "--set", "lr_schedule=constant"];
    let run = tiny_run(at, &settings);
    let pictures = ["samples/step-00000002.png", "samples/step-00000004.png", "backward.png", "forward.png"];
    let read = || pictures.map(|name| fs::read(run.join(name)).unwrap());
    let whole = read();
    let checkpoint = |step: u64| run.join(format!("checkpoints/step-{step:08}.safetensors"));
    let (second, last) = (fs::read(checkpoint(2)).unwrap(), fs::read(checkpoint(4)).unwrap());
    pictures.iter().for_each(|name| fs::remove_file(run.join(name)).unwrap());
    // Killed after the checkpoint of step 2.
    fs::remove_file(checkpoint(4)).unwrap();
    goes_on(at, "4", &[]);
    assert!(read() == whole && fs::read(checkpoint(4)).unwrap() == last, "other bytes");
    // Killed after the last checkpoint, before the pictures, and before the oldest checkpoint was deleted.
    pictures[1..].iter().for_each(|name| fs::remove_file(run.join(name)).unwrap());
    fs::write(checkpoint(1), &second).unwrap();
    goes_on(at, "4", &[]);
    assert!(read() == whole, "other bytes");
    assert!(!checkpoint(1).exists() && checkpoint(2).exists() && checkpoint(4).exists());
    fails(at, &["train", "--resume", "run", "--device", "cpu"], 2, &["4 of 4 steps done"]);
    // One that cannot be deleted is told.
    fs::create_dir_all(checkpoint(1).join("inside")).unwrap();
    let said = goes_on(at, "5", &[]);
    assert!(said.contains("warning: cannot delete") && said.contains("step-00000001"), "{said}");
}

#[test]
fn a_latent_run_ends_with_its_latents_and_knows_their_pictures() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let data = orchard(at);
    train(at, "faces-vae", "vae", "2", &TINY_VAE, &["--data", "images:data"]);
    let extra = ["--vae", "vae", "--data", "images:data", "--set", "scaling_factor=0.9"];
    let extra = [&extra[..], &["--set", "lr_schedule=constant"]].concat();
    let run = train(at, "faces-ldm", "run", "4", &TINY_LDM, &extra);
    let kept = run.join("latents.safetensors");
    let whole = fs::read(&kept).unwrap();
    // Killed when all of the six images were met, and before their latents were written.
    fs::remove_file(&kept).unwrap();
    goes_on(at, "4", &[]);
    assert!(fs::read(&kept).unwrap() == whole, "other latents");
    fs::remove_file(&kept).unwrap();
    goes_on(at, "5", &[]);
    assert!(fs::read(&kept).unwrap() == whole, "other latents");

    // Other pictures under the old names have other latents: those of a run that knew no others.
    picture(&data.join("apple/0.png"), 99);
    let copy = at.join("copy");
    fs::create_dir_all(copy.join("checkpoints")).unwrap();
    for name in ["recipe.toml", "vae.safetensors", "checkpoints/step-00000005.safetensors"] {
        fs::copy(run.join(name), copy.join(name)).unwrap();
    }
    goes_on(at, "9", &["--data-changed"]);
    let output = denoir(at, &["train", "--resume", "copy", "--steps", "9", "--device", "cpu"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(losses(&run)[5..], losses(&copy)[..]);
    let changed = fs::read(&kept).unwrap();
    assert!(changed != whole && fs::read(copy.join("latents.safetensors")).unwrap() == changed);
    // Pictures in another class have other labels.
    fs::rename(data.join("apple/1.png"), data.join("pear/1b.png")).unwrap();
    goes_on(at, "13", &["--data-changed"]);
    let file = fs::read(&kept).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&file).unwrap();
    let labels: Vec<f32> = bytemuck::pod_collect_to_vec(tensors.tensor("labels").unwrap().data());
    assert_eq!(labels, [0.0, 0.0, 1.0, 1.0, 1.0, 1.0]);
}
