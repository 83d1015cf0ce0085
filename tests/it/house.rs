//! The rules of the house, read from the source.

use std::fs;
use std::path::{Path, PathBuf};

use crate::place::root;

fn files(folder: &str, ending: &str) -> Vec<(String, String)> {
    fn walk(folder: &Path, ending: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, ending, found);
            } else if path.extension().is_some_and(|e| e == ending) {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    walk(&root().join(folder), ending, &mut found);
    found.sort();
    let root = root();
    let relative = |p: &Path| p.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
    found.iter().map(|p| (relative(p), fs::read_to_string(p).unwrap())).collect()
}

/// Row of a module in the table of layers; a module imports only from the rows below it, or from its own.
fn layer(module: &str) -> u32 {
    match module {
        // Support that knows nothing of tensors.
        "error" | "files" | "philox" | "torch" | "simd" | "matrix" | "micro" | "kernel" => 0,
        "device" => 1,
        "tensor" => 2,
        "launch" | "tape" | "program" | "state" => 3,
        "ops" => 4,
        "check" => 4,
        "nn" | "optim" => 5,
        "models" | "diffusion" | "data" | "weights" => 6,
        "recipe" | "checkpoint" | "run" | "diffusers" => 7,
        "codec" | "latent_file" | "sample" | "train" | "figures" | "bench" => 8,
        "cli" | "prelude" => 9,
        other => panic!("module {other} is not in the table of layers of tests/it/house.rs"),
    }
}

#[test]
fn a_module_imports_only_from_the_rows_below_it() {
    for (file, text) in files("src", "rs") {
        let module = file.strip_prefix("src/").unwrap().split(['/', '.']).next().unwrap();
        if ["lib", "main"].contains(&module) {
            continue;
        }
        for (number, line) in text.lines().enumerate() {
            if line.starts_with("mod tests") {
                break; // tests may reach up
            }
            let line = line.trim_start();
            if line.starts_with("//") {
                continue;
            }
            for (at, _) in line.match_indices("crate::") {
                let word: String =
                    line[at + 7..].chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                // In tests of a lower row, the check harness may be used.
                if word.is_empty() || word == "check" || line.contains("$crate") {
                    continue;
                }
                assert!(
                    layer(&word) <= layer(module),
                    "{file}:{}: {module} must not import {word}",
                    number + 1
                );
            }
        }
    }
}

#[test]
fn no_op_imports_another_op() {
    // The activation is fused into several ops, and the derivative of a broadcast is a sum: those two rooms
    // are shared.
    // Tests may compose them, and compare one with another.
    for (file, text) in files("src/ops", "rs").into_iter().filter(|(file, _)| !file.ends_with("/tests.rs")) {
        let own = file.strip_prefix("src/ops/").unwrap().split(['/', '.']).next().unwrap();
        for (number, line) in text.lines().enumerate() {
            if line.starts_with("mod tests") {
                break;
            }
            if line.trim_start().starts_with("//") {
                continue;
            }
            for (at, path) in line.match_indices("crate::ops::") {
                // One name, or several in braces.
                let rest = &line[at + path.len()..];
                let list =
                    rest.strip_prefix('{').map(|list| list.split('}').next().unwrap_or(list).split(", "));
                for name in list.map_or_else(|| vec![rest], Iterator::collect) {
                    let other: String =
                        name.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
                    let fine = ["activation", "reduce", "shared", "CHUNK", own].contains(&other.as_str());
                    assert!(fine, "{file}:{}: {own} must not import {other}; compose in src/nn", number + 1);
                }
            }
        }
    }
}

#[test]
fn only_the_gpu_device_names_wgpu() {
    for (file, text) in files("src", "rs") {
        let names = text.lines().any(|l| !l.trim_start().starts_with("//") && l.contains("wgpu::"));
        assert!(!names || file.starts_with("src/device/gpu"), "{file} names wgpu");
    }
}

#[test]
fn every_file_says_what_it_is() {
    for (file, text) in
        files("src", "rs").into_iter().chain(files("tests", "rs")).chain(files("benches", "rs"))
    {
        assert!(text.starts_with("//! "), "{file} must begin with a //! sentence");
    }
    for (file, text) in files("kernels", "wgsl") {
        let name = Path::new(&file).file_stem().unwrap().to_string_lossy().into_owned();
        assert!(text.starts_with(&format!("// {name} - ")), "{file} must begin with `// {name} - `");
    }
}

#[test]
fn lines_and_files_stay_readable() {
    for (file, text) in
        files("src", "rs").into_iter().chain(files("tests", "rs")).chain(files("kernels", "wgsl"))
    {
        let long = text.lines().position(|l| l.chars().count() > 130);
        assert_eq!(long.map(|l| l + 1), None, "{file}: a line over 130 characters");
        assert!(text.lines().count() <= 600, "{file}: over 600 lines; is it still one idea?");
    }
}

#[test]
fn nothing_is_left_open() {
    for (file, text) in files("src", "rs").into_iter().chain(files("kernels", "wgsl")) {
        for mark in ["TODO", "FIXME", "todo!(", "unimplemented!("] {
            assert!(!text.contains(mark), "{file} says {mark}");
        }
    }
}
