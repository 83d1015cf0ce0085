//! `denoir data`

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::images::read_all;
use super::output::{Target, denied};
use super::{any, any_text, bar, named, note, note_warnings, number, print};
use crate::data::picture::{enlarge, grid, picture};
use crate::data::{Captions, Dataset, Options, Resize, Split, choice, open, statistics};
use crate::error::{Error, Result, one_line};
use crate::figures::with_captions;
use crate::run::save_png;

#[derive(clap::Args)]
pub struct Arguments {
    /// digits, faces, shapes, mnist:DIR, cifar10:DIR, images:DIR, parquet:FILE, parquet:DIR, pairs:A,B or
    /// maps:A,B
    #[arg(value_parser = any_text())]
    spec: String,
    /// How many images to look at: a random choice over all of the data
    #[arg(long, default_value_t = 100, value_parser = number::<u64>(1..=1_000_000))]
    count: u64,
    /// Where to write them: a contact sheet (PATH.png), with captions if there are any, or a folder
    #[arg(long)]
    out: Option<PathBuf>,
    /// Side of the images in pixels
    #[arg(long, default_value_t = 32, value_parser = any::<usize>)]
    image_size: usize,
    /// 1 for grey, 3 for colour; the data's own otherwise
    #[arg(long)]
    channels: Option<usize>,
    /// Side of the centred square taken from each picture of images:DIR
    #[arg(long)]
    crop: Option<usize>,
    /// How pictures are brought to that size: bicubic (the centred square), or bilinear or lanczos
    /// (torchvision's Resize and CenterCrop)
    #[arg(long, default_value = "bicubic", value_parser = named::<Resize>)]
    resize: Resize,
    /// Of generated data, and of the choice
    #[arg(long, default_value_t = 0, value_parser = any::<u64>)]
    seed: u64,
    /// Look at the held-out part
    #[arg(long)]
    held_out: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let options = Options {
        image_size: arguments.image_size,
        channels: arguments.channels,
        crop: arguments.crop,
        resize: arguments.resize,
        seed: arguments.seed,
        split: if arguments.held_out { Split::HeldOut } else { Split::Train },
    };
    let dataset = open(&arguments.spec, &options)?;
    let chosen = choice(&*dataset, arguments.count, arguments.seed);
    let target = arguments.out.as_deref().map(Target::new).transpose()?;
    print(&describe(arguments, &*dataset, &chosen)?)?;
    let captions = match dataset.captions() {
        Ok(captions) => captions,
        // They are asked for where a model is trained with them; the pictures can be looked at.
        Err(error) => {
            note(&format!("warning: the captions cannot be used: {error}"));
            None
        }
    };
    if let Some(captions) = &captions {
        print(&describe_captions(captions, &chosen))?;
    }
    if let Some(Target { out, is_picture }) = target {
        let write = if is_picture { sheet } else { folder };
        write(&*dataset, captions.as_ref(), &chosen, &out)?;
    }
    if dataset.skipped() > 0 {
        note(&format!("unreadable pictures: {} (others stood in for them)", dataset.skipped()));
    }
    note_warnings(&*dataset);
    Ok(())
}

fn describe(arguments: &Arguments, dataset: &dyn Dataset, chosen: &[u64]) -> Result<String> {
    let [h, w, c] = dataset.shape();
    let statistics = statistics(dataset, chosen)?;
    let (spec, count) = (one_line(&arguments.spec), chosen.len());
    let mut text = String::new();
    let size = dataset.len().map_or("endless".to_owned(), |n| format!("{n} images"));
    let _ = writeln!(text, "{spec}: {size}, {h}x{w}, {c} channel{}", if c == 1 { "" } else { "s" });
    let over = match dataset.len() {
        None => format!("the first {count}"),
        Some(len) if len == count as u64 => format!("all {count}"),
        Some(_) => format!("{count} of them, chosen with seed {}", arguments.seed),
    };
    let _ = writeln!(text, "over {over}, in [-1, 1]:");
    for channel in 0..c {
        let [mean, std] = [&statistics.mean, &statistics.std].map(|of| of[channel]);
        let [min, max] = [&statistics.min, &statistics.max].map(|of| of[channel]);
        let _ = writeln!(
            text,
            "  channel {channel}  mean {mean:+.3}  deviation {std:.3}  from {min:+.3} to {max:+.3}"
        );
    }
    if !dataset.classes().is_empty() {
        let all = dataset.labels().map_or(count, |labels| labels.len());
        let _ =
            writeln!(text, "classes of {}:", if dataset.len().is_some() { all.to_string() } else { over });
    }
    for (name, n) in dataset.classes().iter().zip(&statistics.histogram) {
        let _ = writeln!(text, "  {n:6}  {}", one_line(name));
    }
    Ok(text)
}

