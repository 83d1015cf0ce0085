//! Files as a whole: opened only where reading has an end, written so that a crash leaves the old or the new
//! one, and hashed.

use std::fs::{self, File, TryLockError};
use std::io::{self, Read};
use std::path::Path;

/// Opens a file for reading, and tells its length. A folder, a pipe or a device is an error before it is
/// opened: reading it may wait, or never end.
pub(crate) fn open(path: &Path) -> io::Result<(File, u64)> {
    let there = fs::metadata(path)?;
    if !there.is_file() {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "it is no regular file"));
    }
    Ok((File::open(path)?, there.len()))
}

/// The bytes of a file that has at most `most`.
pub(crate) fn read(path: &Path, most: u64) -> io::Result<Vec<u8>> {
    read_seen(path, most, |_| ())
}

/// As [`read`]; `seen` is given each piece while it is in the processor's cache.
pub(crate) fn read_seen(path: &Path, most: u64, mut seen: impl FnMut(&[u8])) -> io::Result<Vec<u8>> {
    const PIECE: u64 = 1 << 18;
    let (file, length) = open(path)?;
    if length > most {
        let what = format!("its {length} bytes are more than the {most} that are read");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, what));
    }
    let mut bytes = Vec::new();
    bytes.try_reserve_exact(length as usize)?;
    let mut file = file.take(most);
    loop {
        let from = bytes.len();
        file.by_ref().take(PIECE).read_to_end(&mut bytes)?;
        if bytes.len() == from {
            return Ok(bytes);
        }
        seen(&bytes[from..]);
    }
}

/// As [`read`], of a text.
pub(crate) fn read_text(path: &Path, most: u64) -> io::Result<String> {
    let wrong = |_| io::Error::new(io::ErrorKind::InvalidData, "it is no UTF-8 text");
    String::from_utf8(read(path, most)?).map_err(wrong)
}

/// Has `write` fill a file under a temporary name beside `path`, and renames it when it is on the disk.
pub(crate) fn replace(path: &Path, write: impl FnOnce(&mut File) -> io::Result<()>) -> io::Result<()> {
    // Renaming would replace a device or a pipe by a file.
    if fs::metadata(path).is_ok_and(|there| !there.is_file()) {
        return Err(io::Error::other("it is there already, and no regular file"));
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = path.with_file_name(format!(".{name}.{}.part", std::process::id()));
    let written = File::create(&temporary).and_then(|mut file| {
        // Tells `remove_leftovers` that a program is at work on it: the lock ends with the program.
        let _ = file.try_lock();
        write(&mut file)?;
        file.sync_all()?;
        fs::rename(&temporary, path)
    });
    match written {
        // The name is on the disk only when the folder is; not every system can open a folder.
        Ok(()) => _ = path.parent().and_then(|folder| File::open(folder).ok()?.sync_all().ok()),
        Err(_) => _ = fs::remove_file(&temporary),
    }
    written
}

/// Deletes the files in a folder that killed programs left half written: those of [`replace`], and of
/// denoir 0.1.0 `.tmp` with six more characters.
pub(crate) fn remove_leftovers(folder: &Path) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        if !is_file || !is_leftover(&entry.file_name().to_string_lossy()) {
            continue;
        }
        let lock = File::open(entry.path()).map(|file| file.try_lock());
        if !matches!(lock, Ok(Err(TryLockError::WouldBlock))) {
            let _ = fs::remove_file(entry.path());
        }
    }
}

fn is_leftover(name: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
    let of_replace = || name.strip_prefix('.')?.strip_suffix(".part")?.rsplit_once('.').map(|(_, id)| id);
    let of_older = name.strip_prefix(".tmp");
    of_replace().is_some_and(digits)
        || of_older.is_some_and(|rest| rest.len() == 6 && rest.bytes().all(|b| b.is_ascii_alphanumeric()))
}

/// 64-bit FNV-1a (Fowler, Noll & Vo): tells contents apart, not against forgery.
pub(crate) fn fnv1a(words: impl IntoIterator<Item = u64>) -> u64 {
    let step = |hash: u64, word: u64| (hash ^ word).wrapping_mul(0x0100_0000_01b3);
    words.into_iter().fold(0xcbf2_9ce4_8422_2325, step)
}

/// A hash of the bits of numbers.
pub(crate) fn hash_of(numbers: impl IntoIterator<Item = f32>) -> String {
    format!("{:016x}", fnv1a(numbers.into_iter().map(|number| u64::from(number.to_bits()))))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    #[test]
    fn only_what_ends_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("text");
        fs::write(&file, "four").unwrap();
        assert_eq!(read_text(&file, 4).unwrap(), "four");
        assert!(read(&file, 3).unwrap_err().to_string().contains("its 4 bytes are more than the 3"));
        fs::write(&file, [0xff]).unwrap();
        assert!(read_text(&file, 4).unwrap_err().to_string().contains("no UTF-8"));
        let endless = if cfg!(unix) { &["/dev/zero", "/dev/null"][..] } else { &[] };
        for special in endless.iter().map(Path::new).chain([folder.path()]) {
            assert!(open(special).unwrap_err().to_string().contains("no regular file"), "{special:?}");
        }
    }

    #[test]
    fn leftovers_go_and_what_is_being_written_stays() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let left = [".recipe.toml.4711.part", ".step-00000010.png.3.part", ".tmpAb3xYz"];
        let kept = ["step.part", ".lock", ".notes.part", ".a.b.part", ".tmpAb3xYz1", ".tmp", ".x.12.parts"];
        for name in left.iter().chain(&kept) {
            fs::write(at(name), "").unwrap();
        }
        replace(&at("whole"), |file| {
            remove_leftovers(folder.path());
            file.write_all(b"whole")
        })
        .unwrap();
        assert_eq!(fs::read(at("whole")).unwrap(), b"whole", "another start leaves it alone");
        let there: Vec<bool> = left.iter().chain(&kept).map(|name| at(name).exists()).collect();
        assert_eq!(there, [vec![false; left.len()], vec![true; kept.len()]].concat());
        replace(&at("whole"), |_| Err(io::Error::other("no"))).unwrap_err();
        assert_eq!(fs::read(at("whole")).unwrap(), b"whole");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1 + kept.len());
    }

    #[cfg(unix)]
    #[test]
    fn the_mode_is_that_of_any_new_file() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let mode = |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode();
        replace(&folder.path().join("ours"), |_| Ok(())).unwrap();
        fs::write(folder.path().join("usual"), "").unwrap();
        assert_eq!(mode("ours"), mode("usual"));
    }
}
