//! Files as a whole: written so that a crash leaves the old or the new one, and hashed.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Has `write` make a file under a temporary name beside `path` and sync it to the disk, then renames it.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> io::Result<()> {
    // Renaming would replace a device or a pipe by a file.
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(io::Error::other("it is there already, and no regular file"));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
    let written = write(&temporary).and_then(|()| fs::rename(&temporary, path));
    match written {
        // The name is on the disk only when the folder is; not every system can open a folder.
        Ok(()) => _ = path.parent().and_then(|folder| File::open(folder).ok()?.sync_all().ok()),
        Err(_) => _ = fs::remove_file(&temporary),
    }
    written
}

/// 64-bit FNV-1a (Fowler, Noll & Vo): tells contents apart, not against forgery.
pub(crate) fn fnv1a(words: impl IntoIterator<Item = u64>) -> u64 {
    let step = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x0100_0000_01b3);
    words.into_iter().fold(0xcbf2_9ce4_8422_2325, step)
}
