//! Any text as one of a tokenizer's files beside good ones, and any text as a prompt; what is read is saved and read as
//! the same.
#![no_main]

use std::fs;

use denoir::tokenizer::Tokenizer;
use denoir_fuzz::{put, scratch, two};

const FILES: [&str; 6] = [
    "tokenizer.json",
    "vocab.json",
    "merges.txt",
    "special_tokens_map.json",
    "tokenizer_config.json",
    "added_tokens.json",
];

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    let [which, bytes @ ..] = bytes else { return };
    let (text, prompt) = two(bytes);
    let folder = scratch().join("tokenizer");
    let _ = fs::remove_file(folder.join(FILES[0]));
    Tokenizer::of_merges(&[("i", "n"), ("r", "e"), ("re", "d</w>")]).save(&folder, 77).expect("good files");
    let name = FILES[usize::from(*which) % FILES.len()];
    if name.contains("special") || name.contains("added") {
        // Otherwise nobody reads them.
        put("tokenizer/tokenizer_config.json", b"{}");
    }
    put(&format!("tokenizer/{name}"), text);
    let read = Tokenizer::open(&folder);
    let _ = fs::remove_file(folder.join(FILES[5]));
    let Ok(mut read) = read else { return };
    let prompt = String::from_utf8_lossy(prompt);
    let ids = read.encode(&prompt);
    assert!(ids.iter().all(|&id| (id as usize) < read.size()));
    assert_eq!(read.prompt(&prompt, 7).ids.len(), 7);
    read.decode(&ids);
    let again = scratch().join("tokenizer-again");
    read.save(&again, 77).expect("room for files");
    assert_eq!(Tokenizer::open(&again).expect("what is written is read").encode(&prompt), ids);
    if let Ok(id) = read.add_token(&prompt) {
        assert_eq!(id as usize + 1, read.size());
    }
});
