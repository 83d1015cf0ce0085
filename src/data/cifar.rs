//! `cifar10:DIR`: the binary version of CIFAR-10 (Krizhevsky 2009, "Learning multiple layers of features").
//!
//! A record is 3,073 bytes: a label, then 32 x 32 red, green and blue values, one plane after another.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::in_memory::InMemory;
use super::{Options, Split};
use crate::error::{Error, Result};
use crate::files;
use crate::names::shown;

const PLANE: usize = 32 * 32;
const RECORD: usize = 1 + 3 * PLANE;
/// Ten times a real file: what is larger is something else, and must not fill the memory.
const MAX_BYTES: u64 = 10 * 10_000 * RECORD as u64;
/// Longest file of names that is read.
const MOST_NAMES: u64 = 1 << 16;
const NAMES: [&str; 10] =
    ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"];

pub(super) fn open(dir: &Path, options: &Options) -> Result<InMemory> {
    let files: Vec<String> = match options.split {
        Split::Train => (1..=5).map(|i| format!("data_batch_{i}.bin")).collect(),
        Split::HeldOut => vec!["test_batch.bin".to_owned()],
    };
    let dir = place(dir, &files[0])?;
    let (mut pixels, mut labels) = (Vec::new(), Vec::new());
    for file in files {
        read(&dir.join(file), &mut pixels, &mut labels)?;
    }
    Ok(InMemory::new(pixels, labels, names(&dir.join("batches.meta.txt"))?, [32, 32, 3], options))
}

/// The folder that holds the files: DIR, or the one that the archive unpacks to.
fn place(dir: &Path, file: &str) -> Result<PathBuf> {
    let unpacked = dir.join("cifar-10-batches-bin");
    if let Some(place) = [dir.to_owned(), unpacked].into_iter().find(|d| d.join(file).is_file()) {
        return Ok(place);
    }
    let python = dir.join("data_batch_1").is_file() || dir.join("cifar-10-batches-py").is_dir();
    Err(Error::new(format!("no {file} in {}", dir.display())).hint(if python {
        "this is the Python version of CIFAR-10, download the binary version (cifar-10-binary.tar.gz)"
    } else {
        "give the folder that holds the unpacked binary version of CIFAR-10, as in `cifar10:DIR`"
    }))
}

/// Appends the records of a file: `[N, 32, 32, 3]` and `[N]`.
fn read(path: &Path, pixels: &mut Vec<u8>, labels: &mut Vec<u8>) -> Result<()> {
    let name = path.display();
    let unreadable = |cause: io::Error| {
        Error::new(format!("{name} cannot be read"))
            .hint("unpack the binary version of CIFAR-10 again, all of its files are needed")
            .caused_by(cause)
    };
    let bytes = fs::metadata(path).map_err(unreadable)?.len();
    if bytes == 0 || bytes % RECORD as u64 != 0 || bytes > MAX_BYTES {
        return Err(Error::new(format!(
            "{name} has {bytes} bytes, not a number of whole records of {RECORD} bytes (CIFAR-10 has 10,000)"
        ))
        .hint("download the binary version of CIFAR-10 again"));
    }
    let content = files::read(path, MAX_BYTES).map_err(unreadable)?;
    for (i, record) in content.chunks_exact(RECORD).enumerate() {
        let label = record[0];
        if usize::from(label) >= NAMES.len() {
            return Err(Error::new(format!("{name}: record {i} has the label {label}, not 0 to 9"))
                .hint("download the binary version of CIFAR-10 again"));
        }
        labels.push(label);
        let plane = |k: usize| &record[1 + k * PLANE..1 + (k + 1) * PLANE];
        for ((&r, &g), &b) in plane(0).iter().zip(plane(1)).zip(plane(2)) {
            pixels.extend([r, g, b]);
        }
    }
    Ok(())
}

/// The names in `batches.meta.txt`, or the well-known ones where that file is missing.
fn names(path: &Path) -> Result<Vec<String>> {
    let text = match files::read_text(path, MOST_NAMES) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => NAMES.join("\n"),
        Err(error) => {
            return Err(Error::new(format!("{} cannot be read", path.display()))
                .hint("give it another name to use the usual class names")
                .caused_by(error));
        }
    };
    let names: Vec<String> =
        text.lines().map(str::trim).filter(|l| !l.is_empty()).map(|l| shown(l.as_ref())).collect();
    let different: BTreeSet<&String> = names.iter().collect();
    if [names.len(), different.len()] == [NAMES.len(); 2] {
        return Ok(names);
    }
    let message = format!("{} names {} classes, not 10", path.display(), different.len());
    Err(Error::new(message).hint("give it another name to use the usual class names"))
}

