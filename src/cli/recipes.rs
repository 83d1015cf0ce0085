//! `denoir recipes`

use std::fmt::Write as _;

use super::print;
use crate::error::Result;
use crate::recipe;

#[derive(clap::Args)]
pub struct Arguments {
    /// Print this recipe as TOML, to change and train from
    name: Option<String>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let text = match &arguments.name {
        Some(name) => recipe::find(name)?.to_toml(),
        None => {
            let mut text = String::new();
            for recipe in recipe::built_in() {
                let _ = writeln!(text, "{:14} {}", recipe.name, recipe.about);
            }
            text
        }
    };
    print(&text)
}
