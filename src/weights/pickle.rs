//! The part of Python's pickle that `torch.save` needs for named tensors, as plain data.
//!
//! A pickle is a program for a small stack machine, and may name any function and call it. This interpreter
//! knows the few names that weights need, and builds data where Python would call them; anything else is
//! refused by name. Values live in flat lists and name each other by number: there is no depth to run out of,
//! and memory grows at most in proportion to the pickle, whose opcodes are counted. Opcodes: CPython's
//! `Lib/pickletools.py`.

use std::collections::{BTreeMap, HashMap};
use std::rc::Rc;

/// Most opcodes that are run, each of which keeps a hundred bytes or so; a tensor takes about thirty.
const MOST_OPCODES: usize = 1 << 20;
/// Longest text. A pickle can name one as often as it has opcodes, and each time costs a look at it.
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
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
}

/// The names that weights need.
#[derive(Clone, Copy)]
enum Known {
    RebuildTensor,
    RebuildParameter,
    OrderedDict,
    /// Number of its name among the texts.
    Storage(usize),
}

/// Numbers are places in the lists of [`Machine`].
#[derive(Clone, Copy)]
enum Value {
    /// None, a bool or a float: of no further use.
    Plain,
    Int(i64),
    Text(usize),
    /// A tuple or a list.
    Sequence(usize),
    Dict(usize),
    Known(Known),
    /// Class and key, both texts.
    Storage([usize; 2]),
    Tensor(usize),
}

#[derive(Default)]
struct Machine<'a> {
    rest: &'a [u8],
    length: usize,
    stack: Vec<Value>,
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
    /// Shared, because one text of the pickle can be part of a million tensors.
    texts: Vec<Rc<str>>,
    sequences: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    tensors: Vec<Tensor>,
}

