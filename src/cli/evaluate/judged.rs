//! Models of texts that draw shapes, judged by what their pictures show.

use std::fmt::Write;

use serde::Serialize;

use super::Arguments;
use crate::cli::{bar, note_remarks, print_report, ticks};
use crate::data::shapes::{Caption, prompts};
use crate::device::Device;
use crate::error::{Error, Result, need};
use crate::quality::{Verdict, judge_shapes};
use crate::sample::Trained;

/// How many of 1 show what their prompt says.
#[derive(Clone, Copy, Default, Serialize)]
struct Shares {
    prompts: usize,
    colours: f64,
    arrangement: f64,
    kinds: f64,
    sizes: f64,
}

impl Shares {
    fn of(verdicts: &[&Verdict]) -> Shares {
        let count = verdicts.len();
        let share = |of: fn(&Verdict) -> bool| {
            verdicts.iter().filter(|verdict| of(verdict)).count() as f64 / count.max(1) as f64
        };
        Shares {
            prompts: count,
            colours: share(|v| v.colours),
            arrangement: share(|v| v.arrangement),
            kinds: share(|v| v.kinds),
            sizes: share(|v| v.sizes),
        }
    }
}

#[derive(Serialize)]
struct Row {
    name: String,
    all: Shares,
    /// Of pairs of shapes that training has never shown.
    held_out: Shares,
}

/// Draws a picture of each of `--count` prompts, half of them of pairs that are held out of training, and
/// looks at what it shows.
pub(super) fn judge(arguments: &Arguments, device: &Device) -> Result<()> {
    need(
        arguments.data.is_none() && arguments.neighbours.is_none(),
        "--data and --neighbours go with --classifier",
        "give one, or leave them out: models of texts are judged by their prompts",
    )?;
    let mut rows = Vec::new();
    for path in &arguments.runs {
        let trained = Trained::open(path, device)?;
        note_remarks(&trained);
        let Some(text) = trained.text() else {
            return Err(Error::usage(format!("{} sees no texts", path.display()))
                .hint("give --classifier, a run of `denoir train digits-classifier` for example"));
        };
        let prompts = prompts(arguments.count, 0);
        let captions = prompts.iter().map(|prompt| prompt.parse::<Caption>()).collect::<Result<Vec<_>>>()?;
        let mut options = arguments.sampling.options(trained.recipe(), None)?;
        options.guidance.scale = options.guidance.scale.max(1.0);
        let told = text.texts(&prompts, &[String::new()], 1, 0)?;
        let source = trained.source().told(told.texts);
        let progress = bar(source.work(&options, prompts.len())?, "sampling {bar:30} {percent}% {eta} left");
        let images = source.draw(&options, prompts.len(), None, ticks(&progress))?;
        progress.finish_and_clear();
        let [h, w, c] = source.image();
        if c != 3 {
            return Err(Error::usage(format!("{} draws grey pictures", path.display()))
                .hint("the judge looks for coloured shapes, such as `denoir train shapes-text` draws"));
        }
        let pictures = images.chunks_exact(h * w * c).zip(&captions);
        let verdicts: Vec<(Verdict, bool)> = pictures
            .map(|(picture, caption)| (judge_shapes(picture, [h, w], caption), caption.is_held_out()))
            .collect();
        let of = |keep: &dyn Fn(bool) -> bool| -> Vec<&Verdict> {
            verdicts.iter().filter(|(_, held_out)| keep(*held_out)).map(|(verdict, _)| verdict).collect()
        };
        let name = path.display().to_string();
        rows.push(Row { name, all: Shares::of(&of(&|_| true)), held_out: Shares::of(&of(&|held| held)) });
    }
    print_report(&rows, arguments.json, |rows| describe(rows))
}

fn describe(rows: &[Row]) -> String {
    let mut text = "pictures that show what their prompt says, of 100:\n".to_owned();
    let _ = writeln!(text, "{:40} prompts  colours  arrangement  kinds  sizes", "");
    for Row { name, all, held_out } in rows {
        for (of, shares) in [("", all), (", pairs never shown", held_out)] {
            let Shares { prompts, colours, arrangement, kinds, sizes } = shares;
            let [c, a, k, s] = [colours, arrangement, kinds, sizes].map(|share| 100.0 * share);
            let _ = writeln!(
                text,
                "{:40} {prompts:7}  {c:7.1}  {a:11.1}  {k:5.1}  {s:5.1}",
                format!("{name}{of}")
            );
        }
    }
    text
}
