//! The programs of `tools/examples`, each with few steps; and the one that the guide prints.

use std::fs;

use denoir::diffusion::Schedule;
use tempfile::TempDir;

use crate::place::root;

macro_rules! examples {
    ($($name:ident: $path:literal),+ $(,)?) => {
        $(#[allow(dead_code, clippy::duplicate_mod, reason = "a program has a main, and may include another")]
        #[path = $path]
        mod $name;)+
    };
}

examples! {
    tape: "../../tools/examples/tape.rs",
    own_op: "../../tools/examples/own_op.rs",
    own_network: "../../tools/examples/own_network.rs",
    sample: "../../tools/examples/sample.rs",
    vae: "../../tools/examples/vae.rs",
}

#[test]
fn the_parabola_is_found() {
    let [a, b, c] = tape::fit(300).unwrap();
    assert!((a - 2.0).abs() < 0.01 && (b + 0.5).abs() < 0.01 && (c - 1.0).abs() < 0.01, "{a} {b} {c}");
}

#[test]
fn the_op_is_right_on_every_device() {
    own_op::check();
}

#[test]
fn the_network_learns() {
    // A net that predicts nothing is off by the variance of the noise, 1.
    let mut trainer = own_network::train(300, Schedule::linear(200, 1e-4, 0.05)).unwrap();
    let input = denoir::train::Input::<f32, 4>::new("points", [256, 1, 1, 2]);
    let loss = trainer.step(|batch| batch.write(input, &[0.5; 512])).unwrap().unwrap().loss;
    assert!(loss < 0.9, "{loss}");
}

#[test]
fn the_network_is_sampled_from_its_checkpoint() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("spiral.safetensors");
    sample::show(&path, 5).unwrap();
    let bytes = fs::read(&path).unwrap();
    sample::show(&path, 5).unwrap();
    assert!(bytes == fs::read(&path).unwrap(), "the second run trained again");
}

#[test]
fn the_vae_draws_its_picture() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("vae.png");
    vae::run(3, &path).unwrap();
    assert!(image::open(&path).unwrap().width() > 12 * 16);
}

#[test]
fn the_guide_prints_the_program_as_it_is() {
    let read = |path: &str| fs::read_to_string(root().join(path)).unwrap();
    let program = read("tools/examples/own_network.rs");
    assert!(program.lines().count() <= 40, "the README promises at most 40 lines");
    let page = "src/guide/as-a-library.md";
    assert!(read(page).contains(&format!("```rust,no_run\n{program}```\n")), "{page}");
}
