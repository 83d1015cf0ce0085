//! The part of Python's pickle that `torch.save` needs for named tensors, as plain data.
//!
//! A pickle is a program for a stack machine that may call any function by name. This interpreter knows the
//! few names that weights need, and builds data where Python would call them; it refuses every other name.
//! Values live in flat lists and refer to each other by index: there is no recursion, and memory grows at
//! most in proportion to the pickle, whose opcodes are counted. Opcodes: CPython's `Lib/pickletools.py`.

mod calls;
mod named;

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// Most opcodes that are run, each of which keeps about a hundred bytes; a tensor takes about thirty.
const MOST_OPCODES: usize = 1 << 20;
/// Longest text. Each of the opcodes can refer to one text, and reads it again.
const MOST_TEXT: usize = 1024;

/// A tensor as the pickle describes it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// PyTorch's class of the storage: `FloatStorage`.
    pub storage: Rc<str>,
    /// Name of the storage in the archive.
    pub key: Rc<str>,
    /// Elements of the storage before the tensor's first.
    pub offset: usize,
    /// Elements along each dimension.
    pub shape: Vec<usize>,
    /// Elements of the storage from one index to the next, along each dimension.
    pub strides: Vec<usize>,
}

/// The functions and classes that weights need.
#[derive(Clone, Copy)]
enum Global {
    RebuildTensor,
    RebuildParameter,
    OrderedDict,
    /// Index of its name among the texts.
    Storage(usize),
}

/// Numbers are indices into the lists of [`Machine`].
#[derive(Clone, Copy)]
enum Value {
    /// None or a float, whose value is not needed.
    Plain,
    Bool(bool),
    Int(i64),
    Text(usize),
    /// A tuple or a list.
    Sequence(usize),
    Dict(usize),
    Global(Global),
    /// Class and key, both texts.
    Storage([usize; 2]),
    Tensor(usize),
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    /// Shared, because one text of the pickle can belong to a million tensors.
    texts: Vec<Rc<str>>,
    sequences: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    tensors: Vec<Tensor>,
    /// Class of each storage by its name.
    storages: BTreeMap<Rc<str>, Rc<str>>,
}

/// A pickle that was run.
pub(super) struct Pickle<'a> {
    machine: Machine<'a>,
    top: Value,
    length: usize,
}

/// The named tensors of a pickled dictionary.
///
/// # Errors
/// When the pickle is damaged, holds something else, or names a function that weights do not need.
pub fn load(bytes: &[u8]) -> Result<Vec<(String, Tensor)>, String> {
    run(bytes)?.tensors()
}

/// Runs the pickle that `bytes` begin with.
pub(super) fn run(bytes: &[u8]) -> Result<Pickle<'_>, String> {
    let mut machine = Machine { rest: bytes, ..Machine::default() };
    let mut opcodes = 0;
    let top = loop {
        let at = bytes.len() - machine.rest.len();
        opcodes += 1;
        if opcodes > MOST_OPCODES {
            return Err(format!("its pickle has more than {MOST_OPCODES} opcodes (byte {at})"));
        }
        match machine.step() {
            Ok(None) => {}
            Ok(Some(top)) => break top,
            Err(reason) => return Err(format!("its pickle {reason} (byte {at})")),
        }
    };
    let length = bytes.len() - machine.rest.len();
    Ok(Pickle { machine, top, length })
}

impl Pickle<'_> {
    /// Bytes of the pickle.
    pub(super) fn length(&self) -> usize {
        self.length
    }

    /// Class of each storage by its name.
    pub(super) fn storages(&self) -> &BTreeMap<Rc<str>, Rc<str>> {
        &self.machine.storages
    }

    /// A list of texts.
    pub(super) fn texts(&self) -> Result<Vec<Rc<str>>, String> {
        let text = |item: &Value| match item {
            Value::Text(text) => Ok(Rc::clone(&self.machine.texts[*text])),
            _ => Err("its pickle names a storage by something else than text".to_owned()),
        };
        match self.top {
            Value::Sequence(list) => self.machine.sequences[list].iter().map(text).collect(),
            _ => Err("its pickle is no list of storages".to_owned()),
        }
    }

    /// What a dictionary says of this name, if that is true or false.
    pub(super) fn flag(&self, name: &str) -> Option<bool> {
        let Value::Dict(top) = self.top else { return None };
        self.machine.dicts[top].iter().rev().find_map(|pair| match pair {
            (Value::Text(key), Value::Bool(flag)) if &*self.machine.texts[*key] == name => Some(*flag),
            _ => None,
        })
    }
}

type Step<T> = Result<T, String>;

fn refused<T>(reason: &str) -> Step<T> {
    Err(reason.to_owned())
}

