//! What a person meets in the first hour: prices of pictures, names of classes, last lines.

use std::fs;
use std::path::PathBuf;

use tempfile::TempDir;

use crate::command_line::{TINY, denoir, fails, tiny_run};

#[test]
fn pictures_are_priced_and_may_be_left_out() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    let train = |more: &[&str]| {
        let output = denoir(at, &[&["train", "--device", "cpu"], more].concat());
        let errors = text(output.stderr);
        assert!(output.status.success(), "{more:?}: {errors}");
        (text(output.stdout), errors)
    };
    let tiny = |more: &[&'static str]| [&["--steps", "4"], &TINY[..17], more].concat();

    let (plan, _) = train(&tiny(&["--dry-run", "--set", "sample_count=64", "--set", "sample_steps=1000"]));
    let priced = plan.lines().find(|line| line.starts_with("pictures ")).unwrap();
    // A step trains 2 images forward and back, so about a third of it is what a sample's step takes, six
    // times: 68,000 evaluations are some 11,000 steps.
    assert!(priced.contains("64 samples of 1,000 steps at the end: the operations of "), "{priced}");
    let number = priced.split("operations of ").nth(1).unwrap().split(' ').next().unwrap().replace(',', "");
    assert!((7_000..18_000).contains(&number.parse::<u32>().unwrap()), "{priced}");
    assert!(priced.contains(" times the 4 to do)"), "{priced}");
    assert!(
        train(&tiny(&["--dry-run", "--set", "sample_every=never"]))
            .0
            .contains("pictures                     none")
    );

    let (last, told) = train(&tiny(&["--out", "run", "--sample-every", "never"]));
    assert_eq!(last, "digits is trained for 4 steps in run; next: denoir sample run\n");
    assert!(!told.contains("pictures:") && told.contains("step 4/4  100 %  00:0"), "{told}");
    assert!(told.contains("  lr ") && told.contains(" images/s  00:0"), "{told}");
    let run = at.join("run");
    assert!(!run.join("forward.png").exists() && !run.join("backward.png").exists());
    assert_eq!(fs::read_dir(run.join("samples")).unwrap().count(), 0);
    // It owes none.
    fails(at, &["train", "--resume", "run", "--device", "cpu"], 2, &["has 4 of 4 steps done"]);
    let (_, told) = train(&["--resume", "run", "--sample-every", "0", "--steps", "6"]);
    assert!(told.contains("pictures: 2 samples of 2 steps at the end: the operations of "), "{told}");
    assert!(run.join("samples/step-00000006.png").exists() && run.join("backward.png").exists());
    assert_eq!(fs::read_dir(run.join("samples")).unwrap().count(), 1);
}

#[test]
fn classes_go_by_their_names() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let made = denoir(at, &["data", "digits", "--count", "24", "--out", "made", "--image-size", "8"]);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut pictures: Vec<PathBuf> = Vec::new();
    for entry in fs::read_dir(at.join("made")).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir()) {
        pictures.extend(fs::read_dir(entry).unwrap().map(|e| e.unwrap().path()));
    }
    // In the order of their names the second is called 10, the third 2.
    let names = ["10", "2", "pear"];
    for (i, picture) in pictures.iter().enumerate() {
        let to = at.join("set").join(names[i % 3]);
        fs::create_dir_all(&to).unwrap();
        fs::copy(picture, to.join(format!("{i}.png"))).unwrap();
    }
    let classes = ["--set", "unet.num_class_embeds=3", "--data", "images:set"];
    let run = tiny_run(at, &classes);
    let sample = |more: &[&'static str]| {
        [&["sample", "run", "--count", "1", "--sampler", "ddim", "--steps", "2", "--device", "cpu"], more]
            .concat()
    };
    let drawn = |class: &'static str| {
        let output = denoir(at, &sample(&["--class", class, "--out", "out.png"]));
        let told = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{told}");
        (fs::read(at.join("out.png")).unwrap(), told)
    };
    let (pear, told) = drawn("pear");
    assert!(told.contains("of class 2 (pear)"), "{told}");
    assert!(pear == drawn("name:pear").0 && pear == drawn("number:2").0);
    assert!(drawn("10").0 == drawn("0").0 && drawn("name:2").0 == drawn("1").0);
    fails(at, &sample(&["--class", "2"]), 2, &["the name of class 1", "class 2 (pear)", "number:2"]);
    fails(at, &sample(&["--class", "pears"]), 2, &["did you mean pear?", "the classes are 10, 2, pear"]);
    fails(at, &sample(&["--class", "7"]), 2, &["--class 7; it must be below 3"]);
    // A run of an older version has no names; numbers are as they were.
    let recipe = fs::read_to_string(run.join("recipe.toml")).unwrap();
    assert!(recipe.contains("class_names = [\"10\", \"2\", \"pear\"]"), "{recipe}");
}
