//! `mnist:DIR`: the IDX files of MNIST and of the sets published in its form (Fashion-MNIST, KMNIST, ...).
//!
//! An IDX file is a magic number 00 00 TT DD (TT = 08 for bytes, DD dimensions), a big-endian u32 for
//! each dimension, and the values (LeCun, Cortes & Burges, "The MNIST database"). Compressed files are
//! known by their content.

use std::io::{self, BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use flate2::read::MultiGzDecoder;

use super::in_memory::InMemory;
use super::{Options, Split};
use crate::error::{Error, Result};
use crate::files;

/// A larger file does not belong into memory; the largest published set in this form, EMNIST, has 0.6 GB.
const MAX_BYTES: u64 = 4 << 30;

/// Folders below DIR where other programs put the files: as they are, torchvision's MNIST and its relatives.
const PLACES: [&str; 6] = ["", "raw", "MNIST/raw", "FashionMNIST/raw", "KMNIST/raw", "QMNIST/raw"];

pub(super) fn open(dir: &Path, options: &Options) -> Result<InMemory> {
    let part = match options.split {
        Split::Train => "train",
        Split::HeldOut => "t10k",
    };
    let images = find(dir, part, "images", 3).ok_or_else(|| {
        Error::new(format!("no {part}-images-idx3-ubyte(.gz) in {}", dir.display()))
            .hint("give the folder that holds the four IDX files, as in `mnist:DIR`")
    })?;
    let (dims, pixels) = read(&images, 3)?;
    if pixels.is_empty() {
        return Err(Error::new(format!("{} holds no pictures", images.display())).hint("use another file"));
    }
    let labels = match find(dir, part, "labels", 1) {
        None => Vec::new(),
        Some(path) => {
            let (count, labels) = read(&path, 1)?;
            if count[0] != dims[0] {
                let (file, images) = (path.display(), images.display());
                let message =
                    format!("{file} holds {} labels, but {images} holds {} pictures", count[0], dims[0]);
                return Err(Error::new(message)
                    .hint("use files of one set, or move the label file away to go without labels"));
            }
            labels
        }
    };
    // At least ten, so that a small part in which a digit is missing has the classes of the other part.
    let classes = labels.iter().max().map_or(0, |&most| usize::from(most).max(9) + 1);
    let classes = (0..classes).map(|label| label.to_string()).collect();
    Ok(InMemory::new(pixels, labels, classes, [dims[1], dims[2], 1], options))
}

/// A file under the names that it has been published with.
fn find(dir: &Path, part: &str, what: &str, dims: usize) -> Option<PathBuf> {
    let names = [format!("{part}-{what}-idx{dims}-ubyte"), format!("{part}-{what}.idx{dims}-ubyte")];
    let mut candidates = Vec::new();
    for name in &names {
        for place in PLACES {
            for ending in ["", ".gz"] {
                candidates.push(dir.join(place).join(format!("{name}{ending}")));
            }
        }
        // One popular archive wraps each file in a folder of its own name.
        candidates.push(dir.join(name).join(name));
    }
    candidates.extend(names.iter().map(|n| dir.join(&names[0]).join(n)));
    candidates.into_iter().find(|path| path.is_file())
}

/// The sizes and the values of a file with `dims` dimensions.
fn read(path: &Path, dims: usize) -> Result<(Vec<usize>, Vec<u8>)> {
    let name = path.display();
    let damaged = |cause: io::Error| {
        Error::new(format!("{name} cannot be read"))
            .hint("check its permissions, or download it again")
            .caused_by(cause)
    };
    let short = |what: String| {
        Error::new(format!("{name} is cut short: {what}")).hint("download it again, it is not complete")
    };

    let (mut file, on_disk) = files::open(path).map_err(damaged)?;
    let mut start = Vec::new();
    file.by_ref().take(2).read_to_end(&mut start).map_err(damaged)?;
    file.seek(SeekFrom::Start(0)).map_err(damaged)?;
    let zipped = start == [0x1f, 0x8b];
    let mut source: Box<dyn Read> =
        if zipped { Box::new(MultiGzDecoder::new(BufReader::new(file))) } else { Box::new(file) };

    let mut header = Vec::new();
    let length = 4 + 4 * dims;
    read_up_to(&mut source, length as u64, &mut header).map_err(damaged)?;
    if header.len() >= 4 && header[..4] != [0, 0, 8, dims as u8] {
        let magic: Vec<String> = header[..4].iter().map(|b| format!("{b:02x}")).collect();
        return Err(Error::new(format!(
            "{name} is no IDX file of bytes in {dims} dimensions: it starts with {}, not 00 00 08 0{dims}",
            magic.join(" ")
        ))
        .hint(if magic.concat().starts_with("3c") {
            "this looks like a web page saved by a failed download, fetch the file again"
        } else {
            "check that the right file has this name"
        }));
    }
    if header.len() < length {
        return Err(short(format!("its header has {length} bytes, the file {}", header.len())));
    }
    let sizes: Vec<usize> =
        header[4..].chunks_exact(4).map(|b| u32::from_be_bytes([b[0], b[1], b[2], b[3]]) as usize).collect();
    let shape = sizes.iter().map(usize::to_string).collect::<Vec<_>>().join(" x ");
    let expected = sizes.iter().try_fold(1u64, |n, &size| n.checked_mul(size as u64)).unwrap_or(u64::MAX);

    // The sizes in the header are compared with the file before memory is taken: deflate packs 1032 to 1 at
    // best.
    let possible = if zipped { on_disk.saturating_mul(1032) } else { on_disk - length as u64 };
    if expected > possible {
        let held = if zipped { format!("{on_disk} compressed") } else { possible.to_string() };
        return Err(short(format!("its header promises {shape} bytes, it holds {held}")));
    }
    if expected > MAX_BYTES {
        let message = format!("{name} promises {shape} bytes, more than the {MAX_BYTES} supported");
        return Err(Error::new(message).hint("save the pictures as files and use `images:DIR`"));
    }
    let mut values = Vec::new();
    read_up_to(&mut source, expected + 1, &mut values).map_err(damaged)?;
    let held = values.len() as u64;
    if held < expected {
        return Err(short(format!("its header promises {shape} bytes, it holds {held}")));
    }
    if held > expected {
        let message = format!("{name} holds more than the {shape} bytes that its header says");
        return Err(Error::new(message).hint("download it again, it is damaged"));
    }
    Ok((sizes, values))
}

/// Reads `limit` bytes or to the end. A compressed stream that breaks off counts as its end.
fn read_up_to(source: &mut dyn Read, limit: u64, out: &mut Vec<u8>) -> io::Result<()> {
    match source.take(limit).read_to_end(out) {
        Err(error) if error.kind() != io::ErrorKind::UnexpectedEof => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::super::tests::{options, refusal};
    use super::super::{Dataset, open as open_spec};
    use super::*;

    fn idx(dims: &[u32], values: &[u8]) -> Vec<u8> {
        let mut bytes = vec![0, 0, 8, dims.len() as u8];
        bytes.extend(dims.iter().flat_map(|d| d.to_be_bytes()));
        bytes.extend(values);
        bytes
    }

    fn gz(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    const IMAGES: &str = "train-images-idx3-ubyte";
    const LABELS: &str = "train-labels-idx1-ubyte";

    fn folder(files: &[(&str, Vec<u8>)]) -> (tempfile::TempDir, String) {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in files {
            let path = dir.path().join(name);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, bytes).unwrap();
        }
        let spec = format!("mnist:{}", dir.path().display());
        (dir, spec)
    }

    fn pixels(count: u32) -> Vec<u8> {
        (0..count * 64).map(|i| (i * 7 % 251) as u8).collect()
    }

    fn contents(data: &dyn Dataset) -> Vec<(u32, Vec<f32>)> {
        (0..data.len().unwrap())
            .map(|i| {
                let mut out = vec![f32::NAN; data.shape().iter().product()];
                (data.read(i, &mut out).unwrap(), out)
            })
            .collect()
    }

    #[test]
    fn every_spelling_and_compression_reads_the_same() {
        let (images, labels) = (idx(&[3, 8, 8], &pixels(3)), idx(&[3], &[7, 0, 2]));
        let read = |image_name: &str, label_name: &str, zip: bool| {
            let pack = |bytes: &Vec<u8>| if zip { gz(bytes) } else { bytes.clone() };
            let (_dir, spec) = folder(&[(image_name, pack(&images)), (label_name, pack(&labels))]);
            let data = open_spec(&spec, &options(8)).unwrap();
            assert_eq!((data.len(), data.shape(), data.classes().len()), (Some(3), [8, 8, 1], 10));
            contents(data.as_ref())
        };
        let plain = read(IMAGES, LABELS, false);
        assert_eq!(plain.iter().map(|s| s.0).collect::<Vec<_>>(), [7, 0, 2]);
        assert_eq!(plain[0].1[1], 7.0 * 2.0 / 255.0 - 1.0);
        assert_eq!(plain, read("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz", true));
        assert_eq!(plain, read("train-images.idx3-ubyte", "train-labels.idx1-ubyte", false));
        assert_eq!(plain, read("MNIST/raw/train-images-idx3-ubyte", LABELS, false));
        assert_eq!(plain, read("train-images-idx3-ubyte/train-images-idx3-ubyte", LABELS, true));
    }

    #[test]
    fn the_held_out_part_is_t10k_and_labels_are_optional() {
        let (_dir, spec) = folder(&[
            (IMAGES, idx(&[2, 8, 8], &pixels(2))),
            ("t10k-images-idx3-ubyte", idx(&[1, 8, 8], &[9; 64])),
        ]);
        let held_out = open_spec(&spec, &Options { split: Split::HeldOut, ..options(8) }).unwrap();
        assert_eq!((held_out.len(), held_out.classes().len()), (Some(1), 0));
        assert_eq!(contents(held_out.as_ref())[0].0, 0);
    }

    #[test]
    fn bad_files_are_named_with_what_is_wrong() {
        let good = idx(&[3, 8, 8], &pixels(3));
        let bomb = gz(&idx(&[3, 8, 8], &vec![0; 1 << 20]));
        let mut checksum = gz(&good);
        let last = checksum.len() - 6;
        checksum[last] ^= 0xff;
        for (images, wrong) in [
            (good[..100].to_vec(), "is cut short: its header promises 3 x 8 x 8 bytes, it holds 84"),
            (good[..9].to_vec(), "is cut short: its header has 16 bytes, the file 9"),
            (Vec::new(), "is cut short"),
            ([good.clone(), vec![0]].concat(), "holds more than the 3 x 8 x 8 bytes"),
            (gz(&good[..100]), "is cut short: its header promises 3 x 8 x 8 bytes, it holds 84"),
            (gz(&good)[..60].to_vec(), "is cut short"),
            (bomb, "holds more than the 3 x 8 x 8 bytes"),
            (checksum, "cannot be read"),
            (idx(&[u32::MAX; 3], &[0; 64]), "promises 4294967295 x 4294967295 x 4294967295 bytes"),
            (gz(&idx(&[u32::MAX, 8, 8], &[0; 64])), "is cut short"),
            (idx(&[0, 8, 8], &[]), "holds no pictures"),
            (idx(&[64], &[0; 64]), "it starts with 00 00 08 01, not 00 00 08 03"),
            (b"<!DOCTYPE html>".to_vec(), "fetch the file again"),
        ] {
            let (_dir, spec) = folder(&[(IMAGES, images)]);
            let message = refusal(&spec, &options(8));
            assert!(message.contains(wrong) && message.contains(IMAGES), "{wrong}: {message}");
            assert!(message.contains("; ") && !message.contains('\n'), "no hint: {message}");
        }
    }

    #[test]
    fn labels_must_match_and_files_must_be_there() {
        let images = (IMAGES, idx(&[3, 8, 8], &pixels(3)));
        let (_dir, spec) = folder(&[images.clone(), (LABELS, idx(&[2], &[1, 2]))]);
        assert!(refusal(&spec, &options(8)).contains("holds 2 labels, but"));
        let (_dir, spec) = folder(&[images]);
        let message = refusal(&spec, &Options { split: Split::HeldOut, ..options(8) });
        assert!(message.contains("no t10k-images-idx3-ubyte(.gz) in"), "{message}");
    }
}
