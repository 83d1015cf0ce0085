//! The directory of a zip archive as PyTorch writes it: entries as they are, uncompressed.
//!
//! Compressed entries are refused, so an archive holds no more bytes than it has, and no two entries may
//! share bytes. Every entry is held against its CRC-32. Layout: PKWARE's APPNOTE 6.3.10, sections 4.3.7,
//! 4.3.12, 4.3.14 to 4.3.16 and 4.5.3.

use std::collections::BTreeSet;

use flate2::Crc;

use super::Source;

/// A file inside the archive.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Path inside the archive.
    pub name: String,
    /// Its first byte in the archive.
    pub at: u64,
    /// Length in bytes.
    pub size: u64,
    /// CRC-32 that its bytes should have.
    pub crc: u32,
}

const END: u32 = 0x0605_4b50;
const END_64: u32 = 0x0606_4b50;
const END_64_LOCATOR: u32 = 0x0706_4b50;
const CENTRAL: u32 = 0x0201_4b50;
const LOCAL: u32 = 0x0403_4b50;
/// The longest comment behind the end record, and the record.
const LONGEST_END: u64 = 22 + 0xffff;
/// Longest directory that is read: some hundred thousand entries.
const MOST_BYTES: u64 = 16 << 20;

/// Little-endian numbers out of bytes; the caller has counted them.
fn number(bytes: &[u8], at: usize, width: usize) -> u64 {
    bytes[at..at + width].iter().rev().fold(0, |n, &b| n << 8 | u64::from(b))
}

fn signature(bytes: &[u8], at: usize) -> Option<u32> {
    (at + 4 <= bytes.len()).then(|| number(bytes, at, 4) as u32)
}

/// Where the central directory lies, and how many entries it has.
struct Directory {
    at: u64,
    size: u64,
    entries: u64,
}

fn find_directory(source: &mut impl Source, length: u64) -> Result<Directory, String> {
    let tail_at = length.saturating_sub(LONGEST_END);
    let tail = source.read_at(tail_at, (length - tail_at) as usize)?;
    let is_end = |at: &usize| {
        signature(&tail, *at) == Some(END) && *at + 22 + number(&tail, *at + 20, 2) as usize == tail.len()
    };
    let Some(end) = (0..(tail.len() + 1).saturating_sub(22)).rev().find(is_end) else {
        return Err("it is no zip archive, as torch.save writes it".to_owned());
    };
    let end_at = tail_at + end as u64;
    let [entries, size, at] = [(10, 2), (12, 4), (16, 4)].map(|(at, width)| number(&tail, end + at, width));
    let (mut directory, mut limit) = (Directory { at, size, entries }, end_at);
    if let Some(locator_at) = end_at.checked_sub(20) {
        let locator = source.read_at(locator_at, 20)?;
        if signature(&locator, 0) == Some(END_64_LOCATOR) {
            (directory, limit) = (end_64(source, number(&locator, 8, 8), locator_at)?, locator_at);
        }
    }
    let fits = directory.at.checked_add(directory.size).is_some_and(|end| end <= limit);
    if !fits || directory.size > MOST_BYTES {
        return Err(format!("its directory would have {} bytes at {}", directory.size, directory.at));
    }
    Ok(directory)
}

fn end_64(source: &mut impl Source, at: u64, limit: u64) -> Result<Directory, String> {
    let wrong = || format!("its end record would be at {at}");
    if at.checked_add(56).is_none_or(|end| end > limit) {
        return Err(wrong());
    }
    let record = source.read_at(at, 56)?;
    if signature(&record, 0) != Some(END_64) {
        return Err(wrong());
    }
    let [entries, size, at] = [32, 40, 48].map(|at| number(&record, at, 8));
    Ok(Directory { at, size, entries })
}

