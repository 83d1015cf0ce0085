//! Recipes by name and from TOML files.

use std::path::Path;

use super::{MOST_BYTES, Recipe, built_in};
use crate::error::{Error, Result};
use crate::files;

/// The recipe that a name or the path of a TOML file means.
///
/// # Errors
/// When there is neither, or the file is not a recipe.
pub fn find(name: &str) -> Result<Recipe> {
    let known = built_in();
    if let Some(recipe) = known.iter().find(|r| r.name == name) {
        return Ok(recipe.clone());
    }
    let path = Path::new(name);
    if path.extension().is_some_and(|e| e == "toml") || path.is_file() {
        let text = files::read_text(path, MOST_BYTES).map_err(|e| {
            Error::usage(format!("cannot read the recipe {name}")).hint("check the path").caused_by(e)
        })?;
        return parse(&text, name);
    }
    let names: Vec<&str> = known.iter().map(|r| r.name.as_str()).collect();
    Err(Error::usage(format!("no recipe called {name:?}"))
        .hint(format!("choose {}, or give a TOML file", names.join(", "))))
}

/// A recipe from TOML; missing keys take the defaults.
///
/// # Errors
/// Names the key, or the line, that is wrong.
pub fn parse(text: &str, origin: &str) -> Result<Recipe> {
    let bad = |e: &dyn std::fmt::Display| {
        Error::usage(format!("{origin} is not a recipe"))
            .hint("compare with one that `denoir recipes NAME` prints")
            .caused_by(e)
    };
    let recipe: Recipe = toml::from_str(text).map_err(|e: toml::de::Error| {
        let line = e.span().map(|span| text[..span.start.min(text.len())].matches('\n').count() + 1);
        bad(&line.map_or_else(|| e.message().to_owned(), |line| format!("line {line}: {}", e.message())))
    })?;
    let table: toml::Table = text.parse().unwrap_or_default();
    match table.keys().find(|key| !recipe.has(key)) {
        Some(key) => Err(bad(&recipe.lacks(key))),
        None => Ok(recipe),
    }
}
