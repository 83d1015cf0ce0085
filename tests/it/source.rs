//! The source as the house rules read it: files, code without tests and comments, and the paths that it
//! names.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::place::root;

/// All files of a folder and below with this ending: path from the root of the repository, and text.
pub fn files(folder: &str, ending: &str) -> Vec<(String, String)> {
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
    let root = root();
    let mut found = Vec::new();
    walk(&root.join(folder), ending, &mut found);
    found.sort();
    let relative = |p: &Path| p.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
    found.iter().map(|p| (relative(p), fs::read_to_string(p).unwrap())).collect()
}

/// Whether a file of `src` holds tests alone.
pub fn is_test(file: &str) -> bool {
    file.ends_with("/tests.rs") || file.ends_with("_tests.rs") || file.contains("/tests/")
}

/// The text with blank lines in the place of inline test modules, so that numbers of lines stay.
pub fn without_tests(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    let mut code = String::new();
    let mut end = None::<String>; // the line that ends the test module
    for (i, line) in lines.iter().enumerate() {
        let next = lines.get(i + 1).map_or("", |next| next.trim());
        let is_module = next.split_whitespace().any(|word| word == "mod") && next.ends_with('{');
        if end.is_none() && line.trim() == "#[cfg(test)]" && is_module {
            end = Some(line.replace("#[cfg(test)]", "}"));
        }
        code += if end.is_none() { line } else { "" };
        code.push('\n');
        if end.as_deref() == Some(line) {
            end = None;
        }
    }
    assert_eq!(end, None, "a test module without an end");
    code
}

/// Lines of a file that are not blank and not of a test module.
pub fn lines_of_code(text: &str) -> usize {
    without_tests(text).lines().filter(|line| !line.trim().is_empty()).count()
}

/// A path that code names: the number of its line, and its parts, the first of which is `crate` or `super`.
pub type Named = (usize, Vec<String>);

/// All paths from `crate` or `super` in the code of a file, those in braces one by one.
pub fn paths(text: &str) -> Vec<Named> {
    let code = without_tests(text);
    let code: String = code
        .lines()
        .map(|line| if line.trim_start().starts_with("//") { "\n".to_owned() } else { format!("{line}\n") })
        .collect();
    let mut found = Vec::new();
    for word in ["crate::", "super::"] {
        for (at, _) in code.match_indices(word) {
            let before = code[..at].chars().next_back().unwrap_or(' ');
            // Not `$crate::`, nor a later part of a path.
            if before.is_alphanumeric() || "_$:".contains(before) {
                continue;
            }
            let line = code[..at].matches('\n').count() + 1;
            found.extend(expand(&code[at..]).into_iter().map(|path| (line, path)));
        }
    }
    found
}

/// `a::{b, c::d}` as `a::b` and `a::c::d`.
fn expand(text: &str) -> Vec<Vec<String>> {
    let text = text.trim_start();
    let name: String = text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect();
    let rest = &text[name.len()..];
    let mut tails = vec![Vec::new()];
    if let Some(tail) = rest.strip_prefix("::") {
        tails = match tail.strip_prefix('{') {
            Some(list) => in_braces(list).into_iter().flat_map(expand).collect(),
            None => expand(tail),
        };
    }
    let first = (!name.is_empty()).then_some(name);
    tails.into_iter().map(|tail| first.iter().cloned().chain(tail).collect()).collect()
}

/// The parts between the commas of a list that ends with its closing brace.
fn in_braces(list: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0, 0, Vec::new());
    for (at, c) in list.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth > 0 => depth -= 1,
            '}' | ',' if depth == 0 => {
                parts.push(list[start..at].trim());
                start = at + 1;
            }
            _ => {}
        }
        if c == '}' && start == at + 1 {
            break;
        }
    }
    parts.retain(|part| !part.is_empty());
    parts
}

/// A module as its path: `["program", "tune"]`.
pub type Module = Vec<String>;

/// The module of a file of `src`.
pub fn module_of(file: &str) -> Module {
    let path = file.strip_prefix("src/").unwrap().strip_suffix(".rs").unwrap();
    let path = path.strip_suffix("/mod").unwrap_or(path);
    path.split('/').map(str::to_owned).collect()
}

/// The modules of `src` that have files, and the names that each takes from its children.
pub struct Modules {
    reexported: BTreeMap<Module, BTreeMap<String, Module>>,
}

impl Modules {
    pub fn new(sources: &[(String, String)]) -> Modules {
        let mut modules =
            Modules { reexported: sources.iter().map(|(f, _)| (module_of(f), BTreeMap::new())).collect() };
        for (file, text) in sources {
            let module = module_of(file);
            let code = without_tests(text);
            for (at, _) in code.match_indices("use ") {
                if !code[..at].ends_with(['\n', ' ']) {
                    continue;
                }
                for mut path in expand(code[at + 4..].trim_start_matches("self::")) {
                    let Some(name) = path.pop() else { continue };
                    let target: Module = module.iter().cloned().chain(path.iter().cloned()).collect();
                    if !path.is_empty() && modules.reexported.contains_key(&target) {
                        modules.reexported.get_mut(&module).unwrap().insert(name, target);
                    }
                }
            }
        }
        modules
    }

    /// The module whose file holds what a path in `from` names; `None` where it is not of this crate.
    pub fn find(&self, from: &Module, path: &[String]) -> Option<Module> {
        let ups = path.iter().take_while(|part| *part == "super").count();
        let (mut module, rest) = match path.first()?.as_str() {
            "crate" => (Module::new(), &path[1..]),
            _ => (from[..from.len().checked_sub(ups)?].to_vec(), &path[ups..]),
        };
        for part in rest {
            let child: Module = module.iter().chain([part]).cloned().collect();
            let taken = self.reexported.get(&module).and_then(|names| names.get(part));
            match (self.reexported.contains_key(&child), taken) {
                (true, _) => module = child,
                (false, Some(target)) => module = target.clone(),
                (false, None) => break,
            }
        }
        (!module.is_empty()).then_some(module)
    }
}
