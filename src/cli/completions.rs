//! `denoir completions` and `denoir man`: what shells and `man` want to know.

use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;

use super::output::denied;
use super::{Arguments as Denoir, print};
use crate::error::Result;

#[derive(clap::Args)]
pub struct Arguments {
    /// The shell that is to complete commands and options; where its scripts belong, its manual says
    shell: Shell,
}

/// Prints the script.
pub fn run(arguments: &Arguments) -> Result<()> {
    let mut script = Vec::new();
    clap_complete::generate(arguments.shell, &mut Denoir::command(), "denoir", &mut script);
    print(&String::from_utf8_lossy(&script))
}

#[derive(clap::Args)]
pub struct ManArguments {
    /// A folder for the pages, such as ~/.local/share/man/man1
    #[arg(long, default_value = "man")]
    out: PathBuf,
}

/// Writes a page for each command.
pub fn man(arguments: &ManArguments) -> Result<()> {
    let out = &arguments.out;
    let denied = denied(out);
    std::fs::create_dir_all(out).map_err(&denied)?;
    clap_mangen::generate_to(Denoir::command(), out).map_err(&denied)?;
    print(&format!("{}\n", out.display()))
}
