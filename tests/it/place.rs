//! Where the tests find the program and the source: where cargo built them, or where `tools/gpu-check` packed
//! them.

use std::path::PathBuf;

/// The folder of the source.
pub fn root() -> PathBuf {
    std::env::var_os("DENOIR_TEST_ROOT").map_or_else(|| env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// The program under test.
pub fn program() -> PathBuf {
    std::env::var_os("DENOIR_TEST_PROGRAM").map_or_else(|| env!("CARGO_BIN_EXE_denoir").into(), PathBuf::from)
}

/// A folder for what tests leave to look at. What is packed leaves it among other temporary files.
pub fn leavings() -> PathBuf {
    match std::env::var_os("DENOIR_TEST_ROOT") {
        Some(_) => std::env::temp_dir().join("denoir-tests"),
        None => env!("CARGO_TARGET_TMPDIR").into(),
    }
}
