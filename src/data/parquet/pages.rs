//! The values of a column of a Parquet file: pages, their compression, levels and encodings
//! (<https://parquet.apache.org/docs/file-format/data-pages/>).

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use super::footer::{BYTES, Chunk, Column, INT32, INT64};
use super::thrift::{self, Value, varint};
use super::{Rows, Wrong};

/// Bytes of a page. Programs write some 1 MB, and more where one value has more.
const MOST: usize = 1 << 30;
/// Bytes that are read to find what a page says of itself; it may hold values as statistics.
const HEAD: u64 = 1 << 12;
const DAMAGED: &str = "it is damaged: a page does not hold what it says";
const OTHER_ENCODING: &str =
    "its values are encoded in a way that is not read; write it with plain or dictionary pages";

/// One value.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Cell {
    Int(i64),
    /// Shared where a value is written once for many rows.
    Bytes(Arc<[u8]>),
}

/// A value where its page lies in memory.
enum Raw<'a> {
    Int(i64),
    Bytes(&'a [u8]),
}

impl Raw<'_> {
    fn copied(&self) -> Cell {
        match *self {
            Raw::Int(number) => Cell::Int(number),
            Raw::Bytes(bytes) => Cell::Bytes(bytes.into()),
        }
    }
}

/// What a page says of itself.
struct Head {
    kind: i64,
    /// Where its bytes lie.
    bytes: Range<u64>,
    /// Bytes when they are no longer compressed.
    size: usize,
    /// Values, missing ones included.
    values: usize,
    encoding: i64,
    /// Of a page of the second version: rows, bytes of either kind of levels, and whether what is behind
    /// these is compressed.
    second: Option<(usize, [usize; 2], bool)>,
}

/// The values of these rows of a chunk, in order; a row without any is empty, and one that is no list has at
/// most one. `most`: values that the column may have, whatever it says.
pub(super) fn cells(
    file: &mut File,
    (column, chunk): (&Column, &Chunk),
    rows: Range<usize>,
    most: u64,
) -> Rows {
    let (mut at, mut row, mut dictionary) = (chunk.start, 0, None);
    let mut found = Vec::new();
    // A list may go on in the next page.
    while at < chunk.end && (row < rows.end || column.repetition > 0) {
        let head = head(file, at..chunk.end, most)?;
        at = head.bytes.end;
        match head.kind {
            2 => dictionary = Some(head),
            0 | 3 => {
                // Without lists each value is a row.
                let whole =
                    if column.repetition == 0 { Some(head.values) } else { head.second.map(|(n, ..)| n) };
                if let Some(count) = whole.filter(|count| row + count <= rows.start) {
                    row += count;
                    continue;
                }
                let (levels, bytes, start) = page(file, chunk.codec, column, &head)?;
                let values = &bytes[start..];
                let count = levels.iter().filter(|(definition, _)| *definition == column.definition).count();
                // The dictionary is read when a page needs it.
                let entries = match &dictionary {
                    Some(of) if matches!(head.encoding, 2 | 8) => unpacked(file, chunk.codec, of, 0)?,
                    _ => Vec::new(),
                };
                let (values, numbers) = match (head.encoding, &dictionary) {
                    (0, _) => (plain(values, column.kind, count)?, None),
                    (2 | 8, Some(of)) => {
                        (plain(&entries, column.kind, of.values)?, Some(numbers(values, count)?))
                    }
                    (5..=7 | 9, _) => return Err(OTHER_ENCODING.into()),
                    _ => return Err(DAMAGED.into()),
                };
                // A value is copied when it is wanted, and once.
                let mut copies = vec![None; values.len()];
                let mut next = 0;
                for (definition, repetition) in levels {
                    row += usize::from(repetition == 0);
                    let Some(number) = row.checked_sub(1) else { return Err(DAMAGED.into()) };
                    let is_there = definition == column.definition;
                    if rows.contains(&number) {
                        found.resize_with(number + 1 - rows.start, Vec::new);
                        if is_there {
                            let at = numbers.as_ref().map_or(next, |numbers| numbers[next] as usize);
                            let value = values.get(at).ok_or(DAMAGED)?;
                            let copy = copies[at].get_or_insert_with(|| value.copied());
                            found[number - rows.start].push(copy.clone());
                        }
                    }
                    next += usize::from(is_there);
                }
            }
            _ => {}
        }
    }
    if found.len() == rows.len() {
        Ok(found)
    } else {
        Err("it is damaged: a column has too few values".into())
    }
}