impl<'a> Machine<'a> {
    /// Runs one opcode; returns the result after the last.
    fn step(&mut self) -> Step<Option<Value>> {
        let opcode = self.take(1)?[0];
        let value = match opcode {
            b'N' => Value::Plain,
            0x88 | 0x89 => Value::Bool(opcode == 0x88),
            b'G' => self.take(8).map(|_| Value::Plain)?,
            b'K' => Value::Int(self.number(1)? as i64),
            b'M' => Value::Int(self.number(2)? as i64),
            b'J' => Value::Int(i64::from((self.number(4)? as u32).cast_signed())),
            0x8a => self.long()?,
            b'X' => self.text(4)?,
            0x8c => self.text(1)?,
            b'}' => self.dict(),
            b']' | b')' => self.sequence(Vec::new()),
            b't' => {
                let items = self.pop_to_mark()?;
                self.sequence(items)
            }
            0x85..=0x87 => {
                let items = self.pop_many(usize::from(opcode - 0x84))?;
                self.sequence(items)
            }
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(&module, &name.into())?
            }
            0x93 => match self.pop_many(2)?[..] {
                [Value::Text(module), Value::Text(name)] => {
                    let (module, name) = (Rc::clone(&self.texts[module]), Rc::clone(&self.texts[name]));
                    self.global(&module, &name)?
                }
                _ => return refused("names a function by something else than text"),
            },
            b'Q' => self.storage()?,
            b'R' => self.call()?,
            b'.' => return self.pop().map(Some),
            other => return self.effect(other).map(|()| None),
        };
        self.stack.push(value);
        Ok(None)
    }

    /// Runs one of the opcodes that push nothing.
    fn effect(&mut self, opcode: u8) -> Step<()> {
        match opcode {
            0x80 => match self.number(1)? {
                2..=5 => Ok(()),
                version => Err(format!("has protocol {version}")),
            },
            0x95 => self.take(8).map(drop), // FRAME
            b'(' => {
                self.marks.push(self.stack.len());
                Ok(())
            }
            b'a' | b'e' => {
                let items = if opcode == b'a' { self.pop_many(1)? } else { self.pop_to_mark()? };
                let Value::Sequence(list) = self.top()? else {
                    return refused("appends to something else than a list");
                };
                self.sequences[list].extend(items);
                Ok(())
            }
            b's' | b'u' => {
                let pairs = if opcode == b's' { self.pop_many(2)? } else { self.pop_to_mark()? };
                let (Value::Dict(dict), 0) = (self.top()?, pairs.len() % 2) else {
                    return refused("sets items of something else than a dictionary");
                };
                self.dicts[dict].extend(pairs.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                Ok(())
            }
            b'q' | b'r' | 0x94 => {
                let slot = match opcode {
                    b'q' => self.number(1)? as u32,
                    b'r' => self.number(4)? as u32,
                    _ => self.memo.len() as u32,
                };
                let value = self.top()?;
                self.memo.insert(slot, value);
                Ok(())
            }
            // PyTorch sets the versions of its modules as the dictionary's state.
            b'b' => match (self.pop()?, self.top()?) {
                (_, Value::Dict(_)) => Ok(()),
                _ => refused("sets the state of something else than a dictionary"),
            },
            other => Err(format!("has the opcode {other:#04x}, which weights have no need of")),
        }
    }

    fn take(&mut self, count: usize) -> Step<&'a [u8]> {
        let Some((bytes, rest)) = self.rest.split_at_checked(count) else { return refused("is cut short") };
        self.rest = rest;
        Ok(bytes)
    }

    fn number(&mut self, width: usize) -> Step<u64> {
        Ok(self.take(width)?.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    /// LONG1: a count of bytes, then the bytes, in two's complement.
    fn long(&mut self) -> Step<Value> {
        let width = self.number(1)? as usize;
        let bytes = self.take(width)?;
        if width > 8 {
            return Err(format!("has a number of {width} bytes"));
        }
        let sign = bytes.last().map_or(0, |b| if b & 0x80 == 0 { 0 } else { 0xff });
        let mut whole = [sign; 8];
        whole[..width].copy_from_slice(bytes);
        Ok(Value::Int(i64::from_le_bytes(whole)))
    }

    fn text(&mut self, width: usize) -> Step<Value> {
        let count = self.number(width)? as usize;
        let bytes = self.take(count)?;
        if count > MOST_TEXT {
            return Err(format!("has a text of {count} bytes, more than {MOST_TEXT}"));
        }
        let Ok(text) = std::str::from_utf8(bytes) else { return refused("has a text that is no UTF-8") };
        self.texts.push(text.into());
        Ok(Value::Text(self.texts.len() - 1))
    }

    /// Up to the end of a line.
    fn line(&mut self) -> Step<String> {
        let Some(end) = self.rest.iter().position(|&b| b == b'\n') else { return refused("is cut short") };
        if end > MOST_TEXT {
            return Err(format!("has a name of {end} bytes, more than {MOST_TEXT}"));
        }
        let line = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.take(1)?;
        Ok(line)
    }

    fn sequence(&mut self, items: Vec<Value>) -> Value {
        self.sequences.push(items);
        Value::Sequence(self.sequences.len() - 1)
    }

    fn dict(&mut self) -> Value {
        self.dicts.push(Vec::new());
        Value::Dict(self.dicts.len() - 1)
    }

    /// Index of the first of the topmost `count` values, none of them below the last mark.
    fn first_of(&self, count: usize) -> Step<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let first = self.stack.len().checked_sub(count).filter(|&first| first >= floor);
        first.ok_or_else(|| "takes more from its stack than is there".to_owned())
    }

    fn top(&self) -> Step<Value> {
        self.first_of(1).map(|at| self.stack[at])
    }

    fn pop(&mut self) -> Step<Value> {
        self.first_of(1).map(|at| self.stack.remove(at))
    }

    /// The topmost `count` values, the lowest first.
    fn pop_many(&mut self, count: usize) -> Step<Vec<Value>> {
        self.first_of(count).map(|first| self.stack.split_off(first))
    }

    /// All values above the last mark.
    fn pop_to_mark(&mut self) -> Step<Vec<Value>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => refused("takes a mark that is not there"),
        }
    }

    fn recall(&mut self, width: usize) -> Step<Value> {
        let slot = self.number(width)? as u32;
        self.memo.get(&slot).copied().ok_or_else(|| format!("recalls {slot}, which it never kept"))
    }
}
