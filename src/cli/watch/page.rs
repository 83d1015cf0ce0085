//! The page: one file with its style, its script and, in a report, its data.

use serde_json::Value;

const HTML: &str = include_str!("page.html");
const STYLE: &str = include_str!("page.css");
const SCRIPTS: [&str; 2] = [include_str!("chart.js"), include_str!("page.js")];

/// The page; with `data`, which is an update of the server, it needs no server.
pub fn page(data: Option<&Value>) -> String {
    // In JSON, `<` stands in texts only. It could end the script.
    let data = data.map_or("null".to_owned(), |data| data.to_string().replace('<', "\\u003c"));
    let (before, rest) = HTML.split_once("/*STYLE*/").unwrap_or((HTML, ""));
    let (middle, rest) = rest.split_once("/*DATA*/").unwrap_or((rest, ""));
    let (last, after) = rest.split_once("/*SCRIPT*/").unwrap_or((rest, ""));
    [before, STYLE, middle, &data, last, &SCRIPTS.concat(), after].concat()
}
