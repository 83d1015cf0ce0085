//! Digests that tell data sets apart: XXH3 of 128 bits, which a set's size does not make slow.

use std::fs;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use rayon::prelude::*;
use twox_hash::xxhash3_128::Hasher;

use super::Dataset;
use super::picture::to_u8;
use crate::error::Result;
use crate::files;

/// Bytes of files that are read to tell a set from others. Of the files of a larger set, the length counts
/// and as much of either end as `ENDS`.
const WHOLE: u64 = 4 << 30;
const ENDS: u64 = 16 << 10;
/// Pictures that an endless set is told by: they are functions of its kind and seed, as all are.
pub(super) const OF_ENDLESS: u64 = 4;

/// A digest of fields in order, each with its length.
#[derive(Default)]
pub(crate) struct Digest(Hasher);

impl Write for Digest {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Digest {
    pub fn field(&mut self, bytes: &[u8]) {
        self.0.write(&(bytes.len() as u64).to_le_bytes());
        self.0.write(bytes);
    }

    pub fn names(&mut self, names: &[String]) {
        names.iter().for_each(|name| self.field(name.as_bytes()));
    }

    pub fn text(&self) -> String {
        format!("{:032x}", self.0.finish_128())
    }
}

/// Of all pictures as they are read, rounded to bytes, and their labels; of an endless set, of the first.
pub(super) fn of_pictures<D: Dataset + ?Sized>(data: &D) -> Result<String> {
    let mut digest = Digest::default();
    let mut picture = vec![0.0; data.shape().iter().product()];
    for index in 0..data.len().unwrap_or(OF_ENDLESS) {
        let label = data.read(index, &mut picture)?;
        digest.field(&label.to_le_bytes());
        digest.field(&picture.iter().map(|&v| to_u8(v)).collect::<Vec<u8>>());
    }
    digest.names(data.classes());
    Ok(digest.text())
}

/// Of the names and bytes of files below `dir`, in order. A file that cannot be read has no bytes.
pub(super) fn of_files(dir: &Path, files: &[PathBuf]) -> String {
    let length = |file: &PathBuf| fs::metadata(dir.join(file)).map_or(0, |meta| meta.len());
    let lengths: Vec<u64> = files.par_iter().map(length).collect();
    let ends = if lengths.iter().sum::<u64>() <= WHOLE { u64::MAX } else { ENDS };
    let hash = |file: &PathBuf| of_file(&dir.join(file), ends).ok();
    let hashes: Vec<Option<u128>> = files.par_iter().map(hash).collect();
    let mut all = Digest::default();
    for ((file, length), hash) in files.iter().zip(lengths).zip(hashes) {
        // Between the parts of a path stands another sign on Windows.
        file.iter().for_each(|part| all.field(part.as_encoded_bytes()));
        all.field(&length.to_le_bytes());
        all.field(hash.map(u128::to_le_bytes).as_ref().map_or(&[][..], |hash| &hash[..]));
    }
    all.text()
}

/// Of a file's bytes, or, where it has more than `2 * ends`, of its first and last `ends`.
fn of_file(path: &Path, ends: u64) -> io::Result<u128> {
    let (mut file, length) = files::open(path)?;
    let mut hash = Digest::default();
    if length <= ends.saturating_mul(2) {
        io::copy(&mut file, &mut hash)?;
    } else {
        io::copy(&mut (&file).take(ends), &mut hash)?;
        file.seek(SeekFrom::Start(length - ends))?;
        io::copy(&mut file, &mut hash)?;
    }
    Ok(hash.0.finish_128())
}

#[cfg(test)]
mod tests {
    use super::super::tests::options;
    use super::super::{Options, open};
    use super::*;

    #[test]
    fn a_folder_is_told_by_its_names_and_bytes_alone() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let put = |name: &str, value: u8| {
            fs::create_dir_all(path(name).parent().unwrap()).unwrap();
            image::RgbImage::from_pixel(8, 8, image::Rgb([value; 3])).save(path(name)).unwrap();
        };
        let digest =
            || open(&format!("images:{}", dir.path().display()), &options(8)).unwrap().digest().unwrap();
        put("a/1.bmp", 1);
        put("b/2.bmp", 2);
        let first = digest();
        let touched = std::time::SystemTime::UNIX_EPOCH;
        fs::File::options().write(true).open(path("a/1.bmp")).unwrap().set_modified(touched).unwrap();
        fs::write(path("notes.txt"), "beside them").unwrap();
        assert_eq!(digest(), first);
        put("a/1.bmp", 3);
        let replaced = digest();
        put("a/1.bmp", 1);
        assert_eq!(digest(), first);
        fs::rename(path("a/1.bmp"), path("b/1.bmp")).unwrap();
        let moved = digest();
        fs::rename(path("b/1.bmp"), path("a/1.bmp")).unwrap();
        fs::rename(path("a"), path("c")).unwrap();
        let all = [first, replaced, moved, digest()];
        assert!((0..4).all(|i| (0..i).all(|j| all[i] != all[j])), "{all:?}");
    }

    #[test]
    fn of_large_files_the_ends_count() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let of = |bytes: &[u8], ends| {
            fs::write(file.path(), bytes).unwrap();
            of_file(file.path(), ends).unwrap()
        };
        let mut bytes: Vec<u8> = (0..100).collect();
        let (whole, ends) = (of(&bytes, 50), of(&bytes, 49));
        assert_eq!(whole, of(&bytes, u64::MAX));
        bytes[49] = 200;
        assert!(of(&bytes, 50) != whole && of(&bytes, 49) == ends);
        for place in [0, 99] {
            bytes[place] += 1;
            assert_ne!(of(&bytes, 49), ends);
            bytes[place] -= 1;
        }
    }

    #[test]
    fn generated_data_is_told_by_its_kind_and_seed() {
        let digest = |spec, seed| open(spec, &Options { seed, ..options(16) }).unwrap().digest().unwrap();
        let all = [digest("digits", 1), digest("digits", 2), digest("faces", 1)];
        assert!(all[0] != all[1] && all[1] != all[2] && all[0] != all[2], "{all:?}");
        assert_eq!(digest("faces", 1), all[2]);
    }
}
