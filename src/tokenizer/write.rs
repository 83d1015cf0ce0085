//! A tokenizer as the files that transformers reads.

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::read::{ADDED, CONFIG, MERGES, SPECIAL, VOCABULARY, WHOLE_FILE};
use super::{Tokenizer, Whole};
use crate::error::{Error, Result};
use crate::files::replace;

pub(super) fn save(tokenizer: &Tokenizer, folder: &Path, length: usize) -> Result<()> {
    let cannot = |path: &Path, e: std::io::Error| {
        Error::new(format!("cannot write {}", path.display()))
            .hint("check the path and its permissions")
            .caused_by(e)
    };
    let preferred = folder.join(WHOLE_FILE);
    if preferred.exists() {
        let message = format!("{} is there, and readers prefer it to what is written", preferred.display());
        return Err(Error::new(message).hint("name a new folder"));
    }
    fs::create_dir_all(folder).map_err(|e| cannot(folder, e))?;
    for (name, text) in texts(tokenizer, length) {
        let path = folder.join(name);
        replace(&path, |file| file.write_all(text.as_bytes())).map_err(|e| cannot(&path, e))?;
    }
    Ok(())
}

fn texts(tokenizer: &Tokenizer, length: usize) -> Vec<(&'static str, String)> {
    let Tokenizer { bpe, own, whole, .. } = tokenizer;
    let (vocabulary, added) = bpe.tokens.split_at(*own);
    let merges = bpe.merges.iter().map(|&(a, b)| {
        let [a, b] = [a, b].map(|id| &bpe.tokens[id as usize]);
        format!("{a} {b}\n")
    });
    let mut files = vec![
        (VOCABULARY, by_id(vocabulary, 0)),
        (MERGES, ["#version: 0.2\n".to_owned()].into_iter().chain(merges).collect()),
    ];
    if !added.is_empty() {
        files.push((ADDED, by_id(added, *own)));
    }
    let content = |id: u32| &*bpe.tokens[id as usize];
    let specials = [
        ("bos_token", tokenizer.bos),
        ("eos_token", tokenizer.eos),
        ("unk_token", tokenizer.unknown),
        ("pad_token", tokenizer.pad),
    ];
    let described = |id: u32, Whole { normalized, .. }: Whole| {
        json!({ "content": content(id), "lstrip": false, "normalized": normalized, "rstrip": false,
            "single_word": false })
    };
    let map: Map<String, Value> =
        specials.iter().map(|&(key, id)| (key.to_owned(), described(id, whole[&id]))).collect();
    files.push((SPECIAL, pretty(map)));
    let mut decoder = Map::new();
    for (&id, &as_whole) in whole {
        let mut token = described(id, as_whole);
        token["special"] = as_whole.special.into();
        decoder.insert(id.to_string(), token);
    }
    let mut config: Map<String, Value> =
        specials.iter().map(|&(key, id)| (key.to_owned(), content(id).into())).collect();
    config.insert("add_prefix_space".to_owned(), false.into());
    config.insert("added_tokens_decoder".to_owned(), decoder.into());
    config.insert("do_lower_case".to_owned(), true.into());
    config.insert("errors".to_owned(), "replace".into());
    config.insert("model_max_length".to_owned(), length.into());
    config.insert("tokenizer_class".to_owned(), "CLIPTokenizer".into());
    files.push((CONFIG, pretty(config)));
    files
}

/// `{"token": id, ...}` in the order of ids.
fn by_id(tokens: &[String], first: usize) -> String {
    let lines = (first..).zip(tokens).map(|(id, token)| format!("{}: {id}", Value::from(&**token)));
    format!("{{{}}}\n", lines.collect::<Vec<_>>().join(", "))
}

fn pretty(map: Map<String, Value>) -> String {
    format!("{:#}\n", Value::Object(map))
}
