//! Any bytes as the recipe and the metrics of a run, and as an adapter's tuning.
#![no_main]

use denoir::device::gpu::tuning::Contents;
use denoir::run::Run;
use denoir_fuzz::{put, scratch, two};

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let _ = Contents::parse(bytes);
    let (recipe, metrics) = two(bytes);
    put("run/recipe.toml", recipe);
    put("run/metrics.jsonl", metrics);
    put("run/evaluations.jsonl", metrics);
    let run = Run::open(&scratch().join("run")).expect("there is a recipe");
    if let Ok(recipe) = run.recipe() {
        let _ = recipe.validate();
    }
    let lines = || run.metrics().expect("it is there");
    let read = lines().len();
    assert!(lines().len() == read && run.evaluations().expect("it is there").len() <= metrics.len());
    run.truncate_metrics(3).expect("room for a file");
    assert!(lines().iter().all(|line| line.step <= 3));
});
