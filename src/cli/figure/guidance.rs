//! The figure of guidance: what each class looks like at each scale.

use image::RgbImage;

use super::Arguments;
use crate::classifier::Classifier;
use crate::cli::{bar, note, note_remarks, ticks};
use crate::error::{Error, Result};
use crate::figures;
use crate::sample::Trained;
use crate::text_model::TextModel;

/// Scales without `--scale`, of both kinds of guidance.
const SCALES: [f64; 6] = [0.0, 1.0, 1.5, 2.0, 3.0, 5.0];
const CLASSIFIER_SCALES: [f64; 6] = [0.0, 0.5, 1.0, 2.0, 4.0, 8.0];
const TEXT_SCALES: [f64; 5] = [0.0, 1.0, 2.0, 3.0, 5.0];

/// Most rows without `--count`.
const MOST_ROWS: usize = 16;

/// Rows of prompts, columns of scales.
fn of_texts(arguments: &Arguments, trained: &Trained, text: &TextModel) -> Result<RgbImage> {
    let scales = if arguments.scale.is_empty() { &TEXT_SCALES[..] } else { &arguments.scale };
    let prompts = &arguments.prompt;
    if prompts.is_empty() {
        return Err(Error::usage("the model draws what a text says").hint("give --prompt, once for each row"));
    }
    if arguments.count.is_some() || arguments.classifier.is_some() {
        return Err(Error::usage("--count and --classifier go with models of classes")
            .hint("here rows are those of --prompt: leave them out"));
    }
    let options = arguments.options(trained.recipe())?;
    arguments.check_size(prompts.len() * scales.len(), trained.source().image()[0])?;
    let texts = text.texts(prompts, &[String::new()], 1, 0)?.texts;
    let progress = bar(0, "{spinner} step {pos} {elapsed}");
    let mut step = ticks(&progress);
    let columns = scales.iter().map(|&scale| {
        let (source, mut options) = (trained.source().told(texts.clone()), options.clone());
        options.guidance.scale = scale;
        source.draw(&options, prompts.len(), None, &mut step)
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    progress.finish_and_clear();
    let image = trained.source().image();
    Ok(figures::guidance(&columns, image, ("prompt", prompts.clone()), scales).draw(arguments.size))
}

/// Rows of classes, columns of scales.
pub fn guidance(arguments: &Arguments) -> Result<RgbImage> {
    let device = arguments.device.open()?;
    let trained = Trained::open(&arguments.run, &device)?;
    note_remarks(&trained);
    let recipe = trained.recipe();
    let classifier = arguments.classifier.as_ref().map(|path| Classifier::open(path, &device)).transpose()?;
    let usual = if classifier.is_some() { CLASSIFIER_SCALES } else { SCALES };
    let scales = if arguments.scale.is_empty() { &usual[..] } else { &arguments.scale };
    if let Some(scale) = scales.iter().find(|scale| !(0.0..=1e3).contains(*scale)) {
        return Err(Error::usage(format!("--scale {scale}")).hint("it must be from 0 to 1000"));
    }
    if recipe.condition.is_some() {
        return Err(Error::usage(format!("{} draws from conditions", arguments.run.display()))
            .hint("draw with `denoir sample RUN --guidance S`"));
    }
    if let Some(text) = trained.text() {
        return of_texts(arguments, &trained, text);
    }
    let unguided = classifier.is_none() && recipe.null_class().is_none();
    if unguided {
        return Err(Error::usage(format!("{} was not trained for guidance", arguments.run.display()))
            .hint("give a run that was trained with label_dropout, or lead it with --classifier RUN"));
    }
    let leads = classifier.as_ref().filter(|_| recipe.class_count() == 0);
    let (classes, names) = match leads {
        Some(classifier) => (classifier.classes(), &classifier.recipe().class_names),
        None => (recipe.class_count(), &recipe.class_names),
    };
    let rows = arguments.count.map_or(classes.min(MOST_ROWS), |count| count.min(classes));
    if rows < classes {
        note(&format!("note: the first {rows} of {classes} classes (--count says how many)"));
    }
    let options = arguments.options(recipe)?;
    arguments.check_size(rows * scales.len(), trained.source().image()[0])?;
    let progress = bar(0, "{spinner} step {pos} {elapsed}");
    let mut step = ticks(&progress);
    let columns = scales.iter().map(|&scale| {
        let (mut source, mut options) = (trained.source(), options.clone());
        match &classifier {
            Some(classifier) => {
                source = source.guided_by(classifier, scale)?;
                options.guidance.scale = 1.0;
            }
            None => options.guidance.scale = scale,
        }
        source.draw(&options, rows, None, &mut step)
    });
    let columns = columns.collect::<Result<Vec<_>>>()?;
    progress.finish_and_clear();
    let named = (0..rows).map(|i| names.get(i).map_or_else(|| i.to_string(), Clone::clone)).collect();
    let image = trained.source().image();
    Ok(figures::guidance(&columns, image, ("class", named), scales).draw(arguments.size))
}
