//! Files as a whole: those that changed since they were written, and those that have no end.

use std::fs;
use std::path::Path;

use tempfile::TempDir;

use crate::command_line::{denoir, fails, tiny_run};

/// A file of denoir as version 0.1.0 wrote it: blanks in the place of the sum.
pub fn without_sum(bytes: &[u8]) -> Vec<u8> {
    let begin = b"\"denoir_sum\":\"xxh3:";
    let at = bytes.windows(begin.len()).position(|w| w == begin).expect("a sum");
    let mut older = bytes.to_vec();
    older[at..at + begin.len() + 32 + 2].fill(b' ');
    older
}

#[test]
fn a_changed_bit_of_a_checkpoint_is_refused() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let newest = tiny_run(at, &[]).join("checkpoints/step-00000004.safetensors");
    let whole = fs::read(&newest).unwrap();
    assert!(denoir::checkpoint::load(&newest).is_ok());
    let bits = 8 * whole.len();
    for bit in (0..400).map(|i| i * (bits / 400) + i % 8) {
        let mut changed = whole.clone();
        changed[bit / 8] ^= 1 << (bit % 8);
        fs::write(&newest, changed).unwrap();
        let report = denoir::checkpoint::load(&newest).err().map(|e| e.report()).unwrap_or_default();
        assert!(report.contains("is damaged"), "bit {bit} of {bits}: {report}");
        assert!(report.contains("goes on from step 2"), "{report}");
    }
    let wanted = ["is damaged", "it has changed since it was written", "move it out of its folder"];
    fails(at, &["sample", "run", "--device", "cpu", "--out", "a.png"], 1, &wanted);
    fails(at, &["train", "--resume", "run", "--steps", "9", "--device", "cpu"], 1, &wanted);
    // What the hint says helps.
    fs::rename(&newest, at.join("damaged.safetensors")).unwrap();
    assert!(denoir(at, &["train", "--resume", "run", "--device", "cpu"]).status.success());
    assert!(fs::read(&newest).unwrap() == whole, "resumed, it differs");
    // Of the only one nothing else can be said.
    fs::remove_file(newest.with_file_name("step-00000002.safetensors")).unwrap();
    fs::write(&newest, &whole[..whole.len() - 1]).unwrap();
    fails(at, &["sample", "run", "--device", "cpu", "--out", "a.png"], 1, &["the run has none before it"]);
}

#[test]
fn noise_and_exported_weights_have_a_sum_too() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    tiny_run(at, &[]);
    let cpu = ["--device", "cpu"];
    let invert = ["invert", "run", "--count", "1", "--steps", "2", "--out", "noise.safetensors"];
    assert!(denoir(at, &[&invert[..], &cpu].concat()).status.success());
    assert!(denoir(at, &["export", "run", "exported"]).status.success());
    let noise = ["sample", "run", "--noise", "noise.safetensors", "--out", "a.png"];
    let exported = ["sample", "exported", "--count", "1", "--steps", "2", "--out", "b.png"];
    let weights = fs::read_dir(at.join("exported/unet")).unwrap().map(|e| e.unwrap().path());
    let weights = weights.into_iter().find(|p| p.extension().is_some_and(|e| e == "safetensors")).unwrap();
    for (command, file) in [(&noise[..], at.join("noise.safetensors")), (&exported[..], weights)] {
        let command = [command, &cpu].concat();
        let output = denoir(at, &command);
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
        let mut changed = fs::read(&file).unwrap();
        let last = changed.len() - 2;
        changed[last] ^= 1;
        fs::write(&file, changed).unwrap();
        fails(at, &command, 1, &["it has changed since it was written"]);
    }
}

#[test]
fn a_checkpoint_of_an_older_release_is_read_and_its_moments_are_looked_at() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let newest = tiny_run(at, &[]).join("checkpoints/step-00000004.safetensors");
    let older = without_sum(&fs::read(&newest).unwrap());
    let (header, metadata) = safetensors::SafeTensors::read_metadata(&older).unwrap();
    let of_set = |set: &str| {
        let names = metadata.offset_keys();
        let name = names.iter().find(|name| name.starts_with(set)).unwrap().clone();
        let first = 8 + header + metadata.info(&name).unwrap().data_offsets.0;
        (name, first)
    };
    let resume = ["train", "--resume", "run", "--steps", "5", "--device", "cpu"];
    for (set, value) in [("adam_v.", -1.0), ("adam_v.", f32::NAN), ("adam_m.", f32::INFINITY)] {
        let (name, first) = of_set(set);
        let mut changed = older.clone();
        changed[first..first + 4].copy_from_slice(&value.to_le_bytes());
        fs::write(&newest, changed).unwrap();
        fails(at, &resume, 1, &[&format!("holds {value} in {name} at 0"), "goes on from step 2"]);
    }
    // The mean of gradients may be negative.
    let (_, first) = of_set("adam_m.");
    let mut changed = older;
    changed[first..first + 4].copy_from_slice(&(-1e-3_f32).to_le_bytes());
    fs::write(&newest, changed).unwrap();
    let output = denoir(at, &resume);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

/// Each command ends: a pipe without a writer would keep it waiting, a device would fill the memory.
#[cfg(unix)]
#[test]
fn files_without_an_end_are_refused_before_they_are_read() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let run = tiny_run(at, &[]);
    let fails = |arguments: &[&str], wanted: &str| {
        let command = format!("exec timeout 60 '{}' \"$@\"", crate::place::program().display());
        let all = [&["-c", command.as_str(), "bash"][..], arguments].concat();
        let output = std::process::Command::new("bash").args(all).current_dir(at).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(matches!(output.status.code(), Some(1 | 2)), "{arguments:?}: {:?} {text}", output.status);
        assert!(text.contains(wanted), "{arguments:?} must say {wanted:?}: {text}");
    };
    let pipe = |path: &Path| {
        let _ = fs::remove_file(path);
        assert!(std::process::Command::new("mkfifo").arg(path).status().unwrap().success());
    };
    let link = |path: &Path| {
        let _ = fs::remove_file(path);
        std::os::unix::fs::symlink("/dev/zero", path).unwrap();
    };
    let resume = ["train", "--resume", "run", "--steps", "9", "--device", "cpu"];
    for special in [&pipe as &dyn Fn(&Path), &link] {
        special(&at.join("r.toml"));
        fails(&["train", "r.toml", "--device", "cpu"], "it is no regular file");
        special(&at.join("noise.safetensors"));
        let noise = ["sample", "run", "--noise", "noise.safetensors", "--device", "cpu", "--out", "a.png"];
        fails(&noise, "it is no regular file");
        let folder = at.join("folder");
        fs::create_dir_all(&folder).unwrap();
        special(&folder.join("model_index.json"));
        fails(&["import", "folder", "imported"], "it is no regular file");
        fails(&["sample", "r.toml", "--device", "cpu"], "is not a run");
        special(&run.join("checkpoints/step-00000005.safetensors"));
        fails(&["sample", "run", "--device", "cpu", "--out", "a.png"], "it is no regular file");
        fails(&resume, "it is no regular file");
        fs::remove_file(run.join("checkpoints/step-00000005.safetensors")).unwrap();
        special(&run.join("metrics.jsonl"));
        fails(&resume, "it is no regular file");
        let recipe = fs::read(run.join("recipe.toml")).unwrap();
        special(&run.join("recipe.toml"));
        fails(&resume, "is not a run");
        fs::remove_file(run.join("recipe.toml")).unwrap();
        fs::write(run.join("recipe.toml"), recipe).unwrap();
    }
}
