//! The `denoir` program: see `denoir --help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    if std::env::var_os("XDG_RUNTIME_DIR").is_none() {
        // Mesa's drivers look for a Wayland display and complain on the terminal where this is not set, as in
        // containers. SAFETY: no other thread is running yet.
        unsafe { std::env::set_var("XDG_RUNTIME_DIR", std::env::temp_dir()) };
    }
    denoir::cli::main()
}
