//! `denoir recipes`

use std::fmt::Write as _;

use super::print;
use crate::error::Result;
use crate::recipe;

#[derive(clap::Args)]
pub struct Arguments {
    /// Print this recipe as TOML with what each key means, to change and train from
    name: Option<String>,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let text = match &arguments.name {
        Some(name) => recipe::find(name)?.to_commented_toml(),
        None => {
            let (mut text, all) = (String::new(), recipe::built_in());
            let width = all.iter().map(|recipe| recipe.name.len()).max().unwrap_or(0);
            for recipe in all {
                let _ = writeln!(text, "{:width$}  {}", recipe.name, recipe.about);
            }
            text
        }
    };
    print(&text)
}
