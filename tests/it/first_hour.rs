//! What a person meets in the first hour: prices of pictures, last lines.

use std::fs;

use tempfile::TempDir;

use crate::command_line::{TINY, denoir, fails};

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
    let tiny = |more: &[&'static str]| [&["--steps", "4"], &TINY[..16], more].concat();

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
