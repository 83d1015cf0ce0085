//! `denoir data`, and pictures wherever the program reads them.

use std::fs;
use std::path::Path;
use std::process::Command;

use image::{ColorType, Rgb, RgbImage};
use tempfile::TempDir;

use crate::command_line::{TINY, denoir, fails, tiny_run};
use crate::golden_diffusers::copy;
use crate::place::{program, root};

/// What a command that succeeds prints on standard output and on standard error.
fn said(folder: &Path, arguments: &[&str]) -> (String, String) {
    let output = denoir(folder, arguments);
    let [out, err] = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
    assert!(output.status.success(), "{arguments:?}: {err}");
    (out, err)
}

fn wave(shift: u32) -> RgbImage {
    RgbImage::from_fn(48, 48, |x, y| Rgb([(x * 5) as u8, (y * 5) as u8, ((x * y + shift) % 256) as u8]))
}

/// Writes half of a JPEG file.
fn write_cut_jpeg(path: &Path) {
    wave(0).save(path).unwrap();
    let whole = fs::read(path).unwrap();
    fs::write(path, &whole[..whole.len() / 2]).unwrap();
}

#[test]
fn a_cut_jpeg_is_refused_at_every_entrance() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    fs::create_dir(at.join("pictures")).unwrap();
    for i in 0..3 {
        wave(i).save(at.join(format!("pictures/{i}.jpg"))).unwrap();
    }
    write_cut_jpeg(&at.join("pictures/cut.jpg"));
    let (_, err) = said(at, &["data", "images:pictures"]);
    assert!(err.contains("unreadable pictures: 1 ") && err.contains("cut.jpg cannot be read"), "{err}");

    let mut train = vec!["train", "--out", "run", "--steps", "4", "--data", "images:pictures"];
    train.extend(TINY);
    train.extend(["--set", "unet.in_channels=3", "--set", "unet.out_channels=3"]);
    let (_, err) = said(at, &train);
    assert!(err.contains("unreadable pictures: 1 ") && err.contains("cut.jpg cannot be read"), "{err}");

    let cut = "pictures/cut.jpg";
    let wanted = ["picture pictures/cut.jpg cannot be read", "the file is cut"];
    fails(at, &["invert", "run", "pictures/0.jpg", cut, "--device", "cpu"], 1, &wanted);
    copy(&root().join("tests/golden/tiny_ldm_kl"), &at.join("ldm"));
    for command in ["invert", "encode"] {
        fails(at, &[command, "ldm", cut, "--device", "cpu"], 1, &wanted);
    }
    assert!(!at.join("noise.safetensors").exists() && !at.join("latents.safetensors").exists());
}

#[test]
fn classes_of_a_folder_survive_the_way_through_a_table() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    for (i, class) in ["12\" disc", "a,b", "a;b", "plain"].iter().enumerate() {
        fs::create_dir_all(at.join("pictures").join(class)).unwrap();
        for k in 0..5 {
            wave(i as u32).save(at.join("pictures").join(class).join(format!("{k}.png"))).unwrap();
        }
    }
    let (text, _) =
        said(at, &["data", "images:pictures", "--count", "12", "--channels", "1", "--out", "out"]);
    // Twenty pictures hold two out.
    assert!(text.contains("18 images") && text.contains("over 12 of them, chosen with seed 0"), "{text}");
    let counts: usize = text.lines().filter_map(|l| l.trim().split_once("  ")?.0.parse::<usize>().ok()).sum();
    assert_eq!(counts, 18, "{text}");
    let rows: Vec<[String; 4]> = csv::Reader::from_path(at.join("out/labels.csv"))
        .unwrap()
        .deserialize()
        .map(Result::unwrap)
        .collect();
    assert_eq!(rows.len(), 12);
    let mut folders = std::collections::BTreeMap::new();
    for [file, label, class, words] in &rows {
        assert!(words.starts_with(&format!("{class}/")), "{class}: {words}");
        assert_eq!(["12\" disc", "a,b", "a;b", "plain"][label.parse::<usize>().unwrap()], class);
        let own = file.split('/').next().unwrap().to_owned();
        assert_eq!(folders.entry(own).or_insert_with(|| class.clone()), class, "two classes in one folder");
        assert_eq!(image::open(at.join("out").join(file)).unwrap().color(), ColorType::L8);
    }
    let (again, err) = said(at, &["data", "images:out"]);
    assert!(again.contains("12 images, 32x32, 1 channel") && err.is_empty(), "{again}{err}");
}

