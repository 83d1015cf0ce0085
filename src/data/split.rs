//! Which pictures of a folder are held out.

use std::path::{Path, PathBuf};

use super::Split;
use crate::files::fnv1a;

/// From this many pictures on, one in ten is held out.
pub(super) const SMALLEST_SPLIT: usize = 20;

/// The places of the files of one part. The tenth with the smallest hashes is held out; the hash is of the
/// path within DIR, so the parts do not depend on where the folder lies, and hardly change when pictures are
/// added.
pub(super) fn part_of(files: &[PathBuf], split: Split) -> Option<Vec<usize>> {
    if files.len() < SMALLEST_SPLIT {
        return (split == Split::Train).then(|| (0..files.len()).collect());
    }
    let mut hashes: Vec<(u64, usize)> = files.iter().enumerate().map(|(i, path)| (hash(path), i)).collect();
    hashes.sort();
    let (held_out, training) = hashes.split_at(files.len() / 10);
    let mut part = if split == Split::HeldOut { held_out } else { training }.to_vec();
    part.sort_by_key(|(_, i)| *i);
    Some(part.into_iter().map(|(_, i)| i).collect())
}

/// FNV-1a over the path with `/` between its components, with a final mix of the high bits (as in
/// MurmurHash 3).
fn hash(path: &Path) -> u64 {
    let bytes = path.iter().flat_map(|name| name.as_encoded_bytes().iter().chain(b"/"));
    let h = fnv1a(bytes.map(|&byte| u64::from(byte)));
    let h = (h ^ (h >> 33)).wrapping_mul(0xff51_afd7_ed55_8ccd);
    h ^ (h >> 33)
}
