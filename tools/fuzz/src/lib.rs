//! What the targets share: a folder of their own for parsers that read files, and the tests' archives around bytes.

use std::fs;
use std::path::PathBuf;
use std::sync::Once;

#[path = "../../../tests/it/zip_writer.rs"]
mod zip_writer;

pub use zip_writer::zip_file;

/// A folder of this process, in memory where the system has such a place.
pub fn scratch() -> PathBuf {
    let memory = PathBuf::from("/dev/shm");
    let parent = if memory.is_dir() { memory } else { std::env::temp_dir() };
    let folder = parent.join(format!("denoir-fuzz-{}", std::process::id()));
    fs::create_dir_all(&folder).expect("a folder for files");
    folder
}

/// Writes a file of the scratch folder, folders and all.
pub fn put(name: &str, bytes: &[u8]) -> PathBuf {
    let path = scratch().join(name);
    if let Some(folder) = path.parent() {
        fs::create_dir_all(folder).expect("a folder for files");
    }
    fs::write(&path, bytes).expect("room for a file");
    path
}

/// Lets panics unwind, as the program does where it expects those of other people's decoders. One that nobody
/// catches is still a finding.
pub fn caught_panics_are_fine() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| std::panic::set_hook(Box::new(|_| ())));
}

/// Cuts the input in two at the length that its first two bytes say.
pub fn two(bytes: &[u8]) -> (&[u8], &[u8]) {
    let [low, high, rest @ ..] = bytes else { return (bytes, &[]) };
    let first = usize::from(u16::from_le_bytes([*low, *high]));
    rest.split_at(first.min(rest.len()))
}
