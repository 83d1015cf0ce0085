//! `denoir report`: the live page as one file, with its numbers and pictures.

use std::io::Write;
use std::path::PathBuf;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::output::{check_folder_of, extension};
use super::watch::Feeds;
use super::watch::page::page;
use super::{note, print};
use crate::checkpoint::write_whole;
use crate::error::{Error, Result};
use crate::files;

#[derive(clap::Args)]
pub struct Arguments {
    /// Runs, or folders with runs below them
    #[arg(required = true, value_name = "RUN_OR_FOLDER")]
    runs: Vec<PathBuf>,
    /// The file
    #[arg(long, default_value = "report.html")]
    out: PathBuf,
}

/// Most grids of a run in a report; of more, some are left out evenly.
const MOST_PICTURES: usize = 100;
/// Largest picture.
const MOST_BYTES: u64 = 16 << 20;

pub fn run(arguments: &Arguments) -> Result<()> {
    let out = &arguments.out;
    if !["html", "htm"].contains(&extension(out).as_str()) || out.is_dir() {
        return Err(Error::usage(format!("--out {}", out.display()))
            .hint("a report is a web page: name a file such as report.html"));
    }
    check_folder_of(out)?;
    let mut feeds = Feeds::open(&arguments.runs)?;
    let Some(mut update) = feeds.update(None) else {
        return Err(Error::new("there is nothing to report"));
    };
    for told in &mut update.runs {
        let Some(pictures) = &mut told.pictures else { continue };
        let count = pictures.len();
        let every = count.div_ceil(MOST_PICTURES).max(1);
        let mut number = 0;
        // The last grid is the one that people look at.
        pictures.retain(|picture| {
            number += 1;
            picture.step.is_none() || (count - number).is_multiple_of(every)
        });
        if pictures.len() < count {
            note(&format!("note: {} of {count} pictures of a run are in the report", pictures.len()));
        }
        for picture in pictures {
            let png = files::read(&picture.path, MOST_BYTES).map_err(|e| {
                Error::new(format!("cannot read {}", picture.path.display()))
                    .hint("check its permissions")
                    .caused_by(e)
            })?;
            picture.url = format!("data:image/png;base64,{}", STANDARD.encode(png));
        }
    }
    let data = serde_json::to_value(&update).map_err(|e| Error::new("cannot write JSON").caused_by(e))?;
    write_whole(out, |file| file.write_all(page(Some(&data)).as_bytes()))?;
    print(&format!("{}\n", out.display()))
}
