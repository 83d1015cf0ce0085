//! A tokenizer out of a folder, in either layout.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::bpe::{END, MOST_TOKENS};
use super::{BOS, EOS, Parts, WORDS, Whole};
use crate::error::{self, Error};
use crate::weights::read_text;

pub(super) const WHOLE_FILE: &str = "tokenizer.json";
pub(super) const VOCABULARY: &str = "vocab.json";
pub(super) const MERGES: &str = "merges.txt";
pub(super) const ADDED: &str = "added_tokens.json";
pub(super) const SPECIAL: &str = "special_tokens_map.json";
pub(super) const CONFIG: &str = "tokenizer_config.json";

/// What a text is begun, ended and filled up with, and how far: null is none, where a missing key is CLIP's.
const NEEDED: [&str; 4] = ["bos_token", "eos_token", "pad_token", "model_max_length"];

/// CLIP's `tokenizer.json` has 3.6 MB.
const MOST_BYTES: u64 = 1 << 25;

type Object = Map<String, Value>;

/// The error about a file.
pub(super) fn wrong(path: &Path, reason: &str) -> Error {
    Error::new(format!("{}: {reason}", path.display())).hint("get the file again from where it came from")
}

/// The parts, and the file that is to blame where they do not fit together.
pub(super) fn parts(folder: &Path) -> error::Result<(PathBuf, Parts)> {
    let config = optional(folder, CONFIG)?.unwrap_or_default();
    let mut added = Added::default();
    let (blamed, tokens, merges);
    if let Some(file) = optional(folder, WHOLE_FILE)? {
        blamed = folder.join(WHOLE_FILE);
        let read = of_whole_file(&file, &mut added).map_err(|reason| wrong(&blamed, &reason))?;
        (tokens, merges) = read;
    } else {
        let class = config.get("tokenizer_class").and_then(Value::as_str).unwrap_or("CLIPTokenizer");
        if !["CLIPTokenizer", "CLIPTokenizerFast"].contains(&class) {
            let reason =
                format!("its tokenizer_class is {class:?}, and CLIPTokenizer is the one that is read");
            return Err(wrong(&folder.join(CONFIG), &reason));
        }
        let path = folder.join(VOCABULARY);
        if !path.exists() {
            let message = format!("{} holds neither {WHOLE_FILE} nor {VOCABULARY}", folder.display());
            return Err(Error::new(message).hint("name the folder of a CLIP tokenizer"));
        }
        let in_vocabulary = |reason: String| wrong(&path, &reason);
        tokens = vocabulary(&object(&read_text(&path, MOST_BYTES)?).map_err(in_vocabulary)?)
            .map_err(in_vocabulary)?;
        blamed = folder.join(MERGES);
        let text = read_text(&blamed, MOST_BYTES)?;
        merges = merges_of_lines(&text).map_err(|reason| wrong(&blamed, &reason))?;
    }
    // The newer form holds everything; the other files are for older readers.
    let is_newer = config.contains_key("added_tokens_decoder");
    let map = if is_newer { None } else { optional(folder, SPECIAL)? };
    for key in NEEDED {
        let of_map = map.as_ref().and_then(|map| Some((SPECIAL, map.get(key)?)));
        if let Some((file, Value::Null)) = of_map.or_else(|| Some((CONFIG, config.get(key)?))) {
            return Err(wrong(&folder.join(file), &format!("its {key} is null, and the library needs it")));
        }
    }
    let (path, specials) = if is_newer {
        let path = folder.join(CONFIG);
        added.read_decoder(&config).map_err(|reason| wrong(&path, &reason))?;
        (path, config)
    } else {
        let mut specials = config;
        let path = folder.join(if map.is_some() { SPECIAL } else { CONFIG });
        specials.extend(map.unwrap_or_default());
        if let Some(file) = optional(folder, ADDED)? {
            added.read_plain(&file).map_err(|reason| wrong(&folder.join(ADDED), &reason))?;
        }
        (path, specials)
    };
    let parts = assemble(tokens, merges, added, &specials).map_err(|reason| wrong(&path, &reason))?;
    Ok((blamed, parts))
}

