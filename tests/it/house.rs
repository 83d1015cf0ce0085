//! The rules of the house, read from the source.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use crate::place::root;
use crate::source::{Module, Modules, files, is_test, lines_of_code, module_of, paths, without_tests};

/// Files of `src` that are more than tests.
fn sources() -> Vec<(String, String)> {
    files("src", "rs").into_iter().filter(|(file, _)| !is_test(file)).collect()
}

/// Row of a module in the table of layers; a module imports only from the rows below it, or from its own.
fn layer(module: &str) -> u32 {
    match module {
        // Support that knows nothing of tensors.
        "error" | "group" | "files" | "names" | "normal" | "philox" | "torch" | "shared" | "simd"
        | "kernel" => 0,
        "device" => 1,
        "tensor" => 2,
        "launch" | "tape" | "program" | "product" | "state" => 3,
        "ops" => 4,
        "check" => 4,
        "nn" | "optim" => 5,
        "models" | "diffusion" | "data" | "weights" | "tokenizer" | "likelihood" | "quality" => 6,
        "recipe" | "checkpoint" | "run" | "diffusers" => 7,
        "classifier" | "codec" | "text_model" | "latent_file" | "sample" | "train" | "figures" => 8,
        "web" | "bench" => 8,
        "cli" | "prelude" | "guide" => 9,
        other => panic!("module {other} is not in the table of layers of tests/it/house.rs"),
    }
}

#[test]
fn a_module_imports_only_from_the_rows_below_it() {
    for (file, text) in sources() {
        let module = &module_of(&file)[0];
        if ["lib", "main"].contains(&module.as_str()) {
            continue;
        }
        for (line, path) in paths(&text).iter().filter(|(_, path)| path[0] == "crate" && path.len() > 1) {
            // Names of the crate itself are macros.
            assert!(layer(&path[1]) <= layer(module), "{file}:{line}: {module} must not import {}", path[1]);
        }
    }
}

#[test]
fn no_op_imports_another_op() {
    // The activation is fused into several ops, and the derivative of a broadcast is a sum: those two rooms
    // are shared. Tests may compose ops, and compare one with another.
    for (file, text) in sources().into_iter().filter(|(file, _)| file.starts_with("src/ops/")) {
        let Some(own) = module_of(&file).get(1).cloned() else { continue };
        for (line, path) in paths(&text).iter().filter(|(_, path)| path[..2] == ["crate", "ops"]) {
            let other = path.get(2).map_or("", String::as_str);
            let fine = ["activation", "epilogue", "reduce", "shared", "CHUNK", &own].contains(&other);
            assert!(fine, "{file}:{line}: {own} must not import {other}; compose in src/nn");
        }
    }
}

/// A parent and its children are one unit, in which names may be taken either way; between the children of
/// one folder, each with all that is below it, there is an order.
#[test]
fn files_of_a_folder_do_not_import_in_circles() {
    let sources = sources();
    let modules = Modules::new(&sources);
    // Of each folder: child, other child, and the line that names it.
    let mut edges: BTreeMap<Module, BTreeMap<String, BTreeMap<String, String>>> = BTreeMap::new();
    for (file, text) in sources.iter().filter(|(file, _)| !["src/lib.rs", "src/main.rs"].contains(&&**file)) {
        let own = module_of(file);
        for (line, path) in paths(text) {
            let Some(other) = modules.find(&own, &path) else { continue };
            let common = own.iter().zip(&other).take_while(|(a, b)| a == b).count();
            if let (Some(a), Some(b)) = (own.get(common), other.get(common)) {
                let of_folder = edges.entry(own[..common].to_vec()).or_default();
                let from = of_folder.entry(a.clone()).or_default();
                from.entry(b.clone()).or_insert_with(|| format!("{file}:{line} names {}", path.join("::")));
            }
        }
    }
    let mut circles = Vec::new();
    for (folder, mut edges) in edges {
        // What imports nothing that is left is in no circle, nor is what nothing that is left imports.
        loop {
            let from: BTreeSet<String> = edges.keys().cloned().collect();
            let to: BTreeSet<String> = edges.values().flat_map(BTreeMap::keys).cloned().collect();
            let before = edges.values().map(BTreeMap::len).sum::<usize>();
            edges.retain(|child, _| to.contains(child));
            edges.values_mut().for_each(|others| others.retain(|other, _| from.contains(other)));
            edges.retain(|_, others| !others.is_empty());
            if before == edges.values().map(BTreeMap::len).sum::<usize>() {
                break;
            }
        }
        let folder = format!("src/{}", folder.join("/"));
        let lines = edges.values().flat_map(BTreeMap::values).map(|line| format!("  {line}\n"));
        circles.extend((!edges.is_empty()).then(|| format!("{folder}:\n{}", lines.collect::<String>())));
    }
    assert!(circles.is_empty(), "circles of imports in\n{}", circles.concat());
}

