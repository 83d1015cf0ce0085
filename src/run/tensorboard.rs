//! Event files of TensorBoard: records of protobuf messages, written by hand, since the few messages that are
//! needed are two dozen lines.
//!
//! A record is the length of its data (u64, little end first), the masked CRC-32C of these 8 bytes, the data,
//! and the masked CRC-32C of the data (`tensorflow/core/lib/io/record_writer.cc`). The data is an `Event`
//! (`tensorflow/core/util/event.proto`), whose numbers of fields are given below.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{SystemTime, UNIX_EPOCH};

use super::scalars::Scalar;
use crate::checkpoint::cannot_write;
use crate::error::{Error, Result, lock};
use crate::files;

/// Folder of the event files in a run.
const FOLDER: &str = "tensorboard";
/// Largest picture that is written into an event.
const MOST_BYTES: u64 = 64 << 20;

/// The event file of a session, which several threads write to.
#[derive(Clone)]
pub(crate) struct Board(Arc<Mutex<Events>>);

struct Events {
    file: File,
    path: PathBuf,
}

impl Board {
    /// Begins a new file in the folder of a run that goes on after `done` steps. What other files hold of
    /// later steps is shown no more.
    pub(super) fn create(run: &Path, done: u64, recipe: &str) -> Result<Board> {
        let folder = run.join(FOLDER);
        fs::create_dir_all(&folder).map_err(|e| cannot_write(&folder, e))?;
        let seconds = now() as u64;
        let mut number = 0;
        let (file, path) = loop {
            // TensorBoard reads the files of a folder in the order of their names.
            let path = folder.join(format!("events.out.tfevents.{seconds:010}.denoir.{number}"));
            match OpenOptions::new().create_new(true).append(true).open(&path) {
                Err(e) if e.kind() == ErrorKind::AlreadyExists && number < 1000 => number += 1,
                opened => break (opened.map_err(|e| cannot_write(&path, e))?, path),
            }
        };
        let board = Board(Arc::new(Mutex::new(Events { file, path })));
        board.write(0, &bytes(FILE_VERSION, b"brain.Event:2"))?;
        if done > 0 {
            board.write(done + 1, &bytes(SESSION_LOG, &varint(STATUS, START)))?;
        }
        let indented: String = recipe.lines().map(|line| format!("    {line}\n")).collect();
        board.write(done, &bytes(SUMMARY, &text("recipe", &indented)))?;
        Ok(board)
    }

    /// Writes numbers of a step.
    pub(crate) fn scalars(&self, step: u64, scalars: &[Scalar]) -> Result<()> {
        let values = scalars.iter().flat_map(|(name, number)| {
            let number = [&tag(SIMPLE_VALUE, FOUR_BYTES)[..], &number.to_le_bytes()].concat();
            bytes(VALUE, &[bytes(TAG, name.as_bytes()), number].concat())
        });
        self.write(step, &bytes(SUMMARY, &values.collect::<Vec<u8>>()))
    }

    /// Writes a picture of a run, which is a PNG file.
    pub(crate) fn picture(&self, step: u64, name: &str, path: &Path) -> Result<()> {
        let unreadable = |e: &dyn std::fmt::Display| {
            Error::new(format!("cannot read {} again for TensorBoard", path.display())).caused_by(e)
        };
        let png = files::read(path, MOST_BYTES).map_err(|e| unreadable(&e))?;
        let (width, height) = image::image_dimensions(path).map_err(|e| unreadable(&e))?;
        let sizes = [varint(HEIGHT, height.into()), varint(WIDTH, width.into()), varint(COLOURS, RGB)];
        let image = [sizes.concat(), bytes(ENCODED, &png)].concat();
        let value = [bytes(TAG, name.as_bytes()), bytes(IMAGE, &image)].concat();
        self.write(step, &bytes(SUMMARY, &bytes(VALUE, &value)))
    }

    /// Appends a record in one write, so that a reader sees it at once.
    fn write(&self, step: u64, what: &[u8]) -> Result<()> {
        let time = [&tag(WALL_TIME, EIGHT_BYTES)[..], &now().to_le_bytes()].concat();
        let record = record(&[&time[..], &varint(STEP, step), what].concat());
        let mut events = lock(&self.0);
        events.file.write_all(&record).map_err(|e| cannot_write(&events.path, e))
    }
}

