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
}

pub fn run(arguments: &Arguments) -> Result<()> {
    match &arguments.topic[..] {
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