/// Reads the head of the page that lies first in `place`.
fn head(file: &mut File, place: Range<u64>, most: u64) -> Result<Head, Wrong> {
    let length = place.end - place.start;
    let mut part = HEAD.min(length);
    loop {
        let bytes = bytes_of(file, place.start..place.start + part)?;
        match thrift::read(&bytes) {
            Some((said, used)) => {
                let start = place.start + used as u64;
                return head_of(&said, start..place.end, most).ok_or_else(|| DAMAGED.into());
            }
            None if part < length && part < HEAD << 10 => part = (part * 8).min(length),
            None => return Err("it is damaged: a page does not say what it holds".into()),
        }
    }
}

fn head_of(said: &Value, place: Range<u64>, most: u64) -> Option<Head> {
    let number = |value: i64| usize::try_from(value).ok();
    let (size, packed) = (number(said.int(2)?)?, u64::try_from(said.int(3)?).ok()?);
    let end = place.start.checked_add(packed).filter(|&end| end <= place.end)?;
    let kind = said.int(1)?;
    let (place, one) = (place.start..end, [5, 6, 7, 8].get(usize::try_from(kind).ok()?)?);
    let Some(one) = said.field(*one) else {
        // Of an index, which is not read.
        return (kind == 1).then_some(Head {
            kind,
            bytes: place,
            size: 0,
            values: 0,
            encoding: 0,
            second: None,
        });
    };
    let values = number(one.int(1)?).filter(|&values| values as u64 <= most)?;
    let second = match kind {
        3 => {
            let levels = [number(one.int(6)?)?, number(one.int(5)?)?];
            Some((number(one.int(3)?)?, levels, one.int(7) != Some(0)))
        }
        _ => None,
    };
    let encoding = one.int(if kind == 3 { 4 } else { 2 })?;
    (size <= MOST).then_some(Head { kind, bytes: place, size, values, encoding, second })
}

fn bytes_of(file: &mut File, place: Range<u64>) -> Result<Vec<u8>, Wrong> {
    let mut bytes = Vec::new();
    let read = file.seek(SeekFrom::Start(place.start));
    let read = read.and_then(|_| file.take(place.end - place.start).read_to_end(&mut bytes));
    match read {
        Ok(count) if count as u64 == place.end - place.start => Ok(bytes),
        Ok(_) => Err("it is cut short".into()),
        Err(error) => Err(error.to_string()),
    }
}

/// The bytes of a page as they were before they were compressed, but for the first `plain` ones, which are
/// not.
fn unpacked(file: &mut File, codec: i64, head: &Head, plain: usize) -> Result<Vec<u8>, Wrong> {
    let mut bytes = bytes_of(file, head.bytes.clone())?;
    let packed = bytes.get(plain..).ok_or(DAMAGED)?;
    let size = head.size.checked_sub(plain).ok_or(DAMAGED)?;
    let mut whole = Vec::new();
    // However much a page says that it holds, room is made for what comes.
    let mut read = |from: &mut dyn Read| from.take(size as u64 + 1).read_to_end(&mut whole).is_ok();
    let done = match codec {
        0 => return if bytes.len() == head.size { Ok(bytes) } else { Err(DAMAGED.into()) },
        _ if size == 0 => true,
        // Three bytes of Snappy are 64 at most.
        1 => {
            let fits = size / 22 <= packed.len() && snap::raw::decompress_len(packed) == Ok(size);
            whole = if fits {
                snap::raw::Decoder::new().decompress_vec(packed).unwrap_or_default()
            } else {
                whole
            };
            fits
        }
        2 => read(&mut flate2::read::MultiGzDecoder::new(packed)),
        6 => {
            // A panic of the decoder is one more page that cannot be read.
            let mut zstd =
                || ruzstd::decoding::StreamingDecoder::new(packed).is_ok_and(|mut from| read(&mut from));
            catch_unwind(AssertUnwindSafe(&mut zstd)).unwrap_or(false)
        }
        other => {
            let name =
                ["lzo", "brotli", "lz4", "zstd", "lz4"].get((other - 3) as usize).unwrap_or(&"unknown");
            let what = format!("its compression is {name}, and snappy, gzip, zstd and none are read");
            return Err(what);
        }
    };
    if !done || whole.len() != size {
        return Err(DAMAGED.into());
    }
    if plain == 0 {
        return Ok(whole);
    }
    bytes.truncate(plain);
    bytes.append(&mut whole);
    Ok(bytes)
}

