//! The `denoir` program: see `denoir --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    denoir::cli::main()
}
