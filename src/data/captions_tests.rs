//! Tests of captions of folders.

use std::fs;

use super::super::tests::options;
use super::super::{Dataset, Options, Split, open};
use super::*;

/// Pictures that can be told apart, in a folder of their own.
fn folder(names: &[&str]) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for (i, name) in (0..).zip(names) {
        let path = dir.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        image::GrayImage::from_pixel(8, 8, image::Luma([i])).save(path).unwrap();
    }
    dir
}

fn data(dir: &tempfile::TempDir, split: Split) -> std::sync::Arc<dyn Dataset> {
    open(&format!("images:{}", dir.path().display()), &Options { split, ..options(8) }).unwrap()
}

/// The captions of a folder of `names`, or the error, with these files of captions.
fn captions(names: &[&str], files: &[(&str, &str)]) -> std::result::Result<Option<Captions>, String> {
    let dir = folder(names);
    for (name, text) in files {
        fs::write(dir.path().join(name), text).unwrap();
    }
    let data = data(&dir, Split::Train);
    let said = data.warnings().into_iter().filter(|line| line.contains("not read")).collect::<Vec<_>>();
    assert_eq!(said, [""; 0], "files of captions are read");
    data.captions().map_err(|error| error.to_string())
}

fn all(captions: &Captions) -> Vec<Vec<&str>> {
    captions.iter().map(|of| of.iter().map(String::as_str).collect()).collect()
}

#[test]
fn three_ways_say_the_same() {
    let names = ["a.png", "b/a.png", "b/c.bmp"];
    let jsonl = [
        ("metadata.jsonl", "{\"file_name\": \"./a.png\", \"text\": \"one, \\\"two\\\"\", \"more\": 3}\n\n"),
        (
            "b/metadata.jsonl",
            "{\"file_name\":\"c.bmp\",\"text\":[\"x\",\"y\"]}\r\n{\"file_name\":\"a.png\",\"text\":\"ü\"}",
        ),
    ];
    let found = captions(&names, &jsonl).unwrap().unwrap();
    assert_eq!(all(&found), [vec!["one, \"two\""], vec!["ü"], vec!["x", "y"]]);
    assert_eq!(found.of(2)[..], ["x", "y"]);
    let table = "\u{feff}id,text,file_name\n1,\"one, \"\"two\"\"\",a.png\n2,ü,b/a.png\n3,\"x\ny\",b/c.bmp\n";
    let found = captions(&names, &[("metadata.csv", table)]).unwrap().unwrap();
    assert_eq!(all(&found), [["one, \"two\""], ["ü"], ["x\ny"]]);
    let beside = [("a.txt", "one, \"two\"\n"), ("b/a.txt", "ü"), ("b/c.txt", " x\n\n y \n")];
    let found = captions(&names, &beside).unwrap().unwrap();
    assert_eq!(all(&found), [vec!["one, \"two\""], vec!["ü"], vec!["x", "y"]]);
    assert!(captions(&names, &[]).unwrap().is_none());
}

