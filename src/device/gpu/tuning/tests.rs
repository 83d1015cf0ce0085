//! Files of choices: damaged, of other drivers, not there, not to be written.

use std::sync::{Arc, Mutex};

use tempfile::TempDir;

use super::*;
use crate::device::gpu::adapters;

fn gpu() -> Gpu {
    adapters::open(None).expect("an adapter: run tools/test, which installs a software driver")
}

fn choice(variant: &str) -> Choice {
    Choice {
        key: Key { launch: "op".into(), shape_class: "4 by 4".into(), kernels: "0123".into() },
        variant: variant.into(),
        ms: 0.25,
        default: "plain".into(),
        default_ms: 1.0,
        refused: vec![Refusal { variant: "x".into(), why: "y".into() }],
    }
}

/// The tuning in a file, and its warnings.
fn open(gpu: &Gpu, file: &Path, times: bool) -> (Result<Tuning>, Arc<Mutex<Vec<String>>>) {
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&warnings);
    let on_event = move |event: TuningEvent| {
        if let TuningEvent::Warning(text) = event {
            sink.lock().unwrap().push(text.to_owned());
        }
    };
    (Tuning::in_file(gpu, file, times, on_event), warnings)
}

#[test]
fn choices_come_back_as_they_were() {
    let (gpu, folder) = (gpu(), TempDir::new().unwrap());
    let file = folder.path().join("t.json");
    open(&gpu, &file, true).0.unwrap().remember(vec![choice("fast")]);
    let again = open(&gpu, &file, false).0.unwrap();
    assert_eq!(again.find(&choice("").key), Some(&choice("fast")));
    for change in [
        |key: &mut Key| key.launch.push('x'),
        |key: &mut Key| key.shape_class.push('x'),
        |key: &mut Key| key.kernels.push('x'),
    ] {
        let mut key = choice("").key;
        change(&mut key);
        assert_eq!(again.find(&key), None);
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left there");
}

#[test]
fn two_programs_keep_what_both_found() {
    let (gpu, folder) = (gpu(), TempDir::new().unwrap());
    let file = folder.path().join("t.json");
    let [mut a, mut b] = [0, 1].map(|_| open(&gpu, &file, true).0.unwrap());
    a.remember(vec![choice("fast")]);
    let mut other = choice("slow");
    other.key.shape_class = "8 by 8".into();
    b.remember(vec![other.clone()]);
    let both = open(&gpu, &file, false).0.unwrap();
    assert_eq!(both.choices().collect::<Vec<_>>(), [&choice("fast"), &other]);
}

#[test]
fn a_damaged_file_gets_one_line_and_is_made_anew() {
    let (gpu, folder) = (gpu(), TempDir::new().unwrap());
    let file = folder.path().join("t.json");
    open(&gpu, &file, true).0.unwrap().remember(vec![choice("fast")]);
    let whole = std::fs::read(&file).unwrap();
    for damage in [&b"{"[..], b"", b"\xff\xfe", b"[1, 2]", &whole[..whole.len() / 2]] {
        std::fs::write(&file, damage).unwrap();
        let (tuning, warnings) = open(&gpu, &file, true);
        let mut tuning = tuning.unwrap();
        let warnings = warnings.lock().unwrap();
        assert_eq!(warnings.len(), 1, "{warnings:?}");
        assert!(warnings[0].contains("is damaged") && warnings[0].lines().count() == 1, "{warnings:?}");
        assert_eq!(tuning.choices().count(), 0);
        drop(warnings);
        // A file that must decide is not replaced.
        let error = open(&gpu, &file, false).0.err().expect("nothing to go by").report();
        assert!(error.contains("t.json is damaged") && error.contains("denoir tune"), "{error}");
        tuning.remember(vec![choice("fast")]);
        assert_eq!(std::fs::read(&file).unwrap(), whole);
    }
}

#[test]
fn another_adapter_driver_or_wgpu_makes_a_file_useless() {
    let (gpu, folder) = (gpu(), TempDir::new().unwrap());
    let file = folder.path().join("t.json");
    open(&gpu, &file, true).0.unwrap().remember(vec![choice("fast")]);
    let whole: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    assert_eq!(whole["adapter"], gpu.name());
    assert_eq!(whole["driver"], gpu.driver());
    assert!(whole["wgpu"].as_str().unwrap().starts_with("30."), "{whole}");
    for key in ["adapter", "driver", "wgpu"] {
        let mut other = whole.clone();
        other[key] = "another".into();
        std::fs::write(&file, other.to_string()).unwrap();
        for times in [true, false] {
            let error = open(&gpu, &file, times).0.err().expect("not for this one").to_string();
            assert!(error.contains("another") && error.contains(gpu.name()), "{key}: {error}");
        }
    }
}

#[test]
fn a_file_that_must_decide_must_be_there_and_one_that_cannot_be_written_is_an_event() {
    let (gpu, folder) = (gpu(), TempDir::new().unwrap());
    let missing = folder.path().join("none.json");
    let error = open(&gpu, &missing, false).0.err().expect("no file").to_string();
    assert!(error.contains("none.json"), "{error}");
    let file = folder.path().join("a file");
    std::fs::write(&file, "").unwrap();
    let mut tuning = open(&gpu, &missing, true).0.unwrap();
    tuning.file = Some(file.join("t.json"));
    let warnings = Arc::new(Mutex::new(Vec::new()));
    let sink = Arc::clone(&warnings);
    tuning.on_event = Box::new(move |event| sink.lock().unwrap().push(format!("{event:?}")));
    tuning.remember(vec![choice("fast")]);
    assert!(
        warnings.lock().unwrap().len() == 1 && warnings.lock().unwrap()[0].contains("cannot keep the tuning")
    );
    assert!(tuning.find(&choice("").key).is_some(), "it lives as long as the program");
}
