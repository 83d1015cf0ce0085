//! The named tensors in what a pickle holds.

use std::collections::BTreeMap;

use super::{Pickle, Tensor, Value};

impl Pickle<'_> {
    /// The named tensors of a dictionary: of the one under `state_dict`, where training programs keep them
    /// beside the state of everything else, or under `string_to_param`, of which textual inversion makes its
    /// files; otherwise its own.
    pub(in crate::weights) fn tensors(&self) -> Result<Vec<(String, Tensor)>, String> {
        let Pickle { machine, top, .. } = self;
        let Value::Dict(top) = *top else { return Err("its pickle is no dictionary of tensors".to_owned()) };
        let within = |name: &str| {
            machine.dicts[top].iter().rev().find_map(|pair| match *pair {
                (Value::Text(key), Value::Dict(dict)) if &*machine.texts[key] == name => Some(dict),
                _ => None,
            })
        };
        let (dict, prefix) = match (within("state_dict"), within("string_to_param")) {
            (Some(dict), _) => (dict, ""),
            (None, Some(dict)) => (dict, "string_to_param."),
            (None, None) => (top, ""),
        };
        // A name that is set twice has the later value, as in Python.
        let mut named = BTreeMap::new();
        for (key, value) in &machine.dicts[dict] {
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
        Ok(named.into_iter().map(|(name, tensor)| (format!("{prefix}{name}"), tensor.clone())).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::super::load;

    #[test]
    fn a_training_programs_state_is_left_alone_and_its_names_are_never_called() {
        let callbacks = b"\x80\x02}(X\x0a\0\0\0state_dict}X\x09\0\0\0callbacks}\
            cpytorch_lightning.callbacks\nModelCheckpoint\nNsu.";
        assert_eq!(load(callbacks).unwrap(), []);
        let called = load(b"\x80\x02cpytorch_lightning.callbacks\nModelCheckpoint\n)R.").unwrap_err();
        assert!(called.contains("no function of weights"), "{called}");
        // What lies within is held to the same rules.
        let odd = load(b"\x80\x02}X\x0a\0\0\0state_dict}X\x01\0\0\0aK\x01ss.").unwrap_err();
        assert!(odd.contains("holds \"a\", which is no tensor"), "{odd}");
    }
}
