//! The pages of the guide, the README first, and the commands in them.

use std::fs;

use crate::place::root;

/// A text of the repository.
pub struct Page {
    /// `README.md`, or a path below it.
    pub path: String,
    pub text: String,
}

/// A line that a reader is to type, without its comment.
pub struct Line {
    /// `README.md:40`.
    pub place: String,
    pub command: String,
}

/// The names of the pages: those of the files without their ending.
pub fn names() -> Vec<String> {
    let files = fs::read_dir(root().join("src/guide")).unwrap().map(|entry| entry.unwrap().file_name());
    let names = files.filter_map(|file| Some(file.to_str()?.strip_suffix(".md")?.to_owned()));
    let mut names: Vec<String> = names.collect();
    names.sort();
    names
}

impl Page {
    pub fn readme() -> Page {
        Page::at("README.md")
    }

    pub fn named(name: &str) -> Page {
        Page::at(&format!("src/guide/{name}.md"))
    }

    fn at(path: &str) -> Page {
        let text = fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"));
        Page { path: path.to_owned(), text }
    }

    /// The README and all pages.
    pub fn all() -> Vec<Page> {
        std::iter::once(Page::readme()).chain(names().iter().map(|name| Page::named(name))).collect()
    }

    /// The lines of its blocks of `sh`, those that end in `\` joined with the next.
    ///
    /// # Panics
    /// Where a block has no language, or is indented: rustdoc would take it for Rust.
    pub fn commands(&self) -> Vec<Line> {
        let mut lines = Vec::new();
        let mut inside: Option<&str> = None;
        let mut open = None::<Line>;
        for (number, line) in (1..).zip(self.text.lines()) {
            let place = format!("{}:{number}", self.path);
            if let Some(fence) = line.strip_prefix("```") {
                assert!(inside.is_some() || !fence.is_empty(), "{place}: say of what language the block is");
                inside = if inside.is_some() { None } else { Some(fence) };
                continue;
            }
            assert!(inside.is_some() || !line.starts_with("    "), "{place}: fence the block with ```sh");
            if inside != Some("sh") || line.trim().is_empty() {
                continue;
            }
            let command = without_comment(line);
            let joined = match open.take() {
                Some(begun) => Line { place: begun.place, command: begun.command + " " + command },
                None => Line { place, command: command.to_owned() },
            };
            match joined.command.strip_suffix('\\') {
                Some(begun) => open = Some(Line { command: begun.trim_end().to_owned(), ..joined }),
                None => lines.push(joined),
            }
        }
        assert!(open.is_none() && inside.is_none(), "{}: a block does not end", self.path);
        lines
    }

    /// `(name, target)` of links: of those in the text, and of the lines that say where a name leads.
    pub fn links(&self) -> Vec<(String, String)> {
        let mut links = Vec::new();
        for part in self.text.split("](").skip(1) {
            links.push((String::new(), part.split(')').next().unwrap().to_owned()));
        }
        for line in self.text.lines().filter(|line| line.starts_with('[')) {
            if let Some((name, target)) = line.split_once("]: ") {
                links.push((name[1..].to_owned(), target.to_owned()));
            }
        }
        links
    }
}

/// What stands before a `#` behind a space, outside of quotes.
fn without_comment(line: &str) -> &str {
    let mut quote = None;
    let mut before = ' ';
    for (at, c) in line.char_indices() {
        match (quote, c) {
            (None, '#') if before == ' ' => return line[..at].trim(),
            (None, '"' | '\'') => quote = Some(c),
            (Some(open), _) if c == open => quote = None,
            _ => {}
        }
        before = c;
    }
    line.trim()
}

/// The words of a command as a shell takes them, of what the guide uses of one.
///
/// # Errors
/// Names what it does not use.
pub fn words(command: &str) -> Result<Vec<String>, String> {
    let mut words = Vec::new();
    let mut word = None::<String>;
    let mut quote = None;
    for c in command.chars() {
        match (quote, c) {
            (Some(open), _) if c == open => quote = None,
            (Some(_), _) => word.get_or_insert_default().push(c),
            (None, '"' | '\'') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, ' ') => words.extend(word.take()),
            (None, '|' | ';' | '&' | '$' | '*' | '?' | '`' | '<' | '~' | '\\') => {
                return Err(format!("{c} outside of quotes is not understood here"));
            }
            (None, _) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if quote.is_some() { Err("a quote does not end".to_owned()) } else { Ok(words) }
}

#[test]
fn commands_are_read_as_a_shell_reads_them() {
    let page = |text: &str| Page { path: "p.md".to_owned(), text: text.to_owned() };
    let text =
        "a\n```sh\ndenoir x --set a=\"b # c\"  # d\n\ndenoir y \\\n    --z 1    # e\n```\n```text\nno\n```\n";
    let lines = page(text).commands();
    let found: Vec<_> = lines.iter().map(|line| (&*line.place, &*line.command)).collect();
    assert_eq!(found, [("p.md:3", "denoir x --set a=\"b # c\""), ("p.md:5", "denoir y --z 1")]);
    let said = words("denoir x --set a=\"b # c\" '' > my.toml").unwrap();
    assert_eq!(said, ["denoir", "x", "--set", "a=b # c", "", ">", "my.toml"]);
    assert!(words("a | b").is_err() && words("a 'b").is_err());
    let caught = std::panic::catch_unwind(|| page("a\n\n    denoir x\n").commands().len());
    assert!(caught.is_err(), "an indented block is Rust to rustdoc");
}