/// Tokens beside the vocabulary, by name: id, and how each is looked for.
#[derive(Default)]
struct Added(BTreeMap<String, (u64, Whole)>);

impl Added {
    /// `{"49408": {"content": "<cat>", "normalized": true, ...}}`, of `tokenizer_config.json`.
    fn read_decoder(&mut self, config: &Object) -> Result<(), String> {
        let entries = config.get("added_tokens_decoder").and_then(Value::as_object);
        for (id, token) in entries.ok_or("its added_tokens_decoder is no JSON object")? {
            let number = id.parse().map_err(|_| format!("the id {id:?} of an added token is no number"))?;
            self.insert(number, token)?;
        }
        Ok(())
    }

    /// `[{"id": 49408, "content": "<cat>", ...}]`, of `tokenizer.json`.
    fn read_list(&mut self, list: &Value) -> Result<(), String> {
        for token in list.as_array().ok_or("its added_tokens are no list")? {
            let id = token.get("id").and_then(Value::as_u64);
            self.insert(id.ok_or("an added token has no id")?, token)?;
        }
        Ok(())
    }

    /// `{"<cat>": 49408}`, of `added_tokens.json`.
    fn read_plain(&mut self, file: &Object) -> Result<(), String> {
        for (content, id) in file {
            let number = id.as_u64().ok_or_else(|| format!("the id of {content:?} is {id}, no number"))?;
            self.0.insert(content.clone(), (number, Whole { normalized: true, special: false }));
        }
        Ok(())
    }

    fn insert(&mut self, id: u64, token: &Value) -> Result<(), String> {
        let special = token.get("special").and_then(Value::as_bool).unwrap_or(false);
        let (content, normalized) = named(token)?;
        let normalized = normalized.unwrap_or(!special);
        self.0.insert(content.to_owned(), (id, Whole { normalized, special }));
        Ok(())
    }
}

/// A token as a string, or as an object with its content; and whether it is looked for in normalized text.
/// (`lstrip` and `rstrip` take spaces, which are dropped here anyway.)
fn named(token: &Value) -> Result<(&str, Option<bool>), String> {
    if let Some(content) = token.as_str() {
        return Ok((content, None));
    }
    let content = token.get("content").and_then(Value::as_str);
    let content = content.ok_or_else(|| format!("{token} is no token"))?;
    match token.get("single_word").and_then(Value::as_bool) {
        Some(true) => Err(format!("the token {content:?} is a single_word, which is not supported")),
        _ => Ok((content, token.get("normalized").and_then(Value::as_bool))),
    }
}