/// Seconds since 1970.
fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64()
}

fn record(data: &[u8]) -> Vec<u8> {
    let length = (data.len() as u64).to_le_bytes();
    [&length[..], &masked(&length), data, &masked(data)].concat()
}

/// CRC-32C (polynomial 0x1edc6f41, here with its bits reversed) of a table for the bytes.
fn crc32c(data: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let (mut table, mut i) = ([0; 256], 0);
        while i < 256 {
            let (mut crc, mut bit) = (i as u32, 0);
            while bit < 8 {
                crc = (crc >> 1) ^ (0x82f6_3b78 * (crc & 1));
                bit += 1;
            }
            table[i] = crc;
            i += 1;
        }
        table
    };
    !data.iter().fold(u32::MAX, |crc, &byte| TABLE[((crc ^ u32::from(byte)) & 255) as usize] ^ (crc >> 8))
}

/// The sum as records hold it, so that a sum over data that holds sums is none of 0.
fn masked(data: &[u8]) -> [u8; 4] {
    crc32c(data).rotate_right(15).wrapping_add(0xa282_ead8).to_le_bytes()
}

// Kinds of fields on the wire.
const VARINT: u64 = 0;
const EIGHT_BYTES: u64 = 1;
const LENGTH: u64 = 2;
const FOUR_BYTES: u64 = 5;
// Fields of Event.
const WALL_TIME: u64 = 1;
const STEP: u64 = 2;
const FILE_VERSION: u64 = 3;
const SUMMARY: u64 = 5;
const SESSION_LOG: u64 = 7;
// Of SessionLog, whose START has TensorBoard drop what it read of this step and later ones.
const STATUS: u64 = 1;
const START: u64 = 1;
// Of Summary, and of its values.
const VALUE: u64 = 1;
const TAG: u64 = 1;
const SIMPLE_VALUE: u64 = 2;
const IMAGE: u64 = 4;
const TENSOR: u64 = 8;
const METADATA: u64 = 9;
// Of Image.
const HEIGHT: u64 = 1;
const WIDTH: u64 = 2;
const COLOURS: u64 = 3;
const ENCODED: u64 = 4;
const RGB: u64 = 3;

/// A value that TensorBoard shows as Markdown.
fn text(name: &str, text: &str) -> Vec<u8> {
    // SummaryMetadata: 1 plugin_data (1 plugin_name). TensorProto: 1 dtype (7 string), 2 shape, 8 string_val.
    let plugin = bytes(1, &bytes(1, b"text"));
    let tensor = [varint(1, 7), bytes(2, &bytes(2, &varint(1, 1))), bytes(8, text.as_bytes())].concat();
    let parts = [bytes(TAG, name.as_bytes()), bytes(METADATA, &plugin), bytes(TENSOR, &tensor)];
    bytes(VALUE, &parts.concat())
}

/// A number in groups of 7 bits, the lowest first.
fn groups(mut number: u64) -> Vec<u8> {
    let mut out = Vec::new();
    while number >= 128 {
        out.push(number as u8 | 128);
        number >>= 7;
    }
    out.push(number as u8);
    out
}

fn tag(field: u64, kind: u64) -> Vec<u8> {
    groups((field << 3) | kind)
}

fn varint(field: u64, number: u64) -> Vec<u8> {
    [tag(field, VARINT), groups(number)].concat()
}

