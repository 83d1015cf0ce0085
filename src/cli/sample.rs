//! `denoir sample`

use std::path::PathBuf;

use super::device_args::DeviceArgs;
use super::opening::{ExtraArgs, FileArgs};
use super::output::Target;
use super::prompting::Prompting;
use super::sampling::Sampling;
use super::{any_text, bar, note, note_remarks, number, ticks};
use crate::classifier::Classifier;
use crate::data::{ConditionKind, read_picture};
use crate::error::{Error, Result, need};
use crate::models::unet::Class;
use crate::names::path_of;
use crate::recipe::{Recipe, nearest, whole};
use crate::sample::inversion;
use crate::sample::{Given, Sampler, Trained};

#[derive(clap::Args)]
pub struct Arguments {
    /// A run folder, one of its checkpoints, a folder of the diffusers library, or a file of Stable Diffusion
    run: PathBuf,
    /// How many samples [default: 64; one for each file of --condition]
    #[arg(long, value_parser = number::<usize>(1..=100_000))]
    count: Option<usize>,
    /// Of models that draw from conditions: picture files of which conditions are made (where a condition is
    /// a picture beside the image, the conditions themselves), or data, whose held-out part is taken
    /// [default: the run's data]
    #[arg(long, value_name = "FILES", num_args = 1.., conflicts_with = "noise", value_parser = any_text())]
    condition: Vec<String>,
    /// Of models that fill holes: a picture, white where the hole is [default: a hole for each sample]
    #[arg(long, value_name = "FILE", conflicts_with = "noise")]
    mask: Option<PathBuf>,
    /// Begin with the noise of a file that `denoir invert` wrote, by ddim in as many steps as it was found in
    #[arg(long, value_name = "FILE", conflicts_with_all = ["count", "rng"])]
    noise: Option<PathBuf>,
    /// The class of all samples, for models with classes, by its name or number; all in turn otherwise
    #[arg(long)]
    class: Option<String>,
    /// Lead samples to their class by a classifier of noisy images: a run of `denoir train digits-classifier`
    #[arg(long, value_name = "RUN", conflicts_with = "noise")]
    classifier: Option<PathBuf>,
    /// Factor of the classifier's gradient; 1 is Bayes' rule
    #[arg(long, value_name = "S", default_value_t = 1.0, requires = "classifier")]
    classifier_scale: f64,
    #[command(flatten)]
    file: FileArgs,
    #[command(flatten)]
    extras: ExtraArgs,
    #[command(flatten)]
    prompting: Prompting,
    #[command(flatten)]
    sampling: Sampling,
    /// A grid (FILE.png; the bare image when count is 1), or a folder for a file an image
    #[arg(long, default_value = "samples.png")]
    out: PathBuf,
    #[command(flatten)]
    device: DeviceArgs,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let device = arguments.device.open()?;
    let (unsaid, extras) = (arguments.file.unsaid(), arguments.extras.extras());
    let mut trained = Trained::open_with(&arguments.run, &unsaid, &extras, &device)?;
    note_remarks(&trained);
    let recipe = &trained.recipe().clone();
    let found = arguments.noise.as_ref().map(|path| inversion::read(path, recipe.diffused())).transpose()?;
    let mut options = arguments.sampling.options(recipe, found.as_ref().map(|(_, config)| config))?;
    let classifier = arguments.classifier.as_ref().map(|path| Classifier::open(path, &device)).transpose()?;
    // A model without classes has those of the classifier that leads it.
    let leads = |classifier: &&Classifier| recipe.class_count() == 0 && classifier.classes() > 0;
    let named = classifier.as_ref().filter(leads).map_or(recipe, Classifier::recipe);
    let class = match (&arguments.class, &found) {
        (None, Some((_, config))) => config.class,
        (said, _) => class_of(named, said.as_deref())?,
    };
    check_class(named, class)?;
    // An error appears before the work begins.
    let out = Target::new(&arguments.out)?;
    let (prompting, begins) = (&arguments.prompting, arguments.prompting.begins());
    if let Some(classifier) = &classifier {
        trained.source().guided_by(classifier, arguments.classifier_scale)?;
    }
    let texts = prompting.texts(&trained, arguments.count.unwrap_or(1))?;
    // Each part of a large model is freed when it has done its work.
    trained.free_text();
    let mut source = trained.take_source()?;
    if let Some(classifier) = &classifier {
        source = source.guided_by(classifier, arguments.classifier_scale)?;
    }
    let size = recipe.diffused().iter().product::<usize>();
    let mut count = match (&found, &texts) {
        (Some((noise, _)), _) => noise.len() / size,
        (None, Some(texts)) => texts.count(),
        (None, None) => arguments.count.unwrap_or(64),
    };
    let mask = arguments.mask.as_deref().filter(|_| begins);
    source = prompting.source(source, texts, &mut options, mask)?;
    if begins || recipe.text_width() > 0 {
        let needs = arguments.condition.is_empty() && (begins || arguments.mask.is_none());
        need(needs, "the model draws from no conditions", "leave --condition out; --mask goes with --image")?;
    } else if let Some(given) = given(arguments, recipe, &mut count)? {
        source = source.conditioned_on(given);
    }
    let of_class =
        class.map(|class| format!(" of class {}", describe_class(named, class))).unwrap_or_default();
    note(&format!("{count} samples{of_class}, {} steps, on {}", options.steps, device.describe()));
    let progress = bar(source.work(&options, count)?, "sampling {bar:30} {percent}% {eta} left");
    let mut step = ticks(&progress);
    let mut batches = 0;
    let watch = |row: usize, sampler: &Sampler| {
        batches += usize::from(row == 0);
        if prompting.save_every.is_some_and(|every| (row + 1).is_multiple_of(every)) {
            out.write_preview(&source.preview(sampler)?, source.image(), [batches, row + 1])?;
        }
        step()
    };
    let noise = found.as_ref().map(|(noise, _)| &noise[..]);
    let samples = source.sample(&options, count, noise, class, watch)?;
    source.free_weights()?;
    let images = source.shown(&options, samples)?;
    progress.finish_and_clear();
    if let Some(quality) = source.describe_quality(&images) {
        note(&quality);
    }
    out.write_samples(&source, images, count)
}

