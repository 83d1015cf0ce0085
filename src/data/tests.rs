//! Tests of what `--data` names.

use super::*;

pub(super) fn options(image_size: usize) -> Options {
    Options { image_size, channels: None, crop: None, resize: Resize::Bicubic, seed: 1, split: Split::Train }
}

/// The message of the error that opening `spec` gives.
pub(super) fn refusal(spec: &str, options: &Options) -> String {
    match open(spec, options) {
        Ok(_) => panic!("`{spec}` was opened"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn wrong_specs_say_what_to_write() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    let file = dir.path().join("a.txt");
    std::fs::write(&file, "x").unwrap();
    for (spec, wrong, hint) in [
        ("digit", "unknown data `digit`", "use digits, faces,"),
        (path, "unknown data", "write `images:"),
        ("digits:x", "takes no folder", "write `digits`"),
        ("mnist", "names no folder", "write `mnist:DIR`"),
        ("images:", "names no folder", "write `images:DIR`"),
        ("cifar10:/nowhere/at/all", "/nowhere/at/all does not exist", "`cifar10:DIR`"),
        (&format!("images:{}", file.display()), "is not a folder", "`images:DIR`"),
    ] {
        let message = refusal(spec, &options(28));
        assert!(message.contains(wrong) && message.contains(hint), "{spec}: {message}");
        assert!(!message.contains('\n'));
    }
    assert_eq!(open("nonsense", &options(28)).err().unwrap().exit_code(), 2);
}

#[test]
fn wrong_options_are_refused() {
    assert!(refusal("digits", &options(7)).contains("7 pixels"));
    assert!(refusal("digits", &options(5000)).contains("use 8 to 4096"));
    assert!(refusal("digits", &Options { channels: Some(2), ..options(28) }).contains("2 image channels"));
    assert!(refusal("digits", &Options { crop: Some(0), ..options(28) }).contains("crop of 0"));
    assert!(refusal("faces", &options(12)).contains("faces"));
    assert!(refusal("faces", &Options { channels: Some(1), ..options(32) }).contains("colour"));
}
