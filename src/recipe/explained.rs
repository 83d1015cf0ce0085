//! What each key of a recipe is: its kind, default, range and meaning, and the recipes that have it.

use toml::{Table, Value};

use super::tables::key_of;
use super::written::written;
use super::{Recipe, System, built_in};

/// What a key is.
pub(crate) struct Explained {
    pub path: String,
    /// What it means.
    pub about: String,
    /// What it may be: `a number between 0.0 and 1000.0`.
    pub values: String,
    /// Its value where a recipe does not say; `None` for a table.
    pub default: Option<String>,
    /// The systems that have it, and where not all of their recipes do, one that does: `ldm (shapes-text)`.
    pub systems: String,
}

/// Explains the key of this path; `None`: there is none.
pub(crate) fn explain(path: &str) -> Option<Explained> {
    let key = key_of(path)?;
    let default = Table::try_from(Recipe::default()).unwrap_or_default();
    let value = value_at(&default, path);
    let default = value.filter(|value| !value.is_table()).map(|value| written(path, value));
    let range = Recipe::default().range_of(path);
    let kind = match key.kind {
        "bool" => "true or false",
        "usize" | "u64" | "u32" => "a whole number",
        "f64" | "f32" => "a number",
        "String" => "text",
        "Vec<usize>" | "Vec<u32>" => "a list of whole numbers",
        "Vec<String>" => "a list of texts",
        kind if kind.starts_with("Levels") => "one value for all levels, or a list with one for each",
        _ if default.is_none() => "a table",
        _ => "",
    };
    let values = match (kind, range) {
        ("", _) if key.kind.starts_with("Vec<") => format!("a list of {}", choices(path, true)),
        ("", _) => choices(path, false),
        (kind, Some(range)) if kind.contains(" each") => format!("{kind}, {range}"),
        (kind, Some(range)) => format!("{kind} {range}"),
        (kind, None) => kind.to_owned(),
    };
    let about = key.about.split_whitespace().collect::<Vec<_>>().join(" ");
    Some(Explained { path: path.to_owned(), about, values, default, systems: systems(path) })
}

fn value_at<'a>(table: &'a Table, path: &str) -> Option<&'a Value> {
    let mut parts = path.split('.');
    let first = table.get(parts.next()?);
    parts.try_fold(first?, |value, part| value.get(part))
}

/// The values of a choice, or of a list of them, as the reader itself names them.
fn choices(path: &str, listed: bool) -> String {
    let mut table = Table::try_from(Recipe::default()).unwrap_or_default();
    let (outer, inner) = path.split_once('.').map_or((path, None), |(outer, inner)| (outer, Some(inner)));
    let wrong = Value::String("?".to_owned());
    let wrong = if listed { Value::Array(vec![wrong]) } else { wrong };
    match (inner, table.get_mut(outer)) {
        (Some(inner), Some(Value::Table(of))) => _ = of.insert(inner.to_owned(), wrong),
        _ => _ = table.insert(outer.to_owned(), wrong),
    }
    let refused = table.try_into::<Recipe>().err().map(|e| e.message().to_owned()).unwrap_or_default();
    // The empty name of a choice is a value too.
    let named =
        refused.split_once("expected ").map(|(_, named)| named.replace("``", "\"\"").replace('`', ""));
    named.map(|named| named.trim_start_matches("one of ").to_owned()).unwrap_or_default()
}

fn systems(path: &str) -> String {
    let key = path.split('.').next().unwrap_or_default();
    let all = built_in();
    let of = |system: System| {
        let (with, without): (Vec<&Recipe>, Vec<&Recipe>) =
            all.iter().filter(|recipe| recipe.system == system).partition(|recipe| recipe.has(key));
        let example = with.first()?;
        let name = system.name();
        Some(if without.is_empty() { name.to_owned() } else { format!("{name} ({})", example.name) })
    };
    let systems = [System::Ddpm, System::Ldm, System::Vae, System::Classifier].into_iter().filter_map(of);
    systems.collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::super::tables::all_keys;
    use super::*;

    #[test]
    fn keys_are_explained() {
        let all = all_keys();
        assert!(all.len() > 150, "{}", all.len());
        for path in &all {
            let Explained { about, values, systems, .. } = explain(path).unwrap();
            assert!(!about.is_empty() && !systems.is_empty(), "{path}: {about:?}, {systems:?}");
            // Lists of betas, schedules of pictures and the like say it in their meaning.
            assert!(
                !values.is_empty() || ["beta_schedule", "sample_every"].contains(&path.as_str()),
                "{path}"
            );
        }
        let told = |path: &str| {
            let Explained { values, default, systems, .. } = explain(path).unwrap();
            (values, default.unwrap_or_default(), systems)
        };
        let text = |a: &str, b: &str, c: &str| (a.to_owned(), b.to_owned(), c.to_owned());
        let everywhere = "ddpm, ldm, vae, classifier";
        assert_eq!(told("lr"), text("a number between 0.0 and 1000.0", "0.0001", everywhere));
        assert_eq!(told("optimizer"), text("adam or adamw", "\"adam\"", everywhere));
        assert_eq!(told("vae.norm_eps"), text("a number above 0", "1e-5", "vae"));
        assert!(told("unet.down_block_types").0.starts_with("a list of DownBlock2D, "));
        assert!(told("unet.class_embed_type").0.starts_with("\"\", timestep, "));
        assert_eq!(told("dit.num_layers").0, "a whole number from 1 to 1024");
        let layers = "one value for all levels, or a list with one for each, from 1 to 64";
        assert_eq!(told("unet.layers_per_block").0, layers);
        assert_eq!(told("codebook_decay").2, "vae (digits-vq)");
        assert!(explain("lrr").is_none() && explain("vae.lr").is_none());
    }
}