#[test]
fn only_the_gpu_device_names_wgpu() {
    for (file, text) in sources() {
        let code = without_tests(&text);
        let names = code.lines().any(|l| !l.trim_start().starts_with("//") && l.contains("wgpu::"));
        assert!(!names || file.starts_with("src/device/gpu"), "{file} names wgpu");
    }
}

/// `files::open` refuses pipes and devices, which have no end.
#[test]
fn one_function_opens_every_input_file() {
    for (file, text) in sources().into_iter().filter(|(file, _)| file != "src/files.rs") {
        for (line, code) in (1..).zip(without_tests(&text).lines()) {
            let opens =
                ["File::open(", "fs::read(", "fs::read_to_string("].iter().any(|call| code.contains(call));
            let of_system = code.contains("\"/proc/") || code.contains("\"/sys/");
            assert!(!opens || of_system, "{file}:{line} must open its file with crate::files");
        }
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

/// As in `rustfmt.toml`, which wraps code but no comments, strings and kernels.
const COLUMNS: usize = 110;
/// Files with formulas, strings or WGSL statements that are longer.
const WIDE: [&str; 4] =
    ["src/check.rs", "src/ops/group_norm.rs", "src/ops/group_norm/backward.rs", "src/recipe/scheduler.rs"];

const LINES: usize = 350;
/// Files that may be longer, up to `MOST_LINES`.
const LONG: [&str; 8] = [
    "src/cli/figure.rs",
    "src/ops/reduce.rs",
    "tests/it/autoencoder.rs",
    "tests/it/command_line.rs",
    "tests/it/engine.rs",
    "tests/it/golden_diffusers.rs",
    "tests/it/published_sums.rs",
    "tests/it/schedulers.rs",
];
const MOST_LINES: usize = 450;

#[test]
fn lines_and_files_stay_readable() {
    let folders = [("src", "rs"), ("tests", "rs"), ("benches", "rs"), ("kernels", "wgsl")];
    let mut bad = Vec::new();
    for (file, text) in folders.into_iter().flat_map(|(folder, ending)| files(folder, ending)) {
        // A row of a table in documentation cannot be wrapped.
        let is_long = |line: &str| line.chars().count() > COLUMNS && !line.starts_with("//! |");
        let long = text.lines().position(is_long);
        if let Some(line) = long.filter(|_| !WIDE.iter().any(|part| file.starts_with(part))) {
            bad.push(format!("{file}:{}: over {COLUMNS} characters", line + 1));
        }
        let most = if LONG.contains(&file.as_str()) { MOST_LINES } else { LINES };
        let lines = text.lines().count();
        if lines > most {
            bad.push(format!("{file}: {lines} lines, over {most}; is it still one idea?"));
        }
    }
    assert!(bad.is_empty(), "\n{}", bad.join("\n"));
}

/// Lines of the files that `src/guide/reading-path.md` lists under "An afternoon", comments included, tests
/// apart.
const READING_ORDER: usize = 3_000;

#[test]
fn the_reading_order_is_short() {
    let text = fs::read_to_string(root().join("src/guide/reading-path.md")).unwrap();
    let section = text.split("## An afternoon").nth(1).expect("a section \"An afternoon\"");
    let section = section.split("\n## ").next().unwrap().replace("```", "");
    let kernels = files("kernels", "wgsl");
    let sources: Vec<_> = sources().into_iter().chain(kernels).collect();
    let mut listed: BTreeMap<&str, usize> = BTreeMap::new();
    let quoted: Vec<&str> = section.split('`').collect();
    for (before, &name) in quoted.iter().zip(&quoted[1..]).step_by(2) {
        // Links to modules, and paths of files; other words in quotes are neither.
        if !before.ends_with('[') && !name.contains('/') {
            continue;
        }
        let matches = |file: &str| match name.contains('/') {
            true => file == name || file == format!("src/{name}"),
            // A module is all of its files.
            false => file.strip_prefix("src/").is_some_and(|file| {
                let module = name.replace("::", "/");
                file == format!("{module}.rs") || file.starts_with(&format!("{module}/"))
            }),
        };
        let found: Vec<_> = sources.iter().filter(|(file, _)| matches(file)).collect();
        assert!(!found.is_empty(), "{name} in src/guide/reading-path.md is no file and no module");
        listed.extend(found.into_iter().map(|(file, text)| (file.as_str(), lines_of_code(text))));
    }
    listed.iter().for_each(|(file, lines)| println!("{lines:6}  {file}"));
    let total: usize = listed.values().sum();
    println!("{total:6}  in all");
    assert!(total <= READING_ORDER, "the reading order is {total} lines, over {READING_ORDER}");
}

#[test]
fn nothing_is_left_open() {
    for (file, text) in files("src", "rs").into_iter().chain(files("kernels", "wgsl")) {
        for mark in ["TODO", "FIXME", "todo!(", "unimplemented!("] {
            assert!(!text.contains(mark), "{file} says {mark}");
        }
    }
}
