//! The one error type: what is wrong, what to do about it, and what caused it.

use std::fmt;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// An error of the world: a file, a flag, a device or memory is not as it must be. A mistake of the *caller*
/// of a function panics instead, at the caller's line.
///
/// Displayed as one line, `what is wrong; what to do`; [`Error::report`] adds a line for each cause. All of
/// them pass through [`one_line`], because they may hold names out of files.
pub struct Error(Box<Inner>);

struct Inner {
    message: String,
    hint: Option<String>,
    causes: Vec<String>,
    usage: bool,
}

/// The result of what can fail because of the world.
pub type Result<T> = std::result::Result<T, Error>;

impl Error {
    /// `message` says what is wrong, in lower case and without a full stop.
    pub fn new(message: impl Into<String>) -> Self {
        Error(Box::new(Inner { message: message.into(), hint: None, causes: Vec::new(), usage: false }))
    }

    /// A mistake in the command itself (an unknown recipe, key or flag): exit status 2.
    pub fn usage(message: impl Into<String>) -> Self {
        let mut error = Error::new(message);
        error.0.usage = true;
        error
    }

    /// Adds what the user can do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.0.hint = Some(hint.into());
        self
    }

    /// Adds the underlying error: each line of its text is one cause.
    pub fn caused_by(mut self, cause: impl fmt::Display) -> Self {
        self.0.causes.extend(cause.to_string().lines().filter(|l| !l.trim().is_empty()).map(str::to_owned));
        self
    }

    /// The same error, located in a file.
    pub fn within(mut self, place: impl fmt::Display) -> Self {
        self.0.message = format!("{place}: {}", self.0.message);
        self.in_a_file()
    }

    /// The same error, caused by a file and not by the command: exit status 1.
    pub fn in_a_file(mut self) -> Self {
        self.0.usage = false;
        self
    }

    /// Exit status of the program: 2 for a mistake in the command, 1 for anything else.
    pub fn exit_code(&self) -> u8 {
        if self.0.usage { 2 } else { 1 }
    }

    /// The text that the program prints: `error: ...` and a `caused by: ...` line for each cause.
    pub fn report(&self) -> String {
        let mut text = format!("error: {self}");
        for cause in &self.0.causes {
            text += &format!("\n  caused by: {}", one_line(cause));
        }
        text
    }
}

/// A usage error unless `holds`.
pub(crate) fn need(holds: bool, message: impl Into<String>, hint: impl Into<String>) -> Result<()> {
    if holds { Ok(()) } else { Err(Error::usage(message).hint(hint)) }
}

/// Locks a mutex whose contents are consistent after every statement, so that another thread's panic harms
/// none.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whether a character ends a line, commands a terminal, or turns the direction of the text after it.
pub(crate) fn is_unprintable(c: char) -> bool {
    let line_or_direction = ['\u{61c}', '\u{200e}', '\u{200f}', '\u{2028}', '\u{2029}'];
    let turns = matches!(c, '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || turns || line_or_direction.contains(&c)
}

/// Text out of a file as it can be shown: characters that are not printed (line ends, terminal commands)
/// escaped, and at most 2000 characters.
pub fn one_line(text: &str) -> String {
    const MOST: usize = 2000;
    let mut out = String::new();
    for (count, c) in text.chars().enumerate() {
        if count == MOST {
            out.push_str("...");
            break;
        }
        if is_unprintable(c) { out.extend(c.escape_default()) } else { out.push(c) }
    }
    out
}

/// A path as an argument of a command that can be pasted into a shell.
pub(crate) fn quoted(path: &Path) -> String {
    let plain = |b: &u8| b.is_ascii_alphanumeric() || b"/._-+:,@%=".contains(b) || *b >= 0x80;
    // Not to be taken for an option.
    let bytes = match path.as_os_str().as_encoded_bytes() {
        option if option.starts_with(b"-") => [&b"./"[..], option].concat(),
        other => other.to_vec(),
    };
    match String::from_utf8(bytes) {
        Ok(text) if !text.is_empty() && text.bytes().all(|b| plain(&b)) => text,
        Ok(text) if cfg!(windows) => format!("\"{text}\""),
        Ok(text) if !text.chars().any(char::is_control) => format!("'{}'", text.replace('\'', r"'\''")),
        other => {
            let bytes = other.map_or_else(|e| e.into_bytes(), String::into_bytes);
            let octal = bytes.iter().map(|b| {
                if plain(b) && b.is_ascii() { String::from(char::from(*b)) } else { format!("\\{b:03o}") }
            });
            format!("$'{}'", octal.collect::<String>())
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&one_line(&self.0.message))?;
        match &self.0.hint {
            Some(hint) => write!(f, "; {}", one_line(hint)),
            None => Ok(()),
        }
    }
}

/// The report, so that `unwrap` in a test shows everything.
impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.report())
    }
}

impl std::error::Error for Error {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_out_of_files_cannot_write_lines_of_their_own() {
        let error = Error::new("a\nerror: b \u{1b}[2J").hint("c\td").caused_by("e\u{7}\nf");
        let report = "error: a\\nerror: b \\u{1b}[2J; c\\td\n  caused by: e\\u{7}\n  caused by: f";
        assert_eq!(error.report(), report);
        assert_eq!(one_line("a\u{202e}b\u{2028}é"), "a\\u{202e}b\\u{2028}é");
        let long = Error::new("x".repeat(1 << 20)).to_string();
        assert_eq!((long.len(), &long[1999..]), (2003, "x..."));
    }

    #[cfg(unix)]
    #[test]
    fn a_shell_takes_a_quoted_path_for_what_it_is() {
        use std::os::unix::ffi::OsStrExt;
        for bytes in [
            &b"runs/a-1"[..],
            b"my run",
            b"it's",
            b"-x",
            b"$HOME;`id`",
            b"a\nb",
            b"\x8c\xa2 x",
            "ä".as_bytes(),
        ] {
            let path = Path::new(std::ffi::OsStr::from_bytes(bytes));
            let said = std::process::Command::new("bash")
                .args(["-c", &format!("printf %s {}", quoted(path))])
                .output();
            let Ok(said) = said else { return };
            assert_eq!(said.stdout.strip_prefix(b"./").unwrap_or(&said.stdout), bytes, "{}", quoted(path));
        }
        assert_eq!(quoted(Path::new("runs/a b")), "'runs/a b'");
        assert_eq!(quoted(Path::new("-x")), "./-x");
        assert_eq!(quoted(Path::new("a\nb")), r"$'a\012b'");
    }
}