#[cfg(test)]
mod tests {
    use super::super::open as open_spec;
    use super::super::tests::{options, refusal};
    use super::*;

    /// Records whose pictures are red rising to the right, green 10, blue their label.
    fn records(labels: &[u8]) -> Vec<u8> {
        let red = (0..PLANE).map(|i| (i % 32) as u8);
        let record = |&label: &u8| {
            [label]
                .into_iter()
                .chain(red.clone())
                .chain([10; PLANE])
                .chain([label; PLANE])
                .collect::<Vec<u8>>()
        };
        labels.iter().flat_map(record).collect()
    }

    fn folder(below: &str) -> (tempfile::TempDir, PathBuf, String) {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().join(below);
        fs::create_dir_all(&place).unwrap();
        for i in 1..=5 {
            fs::write(place.join(format!("data_batch_{i}.bin")), records(&[i, 9])).unwrap();
        }
        fs::write(place.join("test_batch.bin"), records(&[3])).unwrap();
        let spec = format!("cifar10:{}", dir.path().display());
        (dir, place, spec)
    }

    #[test]
    fn planes_become_pixels_in_both_places() {
        for below in ["", "cifar-10-batches-bin"] {
            let (_dir, _, spec) = folder(below);
            let data = open_spec(&spec, &options(32)).unwrap();
            assert_eq!((data.len(), data.shape()), (Some(10), [32, 32, 3]));
            assert_eq!(data.classes()[9], "truck");
            let mut out = vec![0.0; 32 * 32 * 3];
            assert_eq!((data.read(4, &mut out).unwrap(), data.read(5, &mut out).unwrap()), (3, 9));
            let bytes: Vec<u8> = out.iter().map(|&v| super::super::picture::to_u8(v)).collect();
            assert_eq!(bytes[3 * 31..3 * 33], [31, 10, 9, 0, 10, 9]);
            let held_out = open_spec(&spec, &Options { split: Split::HeldOut, ..options(32) }).unwrap();
            assert_eq!(held_out.len(), Some(1));
        }
    }

    #[test]
    fn class_names_come_from_the_file() {
        let (_dir, place, spec) = folder("");
        fs::write(place.join("batches.meta.txt"), "a\nb\nc\nd\ne\nf\ng\nh\ni\nj\n\n").unwrap();
        assert_eq!(open_spec(&spec, &options(32)).unwrap().classes()[9], "j");
        fs::write(place.join("batches.meta.txt"), "a\nb\n").unwrap();
        assert!(refusal(&spec, &options(32)).contains("names 2 classes, not 10"));
        fs::write(place.join("batches.meta.txt"), "a\nb\nc\nd\ne\nf\ng\nh\ni\na\n").unwrap();
        assert!(refusal(&spec, &options(32)).contains("names 9 classes, not 10"));
        fs::write(place.join("batches.meta.txt"), "\u{1b}[2J\nb\nc\nd\ne\nf\ng\nh\ni\nj").unwrap();
        assert_eq!(open_spec(&spec, &options(32)).unwrap().classes()[0], "\\x1b[2J");
    }

    #[cfg(unix)]
    #[test]
    fn names_without_end_are_refused() {
        let (_dir, place, spec) = folder("");
        std::os::unix::fs::symlink("/dev/zero", place.join("batches.meta.txt")).unwrap();
        assert!(refusal(&spec, &options(32)).contains("batches.meta.txt cannot be read"));
    }

    #[test]
    fn bad_files_are_named_with_what_is_wrong() {
        let (_dir, place, spec) = folder("");
        let file = place.join("data_batch_3.bin");
        for (content, wrong) in [
            (records(&[1])[..3000].to_vec(), "data_batch_3.bin has 3000 bytes"),
            (Vec::new(), "data_batch_3.bin has 0 bytes"),
            (records(&[1, 10]), "data_batch_3.bin: record 1 has the label 10"),
        ] {
            fs::write(&file, content).unwrap();
            let message = refusal(&spec, &options(32));
            assert!(message.contains(wrong) && message.contains("download"), "{message}");
        }
        fs::remove_file(&file).unwrap();
        assert!(refusal(&spec, &options(32)).contains("data_batch_3.bin cannot be read"));
    }

    #[test]
    fn a_folder_without_the_files_or_with_the_python_ones() {
        let dir = tempfile::tempdir().unwrap();
        let spec = format!("cifar10:{}", dir.path().display());
        assert!(refusal(&spec, &options(32)).contains("no data_batch_1.bin in"));
        fs::create_dir(dir.path().join("cifar-10-batches-py")).unwrap();
        assert!(refusal(&spec, &options(32)).contains("binary version (cifar-10-binary.tar.gz)"));
    }
}
