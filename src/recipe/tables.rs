//! The tables of a recipe and their keys, as they are declared.

use super::Recipe;
use crate::data::ConditionConfig;
use crate::models::Key;
use crate::models::classifier::ClassifierConfig;
use crate::models::clip::TextConfig;
use crate::models::conv_net::ConvNetConfig;
use crate::models::dit::DitConfig;
use crate::models::unet::UNetConfig;
use crate::models::vae::VaeConfig;

/// The tables of a recipe: their names, and their keys.
const TABLES: [(&str, &[Key]); 8] = [
    ("", Recipe::KEYS),
    ("condition", ConditionConfig::KEYS),
    ("unet", UNetConfig::KEYS),
    ("dit", DitConfig::KEYS),
    ("conv", ConvNetConfig::KEYS),
    ("text", TextConfig::KEYS),
    ("vae", VaeConfig::KEYS),
    ("classifier", ClassifierConfig::KEYS),
];

/// The key of this path: `lr`, or `unet.dropout`.
pub(super) fn key_of(path: &str) -> Option<&'static Key> {
    let (table, name) = path.split_once('.').unwrap_or(("", path));
    let (_, keys) = TABLES.iter().find(|(known, _)| *known == table)?;
    keys.iter().find(|key| key.name == name)
}

/// Paths of all keys, table after table.
pub(crate) fn all_keys() -> Vec<String> {
    let path = |table: &str, key: &Key| match table {
        "" => key.name.to_owned(),
        table => format!("{table}.{}", key.name),
    };
    TABLES.iter().flat_map(|(table, keys)| keys.iter().map(move |key| path(table, key))).collect()
}
