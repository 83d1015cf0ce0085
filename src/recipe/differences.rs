//! How two recipes differ, key by key, as people write values.

use toml::Value;

use super::Recipe;
use super::written::written;

/// Keys that training fills in, or that describe.
const OF_ITSELF: [&str; 5] = ["name", "about", "class_names", "vae_fingerprint", "base_fingerprint"];

/// A key whose values in two recipes differ; `None`: one has no such key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Difference {
    pub key: String,
    pub values: [Option<String>; 2],
}

impl Recipe {
    /// All keys that somebody chose and their values, those of tables as `unet.dropout`, in the order of the
    /// recipe.
    pub(crate) fn entries(&self) -> Vec<(String, String)> {
        let table = self.table();
        let mut all = Vec::new();
        for (key, value) in table.iter().filter(|(key, _)| !OF_ITSELF.contains(&key.as_str())) {
            match value {
                Value::Table(inner) => {
                    let path = |name| format!("{key}.{name}");
                    all.extend(inner.iter().map(|(name, value)| (path(name), said(&path(name), value))));
                }
                value => all.push((key.clone(), said(key, value))),
            }
        }
        all
    }

    /// The keys with other values than `other` has.
    pub(crate) fn differences(&self, other: &Recipe) -> Vec<Difference> {
        differences(&self.entries(), &other.entries())
    }
}

/// The keys of two recipes' entries whose values differ.
pub(crate) fn differences(mine: &[(String, String)], theirs: &[(String, String)]) -> Vec<Difference> {
    let value = |of: &[(String, String)], key: &str| {
        of.iter().find(|(known, _)| known == key).map(|(_, value)| value.clone())
    };
    let new = theirs.iter().filter(|(key, _)| value(mine, key).is_none());
    let keys = mine.iter().chain(new).map(|(key, _)| key.clone());
    let both = keys.map(|key| Difference { values: [value(mine, &key), value(theirs, &key)], key });
    both.filter(|difference| difference.values[0] != difference.values[1]).collect()
}

/// Longest value that is written out.
const LONGEST: usize = 60;

/// A value as people say it: text without quotes, a long list shortened.
fn said(path: &str, value: &Value) -> String {
    let mut text = written(path, value);
    match value {
        Value::String(plain) => text.clone_from(plain),
        Value::Float(_) => text.truncate(text.trim_end_matches(".0").len()),
        _ => {}
    }
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => format!("{}...", &text[..end]),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::Difference;
    use crate::recipe::find;

    #[test]
    fn recipes_differ_in_what_was_set() {
        let [mut mine, theirs] = [(); 2].map(|()| find("digits").unwrap());
        assert_eq!(mine.differences(&theirs), []);
        for assignment in ["lr=1e-5", "data=mnist:x", "unet.block_out_channels=[8,8]", "clip_norm=2"] {
            mine.set(assignment).unwrap();
        }
        mine.class_names = vec!["filled in".to_owned()];
        let told = |key: &str, a: &str, b: &str| Difference {
            key: key.to_owned(),
            values: [a, b].map(|value| Some(value.to_owned())),
        };
        let wanted = [
            told("data", "mnist:x", "digits"),
            told("lr", "1e-5", "0.001"),
            told("clip_norm", "2", "1"),
            told("unet.block_out_channels", "[8, 8]", "[32, 64]"),
        ];
        assert_eq!(mine.differences(&theirs), wanted);
        let vae = find("digits-vae").unwrap();
        let of_vae = mine.differences(&vae);
        let found = of_vae.iter().find(|d| d.key == "kl_weight").unwrap();
        assert!(found.values[0].is_none() && found.values[1].is_some(), "{found:?}");
    }
}
