//! `--set key=value`: one key of a recipe, with help for the one that was meant.

use strsim::levenshtein;

use super::{Recipe, System, built_in};
use crate::error::{Error, Result};

impl Recipe {
    /// Overrides one key: `lr=2e-4`, `unet.dropout=0.1`, `unet.block_out_channels=[32,64]`. `steps` sets
    /// `epochs` to 0.
    ///
    /// # Errors
    /// When there is no such key, or the value does not fit it.
    pub fn set(&mut self, assignment: &str) -> Result<()> {
        let Some((key, value)) = assignment.split_once('=') else {
            return Err(Error::usage(format!("--set {assignment}: no value")).hint("write --set key=value"));
        };
        let (key, value) = (key.trim(), value.trim());
        if key == "system" {
            return Err(Error::usage("--set system: each system has keys of its own")
                .hint("choose another recipe from `denoir recipes`"));
        }
        let whole: toml::Table = self.to_toml().parse().unwrap_or_default();
        let mut changed = whole.clone();
        let slot = match key.split_once('.') {
            Some((part, inner)) => {
                changed.get_mut(part).and_then(toml::Value::as_table_mut).and_then(|t| t.get_mut(inner))
            }
            None => changed.get_mut(key).filter(|v| !v.is_table()),
        };
        let Some(slot) = slot else { return Err(unknown_key(key, &whole, self.system)) };
        // Text may come without its quotes.
        let parsed = format!("v = {value}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("v"));
        let before = std::mem::replace(slot, parsed.unwrap_or_else(|| toml::Value::String(value.to_owned())));
        if let (toml::Value::Float(_), toml::Value::Integer(i)) = (&before, &*slot) {
            *slot = toml::Value::Float(*i as f64);
        }
        // But betas may be a list.
        if let (toml::Value::String(_), false) = (&before, slot.is_str() || slot.is_array()) {
            *slot = toml::Value::String(value.to_owned());
        }
        *self = changed.try_into().map_err(|e: toml::de::Error| {
            Error::usage(format!("--set {key}={value}: the value does not fit"))
                .hint(format!("it is {before} now, give one of that kind"))
                .caused_by(e.message())
        })?;
        // What is said is no class's default. The bound of clip_sample is two keys there.
        self.class_defaults.retain(|unsaid| !unsaid.starts_with(key));
        if key == "steps" {
            // They are what is wanted then, and not what passes through the data would make them.
            self.epochs = 0;
        }
        Ok(())
    }
}

fn unknown_key(key: &str, table: &toml::Table, system: System) -> Error {
    let mut keys: Vec<String> = table.iter().filter(|(_, v)| !v.is_table()).map(|(k, _)| k.clone()).collect();
    for (part, inner) in table {
        keys.extend(inner.as_table().into_iter().flat_map(|t| t.keys()).map(|k| format!("{part}.{k}")));
    }
    let near = nearest(key, keys.iter().map(String::as_str));
    let inside = keys.iter().map(String::as_str).find(|k| k.ends_with(&format!(".{key}")));
    let error = Error::usage(format!("no key called {key:?} in a recipe"));
    match inside.or(near) {
        Some(near) => error.hint(format!("did you mean {near}?")),
        None => {
            let example = built_in().into_iter().find(|recipe| recipe.system == system);
            let name = example.map(|recipe| recipe.name).unwrap_or_default();
            error.hint(format!("`denoir recipes {name}` prints them all"))
        }
    }
}

/// The one of `known` that `wanted` was surely meant to be.
pub(crate) fn nearest<'a>(wanted: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let near = known.into_iter().map(|name| (levenshtein(name, wanted), name)).min_by_key(|near| near.0);
    near.filter(|(distance, _)| *distance <= 1 + wanted.len() / 3).map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use crate::diffusion::Variance;
    use crate::recipe::find;

    #[test]
    fn set_changes_values_of_every_kind() {
        let mut recipe = find("digits").unwrap();
        for assignment in [
            "lr=1",
            "steps=7",
            "data=mnist:some/dir",
            "flip=true",
            "variance=fixed_large",
            "unet.block_out_channels=[16, 32]",
            "unet.dropout=0.5",
            "name=2",
        ] {
            recipe.set(assignment).unwrap();
        }
        assert_eq!((recipe.lr, recipe.steps, recipe.data.as_str()), (1.0, 7, "mnist:some/dir"));
        assert!(recipe.flip && recipe.variance == Variance::FixedLarge && recipe.name == "2");
        assert_eq!((recipe.unet.block_out_channels, recipe.unet.dropout), (vec![16, 32], 0.5));
        let mut recipe = find("diffusers-unconditional").unwrap();
        recipe.set("steps=7").unwrap();
        assert_eq!((recipe.steps, recipe.epochs), (7, 0));
    }

    #[test]
    fn a_wrong_set_says_what_to_do() {
        let says = |assignment: &str, wanted: &str| {
            let before = find("digits").unwrap();
            let mut recipe = before.clone();
            let error = recipe.set(assignment).unwrap_err();
            assert!(error.report().contains(wanted), "{assignment}: {}", error.report());
            assert_eq!((recipe, error.exit_code()), (before, 2));
        };
        says("lrr=1", "did you mean lr?");
        says("dropout=0.1", "did you mean unet.dropout?");
        says("completely_unheard_of=1", "`denoir recipes digits`");
        says("steps=many", "the value does not fit");
        says("steps=-1", "the value does not fit");
        says("unet=3", "no key called");
        says("variance=large", "fixed_small");
        says("unet.act_fn=mish", "unknown variant `mish`, expected one of `silu`");
        says("unet.down_block_types=[\"X\", \"Y\"]", "`X`, expected one of `DownBlock2D`");
        says("lr", "write --set key=value");
    }
}
