//! `denoir diff`: what two runs were told, and what came of it.

use std::path::PathBuf;

use super::runs::{best, loss, state, steps, summary};
use super::{columns, print};
use crate::device::size;
use crate::error::Result;
use crate::names::shown_path;
use crate::run::{Record, Run, Summary};

#[derive(clap::Args)]
pub struct Arguments {
    /// A run
    a: PathBuf,
    /// Another
    b: PathBuf,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let folders = [&arguments.a, &arguments.b];
    let runs = [Run::open(folders[0])?, Run::open(folders[1])?];
    let [a, b] = [summary(folders[0])?, summary(folders[1])?];
    // An error here names what is wrong with a recipe.
    let recipes = [runs[0].recipe()?, runs[1].recipe()?];
    let of = |name: &str, of: &dyn Fn(&Summary) -> String| vec![name.to_owned(), of(&a), of(&b)];
    let mut rows = vec![
        of("run", &|run| shown_path(&run.folder)),
        of("recipe", &|run| run.recipe.as_ref().map_or("-".to_owned(), |recipe| recipe.name.clone())),
        of("steps", &steps),
        of("loss", &loss),
        of("held out", &best),
        of("size", &|run| size(run.bytes)),
        of("state", &state),
    ];
    let records = [runs[0].record()?, runs[1].record()?];
    rows.extend(data(records.each_ref().map(Option::as_ref)));
    let differences = recipes[0].differences(&recipes[1]);
    let said = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
    for difference in differences.into_iter().filter(|difference| difference.key != "steps") {
        let [a, b] = difference.values;
        rows.push(vec![difference.key, said(a), said(b)]);
    }
    print(&columns(&rows))
}

/// A row that tells whether two runs were trained on the same pictures, where that is known.
fn data(records: [Option<&Record>; 2]) -> Option<Vec<String>> {
    let [Some(a), Some(b)] = records else { return None };
    let told = |record: &Record| match record.data.pictures {
        Some(pictures) => format!("{pictures} pictures"),
        None => "pictures without end".to_owned(),
    };
    let differences = a.data.differences(&b.data);
    let other = if differences.is_empty() { "the same".to_owned() } else { differences.join(", ") };
    Some(vec!["data met".to_owned(), told(a), other])
}