/// The named tensors of a pickled dictionary.
///
/// # Errors
/// When the pickle is damaged, holds something else, or names what weights have no need of.
pub fn load(bytes: &[u8]) -> Result<Vec<(String, Tensor)>, String> {
    let mut machine = Machine { rest: bytes, length: bytes.len(), ..Machine::default() };
    let mut opcodes = 0;
    let top = loop {
        let at = machine.length - machine.rest.len();
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
    let Value::Dict(top) = top else { return Err("its pickle is no dictionary of tensors".to_owned()) };
    // A name that is set twice has the later value, as in Python.
    let mut named = BTreeMap::new();
    for (key, value) in &machine.dicts[top] {
        match (key, value) {
            (Value::Text(name), Value::Tensor(tensor)) => {
                named.insert(&*machine.texts[*name], &machine.tensors[*tensor]);
            }
            (Value::Text(name), _) => {
                return Err(format!("its pickle holds {:?}, which is no tensor", machine.texts[*name]));
            }
            _ => return Err("its pickle names tensors by something else than text".to_owned()),
        }
    }
    Ok(named.into_iter().map(|(name, tensor)| (name.to_owned(), tensor.clone())).collect())
}

type Step<T> = Result<T, String>;

impl<'a> Machine<'a> {
    /// Runs one opcode; gives the result when that was the last.
    fn step(&mut self) -> Step<Option<Value>> {
        let opcode = self.take(1)?[0];
        match opcode {
            0x80 => match self.number(1)? {
                2..=5 => {}
                version => return Err(format!("has protocol {version}")),
            },
            0x95 => _ = self.take(8)?, // FRAME
            b'.' => return self.pop().map(Some),
            b'(' => self.marks.push(self.stack.len()),
            b'N' | 0x88 | 0x89 => self.stack.push(Value::Plain),
            b'G' => {
                self.take(8)?;
                self.stack.push(Value::Plain);
            }
            b'K' => self.push_int(1)?,
            b'M' => self.push_int(2)?,
            b'J' => {
                let value = self.number(4)? as u32;
                self.stack.push(Value::Int(i64::from(value.cast_signed())));
            }
            0x8a => self.long()?,
            b'X' => self.text(4)?,
            0x8c => self.text(1)?,
            b'}' => self.push_dict(),
            b']' | b')' => self.push_sequence(Vec::new()),
            b't' => {
                let items = self.popped_mark()?;
                self.push_sequence(items);
            }
            0x85..=0x87 => {
                let first = self.deep(usize::from(opcode - 0x84))?;
                let items = self.stack.split_off(first);
                self.push_sequence(items);
            }
            b'a' => {
                let value = self.pop()?;
                self.append(vec![value])?;
            }
            b'e' => {
                let items = self.popped_mark()?;
                self.append(items)?;
            }
            b's' => {
                let first = self.deep(2)?;
                let pair = self.stack.split_off(first);
                self.insert(&pair)?;
            }
            b'u' => {
                let pairs = self.popped_mark()?;
                self.insert(&pairs)?;
            }
            b'q' => self.remember(1)?,
            b'r' => self.remember(4)?,
            0x94 => {
                let (next, value) = (self.memo.len() as u32, self.top()?);
                self.memo.insert(next, value);
            }
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(&module, &name.into())?;
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => {
                    let (module, name) = (Rc::clone(&self.texts[module]), Rc::clone(&self.texts[name]));
                    self.global(&module, &name)?;
                }
                _ => return Err("names a function by something else than text".to_owned()),
            },
            b'Q' => self.storage()?,
            b'R' => self.call()?,
            b'b' => {
                // What PyTorch says about the dictionary itself: versions of its modules.
                let (_, target) = (self.pop()?, self.top()?);
                if !matches!(target, Value::Dict(_)) {
                    return Err("sets the state of something else than a dictionary".to_owned());
                }
            }
            other => return Err(format!("has the opcode {other:#04x}, which weights have no need of")),
        }
        Ok(None)
    }

    fn take(&mut self, count: usize) -> Step<&'a [u8]> {
        let Some((bytes, rest)) = self.rest.split_at_checked(count) else {
            return Err("is cut short".to_owned());
        };
        self.rest = rest;
        Ok(bytes)
    }

    fn number(&mut self, width: usize) -> Step<u64> {
        Ok(self.take(width)?.iter().rev().fold(0, |n, &b| n << 8 | u64::from(b)))
    }

    fn push_int(&mut self, width: usize) -> Step<()> {
        let value = self.number(width)?;
        self.stack.push(Value::Int(value as i64));
        Ok(())
    }

    /// LONG1: as many bytes as it says, in two's complement.
    fn long(&mut self) -> Step<()> {
        let width = self.number(1)? as usize;
        let bytes = self.take(width)?;
        if width > 8 {
            return Err(format!("has a number of {width} bytes"));
        }
        let sign = bytes.last().map_or(0, |b| if b & 0x80 == 0 { 0 } else { 0xff });
        let mut whole = [sign; 8];
        whole[..width].copy_from_slice(bytes);
        self.stack.push(Value::Int(i64::from_le_bytes(whole)));
        Ok(())
    }

    fn text(&mut self, width: usize) -> Step<()> {
        let count = self.number(width)? as usize;
        let bytes = self.take(count)?;
        if count > MOST_TEXT {
            return Err(format!("has a text of {count} bytes, more than {MOST_TEXT}"));
        }
        let Ok(text) = std::str::from_utf8(bytes) else {
            return Err("has a text that is no UTF-8".to_owned());
        };
        self.texts.push(text.into());
        self.stack.push(Value::Text(self.texts.len() - 1));
        Ok(())
    }

    /// Up to the end of a line.
    fn line(&mut self) -> Step<String> {
        let Some(end) = self.rest.iter().position(|&b| b == b'\n') else {
            return Err("is cut short".to_owned());
        };
        if end > MOST_TEXT {
            return Err(format!("has a name of {end} bytes, more than {MOST_TEXT}"));
        }
        let line = String::from_utf8_lossy(self.take(end)?).into_owned();
        self.take(1)?;
        Ok(line)
    }

    fn push_sequence(&mut self, items: Vec<Value>) {
        self.sequences.push(items);
        self.stack.push(Value::Sequence(self.sequences.len() - 1));
    }

    fn push_dict(&mut self) {
        self.dicts.push(Vec::new());
        self.stack.push(Value::Dict(self.dicts.len() - 1));
    }

    /// Where the topmost `count` values begin, none of them below the last mark.
    fn deep(&self, count: usize) -> Step<usize> {
        let floor = self.marks.last().copied().unwrap_or(0);
        let first = self.stack.len().checked_sub(count).filter(|&first| first >= floor);
        first.ok_or_else(|| "takes more from its stack than is there".to_owned())
    }

    fn top(&self) -> Step<Value> {
        self.deep(1).map(|at| self.stack[at])
    }

    fn pop(&mut self) -> Step<Value> {
        let at = self.deep(1)?;
        Ok(self.stack.remove(at))
    }

    /// Everything above the last mark.
    fn popped_mark(&mut self) -> Step<Vec<Value>> {
        match self.marks.pop() {
            Some(mark) => Ok(self.stack.split_off(mark)),
            None => Err("takes a mark that is not there".to_owned()),
        }
    }

    fn append(&mut self, items: Vec<Value>) -> Step<()> {
        match self.top()? {
            Value::Sequence(list) => {
                self.sequences[list].extend(items);
                Ok(())
            }
            _ => Err("appends to something else than a list".to_owned()),
        }
    }

    fn insert(&mut self, pairs: &[Value]) -> Step<()> {
        match (self.top()?, pairs.len() % 2) {
            (Value::Dict(dict), 0) => {
                self.dicts[dict].extend(pairs.chunks_exact(2).map(|pair| (pair[0], pair[1])));
                Ok(())
            }
            _ => Err("sets items of something else than a dictionary".to_owned()),
        }
    }

    fn remember(&mut self, width: usize) -> Step<()> {
        let (slot, value) = (self.number(width)? as u32, self.top()?);
        self.memo.insert(slot, value);
        Ok(())
    }

    fn recall(&mut self, width: usize) -> Step<()> {
        let slot = self.number(width)? as u32;
        match self.memo.get(&slot) {
            Some(&value) => {
                self.stack.push(value);
                Ok(())
            }
            None => Err(format!("recalls {slot}, which it never kept")),
        }
    }

    fn global(&mut self, module: &str, name: &Rc<str>) -> Step<()> {
        let known = match (module, &**name) {
            ("torch._utils", "_rebuild_tensor_v2") => Known::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Known::RebuildParameter,
            ("collections", "OrderedDict") => Known::OrderedDict,
            ("torch", storage)
                if storage.ends_with("Storage") && storage.bytes().all(|b| b.is_ascii_alphanumeric()) =>
            {
                self.texts.push(Rc::clone(name));
                Known::Storage(self.texts.len() - 1)
            }
            _ => return Err(format!("would call {module}.{name}, which weights have no need of")),
        };
        self.stack.push(Value::Known(known));
        Ok(())
    }

    fn items(&self, value: Value) -> Step<&[Value]> {
        match value {
            Value::Sequence(list) => Ok(&self.sequences[list]),
            _ => Err("has something else where a tuple must be".to_owned()),
        }
    }

    /// `('storage', class, key, place, elements)` names bytes of the archive.
    fn storage(&mut self) -> Step<()> {
        let id = self.pop()?;
        let storage = match self.items(id)? {
            [
                Value::Text(tag),
                Value::Known(Known::Storage(class)),
                Value::Text(key),
                Value::Text(_),
                Value::Int(_),
            ] if &*self.texts[*tag] == "storage" => [*class, *key],
            _ => return Err("names something else than a storage".to_owned()),
        };
        self.stack.push(Value::Storage(storage));
        Ok(())
    }

    /// What a call of one of the known names would give.
    fn call(&mut self) -> Step<()> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let arguments = self.items(arguments)?;
        let odd = |what: &str| Err(format!("calls {what} with odd arguments"));
        match (function, arguments) {
            (Value::Known(Known::OrderedDict), []) => self.push_dict(),
            (Value::Known(Known::RebuildParameter), [tensor @ Value::Tensor(_), ..]) => {
                let tensor = *tensor;
                self.stack.push(tensor);
            }
            (
                Value::Known(Known::RebuildTensor),
                [Value::Storage([class, key]), Value::Int(offset), shape, strides, ..],
            ) => {
                let tensor = Tensor {
                    storage: Rc::clone(&self.texts[*class]),
                    key: Rc::clone(&self.texts[*key]),
                    offset: usize::try_from(*offset).map_err(|_| format!("has an offset of {offset}"))?,
                    shape: self.sizes(*shape)?,
                    strides: self.sizes(*strides)?,
                };
                self.tensors.push(tensor);
                self.stack.push(Value::Tensor(self.tensors.len() - 1));
            }
            (Value::Known(Known::RebuildTensor), _) => return odd("_rebuild_tensor_v2"),
            (Value::Known(Known::RebuildParameter), _) => return odd("_rebuild_parameter"),
            (Value::Known(Known::OrderedDict), _) => return odd("OrderedDict"),
            _ => return Err("calls something that is no function of weights".to_owned()),
        }
        Ok(())
    }

    /// A tuple of sizes; no tensor of a network has more than eight.
    fn sizes(&self, value: Value) -> Step<Vec<usize>> {
        let items = self.items(value)?;
        if items.len() > 8 {
            return Err(format!("has a tensor of {} dimensions", items.len()));
        }
        let size = |item: &Value| match item {
            Value::Int(size) => usize::try_from(*size).map_err(|_| format!("has a size of {size}")),
            _ => Err("has a size that is no number".to_owned()),
        };
        items.iter().map(size).collect()
    }
}