/// The entries of an archive of `length` bytes, in the order of their bytes.
///
/// # Errors
/// The fault of the archive.
pub fn entries(source: &mut impl Source, length: u64) -> Result<Vec<Entry>, String> {
    let directory = find_directory(source, length)?;
    let bytes = source.read_at(directory.at, directory.size as usize)?;
    // (first byte of the local header, the entry)
    let mut found: Vec<(u64, Entry)> = Vec::new();
    let mut rest = &bytes[..];
    while !rest.is_empty() {
        if rest.len() < 46 || signature(rest, 0) != Some(CENTRAL) {
            return Err("its directory is damaged".to_owned());
        }
        let [name, extra, comment] = [28, 30, 32].map(|at| number(rest, at, 2) as usize);
        let Some(after) = rest.get(46 + name + extra + comment..) else {
            return Err("its directory is cut short".to_owned());
        };
        let (flags, method) = (number(rest, 8, 2), number(rest, 10, 2));
        let shown = String::from_utf8_lossy(&rest[46..46 + name]).into_owned();
        if flags & 1 != 0 {
            return Err(format!("{shown} is encrypted"));
        }
        let extra = &rest[46 + name..46 + name + extra];
        let [packed, size, local] = sizes(rest, extra).ok_or_else(|| format!("{shown} has no sizes"))?;
        if method != 0 || packed != size {
            return Err(format!("{shown} is compressed, which torch.save never does"));
        }
        let at = data_of(source, local, directory.at)
            .ok_or_else(|| format!("{shown} is not where it should be"))?;
        if at.checked_add(size).is_none_or(|end| end > directory.at) {
            return Err(format!("{shown} would have {size} bytes at {at}, beyond the archive"));
        }
        let crc = number(rest, 16, 4) as u32;
        found.push((local, Entry { name: shown, at, size, crc }));
        rest = after;
    }
    if found.len() as u64 != directory.entries {
        return Err(format!("it says {} entries and lists {}", directory.entries, found.len()));
    }
    found.sort_by_key(|(local, _)| *local);
    if let Some(pair) = found.windows(2).find(|pair| pair[0].1.at + pair[0].1.size > pair[1].0) {
        return Err(format!("{} and {} share bytes", pair[0].1.name, pair[1].1.name));
    }
    let mut names = BTreeSet::new();
    match found.iter().find(|(_, entry)| !names.insert(entry.name.as_str())) {
        Some((_, entry)) => Err(format!("it holds {} twice", entry.name)),
        None => Ok(found.into_iter().map(|(_, entry)| entry).collect()),
    }
}

/// Reads all entries once and holds their bytes against what the directory says of them.
///
/// PyTorch can be told to leave the sums out (`torch.serialization.set_crc32_options`); then all are zero,
/// and there is nothing to check.
///
/// # Errors
/// Names the first entry that is damaged.
pub fn check_sums(source: &mut impl Source, entries: &[Entry]) -> Result<(), String> {
    const CHUNK: u64 = 1 << 20;
    if entries.iter().all(|entry| entry.crc == 0) {
        return Ok(());
    }
    for entry in entries {
        let mut crc = Crc::new();
        let mut done = 0;
        while done < entry.size {
            let chunk = CHUNK.min(entry.size - done);
            crc.update(&source.read_at(entry.at + done, chunk as usize)?);
            done += chunk;
        }
        let (name, sum, wanted) = (&entry.name, crc.sum(), entry.crc);
        if sum != wanted {
            return Err(format!("{name} is damaged: its CRC-32 is {sum:08x} and should be {wanted:08x}"));
        }
    }
    Ok(())
}

/// Compressed size, size and place of the local header; where 32 bits are too few they are in `extra`.
fn sizes(record: &[u8], mut extra: &[u8]) -> Option<[u64; 3]> {
    let mut wide: &[u8] = &[];
    while extra.len() >= 4 {
        let (kind, size) = (number(extra, 0, 2), number(extra, 2, 2) as usize);
        let field = extra.get(4..4 + size)?;
        if kind == 1 {
            wide = field;
        }
        extra = &extra[4 + size..];
    }
    // In this order, and only the numbers that are all ones in the record.
    let mut take = |at: usize| -> Option<u64> {
        let narrow = number(record, at, 4);
        if narrow != u64::from(u32::MAX) {
            return Some(narrow);
        }
        let value = wide.get(..8)?;
        wide = &wide[8..];
        Some(number(value, 0, 8))
    };
    let size = take(24)?;
    let packed = take(20)?;
    Some([packed, size, take(42)?])
}

/// Where the bytes of an entry begin, behind its local header at `local`.
fn data_of(source: &mut impl Source, local: u64, limit: u64) -> Option<u64> {
    if local.checked_add(30)? > limit {
        return None;
    }
    let header = source.read_at(local, 30).ok()?;
    (signature(&header, 0) == Some(LOCAL))
        .then(|| local + 30 + number(&header, 26, 2) + number(&header, 28, 2))
}
