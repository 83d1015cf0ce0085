//! Thrift's compact protocol, in which Parquet writes what it says of its data
//! (<https://github.com/apache/thrift/blob/master/doc/specs/thrift-compact-protocol.md>).

/// Values of one message: what they take in memory is bounded by this, not by a number in the file.
const MOST: usize = 1 << 21;
/// Structs and lists in one another.
const DEEPEST: usize = 16;

/// A value.
#[derive(Debug, PartialEq)]
pub(super) enum Value<'a> {
    /// A boolean is 0 or 1; real numbers are not kept.
    Int(i64),
    Bytes(&'a [u8]),
    List(Vec<Value<'a>>),
    /// Fields by their numbers.
    Struct(Vec<(i16, Value<'a>)>),
}

impl<'a> Value<'a> {
    /// Field `id` of a struct.
    pub fn field(&self, id: i16) -> Option<&Value<'a>> {
        match self {
            Value::Struct(fields) => fields.iter().find(|(other, _)| *other == id).map(|(_, value)| value),
            _ => None,
        }
    }

    /// A number in a field of a struct.
    pub fn int(&self, id: i16) -> Option<i64> {
        match self.field(id) {
            Some(Value::Int(v)) => Some(*v),
            _ => None,
        }
    }

    /// A text in a field of a struct.
    pub fn text(&self, id: i16) -> Option<String> {
        self.field(id).and_then(Value::as_text)
    }

    /// A list in a field of a struct; empty if there is none.
    pub fn list(&self, id: i16) -> &[Value<'a>] {
        match self.field(id) {
            Some(Value::List(values)) => values,
            _ => &[],
        }
    }

    /// The text that it is.
    pub fn as_text(&self) -> Option<String> {
        match self {
            Value::Bytes(bytes) => Some(String::from_utf8_lossy(bytes).into_owned()),
            _ => None,
        }
    }
}

/// The struct that `bytes` begin with, and how many of them it has; `None`: they are cut or none.
pub(super) fn read(bytes: &[u8]) -> Option<(Value<'_>, usize)> {
    let mut reader = Reader { rest: bytes, left: MOST };
    let value = reader.value(STRUCT, DEEPEST)?;
    Some((value, bytes.len() - reader.rest.len()))
}

/// An unsigned number of seven bits a byte, the lowest first.
pub(super) fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

const STRUCT: u8 = 12;

struct Reader<'a> {
    rest: &'a [u8],
    /// Values that may still come.
    left: usize,
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count)?;
        self.rest = rest;
        Some(taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take(1).map(|one| one[0])
    }

    /// A signed number, in which the lowest bit is the sign.
    fn int(&mut self) -> Option<i64> {
        varint(&mut self.rest).map(|v| (v >> 1) as i64 ^ -((v & 1) as i64))
    }

    fn value(&mut self, kind: u8, depth: usize) -> Option<Value<'a>> {
        let depth = depth.checked_sub(1)?;
        self.left = self.left.checked_sub(1)?;
        Some(match kind {
            // Of a boolean, as an element of a list: a field's is its kind.
            1 | 2 => Value::Int((self.byte()? == 1).into()),
            3 => Value::Int(i64::from(self.byte()? as i8)),
            4..=6 => Value::Int(self.int()?),
            7 => self.take(8).map(|_| Value::Int(0))?,
            8 => {
                let length = varint(&mut self.rest)?;
                Value::Bytes(self.take(usize::try_from(length).ok()?)?)
            }
            9 | 10 => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { varint(&mut self.rest)? } else { u64::from(head >> 4) };
                // No room is made for a number of elements that may not come.
                Value::List((0..count).map(|_| self.value(head & 15, depth)).collect::<Option<_>>()?)
            }
            STRUCT => {
                let (mut fields, mut id) = (Vec::new(), 0_i16);
                loop {
                    let head = self.byte()?;
                    if head == 0 {
                        return Some(Value::Struct(fields));
                    }
                    let step = i16::from(head >> 4);
                    id = if step == 0 { i16::try_from(self.int()?).ok()? } else { id.checked_add(step)? };
                    let value = match head & 15 {
                        flag @ (1 | 2) => Value::Int((flag == 1).into()),
                        kind => self.value(kind, depth)?,
                    };
                    fields.push((id, value));
                }
            }
            // Parquet has no maps.
            _ => return None,
        })
    }
}
