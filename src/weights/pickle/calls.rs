//! The names that a pickle of weights may use, and the results of calling them.

use std::rc::Rc;

use super::{Global, Machine, Step, Tensor, Value, refused};

/// No tensor of a network has more dimensions.
const MOST_DIMENSIONS: usize = 8;

impl Machine<'_> {
    pub(super) fn global(&mut self, module: &str, name: &Rc<str>) -> Step<Value> {
        Ok(Value::Global(match (module, &**name) {
            ("torch._utils", "_rebuild_tensor_v2") => Global::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Global::RebuildParameter,
            ("collections", "OrderedDict") => Global::OrderedDict,
            ("torch", storage)
                if storage.ends_with("Storage") && storage.bytes().all(|b| b.is_ascii_alphanumeric()) =>
            {
                self.texts.push(Rc::clone(name));
                Global::Storage(self.texts.len() - 1)
            }
            // A key in the state of a training program; as no function of weights it cannot be called.
            _ if module.starts_with("pytorch_lightning.") => return Ok(Value::Plain),
            _ => return Err(format!("would call {module}.{name}, which weights have no need of")),
        }))
    }

    fn items(&self, value: Value) -> Step<&[Value]> {
        match value {
            Value::Sequence(list) => Ok(&self.sequences[list]),
            _ => refused("has something else where a tuple must be"),
        }
    }

    /// `('storage', class, key, place, elements)` names bytes of the file; before the archives, with a None
    /// behind it where a view of another storage could stand.
    pub(super) fn storage(&mut self) -> Step<Value> {
        let id = self.pop()?;
        match *self.items(id)? {
            [
                Value::Text(tag),
                Value::Global(Global::Storage(class)),
                Value::Text(key),
                Value::Text(_),
                Value::Int(_),
                ref more @ ..,
            ] if &*self.texts[tag] == "storage" && matches!(more, [] | [Value::Plain]) => {
                let [name, of] = [key, class].map(|text| Rc::clone(&self.texts[text]));
                match self.storages.insert(name, Rc::clone(&of)) {
                    Some(other) if other != of => refused("has one storage of two types"),
                    _ => Ok(Value::Storage([class, key])),
                }
            }
            _ => refused("names something else than a storage"),
        }
    }

    /// The result of calling a known name.
    pub(super) fn call(&mut self) -> Step<Value> {
        let (arguments, function) = (self.pop()?, self.pop()?);
        let arguments = self.items(arguments)?;
        let odd = |what: &str| Err(format!("calls {what} with odd arguments"));
        match (function, arguments) {
            (Value::Global(Global::OrderedDict), []) => Ok(self.dict()),
            (Value::Global(Global::RebuildParameter), [tensor @ Value::Tensor(_), ..]) => Ok(*tensor),
            (
                Value::Global(Global::RebuildTensor),
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
                Ok(Value::Tensor(self.tensors.len() - 1))
            }
            (Value::Global(Global::RebuildTensor), _) => odd("_rebuild_tensor_v2"),
            (Value::Global(Global::RebuildParameter), _) => odd("_rebuild_parameter"),
            (Value::Global(Global::OrderedDict), _) => odd("OrderedDict"),
            _ => refused("calls something that is no function of weights"),
        }
    }

    fn sizes(&self, value: Value) -> Step<Vec<usize>> {
        let items = self.items(value)?;
        if items.len() > MOST_DIMENSIONS {
            return Err(format!("has a tensor of {} dimensions", items.len()));
        }
        let size = |item: &Value| match item {
            Value::Int(size) => usize::try_from(*size).map_err(|_| format!("has a size of {size}")),
            _ => refused("has a size that is no number"),
        };
        items.iter().map(size).collect()
    }
}
