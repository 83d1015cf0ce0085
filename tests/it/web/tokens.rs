//! The tokenizer of pages, in a browser, against denoir's own.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use denoir::tokenizer::Tokenizer;
use flate2::read::GzDecoder;
use serde_json::{Value, json};
use tempfile::TempDir;

use super::browser::{browse, serve};
use super::golden;
use crate::place::root;

/// Cuts texts by each tokenizer, and sends the ids, a prompt's ids, and what did not fit.
const PAGE: &str = r#"<!doctype html><title>test</title><script type="module">
const send = (path, body) => fetch(path, { method: "POST", body });
try {
    const { Tokenizer } = await import("./tokenizer.js");
    const { texts, tables } = await (await fetch("texts.json")).json();
    const of = (tokenizer) => texts.map((text) => {
        const { ids, cut } = tokenizer.prompt(text, 12);
        return [tokenizer.encode(text), ids, cut];
    });
    await send("/result", JSON.stringify(tables.map((tables) => of(new Tokenizer(tables)))));
} catch (error) {
    await send("/failed", `${error.stack ?? error}`);
}
</script>"#;

const OWN: [&str; 12] = [
    "",
    "a photo of a cat",
    "A painting of a squirrel eating a burger, 8k, (masterpiece:1.2)",
    "don't CAN'T'LL '''s ''d it's 2024's",
    "café cafe\u{301} crème brûlée ﬁne ½ ² İstanbul ẞ ΟΔΟΣ Σ",
    "日本の猫 кошка \u{1f408}\u{200d}\u{2b1b} 한국 \u{1112}\u{1161}\u{11ab}",
    "a<|startoftext|>b <|ENDOFTEXT|> x <|endoftext|>",
    "&lt;b&gt; x\u{200b}y \u{a0}nbsp\u{3000}x\u{85}y\u{feff}z\u{2028}\t\r\n w",
    "<cat> a<CAT>b <Cat> <c at> <sks>x <SKS>_1 <sks>_1<sks>_2",
    "\u{0}\u{1}\u{ad}\u{7f} \\ ^$.*+?()[]{}|/- @@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@@",
    " , it 's élan <|endoftext|>, and much more than the twelve tokens that fit: 日本の猫 \u{feff}",
    "supercalifragilisticexpialidocious pneumonoultramicroscopicsilicovolcanoconiosis",
];

fn unpacked(name: &str) -> String {
    let mut text = String::new();
    GzDecoder::new(&*fs::read(golden(name)).unwrap()).read_to_string(&mut text).unwrap();
    text
}

#[test]
#[ignore = "needs Chromium"]
fn a_browser_cuts_texts_into_the_same_tokens() {
    let merges = unpacked("clip_merges.txt.gz");
    let merges: Vec<_> = merges.lines().map(|line| line.split_once(' ').unwrap()).collect();
    let mut clip = Tokenizer::of_merges(&merges);
    clip.add_token("<Cat>").unwrap();
    clip.add_word(&["<sks>", "<sks>_1", "<sks>_2"].map(str::to_owned)).unwrap();
    let tiny = Tokenizer::open(&Path::new(&golden("tiny_sd")).join("tokenizer")).unwrap();
    let known: Value = serde_json::from_str(&unpacked("tokenizer.json.gz")).unwrap();
    let random = known["random"].as_array().unwrap().iter().take(190).map(|case| case[0].as_str().unwrap());
    let texts: Vec<&str> = OWN.into_iter().chain(random).collect();
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let tables = [&clip, &tiny].map(|tokenizer| serde_json::from_str::<Value>(&tokenizer.tables()).unwrap());
    fs::write(at.join("texts.json"), json!({ "texts": texts, "tables": tables }).to_string()).unwrap();
    fs::copy(root().join("src/web/page/tokenizer.js"), at.join("tokenizer.js")).unwrap();
    fs::write(at.join("test.html"), PAGE).unwrap();
    let (port, results) = serve(at.to_owned());
    let _browser = browse(&at.join("profile"), &format!("http://127.0.0.1:{port}/test.html"));
    let (path, body) = results.recv_timeout(Duration::from_secs(300)).expect("an answer of the page");
    assert_eq!(path, "/result", "{}", String::from_utf8_lossy(&body));
    let got: Value = serde_json::from_slice(&body).unwrap();
    for (number, tokenizer) in [clip, tiny].iter().enumerate() {
        assert_eq!(got[number].as_array().map(Vec::len), Some(texts.len()));
        for (i, text) in texts.iter().enumerate() {
            let prompt = tokenizer.prompt(text, 12);
            let wanted = json!([tokenizer.encode(text), prompt.ids, prompt.cut.unwrap_or_default()]);
            assert_eq!(got[number][i], wanted, "tokenizer {number}: {text:?}");
        }
    }
}