/// What samples are drawn from beside noise, and how many there are.
fn given(arguments: &Arguments, recipe: &Recipe, count: &mut usize) -> Result<Option<Given>> {
    let kind = recipe.condition.kind;
    if kind == ConditionKind::None {
        need(
            arguments.condition.is_empty() && arguments.mask.is_none(),
            "the model draws from noise alone",
            "leave --condition and --mask out",
        )?;
        return Ok(None);
    }
    need(
        arguments.mask.is_none() || kind == ConditionKind::Mask,
        "--mask: the model fills no holes",
        "leave it out",
    )?;
    let files: Vec<PathBuf> = arguments.condition.iter().map(path_of).collect();
    let given = match &arguments.condition[..] {
        [_, ..] if files.iter().all(|file| file.exists() && !file.is_dir()) => {
            *count = arguments.count.unwrap_or(files.len());
            Given::pictures(recipe, &files)?
        }
        [_, _, ..] => {
            let missing = files.iter().find(|file| !file.exists() || file.is_dir()).unwrap_or(&files[0]);
            return Err(Error::usage(format!("{} is no picture", missing.display()))
                .hint("give picture files, or one data SPEC"));
        }
        spec => Given::held_out(recipe, spec.first().map(String::as_str), *count)?,
    };
    let Some(mask) = &arguments.mask else { return Ok(Some(given)) };
    let crop = (recipe.crop > 0).then_some(recipe.crop);
    let mask = read_picture(mask, recipe.image_size, 1, crop, recipe.resize)?;
    Ok(Some(given.with_holes(recipe, &mask)))
}

/// The number of the class that `--class` says, by number or by one of the names that training recorded.
pub fn class_of(recipe: &Recipe, said: Option<&str>) -> Result<Option<u32>> {
    let Some(said) = said else { return Ok(None) };
    let names = &recipe.class_names;
    let of_name = |name: &str| names.iter().position(|known| known == name).map(|place| place as u32);
    let of_number = |number: &str| whole(number).ok().and_then(|number| u32::try_from(number).ok());
    let is_class = |number: u32| (number as usize) < recipe.class_count();
    let (number, named) = match said.split_once(':') {
        Some(("number", number)) if of_name(said).is_none() => (of_number(number), None),
        Some(("name", name)) if of_name(said).is_none() => (None, of_name(name)),
        _ => (of_number(said), of_name(said)),
    };
    match (number, named) {
        (Some(number), Some(named)) if number != named && is_class(number) => Err(Error::usage(format!(
            "--class {said} is the name of class {named} and the number of class {}",
            describe_class(recipe, number)
        ))
        .hint(format!("write --class name:{said} or --class number:{said}"))),
        (_, Some(class)) | (Some(class), None) => Ok(Some(class)),
        (None, None) => {
            Err(Error::usage(format!("--class {said}: no class is called so")).hint(known(recipe, said)))
        }
    }
}

/// What can be said instead of a class that is not known.
fn known(recipe: &Recipe, said: &str) -> String {
    const MOST: usize = 20;
    let names = &recipe.class_names;
    let has_none = recipe.class_count() == 0 && recipe.class() == Class::None;
    match (has_none, names.len()) {
        (true, _) => "this model has no classes".to_owned(),
        (_, 0) => "the names of its classes are not known here: give a number".to_owned(),
        (_, all) => {
            let near = nearest(said, names.iter().map(String::as_str));
            let near = near.map(|near| format!("did you mean {near}? ")).unwrap_or_default();
            let more = if all > MOST { format!(" and {} more", all - MOST) } else { String::new() };
            format!("{near}the classes are {}{more}", names[..all.min(MOST)].join(", "))
        }
    }
}

/// A class's number, and its name where that is another.
fn describe_class(recipe: &Recipe, class: u32) -> String {
    match recipe.class_names.get(class as usize) {
        Some(name) if *name != class.to_string() => format!("{class} ({name})"),
        _ => class.to_string(),
    }
}

/// Checks that the model has such a class.
pub fn check_class(recipe: &Recipe, class: Option<u32>) -> Result<()> {
    let bad = |class, hint: String| Err(Error::usage(format!("--class {class}")).hint(hint));
    match (recipe.class_count(), class) {
        (1.., Some(class)) if class as usize >= recipe.class_count() => {
            bad(class, format!("it must be below {}", recipe.class_count()))
        }
        (0, Some(class)) if recipe.class() == Class::None => {
            bad(class, "this model has no classes".to_owned())
        }
        _ => Ok(()),
    }
}