/// The levels (definition, repetition) of the values of a page, its bytes, and where among them the values
/// begin that are there.
fn page(
    file: &mut File,
    codec: i64,
    column: &Column,
    head: &Head,
) -> Result<(Vec<(u32, u32)>, Vec<u8>, usize), Wrong> {
    let Column { definition, repetition, .. } = *column;
    let (bytes, lengths) = match head.second {
        Some((_, lengths, packed)) => {
            let plain = lengths[0].checked_add(lengths[1]).ok_or(DAMAGED)?;
            (unpacked(file, if packed { codec } else { 0 }, head, plain)?, lengths.map(Some))
        }
        None => (unpacked(file, codec, head, 0)?, [None, None]),
    };
    let mut rest = &bytes[..];
    let mut levels = |most: u32, length: Option<usize>| -> Option<Vec<u32>> {
        let length = match length {
            Some(length) => length,
            None if most == 0 => 0,
            // In the first version their length stands before them.
            None => {
                let (four, after) = rest.split_first_chunk::<4>()?;
                rest = after;
                u32::from_le_bytes(*four) as usize
            }
        };
        let (packed, after) = rest.split_at_checked(length)?;
        rest = after;
        if most == 0 {
            Some(vec![0; head.values])
        } else {
            hybrid(packed, u32::BITS - most.leading_zeros(), head.values)
        }
    };
    let repetitions = levels(repetition, lengths[0]).ok_or(DAMAGED)?;
    let definitions = levels(definition, lengths[1]).ok_or(DAMAGED)?;
    let start = bytes.len() - rest.len();
    Ok((definitions.into_iter().zip(repetitions).collect(), bytes, start))
}

/// `count` numbers of `width` bits: runs of one number, and groups of eight, packed.
fn hybrid(mut rest: &[u8], width: u32, count: usize) -> Option<Vec<u32>> {
    let width = width as usize;
    let mut numbers = Vec::new();
    while numbers.len() < count {
        let left = count - numbers.len();
        let head = usize::try_from(varint(&mut rest)?).ok()?;
        if head & 1 == 0 {
            let (bytes, after) = rest.split_at_checked(width.div_ceil(8))?;
            rest = after;
            let number = bytes.iter().rev().fold(0, |number, &byte| number << 8 | u32::from(byte));
            numbers.extend(std::iter::repeat_n(number, left.min(head >> 1)));
            if head >> 1 == 0 {
                return None;
            }
        } else {
            let (bytes, after) = rest.split_at_checked((head >> 1).checked_mul(width)?.min(rest.len()))?;
            rest = after;
            // The last group may be cut where its numbers are not needed.
            let bits = bytes.len() * 8;
            let there = bits.checked_div(width).unwrap_or(left);
            let there = there.min(left).min((head >> 1).saturating_mul(8));
            let bit = |at: usize| u32::from(bytes[at / 8] >> (at % 8) & 1);
            numbers.extend((0..there).map(|i| (0..width).map(|k| bit(i * width + k) << k).sum::<u32>()));
            if there == 0 {
                return None;
            }
        }
    }
    Some(numbers)
}

/// `count` values that lie one behind the other; behind them may be others.
fn plain(bytes: &[u8], kind: i64, count: usize) -> Result<Vec<Raw<'_>>, Wrong> {
    let mut rest = bytes;
    let mut one = || {
        let cell = match kind {
            INT32 => {
                let (bytes, after) = rest.split_first_chunk()?;
                rest = after;
                Raw::Int(i32::from_le_bytes(*bytes).into())
            }
            INT64 => {
                let (bytes, after) = rest.split_first_chunk()?;
                rest = after;
                Raw::Int(i64::from_le_bytes(*bytes))
            }
            BYTES => {
                let (length, after) = rest.split_first_chunk()?;
                let (bytes, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
                rest = after;
                Raw::Bytes(bytes)
            }
            _ => return None,
        };
        Some(cell)
    };
    (0..count).map(|_| one().ok_or_else(|| DAMAGED.into())).collect()
}

/// The `count` numbers of entries of a dictionary that a page holds.
fn numbers(bytes: &[u8], count: usize) -> Result<Vec<u32>, Wrong> {
    match bytes.split_first() {
        Some((&width, rest)) if width <= 32 => Ok(hybrid(rest, width.into(), count).ok_or(DAMAGED)?),
        None if count == 0 => Ok(Vec::new()),
        _ => Err(DAMAGED.into()),
    }
}
