//! `denoir help`: commands, and the keys of recipes.

use std::fmt::Write as _;

use clap::CommandFactory;

use super::{Arguments as Denoir, check_printed, print};
use crate::error::{Error, Result};
use crate::recipe::{Explained, all_keys, explain, nearest};

#[derive(clap::Args)]
pub struct Arguments {
    /// A command; or keys, and one of them
    #[arg(value_name = "COMMAND | keys [KEY]")]
    topic: Vec<String>,
    /// Of keys: all that there is to say of them, as Markdown
    #[arg(long)]
    markdown: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.topic[..] {
        [keys] if keys == "keys" && arguments.markdown => print(&page_of_keys()),
        _ if arguments.markdown => {
            Err(Error::usage("--markdown is for the page of all keys").hint("denoir help keys --markdown"))
        }
        [keys] if keys == "keys" => print(&every_key()),
        [keys, path] if keys == "keys" => print(&one_key(path)?),
        [keys, ..] if keys == "keys" => Err(Error::usage("help keys: more than one").hint("give one key")),
        topic => of_command(topic),
    }
}

fn of_command(topic: &[String]) -> Result<()> {
    let mut denoir = Denoir::command();
    // Names of commands with those of their parents.
    denoir.build();
    let mut command = &mut denoir;
    for name in topic {
        let known: Vec<String> = command.get_subcommands().map(|c| c.get_name().to_owned()).collect();
        let Some(inner) = command.find_subcommand_mut(name) else {
            let near = nearest(name, known.iter().map(String::as_str));
            let hint =
                near.map_or("`denoir help` lists all".to_owned(), |near| format!("did you mean {near}?"));
            return Err(Error::usage(format!("no command called {name:?}")).hint(hint));
        };
        command = inner;
    }
    check_printed(command.print_long_help())
}

/// A line for each key.
fn every_key() -> String {
    let all: Vec<Explained> = all_keys().iter().filter_map(|path| explain(path)).collect();
    let width = all.iter().map(|key| key.path.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Explained { path, about, default, .. } in &all {
        let end = [about.find(". "), about.find(';')].into_iter().flatten().min().unwrap_or(about.len());
        let first = about[..end].trim_end_matches('.');
        let default = default.as_ref().map(|value| format!(" [{value}]")).unwrap_or_default();
        let _ = writeln!(text, "{path:width$}  {first}{default}");
    }
    text + "\n`denoir help keys KEY` says all of one; `--set KEY=VALUE` sets it.\n"
}

/// The page of the guide.
fn page_of_keys() -> String {
    let mut text = "\
# Keys of recipes

Every key that a recipe may have. `denoir help keys --markdown` writes this page from the table in the code.
`denoir help keys KEY` says the same of one key, `denoir recipes NAME` prints a recipe with the meaning of its
keys, and `--set KEY=VALUE` sets one.

Systems: ddpm is diffusion of pixels, ldm of latents, vae an autoencoder. Where a recipe stands behind a
system, not all of its recipes have the key, and this one has.
"
    .to_owned();
    let mut table = None;
    let all = all_keys();
    for Explained { path, about, values, default, systems } in all.iter().filter_map(|path| explain(path)) {
        let of = path.split_once('.').map(|(table, _)| table.to_owned());
        if table.as_ref() != Some(&of) {
            let title = of.as_ref().map_or("Outside of tables".to_owned(), |of| format!("Table `[{of}]`"));
            let _ = writeln!(text, "\n## {title}\n\n| key | values | default | systems | meaning |");
            text += "|---|---|---|---|---|\n";
            table = Some(of);
        }
        let default = default.map(|value| format!("`{value}`")).unwrap_or_default();
        let cells = [values, default, systems, about].map(|cell| cell.replace('|', "\\|"));
        let _ = writeln!(text, "| `{path}` | {} |", cells.join(" | "));
    }
    text
}

fn one_key(path: &str) -> Result<String> {
    let Some(Explained { path, about, values, default, systems }) = explain(path) else {
        let all = all_keys();
        let near = nearest(path, all.iter().map(String::as_str));
        let hint =
            near.map_or("`denoir help keys` lists all".to_owned(), |near| format!("did you mean {near}?"));
        return Err(Error::usage(format!("no key called {path:?} in a recipe")).hint(hint));
    };
    let mut text = format!("{path}: {about}\n\n");
    for (what, said) in [("values", Some(values)), ("default", default), ("systems", Some(systems))] {
        if let Some(said) = said.filter(|said| !said.is_empty()) {
            let _ = writeln!(text, "{what:8} {said}");
        }
    }
    Ok(text)
}