#[test]
fn captions_are_shown_and_go_along() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let parquet = format!("parquet:{}", root().join("tests/golden/parquet").display());
    let (text, err) = said(at, &["data", &parquet, "--image-size", "8", "--out", "sheet.png"]);
    assert!(text.contains("6 captions of 6 images, of 20 to 20 characters:"), "{text}");
    assert!(text.contains("       4  a square of colour 4") && text.contains("sheet.png") && err.is_empty());
    // Three columns of 160 pixels, two rows with a line beneath.
    assert_eq!(image::image_dimensions(at.join("sheet.png")).unwrap(), (12 + 3 * 172, 12 + 2 * 200));
    said(at, &["data", &parquet, "--image-size", "8", "--out", "out"]);
    let (again, err) = said(at, &["data", "images:out", "--image-size", "8"]);
    assert!(again.contains("6 captions of 6 images") && again.contains("a square of colour 3"), "{again}");
    assert_eq!(err, "");
    // The pictures can be looked at without them.
    fs::remove_file(at.join("out/000004.png")).unwrap();
    let (text, err) = said(at, &["data", "images:out", "--image-size", "8"]);
    assert!(text.contains("5 images") && !text.contains("captions"), "{text}");
    let wanted =
        "warning: the captions cannot be used: a caption is for a picture that is not there: 000004.png";
    assert!(err.contains(wanted) && err.contains("metadata.jsonl, line 5"), "{err}");
}

#[test]
fn a_choice_is_the_same_for_the_same_seed() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    fs::create_dir(at.join("pictures")).unwrap();
    for i in 0..15 {
        RgbImage::from_pixel(8, 8, Rgb([17 * i; 3])).save(at.join(format!("pictures/{i:02}.png"))).unwrap();
    }
    let text = |seed: &str| said(at, &["data", "images:pictures", "--count", "5", "--seed", seed]).0;
    assert_eq!(text("1"), text("1"));
    let differ = (2..6).any(|seed| text(&seed.to_string()).lines().nth(2) != text("1").lines().nth(2));
    assert!(differ, "{}", text("1"));
    assert!(said(at, &["data", "images:pictures"]).0.contains("over all 15,"));
    assert!(said(at, &["data", "digits", "--count", "5"]).0.contains("over the first 5,"));
}

#[cfg(unix)]
#[test]
fn folders_whose_names_are_no_text() {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let name = OsStr::from_bytes(b"\x8c\xa2 \\ pictures");
    for class in ["a", "b\u{1b}[2J"] {
        fs::create_dir_all(at.join(name).join(class)).unwrap();
        wave(0).save(at.join(name).join(class).join("1.png")).unwrap();
    }
    let spec = [OsStr::new("images:"), name].join(OsStr::new(""));
    let run = |arguments: &[&str], with: &[&OsStr]| {
        let output = Command::new(program()).current_dir(at).args(arguments).args(with).output().unwrap();
        let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{arguments:?}: {text}");
        assert!(!text.contains('\u{1b}') && !text.contains('\u{fffd}'), "{text:?}");
        text
    };
    let text = run(&["data"], &[&spec]);
    assert!(text.contains("2 images") && text.contains("b\\x1b[2J"), "{text}");
    let mut train = vec!["train", "--out", "run", "--steps", "2"];
    train.extend(TINY);
    run(&train, &[OsStr::new("--data"), &spec]);
    // The run knows where its data is.
    run(&["train", "--resume", "run", "--steps", "3", "--device", "cpu"], &[]);
    let mut picture = at.join(name).join("a");
    picture.push("1.png");
    run(&["invert", "run"], &[picture.as_os_str(), OsStr::new("--device"), OsStr::new("cpu")]);
}

#[cfg(unix)]
#[test]
fn what_is_no_file_is_no_picture() {
    let folder = TempDir::new().unwrap();
    let at = folder.path();
    let run = tiny_run(at, &[]);
    assert!(Command::new("mkfifo").arg(at.join("pipe.png")).status().unwrap().success());
    for other in ["pipe.png", "/dev/zero"] {
        fails(at, &["invert", run.to_str().unwrap(), other, "--device", "cpu"], 1, &[other, "is not a file"]);
    }
}

#[cfg(unix)]
#[test]
fn threads_have_a_bound_and_their_refusal_is_an_error() {
    let folder = TempDir::new().unwrap();
    let run = |shell: &str| {
        let output =
            Command::new("sh").arg("-c").arg(shell).arg(program()).current_dir(folder.path()).output();
        let output = output.unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (status, text) = run("RAYON_NUM_THREADS=100000 exec \"$0\" data digits");
    assert_eq!(status, Some(2), "{text}");
    assert!(text.contains("RAYON_NUM_THREADS is 100000; it must be from 1 to 1024"), "{text}");
    // Memory for the program, but not for the stacks of so many threads.
    if cfg!(target_os = "linux") {
        let (status, text) = run("ulimit -v 1000000; RAYON_NUM_THREADS=1000 exec \"$0\" data digits");
        assert_eq!(status, Some(1), "{text}");
        assert!(text.starts_with("error: cannot start 1000 threads; set RAYON_NUM_THREADS"), "{text}");
    }
    assert_eq!(run("RAYON_NUM_THREADS=3 exec \"$0\" data digits").0, Some(0));
}
