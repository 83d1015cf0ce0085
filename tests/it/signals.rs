//! Signals: what stops a training run, what does not, and what a shell learns of it.
#![cfg(unix)]

use std::fs;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::command_line::{TINY, denoir};
use crate::place::program;
use crate::training::steps_done;

/// Starts a run of many steps in `at`, after the commands `before` of a shell, and waits until it has written
/// checkpoints.
pub fn start_and_wait(at: &Path, run: &str, before: &str) -> Child {
    let mut child = Command::new("bash")
        .args(["-c", &format!("{before}\nexec \"$@\"")])
        .arg("bash")
        .arg(program())
        .args(["train", "--out", run, "--steps", "4000"])
        .args(TINY)
        .args(["--set", "lr_schedule=constant"])
        .current_dir(at)
        .stderr(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    wait_for(&mut child, &at.join(run), 6);
    child
}

/// Waits until there is a checkpoint of this step, or of a later one: older ones are deleted.
fn wait_for(child: &mut Child, run: &Path, step: u64) {
    let began = Instant::now();
    let far_enough = || {
        denoir::run::Run::open(run)
            .is_ok_and(|r| r.checkpoints().unwrap().last().is_some_and(|c| c.0 >= step))
    };
    while !far_enough() {
        assert!(began.elapsed() < Duration::from_secs(60), "no checkpoint");
        assert!(child.try_wait().unwrap().is_none(), "ended before it could be stopped");
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn send(signal: &str, child: &Child) {
    assert!(Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap().success());
}

/// Whether the tests run under nohup, which programs that they start inherit.
fn ignores_hang_up() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 == 1)
}

#[test]
fn a_stopped_run_saves_says_how_to_go_on_and_is_no_success() {
    let hang_up = (!ignores_hang_up()).then_some(("-HUP", 129));
    for (signal, status) in [("-INT", 130), ("-TERM", 143)].into_iter().chain(hang_up) {
        let folder = TempDir::new().unwrap();
        let at = folder.path();
        let run = "Ann's run $HOME";
        let child = start_and_wait(at, run, "");
        send(signal, &child);
        let output = child.wait_with_output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert_eq!(output.status.code(), Some(status), "{text}");
        let step = steps_done(&at.join(run));
        let line = text.lines().last().unwrap();
        let command =
            line.strip_prefix(&format!("stopped after step {step}; go on with: denoir ")).expect(line);
        let command = format!("'{}' {command} --steps {} --device cpu", program().display(), step + 2);
        let resumed = Command::new("bash").args(["-c", &command]).current_dir(at).output().unwrap();
        assert!(resumed.status.success(), "{command}: {}", String::from_utf8_lossy(&resumed.stderr));
        assert_eq!(steps_done(&at.join(run)), step + 2);
    }
}

#[test]
fn under_nohup_a_hang_up_stops_nothing() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let mut child = start_and_wait(at, "run", "trap '' HUP");
    send("-HUP", &child);
    let later = steps_done(&at.join("run")) + 20;
    wait_for(&mut child, &at.join("run"), later);
    send("-TERM", &child);
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(143), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn what_a_killed_run_left_half_written_is_removed_by_the_next_start() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let mut child = start_and_wait(at, "run", "umask 027");
    child.kill().unwrap();
    child.wait().unwrap();
    let run = at.join("run");
    let left = [
        "checkpoints/.tmpAb3xYz",
        "checkpoints/.step-00000009.safetensors.4711.part",
        ".recipe.toml.4711.part",
        "samples/.step-00000004.png.4711.part",
    ];
    left.iter().for_each(|name| fs::write(run.join(name), "half").unwrap());
    let steps = (steps_done(&run) + 2).to_string();
    assert!(denoir(at, &["train", "--resume", "run", "--steps", &steps, "--device", "cpu"]).status.success());
    for folder in ["", "checkpoints", "samples"] {
        for entry in fs::read_dir(run.join(folder)).unwrap() {
            let name = entry.unwrap().file_name().into_string().unwrap();
            assert!(!name.starts_with('.') || name == ".lock", "{folder}/{name}");
        }
    }
}

#[test]
fn all_files_of_a_run_have_the_mode_that_the_user_wants() {
    use std::os::unix::fs::PermissionsExt;
    let folder = TempDir::new().unwrap();
    let mut child = start_and_wait(folder.path(), "run", "umask 027");
    send("-INT", &child);
    child.wait().unwrap();
    let run = folder.path().join("run");
    let newest = denoir::run::Run::open(&run).unwrap().checkpoints().unwrap().pop().unwrap().1;
    for file in [run.join("recipe.toml"), run.join("metrics.jsonl"), newest] {
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o640, "{}", file.display());
    }
}
