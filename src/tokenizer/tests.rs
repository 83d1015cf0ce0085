//! The tokenizer against transformers' (`tools/reference/tokenizer.py`), and files that are damaged.

use std::fs;
use std::io::Read;

use flate2::read::GzDecoder;
use serde_json::{Value, json};

use super::*;

/// What transformers makes of random strings, and small folders in every layout.
const GOLDEN: &[u8] = include_bytes!("../../tests/golden/tokenizer.json.gz");
/// The merges of CLIP's vocabulary, out of the Python package clip-anytorch 2.6.0 (`clip_merges.md`).
const CLIP_MERGES: &[u8] = include_bytes!("../../tests/golden/clip_merges.txt.gz");

fn unpacked(bytes: &[u8]) -> String {
    let mut text = String::new();
    GzDecoder::new(bytes).read_to_string(&mut text).unwrap();
    text
}

fn clip() -> Tokenizer {
    let text = unpacked(CLIP_MERGES);
    let merges: Vec<_> = text.lines().map(|line| line.split_once(' ').unwrap()).collect();
    assert_eq!(merges.len(), 48_894);
    Tokenizer::of_merges(&merges)
}

fn tiny() -> Tokenizer {
    let merges = ["i n", "r e", "re d</w>", "c i", "ci r", "cir c", "l e</w>", "circ le</w>"];
    Tokenizer::of_merges(&merges.map(|merge| merge.split_once(' ').unwrap()))
}

