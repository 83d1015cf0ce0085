//! What the targets share: a folder of their own for parsers that read files, and archives around bytes.

use std::fs;
use std::path::PathBuf;
use std::sync::Once;

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

/// An archive as torch.save would make it of these entries, sums and all.
pub fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    let (mut file, mut directory) = (Vec::new(), Vec::new());
    for (name, bytes) in entries {
        let at = file.len() as u32;
        let mut crc = flate2::Crc::new();
        crc.update(bytes);
        let size = (bytes.len() as u32).to_le_bytes();
        let lengths = [name.len() as u16, 0].map(u16::to_le_bytes).concat();
        let common = [&[0; 10][..], &crc.sum().to_le_bytes(), &size, &size, &lengths].concat();
        file.extend([&b"PK\x03\x04"[..], &common, name.as_bytes(), bytes].concat());
        let rest = [&[0; 10][..], &at.to_le_bytes(), name.as_bytes()].concat();
        directory.extend([&b"PK\x01\x02\x14\x00"[..], &common, &rest].concat());
    }
    let [at, size] = [file.len() as u32, directory.len() as u32].map(u32::to_le_bytes);
    let count = (entries.len() as u16).to_le_bytes();
    file.extend(directory);
    file.extend([&b"PK\x05\x06\0\0\0\0"[..], &count, &count, &size, &at, &[0, 0]].concat());
    file
}

/// Cuts the input in two at the length that its first two bytes say.
pub fn two(bytes: &[u8]) -> (&[u8], &[u8]) {
    let [low, high, rest @ ..] = bytes else { return (bytes, &[]) };
    let first = usize::from(u16::from_le_bytes([*low, *high]));
    rest.split_at(first.min(rest.len()))
}
