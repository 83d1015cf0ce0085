//! `denoir runs`, `denoir diff` and curves of several runs, from the folders of runs alone.

use std::fs;
use std::path::Path;
use std::process::Output;
use std::time::Instant;

use tempfile::TempDir;

use crate::command_line::{denoir, fails, tiny_run};

fn stdout(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Copies a run, under another name.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap().map(|entry| entry.unwrap()) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target)
        } else {
            drop(fs::copy(entry.path(), target))
        }
    }
}

/// Changes a text file.
fn edit(path: &Path, from: &str, to: &str) {
    let text = fs::read_to_string(path).unwrap();
    assert!(text.contains(from), "{}: {text}", path.display());
    fs::write(path, text.replace(from, to)).unwrap();
}

/// The words of the line that begins with a name.
fn line(text: &str, name: &str) -> Vec<String> {
    let found = text.lines().find(|line| line.split_whitespace().next() == Some(name));
    let found = found.unwrap_or_else(|| panic!("no line of {name} in\n{text}"));
    found.split("  ").map(|cell| cell.trim().to_owned()).filter(|cell| !cell.is_empty()).collect()
}

#[test]
fn runs_are_listed_with_their_state_and_compared() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let whole = tiny_run(at, &["--set", "evaluate_every=2"]);
    let all = at.join("all");
    copy(&whole, &all.join("a"));
    let b = all.join("deep/b");
    // Begun with other values, and killed after its third step.
    copy(&whole, &b);
    edit(&b.join("recipe.toml"), "lr = 0.001", "lr = 0.00001");
    edit(&b.join("recipe.toml"), "steps = 4\n", "steps = 40\n");
    fs::remove_file(b.join("checkpoints/step-00000004.safetensors")).unwrap();
    let metrics = fs::read_to_string(b.join("metrics.jsonl")).unwrap();
    let third = metrics.lines().nth(2).unwrap();
    fs::write(
        b.join("metrics.jsonl"),
        format!("{}\n{{\"step\":4,\"lo", metrics.lines().take(3).collect::<Vec<_>>().join("\n")),
    )
    .unwrap();
    copy(&whole, &all.join("cut"));
    let newest = all.join("cut/checkpoints/step-00000004.safetensors");
    let bytes = fs::read(&newest).unwrap();
    fs::write(&newest, &bytes[..bytes.len() - 5]).unwrap();
    copy(&whole, &all.join("no-toml"));
    fs::write(all.join("no-toml/recipe.toml"), "steps = ").unwrap();
    copy(&whole, &all.join("busy"));
    let lock = fs::File::create(all.join("busy/.lock")).unwrap();
    lock.lock().unwrap();

    let text = stdout(&denoir(at, &["runs", "all"]));
    assert_eq!(text.lines().count(), 6, "{text}");
    let of_a = line(&text, "all/a");
    assert_eq!((&of_a[1..4], &*of_a[7]), (&["digits", "ddpm", "4/4"].map(str::to_owned)[..], "finished"));
    let of_b = line(&text, "all/deep/b");
    let loss = serde_json::from_str::<serde_json::Value>(third).unwrap()["loss"].as_f64().unwrap();
    assert_eq!((&*of_b[3], &of_b[4], &*of_b[7]), ("3/40", &format!("{loss:.4}"), "stopped, saved 2"));
    assert!(of_b[8].contains("lr=1e-5") && of_b[8].contains("image_size=8"), "{of_b:?}");
    assert_eq!(line(&text, "all/busy")[7], "running");
    assert_eq!(line(&text, "all/cut")[7], "damaged");
    assert!(line(&text, "all/no-toml").contains(&"damaged".to_owned()));

    let evaluations = fs::read_to_string(whole.join("evaluations.jsonl")).unwrap();
    let lowest = evaluations.lines().map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
    let lowest = lowest.map(|e| (e["held_out_loss"].as_f64().unwrap(), e["step"].as_u64().unwrap()));
    let (best, step) = lowest.min_by(|a, b| a.0.total_cmp(&b.0)).unwrap();
    assert_eq!(of_a[5], format!("{best:.4} at {step}"));

    let text = stdout(&denoir(at, &["diff", "all/a", "all/deep/b"]));
    assert_eq!(line(&text, "lr"), ["lr", "0.001", "1e-5"]);
    assert_eq!(line(&text, "steps"), ["steps", "4/4", "3/40"]);
    assert_eq!(
        text.lines().last().unwrap().split_whitespace().next(),
        Some("lr"),
        "only what differs: {text}"
    );
    fails(at, &["diff", "all/a", "nothing"], 1, &["nothing does not exist"]);
    fails(at, &["runs", "nothing"], 1, &["folder nothing cannot be listed"]);

    let curves = ["figure", "loss", "all/a", "all/deep/b", "--out", "both.png", "--size", "200"];
    stdout(&denoir(at, &curves));
    let both = image::image_dimensions(at.join("both.png")).unwrap();
    assert_eq!(both, (416, 150), "losses, and those of held-out images beside them");
    fails(at, &["figure", "forward", "all/a", "all/deep/b"], 2, &["only schedule and loss compare several"]);
}

#[test]
fn two_hundred_runs_are_listed_in_a_second() {
    let folder = TempDir::new().unwrap();
    let whole = tiny_run(folder.path(), &[]);
    // A long training has some megabytes of metrics, whose end alone is read.
    let line =
        fs::read_to_string(whole.join("metrics.jsonl")).unwrap().lines().next().unwrap().to_owned() + "\n";
    fs::write(whole.join("metrics.jsonl"), line.repeat(5000)).unwrap();
    for number in 0..200 {
        copy(&whole, &folder.path().join(format!("runs/run-{number}")));
    }
    let best = (0..3).map(|_| {
        let before = Instant::now();
        assert_eq!(stdout(&denoir(folder.path(), &["runs"])).lines().count(), 201);
        before.elapsed().as_secs_f64()
    });
    let best = best.fold(f64::MAX, f64::min);
    println!("200 runs: {best:.3} s");
    // A third of a second on a machine with nothing else to do.
    assert!(best < 1.5, "{best} s");
}