fn assemble(
    mut tokens: Vec<String>,
    merges: Vec<(String, String)>,
    added: Added,
    specials: &Object,
) -> Result<Parts, String> {
    let own = tokens.len();
    let mut ids: BTreeMap<String, u32> = tokens.iter().cloned().zip(0..).collect();
    let mut whole = BTreeMap::new();
    let mut by_id: Vec<_> = added.0.iter().collect();
    by_id.sort_by_key(|&(_, &(id, _))| id);
    for (content, &(id, as_whole)) in by_id {
        match ids.get(content) {
            Some(&there) if u64::from(there) == id => {}
            Some(there) => return Err(format!("the token {content:?} has two ids, {there} and {id}")),
            None if id == tokens.len() as u64 && tokens.len() < MOST_TOKENS => {
                ids.insert(content.clone(), id as u32);
                tokens.push(content.clone());
            }
            None => {
                let next = tokens.len();
                return Err(format!(
                    "the added token {content:?} has the id {id}, and the next one is {next}"
                ));
            }
        }
        whole.insert(id as u32, as_whole);
    }
    let mut take = |key: &str, token: &Value| -> Result<u32, String> {
        let (content, normalized) = named(token)?;
        let id = ids.get(content).copied();
        let id = id.ok_or_else(|| format!("the {key} {content:?} is not in the vocabulary"))?;
        let normalized =
            added.0.get(content).map_or(normalized.unwrap_or(false), |(_, as_whole)| as_whole.normalized);
        whole.insert(id, Whole { normalized, special: true });
        Ok(id)
    };
    // Of a token that is several of these, the last one says how it is looked for, as in the reference.
    let mut special = |key: &str, usual: &str| {
        let usual = Value::from(usual);
        take(key, specials.get(key).unwrap_or(&usual))
    };
    let (bos, eos) = (special("bos_token", BOS)?, special("eos_token", EOS)?);
    let unknown = match specials.get("unk_token") {
        // No token of its own: CLIP's vocabulary has every byte.
        Some(Value::Null) => eos,
        _ => special("unk_token", EOS)?,
    };
    let pad = special("pad_token", EOS)?;
    for key in ["additional_special_tokens", "extra_special_tokens"] {
        for token in specials.get(key).and_then(Value::as_array).into_iter().flatten() {
            take("special token", token)?;
        }
    }
    Ok(Parts { bos, eos, pad, unknown, tokens, own, merges, whole })
}

/// The tokens of a vocabulary, which has each id once.
fn vocabulary(file: &Object) -> Result<Vec<String>, String> {
    let mut tokens = Vec::with_capacity(file.len());
    for (token, id) in file {
        let number = id.as_u64().filter(|&number| number < MOST_TOKENS as u64);
        let wrong = || format!("the id of {token:?} is {id}, no whole number below {MOST_TOKENS}");
        tokens.push((number.ok_or_else(wrong)?, token));
    }
    tokens.sort();
    for (place, (id, token)) in (0..).zip(&tokens) {
        match id.cmp(&place) {
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Greater => {
                return Err(format!("no token has the id {place}; the next is {token:?} with {id}"));
            }
            // The one before has it too, since all before that were in order.
            std::cmp::Ordering::Less => {
                let other = tokens.iter().find(|(other, _)| other == id).map_or("", |(_, other)| other);
                return Err(format!("the tokens {other:?} and {token:?} have the same id, {id}"));
            }
        }
    }
    Ok(tokens.into_iter().map(|(_, token)| token.clone()).collect())
}

fn merges_of_lines(text: &str) -> Result<Vec<(String, String)>, String> {
    let lines = (1..).zip(text.lines()).filter(|(n, line)| !(*n == 1 && line.starts_with("#version")));
    lines
        .filter(|(_, line)| !line.is_empty())
        .map(|(n, line)| pair(line).ok_or_else(|| format!("line {n} is {line:?}, and not two tokens")))
        .collect()
}

fn pair(line: &str) -> Option<(String, String)> {
    let (a, b) = line.split_once(' ')?;
    (!a.is_empty() && !b.is_empty() && !b.contains(' ')).then(|| (a.to_owned(), b.to_owned()))
}

fn of_whole_file(file: &Object, added: &mut Added) -> Result<(Vec<String>, Vec<(String, String)>), String> {
    check_kind(file)?;
    let model = &file["model"];
    let tokens =
        vocabulary(model.get("vocab").and_then(Value::as_object).ok_or("its model.vocab is no object")?)?;
    let list = model.get("merges").and_then(Value::as_array).ok_or("its model.merges are no list")?;
    // Older files hold "a b", newer ones ["a", "b"].
    let merge = |value: &Value| match value {
        Value::String(line) => pair(line),
        Value::Array(parts) => match parts.as_slice() {
            [Value::String(a), Value::String(b)] => Some((a.clone(), b.clone())),
            _ => None,
        },
        _ => None,
    };
    let merges =
        (1..).zip(list).map(|(n, value)| merge(value).ok_or(format!("merge {n} is {value}, and no pair")));
    let merges = merges.collect::<Result<_, String>>()?;
    if let Some(list) = file.get("added_tokens") {
        added.read_list(list)?;
    }
    Ok((tokens, merges))
}

