//! What the end of a Parquet file says: its columns, and where they lie
//! (<https://github.com/apache/parquet-format/blob/master/src/main/thrift/parquet.thrift>).

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use super::Wrong;
use super::thrift::{self, Value};
use crate::files;

/// Bytes of what a file says of its data. A shard of 500 MB has some 100 kB.
const MOST: u64 = 32 << 20;
/// Rows that a file may have beyond its bytes: equal pictures are written once.
const MORE_ROWS: u64 = 1 << 16;
/// Columns in columns.
const DEEPEST: usize = 16;

/// Kinds of values, by their numbers in the format.
pub(super) const INT32: i64 = 1;
pub(super) const INT64: i64 = 2;
pub(super) const BYTES: i64 = 6;

/// What a file says of its data.
pub(super) struct Footer {
    pub columns: Vec<Column>,
    pub groups: Vec<Group>,
    /// Texts that programs leave beside the data, by their names.
    pub notes: Vec<(String, String)>,
    /// Bytes of the file.
    pub length: u64,
}

/// A column of values, which may be part of a struct or a list.
pub(super) struct Column {
    pub path: Vec<String>,
    /// The kind of its values.
    pub kind: i64,
    /// Levels of the path that may be missing: a value of fewer is none.
    pub definition: u32,
    /// Levels of the path that are lists.
    pub repetition: u32,
}

/// Some rows of all columns.
pub(super) struct Group {
    pub rows: usize,
    /// Of each column.
    pub chunks: Vec<Chunk>,
}

/// The values of one column in a group, in pages.
pub(super) struct Chunk {
    pub start: u64,
    pub end: u64,
    /// The number of its compression.
    pub codec: i64,
}

impl Footer {
    /// Reads the end of a file.
    pub fn read(path: &Path) -> Result<Footer, Wrong> {
        let (mut file, length) = files::open(path).map_err(|e| e.to_string())?;
        let mut last = [0; 8];
        if length >= 12 {
            file.seek(SeekFrom::Start(length - 8)).map_err(|e| e.to_string())?;
            file.read_exact(&mut last).map_err(|e| e.to_string())?;
        }
        let [size @ .., b'P', b'A', b'R', b'1'] = last else {
            return Err("it is no Parquet file, or cut short: its end is missing".into());
        };
        let size = u64::from(u32::from_le_bytes(size));
        if size > MOST || size > length - 12 {
            return Err(format!("it is damaged: it says that its end has {size} bytes"));
        }
        let mut bytes = Vec::new();
        file.seek(SeekFrom::Start(length - 8 - size)).map_err(|e| e.to_string())?;
        file.take(size).read_to_end(&mut bytes).map_err(|e| e.to_string())?;
        let (said, _) = thrift::read(&bytes).ok_or("it is damaged: its end cannot be read")?;
        Footer::of(&said, length)
    }

    fn of(said: &Value, length: u64) -> Result<Footer, Wrong> {
        let columns = columns(said.list(2))?;
        let groups: Vec<Group> = (said.list(4).iter())
            .map(|group| group_of(group, columns.len(), length))
            .collect::<Result<_, _>>()?;
        // Otherwise a small file could say that it has any number of pictures.
        let rows = groups.iter().fold(0_u64, |sum, group| sum.saturating_add(group.rows as u64));
        if rows > length.saturating_add(MORE_ROWS) {
            return Err(format!("it is damaged: it says that its {length} bytes are {rows} rows"));
        }
        let note = |note: &Value| Some((note.text(1)?, note.text(2)?));
        Ok(Footer { columns, groups, notes: said.list(5).iter().filter_map(note).collect(), length })
    }

    /// The number of the column with this path.
    pub fn find(&self, path: &[&str]) -> Option<usize> {
        self.columns.iter().position(|column| column.path == path)
    }
}

fn group_of(group: &Value, columns: usize, length: u64) -> Result<Group, Wrong> {
    const WRONG: &str = "it is damaged: it does not say where its columns lie";
    let chunk = |chunk: &Value| {
        let meta = chunk.field(3)?;
        // The dictionary comes first where there is one; some programs write 0 where there is none.
        let first = [meta.int(11).filter(|&at| at > 0), meta.int(9)].into_iter().flatten().min()?;
        let start = u64::try_from(first).ok()?;
        let end = start.checked_add(u64::try_from(meta.int(7)?).ok()?).filter(|&end| end <= length)?;
        Some(Chunk { start, end, codec: meta.int(4)? })
    };
    let chunks = group.list(1).iter().map(chunk).collect::<Option<Vec<_>>>().ok_or(WRONG)?;
    let rows = group.int(3).and_then(|rows| usize::try_from(rows).ok()).ok_or(WRONG)?;
    if chunks.len() == columns { Ok(Group { rows, chunks }) } else { Err(WRONG.into()) }
}

/// The columns of a schema, which is a tree in the order of its branches.
fn columns(schema: &[Value]) -> Result<Vec<Column>, Wrong> {
    const WRONG: &str = "it is damaged: its list of columns cannot be read";
    let (root, elements) = schema.split_first().ok_or(WRONG)?;
    // Of each branch that is open: its name, what is still to come of it, and its levels.
    let mut open = vec![(String::new(), root.int(5).unwrap_or(0), 0, 0)];
    let mut columns = Vec::new();
    for element in elements {
        while open.last().is_some_and(|(_, left, ..)| *left <= 0) {
            open.pop();
        }
        let (_, left, definition, repetition) = open.last_mut().ok_or(WRONG)?;
        *left -= 1;
        let (optional, repeated) = (element.int(3) == Some(1), element.int(3) == Some(2));
        let (definition, repetition) =
            (*definition + u32::from(optional || repeated), *repetition + u32::from(repeated));
        let name = element.text(4).ok_or(WRONG)?;
        match element.int(5).filter(|&children| children > 0) {
            Some(children) if open.len() < DEEPEST => open.push((name, children, definition, repetition)),
            Some(_) => return Err("its columns lie too deep in one another".into()),
            None => {
                let path = open.iter().skip(1).map(|(name, ..)| name.clone()).chain([name]).collect();
                // A struct without fields has no values.
                let kind = element.int(1).unwrap_or(-1);
                columns.push(Column { path, kind, definition, repetition });
            }
        }
    }
    Ok(columns)
}
