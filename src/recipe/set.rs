//! `--set key=value`: one key of a recipe, with help for the one that was meant.

use strsim::levenshtein;

use super::tables::key_of;
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
        self.assign(key, value, &format!("--set {key}={value}"))
    }

    /// As [`Recipe::set`]. `said`: what the user wrote, which errors begin with.
    pub(crate) fn assign(&mut self, key: &str, value: &str, said: &str) -> Result<()> {
        if key == "system" {
            return Err(Error::usage("--set system: each system has keys of its own")
                .hint("choose another recipe from `denoir recipes`"));
        }
        let whole = self.table();
        let mut changed = whole.clone();
        let slot = match key.split_once('.') {
            Some((part, inner)) => {
                changed.get_mut(part).and_then(toml::Value::as_table_mut).and_then(|t| t.get_mut(inner))
            }
            None => changed.get_mut(key).filter(|v| !v.is_table()),
        };
        let Some(slot) = slot else {
            let outer = key.split('.').next().unwrap_or_default();
            return Err(if key_of(key).is_some() && !self.has(outer) {
                let hint = format!("`denoir help keys {key}` says which recipes have it");
                Error::usage(self.lacks(outer)).hint(hint)
            } else {
                unknown_key(key, &whole, self.system)
            });
        };
        // Text may come without its quotes.
        let parsed = format!("v = {value}").parse::<toml::Table>().ok().and_then(|mut t| t.remove("v"));
        let before = slot.clone();
        if let (toml::Value::Integer(_), None, Ok(_)) = (&before, &parsed, self::whole(value)) {
            return Err(Error::usage(format!("{said}: the value does not fit"))
                .hint(format!("it must be at most {}, the largest number of TOML", i64::MAX)));
        }
        *slot = alike(&before, parsed.unwrap_or_else(|| toml::Value::String(value.to_owned())));
        // But betas may be a list.
        if let (toml::Value::String(_), false) = (&before, slot.is_str() || slot.is_array()) {
            *slot = toml::Value::String(value.to_owned());
        }
        *self = changed.try_into().map_err(|e: toml::de::Error| {
            Error::usage(format!("{said}: the value does not fit"))
                .hint(format!("it is {before} now, give one of that kind"))
                .caused_by(in_words(e.message()))
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

/// A message about a value without the names of Rust's types.
fn in_words(message: &str) -> String {
    let kinds = [
        ("expected usize", "expected a whole number, 0 or more"),
        ("expected u64", "expected a whole number, 0 or more"),
        ("expected u32", "expected a whole number, 0 or more"),
        ("expected f64", "expected a number"),
        ("expected a boolean", "expected true or false"),
        ("invalid type: floating point", "it is"),
        ("invalid type: integer", "it is"),
        ("invalid value: integer", "it is"),
        ("invalid type: string", "it is"),
        ("invalid type: boolean", "it is"),
    ];
    kinds.iter().fold(message.to_owned(), |text, (name, words)| text.replace(name, words))
}

/// A number as it is written where one of the kind of `before` is wanted: `1e3` is 1000 steps, `1` a rate.
fn alike(before: &toml::Value, written: toml::Value) -> toml::Value {
    use toml::Value::{Array, Float, Integer};
    match (before, written) {
        (Integer(_), Float(f)) if is_whole(f) => Integer(f as i64),
        (Float(_), Integer(i)) => Float(i as f64),
        (Array(before), Array(written)) => match before.first() {
            Some(first) => Array(written.into_iter().map(|value| alike(first, value)).collect()),
            None => Array(written),
        },
        (_, written) => written,
    }
}

/// Whether a real number is a whole one, and so small that it is surely the one that was written.
fn is_whole(value: f64) -> bool {
    const MOST: f64 = (1_u64 << f64::MANTISSA_DIGITS) as f64;
    value.fract() == 0.0 && value.abs() < MOST
}

/// A whole number as people write it: `1000`, or `1e3`.
///
/// # Errors
/// When it is none, or below 0.
pub(crate) fn whole(text: &str) -> std::result::Result<u64, String> {
    match (text.parse::<u64>(), text.parse::<f64>()) {
        (Ok(number), _) => Ok(number),
        (_, Ok(number)) if number >= 0.0 && is_whole(number) => Ok(number as u64),
        _ => Err("it must be a whole number, 0 or more".to_owned()),
    }
}

fn unknown_key(key: &str, table: &toml::Table, system: System) -> Error {
    let mut keys: Vec<String> = table.iter().filter(|(_, v)| !v.is_table()).map(|(k, _)| k.clone()).collect();
    for (part, inner) in table {
        keys.extend(inner.as_table().into_iter().flat_map(|t| t.keys()).map(|k| format!("{part}.{k}")));
    }
    let near = nearest(key, keys.iter().map(String::as_str));
    let inside: Vec<&str> =
        keys.iter().map(String::as_str).filter(|k| k.ends_with(&format!(".{key}"))).collect();
    let inside = (!inside.is_empty()).then(|| inside.join(" or "));
    let error = Error::usage(format!("no key called {key:?} in a recipe"));
    match inside.or(near.map(str::to_owned)) {
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
    use super::whole;
    use crate::diffusion::Variance;
    use crate::recipe::{SampleEvery, find, parse};

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
    fn whole_numbers_may_be_written_as_real_ones() {
        let mut recipe = find("digits").unwrap();
        for assignment in ["steps=1e3", "batch_size=16.0", "unet.block_out_channels=[3.2e1, 64]"] {
            recipe.set(assignment).unwrap();
        }
        assert_eq!((recipe.steps, recipe.batch_size), (1000, 16));
        assert_eq!(recipe.unet.block_out_channels, [32, 64]);
        for bad in ["steps=1.5", "steps=1e30", "steps=inf", "steps=nan", "steps=-1e3"] {
            assert!(recipe.set(bad).unwrap_err().report().contains("does not fit"), "{bad}");
        }
        assert_eq!([whole("12"), whole("1e3"), whole("0.0")], [Ok(12), Ok(1000), Ok(0)]);
        assert_eq!(whole("18446744073709551615"), Ok(u64::MAX));
        for bad in ["", "1.5", "-1", "1e30", "inf", "nan", "ten"] {
            assert!(whole(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn pictures_may_be_left_out() {
        let mut recipe = find("digits").unwrap();
        for (value, wanted) in [
            ("never", SampleEvery::Never),
            ("300", SampleEvery::Steps(300)),
            ("never", SampleEvery::Never),
            ("1e3", SampleEvery::Steps(1000)),
            ("0", SampleEvery::Steps(0)),
        ] {
            recipe.set(&format!("sample_every={value}")).unwrap();
            assert_eq!(recipe.sample_every, wanted, "{value}");
            assert_eq!(parse(&recipe.to_toml(), "test").unwrap(), recipe);
        }
        let error = recipe.set("sample_every=often").unwrap_err().report();
        assert!(error.contains("a number of steps, 0 (at the end only) or never"), "{error}");
        assert!(recipe.set("sample_every=-1").is_err());
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
        says("dropout=0.1", "did you mean condition.dropout or unet.dropout?");
        says("completely_unheard_of=1", "`denoir recipes digits-classes`");
        says("steps=many", "the value does not fit");
        says("steps=-1", "the value does not fit");
        says("batch_size=-1", "it is `-1`, expected a whole number, 0 or more");
        says("lr=abc", "expected a number");
        says("steps=1.5", "it is `1.5`, expected a whole number, 0 or more");
        says("unet=3", "no key called");
        says("variance=large", "fixed_small");
        says("unet.act_fn=mish", "unknown variant `mish`, expected one of `silu`");
        says("unet.down_block_types=[\"X\", \"Y\"]", "`X`, expected one of `DownBlock2D`");
        says("lr", "write --set key=value");
    }
}