#[test]
fn what_is_wrong_is_said_in_a_line_that_names_its_place() {
    let line = |name: &str| format!("{{\"file_name\": \"{name}\", \"text\": \"t\"}}\n");
    let [a, b] = ["a.png", "b.png"].map(line);
    let both = format!("{a}{b}");
    let cases = [
        (vec![("metadata.jsonl", a.clone())], "1 of 2 pictures in", "the first is b.png; give each a line"),
        (vec![("a.txt", "t".into())], "1 of 2 pictures in", "the first is b.png; write a text file"),
        (vec![("a.txt", "t".into()), ("b.txt", " \n".into())], "1 of 2 pictures", "the first is b.png"),
        (
            vec![("metadata.jsonl", format!("{both}{}{}", line("z.png"), line("c.png")))],
            "2 captions are",
            "not there: c.png",
        ),
        (
            vec![("metadata.jsonl", format!("{both}{}", line("c.png")))],
            "metadata.jsonl, line 3)",
            "is not there: c.png",
        ),
        (
            vec![("metadata.jsonl", format!("{both}{a}"))],
            "metadata.jsonl, line 3: a.png has captions already",
            "",
        ),
        (
            vec![("metadata.jsonl", format!("{a}\n{{\"file_name\": "))],
            "metadata.jsonl, line 3: it is no JSON",
            "",
        ),
        (vec![("metadata.jsonl", format!("{a}[1]"))], "line 2: it has no `file_name`", ""),
        (
            vec![("metadata.jsonl", format!("{a}{{\"file_name\": \"b.png\", \"text\": [\"x\", 1]}}"))],
            "line 2: its `text`",
            "",
        ),
        (
            vec![("metadata.jsonl", format!("{a}{{\"file_name\": \"b.png\", \"text\": []}}"))],
            "line 2: its `text`",
            "",
        ),
        (vec![("metadata.jsonl", line("../a.png"))], "line 1: `../a.png` is no file of this folder", ""),
        (vec![("metadata.jsonl", line("/a.png"))], "line 1: `/a.png` is no file of this folder", ""),
        (
            vec![("metadata.csv", "file_name,caption\na.png,x\n".into())],
            "metadata.csv, line 1: there is no column text",
            "",
        ),
        (vec![("metadata.csv", "file_name,text\na.png,x\nb.png\n".into())], "metadata.csv, line 3", ""),
        (vec![("metadata.csv", String::new())], "metadata.csv, line 1: there is no column file_name", ""),
        (
            vec![("metadata.jsonl", both), ("b.txt", "t".into())],
            "has captions in metadata.jsonl and in b.txt",
            "use one way",
        ),
    ];
    for (files, wanted, also) in cases {
        let texts: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
        let error = captions(&["a.png", "b.png"], &texts).unwrap_err();
        assert!(error.contains(wanted) && error.contains(also) && !error.contains('\n'), "{wanted}: {error}");
    }
    let dir = folder(&["a.png"]);
    fs::write(dir.path().join("a.txt"), [b'a', 0xff]).unwrap();
    let error = data(&dir, Split::Train).captions().unwrap_err().to_string();
    assert!(error.contains("a.txt cannot be read: it is no UTF-8"), "{error}");
}

#[test]
fn captions_stay_with_their_pictures_when_some_are_held_out() {
    let names: Vec<String> = (0..30).map(|i| format!("{i}.png")).collect();
    let dir = folder(&names.iter().map(String::as_str).collect::<Vec<_>>());
    let line = |i: usize| format!("{{\"file_name\": \"{i}.png\", \"text\": \"{i}\"}}\n");
    fs::write(dir.path().join("metadata.jsonl"), (0..30).map(line).collect::<String>()).unwrap();
    let mut seen = 0;
    for split in [Split::Train, Split::HeldOut] {
        let data = data(&dir, split);
        let captions = data.captions().unwrap().unwrap();
        for i in 0..data.len().unwrap() {
            let mut picture = vec![0.0; 64];
            data.read(i, &mut picture).unwrap();
            assert_eq!(captions.of(i)[..], [super::super::picture::to_u8(picture[0]).to_string()]);
            seen += 1;
        }
    }
    assert_eq!(seen, 30);
}

#[test]
fn captions_are_told_by_their_words_and_places() {
    let of = |all: &[&[&str]]| {
        let all = all.iter().map(|of| of.iter().map(|&text| text.to_owned()).collect()).collect();
        Captions(Kind::Listed(all)).digest()
    };
    let all = [
        of(&[&["a"], &["b"]]),
        of(&[&["b"], &["a"]]),
        of(&[&["a", "b"]]),
        of(&[&["ab"]]),
        of(&[&["a"], &["c"]]),
    ];
    assert!((0..5).all(|i| (0..i).all(|j| all[i] != all[j])), "{all:?}");
    assert_eq!(all[0], of(&[&["a"], &["b"]]));
    let made = |text: &'static str| Captions::made(move |i| vec![format!("{text} {i}")]).digest();
    assert!(made("a") == made("a") && made("a") != made("b"));
}