fn ids_of(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

#[test]
fn the_real_vocabulary() {
    let clip = clip();
    assert_eq!((clip.size(), clip.bos(), clip.eos(), clip.pad()), (49_408, 49_406, 49_407, 49_407));
    let cases: [(&str, &[u32]); 17] = [
        ("", &[]),
        ("a photo of a cat", &[320, 1125, 539, 320, 2368]),
        ("A painting of a squirrel eating a burger", &[320, 3086, 539, 320, 14004, 4371, 320, 6548]),
        ("a red circle left of a blue square", &[320, 736, 7117, 1823, 539, 320, 1746, 3999]),
        ("Hello, World!! it's 2024's", &[3306, 267, 1002, 748, 585, 568, 273, 271, 273, 275, 568]),
        ("don't CAN'T'LL", &[847, 713, 753, 713, 1342]),
        ("café crème brûlée", &[15304, 1075, 12138, 614, 711, 127, 119, 75, 13489]),
        ("cafe\u{301}", &[15304]),
        ("日本の猫", &[39121, 44353, 21575, 163, 234, 360]),
        ("кошка", &[27152, 13506, 141, 230, 27152, 27080]),
        ("ﬁne ½ ² İstanbul ẞ", &[171, 105, 223, 1422, 33613, 41175, 328, 16384, 11231, 127, 509]),
        ("ΟΔΟΣ", &[138, 123, 138, 112, 138, 123, 139, 481]),
        ("'''s ''d", &[6, 8445, 338, 8445, 323]),
        ("a<|startoftext|>b <|ENDOFTEXT|> x", &[320, 49406, 321, 27, 347, 40786, 4160, 91, 285, 343]),
        ("&lt;b&gt; &amp; html", &[261, 3333, 282, 321, 261, 4725, 282, 261, 6259, 282, 18231]),
        ("x\u{200b}y \u{a0}nbsp\u{3000}x", &[343, 9844, 344, 6459, 4393, 343]),
        ("12345 3.14", &[272, 273, 274, 275, 276, 274, 269, 272, 275]),
    ];
    for (text, ids) in cases {
        assert_eq!(clip.encode(text), ids, "{text:?}");
    }
    let many = clip.prompt(&"@".repeat(100), 77);
    assert_eq!(many.ids, [vec![49_406], vec![31; 75], vec![49_407]].concat());
    assert_eq!(many.cut.unwrap(), "@".repeat(25));
    let golden: Value = serde_json::from_str(&unpacked(GOLDEN)).unwrap();
    let random = golden["random"].as_array().unwrap();
    assert_eq!(random.len(), 2000);
    for case in random {
        let text = case[0].as_str().unwrap();
        assert_eq!(clip.encode(text), ids_of(&case[1]), "{text:?}");
    }
}

#[test]
fn prompts_have_one_length_and_say_what_was_cut() {
    let tiny = tiny();
    assert_eq!((tiny.size(), tiny.bos(), tiny.eos()), (522, 520, 521));
    let whole = tiny.prompt("A red circle!", 8);
    assert_eq!(whole, Prompt { ids: vec![520, 320, 514, 519, 256, 521, 521, 521], cut: None });
    assert_eq!(tiny.prompt("", 3).ids, [520, 521, 521]);
    let exact = tiny.prompt("A red circle!", 6);
    assert_eq!(exact.cut, None);
    let cut = tiny.prompt("A red circle, It's Élan <|endoftext|> \u{1}\u{0}", 5);
    assert_eq!(cut.ids, [520, 320, 514, 519, 521]);
    assert_eq!(cut.cut.as_deref(), Some(", it 's élan <|endoftext|> \u{1}\u{0}"));
    for length in 0..3 {
        assert_eq!(tiny.prompt("red", length).ids, [520, 521][..length]);
    }
    assert_eq!(tiny.decode(&[66, 4_000_000]), "c\u{fffd}");
}

/// What the reference wrote or read, of each layout; and what is saved is read as the same.
#[test]
fn folders_in_every_layout() {
    let golden: Value = serde_json::from_str(&unpacked(GOLDEN)).unwrap();
    for layout in golden["folders"].as_array().unwrap() {
        let name = &layout["name"];
        let place = tempfile::tempdir().unwrap();
        for (file, text) in layout["files"].as_object().unwrap() {
            fs::write(place.path().join(file), text.as_str().unwrap()).unwrap();
        }
        let mut read = Tokenizer::open(place.path()).unwrap();
        let again = tempfile::tempdir().unwrap();
        read.save(again.path(), 77).unwrap();
        let saved = Tokenizer::open(again.path()).unwrap();
        for tokenizer in [&read, &saved] {
            assert_eq!(
                json!([tokenizer.size(), tokenizer.pad()]),
                json!([layout["size"], layout["pad"]]),
                "{name}"
            );
            for case in layout["cases"].as_array().unwrap() {
                let text = case[0].as_str().unwrap();
                assert_eq!(tokenizer.encode(text), ids_of(&case[1]), "{name}: {text:?}");
            }
        }
        if place.path().join(read::WHOLE_FILE).exists() {
            let refused = read.save(place.path(), 77).unwrap_err().to_string();
            assert!(refused.contains("tokenizer.json is there"), "{refused}");
        }
        let next = read.size() as u32;
        assert_eq!(read.add_token("<New>").unwrap(), next);
        assert_eq!(read.encode("in<new>red"), [vec![72, 333], vec![next], vec![514]].concat(), "{name}");
        assert!(read.add_token("<New>").unwrap_err().to_string().contains("already"));
        assert!(read.add_token("in").is_err() && read.add_token(" \t").is_err());
        read.save(again.path(), 77).unwrap();
        assert_eq!(Tokenizer::open(again.path()).unwrap().encode("<nEW>"), [next]);
    }
}

#[test]
fn long_texts_take_no_square_of_time() {
    let tiny = tiny();
    let letters = "circle".repeat(1_000_000 / 6);
    let ids = tiny.encode(&letters);
    assert_eq!(ids.last(), Some(&519));
    assert_eq!(tiny.decode(&ids), letters);
    for hard in ["\u{0}", "<", "' ", "\u{315}\u{300}", "\u{1100}", "<|endoftext|>", "\u{3000}", "é1"] {
        let text = hard.repeat(200_000 / hard.len());
        let prompt = tiny.prompt(&text, 77);
        assert_eq!(prompt.ids.len(), 77, "{hard:?}");
    }
}

#[test]
fn damaged_files_are_named() {
    let place = tempfile::tempdir().unwrap();
    let at = |name: &str| place.path().join(name);
    let refused = |wanted: &[&str]| {
        let error = Tokenizer::open(place.path()).map(|_| ()).expect_err(&format!("should say {wanted:?}"));
        for wanted in wanted {
            assert!(error.report().contains(wanted), "should say {wanted:?}: {error:?}");
        }
        assert_eq!(error.to_string().lines().count(), 1);
    };
    refused(&["holds neither tokenizer.json nor vocab.json"]);
    tiny().save(place.path(), 77).unwrap();
    let whole = |change: &dyn Fn(&mut Value)| {
        let vocabulary: Value = serde_json::from_str(&fs::read_to_string(at("vocab.json")).unwrap()).unwrap();
        let mut file = json!({
            "added_tokens": [],
            "normalizer": { "type": "Sequence", "normalizers": [{ "type": "NFC" },
                { "type": "Replace", "pattern": { "Regex": "\\s+" }, "content": " " },
                { "type": "Lowercase" }] },
            "pre_tokenizer": { "type": "Sequence", "pretokenizers": [
                { "type": "Split", "pattern": { "Regex": WORDS.rsplit_once("text\\|>|").unwrap().1 },
                    "behavior": "Removed", "invert": true },
                { "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true }] },
            "model": { "vocab": vocabulary, "merges": ["i n", ["r", "e"]], "end_of_word_suffix": "</w>" },
        });
        change(&mut file);
        fs::write(at("tokenizer.json"), file.to_string()).unwrap();
    };
    whole(&|_| ());
    assert_eq!(Tokenizer::open(place.path()).unwrap().encode("re in red"), [81, 324, 72, 333, 513, 323]);
    type Change = fn(&mut Value);
    let changes: [(Change, &str); 12] = [
        (|file| file["model"] = json!("BPE"), "it has no model"),
        (|file| file["model"]["type"] = json!("Unigram"), "its model is \"Unigram\""),
        (|file| file["model"]["dropout"] = json!(0.1), "model.dropout is 0.1"),
        (|file| file["model"]["end_of_word_suffix"] = Value::Null, "end_of_word_suffix is null"),
        (|file| file["model"]["merges"][1] = json!(["r"]), "merge 2 is [\"r\"], and no pair"),
        (
            |file| file["model"]["merges"][1] = json!(["r", "e e"]),
            "merge 2 (\"r\" \"e e\"): a part is empty or holds white space",
        ),
        (|file| file["model"]["vocab"] = json!([]), "model.vocab is no object"),
        (
            |file| file["normalizer"]["normalizers"][2] = json!({ "type": "StripAccents" }),
            "\" \", StripAccents)",
        ),
        (|file| file["normalizer"] = Value::Null, "its normalizer is (none)"),
        (|file| file["pre_tokenizer"] = json!({ "type": "Whitespace" }), "its pre_tokenizer is (Whitespace)"),
        (
            |file| file["post_processor"] = json!({ "type": "TemplateProcessing" }),
            "is TemplateProcessing, and",
        ),
        (|file| file["added_tokens"] = json!([{ "content": "x" }]), "an added token has no id"),
    ];
    for (change, wanted) in changes {
        whole(&change);
        refused(&["tokenizer.json: ", wanted]);
    }
    fs::remove_file(at("tokenizer.json")).unwrap();
    let files: [(&str, &str, &[(&str, &str)]); 5] = [
        (
            "vocab.json",
            r#""in": 512"#,
            &[
                (r#""in": 600"#, "no token has the id 512; the next is \"re\" with 513"),
                (r#""in": 511"#, "have the same id, 511"),
                (r#""in": 4294967808"#, "the id of \"in\" is 4294967808, no whole number below 16777216"),
                (r#""in": -1"#, "the id of \"in\" is -1"),
                (r#""in": "512""#, "the id of \"in\" is \"512\""),
                (r#""in" 512"#, "it is no JSON object: expected `:`"),
            ],
        ),
        (
            "merges.txt",
            "c i\n",
            &[
                ("c i i\n", "merges.txt: line 5 is \"c i i\", and not two tokens"),
                ("c\n", "line 5 is \"c\""),
                ("c 猫\n", "merge 4 (c 猫): \"猫\" is not in the vocabulary"),
                ("i c\n", "merge 4 (i c): \"ic\" is not in the vocabulary"),
            ],
        ),
        (
            "tokenizer_config.json",
            r#""pad_token": "<|endoftext|>""#,
            &[
                (
                    r#""pad_token": "<pad>""#,
                    "tokenizer_config.json: the pad_token \"<pad>\" is not in the vocabulary",
                ),
                (r#""pad_token": 3"#, "3 is no token"),
            ],
        ),
        (
            "tokenizer_config.json",
            r#""520": {"#,
            &[
                (r#""519": {"#, "the token \"<|startoftext|>\" has two ids, 520 and 519"),
                (r#""x": {"#, "the id \"x\" of an added token is no number"),
                (r#""520": {"single_word": true, "content": "<|startoftext|>"}, "7": {"#, "a single_word"),
                (
                    r#""600": {"content": "<cat>"}, "520": {"#,
                    "\"<cat>\" has the id 600, and the next one is 522",
                ),
            ],
        ),
        (
            "tokenizer_config.json",
            r#""CLIPTokenizer""#,
            &[(r#""T5Tokenizer""#, "tokenizer_class is \"T5Tokenizer\"")],
        ),
    ];
    for (name, from, changes) in files {
        let text = fs::read_to_string(at(name)).unwrap();
        assert!(text.contains(from), "{name} lacks {from}: {text}");
        for (to, wanted) in changes {
            fs::write(at(name), text.replacen(from, to, 1)).unwrap();
            refused(&[name, wanted]);
        }
        fs::write(at(name), text).unwrap();
    }
    fs::remove_file(at("merges.txt")).unwrap();
    refused(&["cannot read", "merges.txt"]);
    fs::write(at("merges.txt"), [0xff]).unwrap();
    refused(&["merges.txt", "no UTF-8 text"]);
    for name in ["vocab.json", "tokenizer_config.json"] {
        fs::write(at(name), "[").unwrap();
        refused(&[name, "no JSON object"]);
    }
}

#[test]
fn a_missing_character_is_unknown_and_the_rest_is_not() {
    let place = tempfile::tempdir().unwrap();
    let vocabulary = json!({ "a": 0, "b</w>": 1, "ab</w>": 2, BOS: 3, EOS: 4, "!": 5 });
    fs::write(place.path().join("vocab.json"), vocabulary.to_string()).unwrap();
    fs::write(place.path().join("merges.txt"), "a b</w>\r\n").unwrap();
    fs::write(place.path().join("special_tokens_map.json"), r#"{"pad_token": {"content": "!"}}"#).unwrap();
    let small = Tokenizer::open(place.path()).unwrap();
    assert_eq!(small.encode("ab cab a!"), [2, 4, 2, 4, 5]);
    assert_eq!(small.prompt("ab", 5).ids, [3, 2, 4, 5, 5]);
}
