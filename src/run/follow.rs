//! A file that lines are appended to, followed: what was read is not read again.

use std::fs::Metadata;
use std::io::{Read, Seek, SeekFrom};
use std::path::PathBuf;

use crate::files;

/// Longest line that is passed on; metrics have a few hundred bytes.
const LONGEST: usize = 1 << 16;

/// What happened to a followed file.
pub(crate) enum Happened<'a> {
    /// It was written anew: what was read before holds no more.
    Anew,
    /// A line, without its end.
    Line(&'a [u8]),
}

/// A followed file, which need not exist yet.
pub(crate) struct Follow {
    path: PathBuf,
    /// Bytes read of the file of this identity.
    at: u64,
    identity: u64,
    /// The beginning of a line whose end is not there yet; too long a line is not kept.
    rest: Vec<u8>,
    skips: bool,
}

impl Follow {
    /// Follows a file from its beginning on.
    pub(super) fn new(path: PathBuf) -> Follow {
        Follow { path, at: 0, identity: 0, rest: Vec::new(), skips: false }
    }

    /// Tells what happened since the last call. A file that cannot be read has no lines.
    pub(crate) fn read(&mut self, mut tell: impl FnMut(Happened)) {
        let Ok((mut file, length)) = files::open(&self.path) else { return self.begin_anew(0, tell) };
        let identity = file.metadata().map_or(0, |what| identity(&what));
        if length < self.at || identity != self.identity {
            self.begin_anew(identity, &mut tell);
        }
        if length == self.at || file.seek(SeekFrom::Start(self.at)).is_err() {
            return;
        }
        // What is appended meanwhile is for the next call.
        let (mut left, mut piece) = (length - self.at, vec![0; 1 << 18]);
        while left > 0 {
            let most = piece.len().min(left as usize);
            let count = match file.read(&mut piece[..most]) {
                Ok(0) | Err(_) => return,
                Ok(count) => count,
            };
            (self.at, left) = (self.at + count as u64, left - count as u64);
            self.split(&piece[..count], &mut tell);
        }
    }

    fn begin_anew(&mut self, identity: u64, mut tell: impl FnMut(Happened)) {
        if self.at > 0 {
            tell(Happened::Anew);
        }
        (self.at, self.identity, self.skips) = (0, identity, false);
        self.rest.clear();
    }

    fn split(&mut self, piece: &[u8], tell: &mut impl FnMut(Happened)) {
        for part in piece.split_inclusive(|&b| b == b'\n') {
            let (part, ends) = part.strip_suffix(b"\n").map_or((part, false), |line| (line, true));
            self.skips |= self.rest.len() + part.len() > LONGEST;
            if self.skips {
                self.rest.clear();
            } else {
                self.rest.extend_from_slice(part);
            }
            if ends {
                if !self.skips {
                    tell(Happened::Line(&self.rest));
                }
                self.rest.clear();
                self.skips = false;
            }
        }
    }
}

/// Tells a file from another of the same name, where the system can: a resumed run replaces its metrics.
#[cfg(unix)]
fn identity(file: &Metadata) -> u64 {
    std::os::unix::fs::MetadataExt::ino(file)
}

#[cfg(not(unix))]
fn identity(_: &Metadata) -> u64 {
    0
}

#[cfg(test)]
mod tests {
    use std::fs::{self, OpenOptions};
    use std::io::Write;

    use super::*;

    #[test]
    fn lines_are_told_once_and_a_new_file_from_its_beginning() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("metrics.jsonl");
        let mut follow = Follow::new(path.clone());
        let mut read = || {
            let mut all = Vec::new();
            follow.read(|happened| {
                all.push(match happened {
                    Happened::Anew => "ANEW".to_owned(),
                    Happened::Line(line) => String::from_utf8_lossy(line).into_owned(),
                });
            });
            all.join(" ")
        };
        assert_eq!(read(), "", "there is no file yet");
        let append = |text: &str| {
            let mut file = OpenOptions::new().create(true).append(true).open(&path).unwrap();
            file.write_all(text.as_bytes()).unwrap();
        };
        append("1\n2\nha");
        assert_eq!([read(), read()], ["1 2", ""]);
        append("lf\n");
        append(&format!("{}\nnext\n", "x".repeat(1 << 20)));
        assert_eq!(read(), "half next");
        append(&"y".repeat(1 << 17));
        assert_eq!([read(), read()], ["", ""]);
        append("y\nz\n");
        assert_eq!(read(), "z");
        // Shorter, and longer again before anyone looks.
        files::replace(&path, |file| file.write_all(b"1\n")).unwrap();
        append(&"3\n".repeat(1 << 20));
        let told = read();
        assert!(told.starts_with("ANEW 1 3 3"), "{}", &told[..20]);
        fs::remove_file(&path).unwrap();
        assert_eq!(read(), "ANEW");
    }
}