/// A message, text or other bytes.
fn bytes(field: u64, data: &[u8]) -> Vec<u8> {
    [&tag(field, LENGTH)[..], &groups(data.len() as u64), data].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sum_is_that_of_the_catalogue_of_sums() {
        // RFC 3720, B.4, and the check value of CRC-32/ISCSI.
        assert_eq!(crc32c(b"123456789"), 0xe306_9283);
        assert_eq!(crc32c(&[0; 32]), 0x8a91_36aa);
    }

    /// A number and what follows it.
    fn number(data: &[u8]) -> (u64, &[u8]) {
        let length = data.iter().take_while(|byte| **byte >= 128).count() + 1;
        let value = data[..length].iter().rev().fold(0, |sum, byte| (sum << 7) | u64::from(byte & 127));
        (value, &data[length..])
    }

    /// The fields of a message: numbers as their bytes.
    fn fields(mut data: &[u8]) -> Vec<(u64, Vec<u8>)> {
        let mut all = Vec::new();
        while !data.is_empty() {
            let (tag, rest) = number(data);
            let (value, rest) = match tag & 7 {
                VARINT => {
                    let (value, rest) = number(rest);
                    (value.to_le_bytes().to_vec(), rest)
                }
                EIGHT_BYTES => (rest[..8].to_vec(), &rest[8..]),
                FOUR_BYTES => (rest[..4].to_vec(), &rest[4..]),
                _ => {
                    let (length, rest) = number(rest);
                    let (value, rest) = rest.split_at(length as usize);
                    (value.to_vec(), rest)
                }
            };
            all.push((tag >> 3, value));
            data = rest;
        }
        all
    }

    /// The data of the records of a file.
    fn records(path: &Path) -> Vec<Vec<u8>> {
        let (whole, mut all) = (fs::read(path).unwrap(), Vec::new());
        let mut rest = &whole[..];
        while let Some((head, tail)) = rest.split_at_checked(12) {
            let length = u64::from_le_bytes(head[..8].try_into().unwrap()) as usize;
            assert_eq!(head[8..], masked(&head[..8]));
            assert_eq!(tail[length..][..4], masked(&tail[..length]));
            all.push(tail[..length].to_vec());
            rest = &tail[length + 4..];
        }
        assert!(rest.is_empty());
        all
    }

    #[test]
    fn what_is_written_is_found_again() {
        let folder = tempfile::tempdir().unwrap();
        let png = folder.path().join("grid.png");
        super::super::save_png(&png, &image::RgbImage::new(300, 2)).unwrap();
        for done in [0, 300] {
            let board = Board::create(folder.path(), done, "lr = 1\n").unwrap();
            board.scalars(done + 1, &[("loss", 0.5), ("loss_by_t/1", f32::NAN)]).unwrap();
            board.picture(done + 1, "samples", &png).unwrap();
        }
        let mut paths: Vec<_> =
            fs::read_dir(folder.path().join(FOLDER)).unwrap().map(|entry| entry.unwrap().path()).collect();
        paths.sort();
        assert_eq!(paths.len(), 2);
        let step = |event: &[(u64, Vec<u8>)]| {
            event
                .iter()
                .find(|(field, _)| *field == STEP)
                .map(|(_, step)| step[0] as u64 + 256 * step[1] as u64)
        };
        for (path, done) in paths.iter().zip([0, 300]) {
            let events: Vec<_> = records(path).iter().map(|data| fields(data)).collect();
            let of = |event: usize, field: u64| {
                let found = events[event].iter().find(|(known, _)| *known == field);
                fields(&found.unwrap_or_else(|| panic!("no field {field} in {:?}", events[event])).1)
            };
            assert!(events[0].contains(&(FILE_VERSION, b"brain.Event:2".to_vec())));
            let first = if done == 0 { 1 } else { 2 };
            assert_eq!(events.len(), first + 3);
            if done > 0 {
                assert_eq!((step(&events[1]), of(1, SESSION_LOG)[0].1[0]), (Some(done + 1), START as u8));
            }
            let value = |event: usize, at: usize| fields(&of(event, SUMMARY)[at].1);
            assert_eq!(value(first, 0)[0].1, b"recipe");
            let tensor = fields(&value(first, 0)[2].1);
            assert_eq!(tensor[2], (8, b"    lr = 1\n".to_vec()));
            assert_eq!(step(&events[first + 1]), Some(done + 1));
            assert_eq!(value(first + 1, 0)[1].1, 0.5_f32.to_le_bytes());
            assert_eq!(value(first + 1, 1)[0].1, b"loss_by_t/1");
            let image = fields(&value(first + 2, 0)[1].1);
            assert_eq!(image[1], (WIDTH, 300_u64.to_le_bytes().to_vec()));
            assert_eq!(image[3], (ENCODED, fs::read(&png).unwrap()));
        }
    }
}
