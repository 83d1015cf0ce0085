//! The index of weights in shards: which file holds which tensor.

use std::collections::{BTreeMap, BTreeSet};

use serde::Deserialize;

/// Longest index that is read.
pub(crate) const MOST_BYTES: u64 = 16 << 20;
/// Most files that an index may name; each stays open.
const MOST_FILES: usize = 256;

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The files of an index, each with the names of the tensors in it.
pub fn parse(text: &str) -> Result<BTreeMap<String, BTreeSet<String>>, String> {
    let index: Index = serde_json::from_str(text).map_err(|e| format!("it is no index of weights: {e}"))?;
    let mut files = BTreeMap::<String, BTreeSet<String>>::new();
    for (tensor, file) in index.weight_map {
        let known = file.ends_with(".safetensors") || file.ends_with(".bin");
        if !known || file.starts_with('.') || file.contains(['/', '\\', ':', '\0']) {
            return Err(format!(
                "{tensor} would be in {file:?}, which is no name of a weight file beside it"
            ));
        }
        files.entry(file).or_default().insert(tensor);
    }
    match files.len() {
        0 => Err("it names no weights".to_owned()),
        count if count > MOST_FILES => Err(format!("it names {count} files, more than {MOST_FILES}")),
        _ => Ok(files),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_outside_the_folder_are_refused() {
        let index = |file: &str| serde_json::json!({ "weight_map": { "w": file } }).to_string();
        assert_eq!(parse(&index("model-1.safetensors")).unwrap().len(), 1);
        for file in ["../w.safetensors", "/etc/w.bin", "..\\w.bin", "C:w.bin", ".w.bin", "w.txt", ""] {
            assert!(parse(&index(file)).unwrap_err().contains("beside it"), "{file}");
        }
        assert!(parse("{}").unwrap_err().contains("weight_map"));
        assert!(parse(r#"{"weight_map": {}}"#).unwrap_err().contains("no weights"));
    }
}
