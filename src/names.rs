//! Names of files as text that can be shown and recorded, and the files that such text means.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use crate::error::is_unprintable;

/// A name as text: printable, in one line, and another one for each name. Bytes that are no UTF-8,
/// backslashes and characters that are not printed become `\xNN`, a byte each.
pub(crate) fn shown(name: &OsStr) -> String {
    let mut text = String::new();
    for chunk in name.as_encoded_bytes().utf8_chunks() {
        for c in chunk.valid().chars() {
            if c == '\\' || is_unprintable(c) {
                escape(&mut text, c.encode_utf8(&mut [0; 4]).as_bytes());
            } else {
                text.push(c);
            }
        }
        escape(&mut text, chunk.invalid());
    }
    text
}

/// A path within a data set as [`shown`] text, with `/` between folders.
pub(crate) fn shown_path(path: &Path) -> String {
    path.iter().map(shown).collect::<Vec<_>>().join("/")
}

fn escape(text: &mut String, bytes: &[u8]) {
    bytes.iter().for_each(|byte| *text += &format!("\\x{byte:02x}"));
}

/// The path that a text means: what has just this name, else what it is the [`shown`] text of.
pub(crate) fn path_of(text: impl Into<PathBuf>) -> PathBuf {
    let literal = text.into();
    if !literal.exists()
        && let Some(path) = unescaped(&literal).filter(|path| path.exists())
    {
        return path;
    }
    literal
}

#[cfg(unix)]
fn unescaped(path: &Path) -> Option<PathBuf> {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    let (mut bytes, mut rest) = (Vec::new(), path.as_os_str().as_bytes());
    while let Some(at) = rest.windows(2).position(|two| two == b"\\x") {
        let digits = std::str::from_utf8(rest.get(at + 2..at + 4)?).ok()?;
        bytes.extend_from_slice(&rest[..at]);
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        rest = &rest[at + 4..];
    }
    bytes.extend_from_slice(rest);
    Some(std::ffi::OsString::from_vec(bytes).into())
}

/// Elsewhere names are no bytes, and a backslash stands between folders.
#[cfg(not(unix))]
fn unescaped(_: &Path) -> Option<PathBuf> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_shown_in_one_line() {
        let shown = |name: &str| super::shown(OsStr::new(name));
        assert_eq!(shown("Ångström 12\" 犬"), "Ångström 12\" 犬");
        assert_eq!(shown("a\n\u{1b}[2J\\\u{9b}"), "a\\x0a\\x1b[2J\\x5c\\xc2\\x9b");
    }

    #[cfg(unix)]
    #[test]
    fn different_names_are_shown_differently_and_found_again() {
        use std::os::unix::ffi::OsStrExt;
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().to_str().unwrap();
        let mut all = std::collections::BTreeSet::new();
        let names: [&[u8]; 6] = [b"\x8c\xa2", b"\x94\xe9", b"\\x8c\\xa3", b"\xff\\xff", b"plain", b"a\nb"];
        for name in names {
            let name = OsStr::from_bytes(name);
            std::fs::create_dir(folder.path().join(name)).unwrap();
            assert!(all.insert(shown(name)), "{name:?}");
            assert_eq!(path_of(format!("{at}/{}", shown(name))).file_name(), Some(name));
        }
        assert_eq!(path_of("no such \\x8c"), Path::new("no such \\x8c"));
        assert_eq!(path_of("\\x\\xé"), Path::new("\\x\\xé"));
    }
}