/// An error unless `tokenizer.json` describes what [`super::Tokenizer::encode`] does.
fn check_kind(file: &Object) -> Result<(), String> {
    let model = file.get("model").filter(|model| model.is_object()).ok_or("it has no model")?;
    for (key, value) in [("version", file.get("version")), ("model.type", model.get("type"))] {
        if value == Some(&Value::Null) {
            return Err(format!("its {key} is null"));
        }
    }
    let kind = model.get("type").and_then(Value::as_str).unwrap_or("BPE");
    if kind != "BPE" {
        return Err(format!("its model is {kind:?}, and BPE is the one that is read"));
    }
    let off = [Value::Null, Value::from(false), Value::from("")];
    for key in ["dropout", "continuing_subword_prefix", "fuse_unk", "byte_fallback", "ignore_merges"] {
        if let Some(value) = model.get(key).filter(|value| !off.contains(value)) {
            return Err(format!("its model.{key} is {value}, which is not supported"));
        }
    }
    let suffix = model.get("end_of_word_suffix").unwrap_or(&Value::Null);
    if suffix != END {
        return Err(format!("its model.end_of_word_suffix is {suffix}, and CLIP's is {END:?}"));
    }
    let ends = steps(file, "post_processor", "processors").join(", ");
    if ends != "none" && !ends.starts_with("RobertaProcessing ") {
        return Err(format!("its post_processor is {ends}, and CLIP's is RobertaProcessing"));
    }
    let normalizer = steps(file, "normalizer", "normalizers");
    let known = ["NFC", r#"Replace {"Regex":"\\s+"} " ""#, "Lowercase"];
    if normalizer != known {
        let [its, known] = [normalizer.join(", "), known.join(", ")];
        return Err(format!("its normalizer is ({its}), and CLIP's is ({known})"));
    }
    let splitter = steps(file, "pre_tokenizer", "pretokenizers");
    // Older files leave out the two special tokens, which transformers 5 adds.
    let older = WORDS.replacen(r"<\|startoftext\|>|<\|endoftext\|>|", "", 1);
    let known = |words: &str| {
        let pattern = serde_json::json!({ "Regex": words });
        [format!(r#"Split {pattern} "Removed" true"#), "ByteLevel false".to_owned()]
    };
    if splitter != known(WORDS) && splitter != known(&older) {
        let [its, known] = [splitter.join(", "), known(WORDS).join(", ")];
        return Err(format!("its pre_tokenizer is ({its}), and CLIP's is ({known})"));
    }
    Ok(())
}

/// The steps of a sequence: the type of each, and what it depends on.
fn steps(file: &Object, key: &str, list: &str) -> Vec<String> {
    let whole = file.get(key).unwrap_or(&Value::Null);
    let steps = match whole.get(list).and_then(Value::as_array) {
        Some(steps) => steps.iter().collect(),
        None => vec![whole],
    };
    let keys = ["pattern", "content", "behavior", "invert", "add_prefix_space"];
    let described = |step: &&Value| {
        let kind = step.get("type").and_then(Value::as_str).unwrap_or("none").to_owned();
        keys.iter().filter_map(|key| step.get(key)).fold(kind, |text, value| format!("{text} {value}"))
    };
    steps.iter().map(described).collect()
}

fn object(text: &str) -> Result<Object, String> {
    serde_json::from_str(text).map_err(|e| format!("it is no JSON object: {e}"))
}

/// A JSON object of the folder, if it is there.
fn optional(folder: &Path, name: &str) -> error::Result<Option<Object>> {
    let path = folder.join(name);
    if path.symlink_metadata().is_err() {
        return Ok(None);
    }
    let text = read_text(&path, MOST_BYTES)?;
    object(&text).map(Some).map_err(|reason| wrong(&path, &reason))
}