/// How many captions there are, how long they are, and some of them.
fn describe_captions(captions: &Captions, chosen: &[u64]) -> String {
    const SHOWN: usize = 5;
    let lengths = || captions.iter().flatten().map(|caption| caption.chars().count());
    let (count, images) = (lengths().count(), captions.iter().count());
    let [least, most] = [lengths().min(), lengths().max()].map(Option::unwrap_or_default);
    let mut text = match images {
        0 => "captions without end:\n".to_owned(),
        _ => format!("{count} captions of {images} images, of {least} to {most} characters:\n"),
    };
    for &index in chosen.iter().take(SHOWN) {
        for caption in captions.of(index).iter().take(SHOWN) {
            let cut = caption.chars().count() > 100;
            let start: String = caption.chars().take(100).collect();
            let _ = writeln!(text, "  {index:6}  {}{}", one_line(&start), if cut { "..." } else { "" });
        }
    }
    text
}

fn sheet(dataset: &dyn Dataset, captions: Option<&Captions>, chosen: &[u64], out: &Path) -> Result<()> {
    // Pictures with captions are larger.
    let count = chosen.len().min(if captions.is_some() { 1_000 } else { 10_000 });
    let shape = dataset.shape();
    let pixels: usize = shape.iter().product();
    crate::device::Device::open("cpu")?.check_memory((count * pixels * 8) as u64)?;
    let (images, _) = read_all(dataset, chosen[..count].iter().copied())?;
    let columns = (count as f64).sqrt().ceil() as usize;
    let Some(captions) = captions else {
        save_png(out, &enlarge(grid(&images, count, shape, columns, 2), shape[0]))?;
        return print(&format!("contact sheet: {}\n", out.display()));
    };
    let captions: Vec<_> = chosen[..count].iter().map(|&index| captions.of(index)).collect();
    let captions: Vec<&[String]> = captions.iter().map(|of| &of[..]).collect();
    save_png(out, &with_captions(&images, &captions, shape, columns))?;
    print(&format!("sheet of {count} images with captions: {}\n", out.display()))
}

/// One file an image, called by its number in the data, in a folder for each class where there are classes,
/// so that `images:DIR` reads it back, with captions where there are any; and a table.
fn folder(dataset: &dyn Dataset, captions: Option<&Captions>, chosen: &[u64], out: &Path) -> Result<()> {
    let shape = dataset.shape();
    let mut image = vec![0.0; shape.iter().product()];
    let mut table = csv::Writer::from_writer(Vec::new());
    table.write_record(["file", "label", "class", "description"]).map_err(failed)?;
    let mut metadata = String::new();
    let (classes, folders) = (dataset.classes(), plain(dataset.classes()));
    let bar = bar(chosen.len() as u64, "writing {bar:30} {pos}/{len}");
    for &index in chosen {
        let label = dataset.read(index, &mut image)? as usize;
        let class = classes.get(label).map_or("", String::as_str);
        let name = format!("{index:06}.png");
        let file = folders.get(label).map_or(name.clone(), |folder| format!("{folder}/{name}"));
        let path = out.join(&file);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(denied(out))?;
        }
        save_png(&path, &picture(&image, shape))?;
        let (label, words) = (label.to_string(), dataset.describe(index));
        table.write_record([file.as_str(), &label, class, &words]).map_err(failed)?;
        if let Some(captions) = captions {
            let line = serde_json::json!({"file_name": file, "text": captions.of(index)});
            let _ = writeln!(metadata, "{line}");
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    let table = table.into_inner().map_err(|e| failed(e.error()))?;
    let write = |name: &str, bytes: &[u8]| {
        crate::checkpoint::write_whole(&out.join(name), |file| std::io::Write::write_all(file, bytes))
    };
    write("labels.csv", &table)?;
    if captions.is_some() {
        write("metadata.jsonl", metadata.as_bytes())?;
    }
    print(&format!("{} images: {}\n", chosen.len(), out.display()))
}

fn failed(cause: impl std::fmt::Display) -> Error {
    Error::new("cannot make labels.csv").caused_by(cause)
}

/// Names of folders for classes, another one for each class.
fn plain(classes: &[String]) -> Vec<String> {
    let mut folders: Vec<String> = Vec::new();
    for class in classes {
        let plain = class.chars().map(|c| if c.is_alphanumeric() || "-_ ".contains(c) { c } else { '_' });
        let plain: String = plain.collect();
        let numbered = (2..).map(|n| format!("{plain}-{n}"));
        let free = std::iter::once(plain.clone()).chain(numbered).find(|name| !folders.contains(name));
        folders.extend(free);
    }
    folders
}
