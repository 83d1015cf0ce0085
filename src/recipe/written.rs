//! Recipes as TOML, with numbers as people write them, and with what each key means.

use std::fmt::Write as _;

use toml::{Table, Value};

use super::Recipe;
use super::tables::key_of;

/// Widest line of a comment.
const WIDEST: usize = 100;

impl Recipe {
    /// The recipe as TOML, with the keys that its system and model have.
    pub fn to_toml(&self) -> String {
        self.text(false)
    }

    /// As [`Recipe::to_toml`], with the meaning of each key above it.
    pub fn to_commented_toml(&self) -> String {
        self.text(true)
    }

    /// Its keys and their values, those alone that its system and model have.
    pub(super) fn table(&self) -> Table {
        let mut table =
            Table::try_from(self).unwrap_or_else(|e| unreachable!("a recipe is a plain table: {e}"));
        table.retain(|key, _| self.has(key));
        table
    }

    fn text(&self, comments: bool) -> String {
        let mut text = String::new();
        let mut line = |path: &str, line: &str| {
            if let Some(key) = key_of(path).filter(|_| comments) {
                if !text.is_empty() {
                    text.push('\n');
                }
                comment(&mut text, key.about);
            } else if line.starts_with('[') {
                text.push('\n');
            }
            let _ = writeln!(text, "{line}");
        };
        let table = self.table();
        for (key, value) in table.iter().filter(|(_, value)| !value.is_table()) {
            line(key, &format!("{key} = {}", written(key, value)));
        }
        for (name, inner) in table.iter().filter_map(|(name, value)| Some((name, value.as_table()?))) {
            line(name, &format!("[{name}]"));
            for (key, value) in inner {
                let path = format!("{name}.{key}");
                line(&path, &format!("{key} = {}", written(&path, value)));
            }
        }
        text
    }
}

/// A value as TOML. The shortest number that is read as the same one.
pub(super) fn written(path: &str, value: &Value) -> String {
    match value {
        Value::Float(number) if number.is_finite() => match key_of(path) {
            Some(key) if key.kind.contains("f32") => format!("{:?}", *number as f32),
            _ => format!("{number:?}"),
        },
        Value::Array(all) => {
            let all: Vec<String> = all.iter().map(|value| written(path, value)).collect();
            format!("[{}]", all.join(", "))
        }
        other => other.to_string(),
    }
}

/// Writes a text as comments.
fn comment(out: &mut String, text: &str) {
    let mut width = 0;
    for word in text.split_whitespace() {
        if width == 0 || width + 1 + word.len() > WIDEST {
            out.push_str(if width == 0 { "#" } else { "\n#" });
            width = 1;
        }
        let _ = write!(out, " {word}");
        width += 1 + word.len();
    }
    out.push('\n');
}

#[cfg(test)]
mod tests {
    use crate::recipe::{built_in, find, parse};

    #[test]
    fn numbers_are_written_as_people_do_and_read_as_they_were() {
        for recipe in built_in() {
            for text in [recipe.to_toml(), recipe.to_commented_toml()] {
                assert_eq!(parse(&text, "test").unwrap(), recipe, "{text}");
                assert!(!text.contains("0.00000"), "{text}");
            }
        }
        let text = find("digits").unwrap().to_toml();
        assert!(text.contains("\nadam_eps = 1e-8\n") && text.contains("\nnorm_eps = 1e-5\n"), "{text}");
    }

    #[test]
    fn every_key_says_what_it_means() {
        for recipe in built_in() {
            let text = recipe.to_commented_toml();
            let mut above = "";
            for line in text.lines() {
                // Keys of the reference library's own file are its own matter.
                if above.starts_with("[scheduler]") {
                    break;
                }
                let is_key = !line.is_empty() && !line.starts_with('#');
                assert!(!is_key || above.starts_with("# "), "{}: {line}", recipe.name);
                assert!(line.len() <= 101 || is_key, "{line}");
                above = line;
            }
        }
    }
}
