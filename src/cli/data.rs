//! `denoir data`

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use super::images::read;
use super::output::{Target, denied};
use super::{any, bar, named, note, note_warnings, number, print};
use crate::data::picture::{enlarge, grid};
use crate::data::{Dataset, Options, Resize, Split, open, statistics};
use crate::error::Result;
use crate::run::save_png;

#[derive(clap::Args)]
pub struct Arguments {
    /// digits, faces, mnist:DIR, cifar10:DIR or images:DIR
    spec: String,
    /// How many samples to look at
    #[arg(long, default_value_t = 100, value_parser = number::<u64>(1..=1_000_000))]
    count: u64,
    /// Where to write them: a contact sheet (PATH.png) or a folder
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
    /// How pictures are brought to that size: bicubic (the centred square), or bilinear (torchvision's Resize
    /// and CenterCrop)
    #[arg(long, default_value = "bicubic", value_parser = named::<Resize>)]
    resize: Resize,
    /// Of generated data
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
    let count = dataset.len().map_or(arguments.count, |len| len.min(arguments.count));
    let target = arguments.out.as_deref().map(Target::new).transpose()?;
    print(&describe(&arguments.spec, &*dataset, count)?)?;
    if let Some(Target { out, is_picture }) = target {
        let write = if is_picture { sheet } else { folder };
        write(&*dataset, count, &out)?;
    }
    if dataset.skipped() > 0 {
        note(&format!("unreadable pictures: {} (others stood in for them)", dataset.skipped()));
    }
    note_warnings(&*dataset);
    Ok(())
}

fn describe(spec: &str, dataset: &dyn Dataset, count: u64) -> Result<String> {
    let [h, w, c] = dataset.shape();
    let statistics = statistics(dataset, count)?;
    let mut text = String::new();
    let size = dataset.len().map_or("endless".to_owned(), |n| format!("{n} images"));
    let _ = writeln!(text, "{spec}: {size}, {h}x{w}, {c} channel{}", if c == 1 { "" } else { "s" });
    let _ = writeln!(text, "over the first {count}, in [-1, 1]:");
    for channel in 0..c {
        let [mean, std] = [&statistics.mean, &statistics.std].map(|of| of[channel]);
        let [min, max] = [&statistics.min, &statistics.max].map(|of| of[channel]);
        let _ = writeln!(
            text,
            "  channel {channel}  mean {mean:+.3}  deviation {std:.3}  from {min:+.3} to {max:+.3}"
        );
    }
    for (name, n) in dataset.classes().iter().zip(&statistics.histogram) {
        let _ = writeln!(text, "  {n:6}  {name}");
    }
    Ok(text)
}

fn sheet(dataset: &dyn Dataset, count: u64, out: &Path) -> Result<()> {
    let count = count.min(10_000) as usize;
    let shape = dataset.shape();
    let pixels: usize = shape.iter().product();
    crate::device::Device::open("cpu")?.check_memory((count * pixels * 8) as u64)?;
    let (images, _) = read(dataset, 0, count)?;
    let columns = (count as f64).sqrt().ceil() as usize;
    save_png(out, &enlarge(grid(&images, count, shape, columns, 2), shape[0]))?;
    print(&format!("contact sheet: {}\n", out.display()))
}

/// One file an image, in a folder for each class where there are classes, so that `images:DIR` reads it
/// back; and a table.
fn folder(dataset: &dyn Dataset, count: u64, out: &Path) -> Result<()> {
    let shape = dataset.shape();
    let mut image = vec![0.0; shape.iter().product()];
    let mut table = "file,label,class,description\n".to_owned();
    let bar = bar(count, "writing {bar:30} {pos}/{len}");
    for index in 0..count {
        let label = dataset.read(index, &mut image)?;
        let class = dataset.classes().get(label as usize).cloned().unwrap_or_default();
        let name = format!("{index:06}.png");
        let file = if class.is_empty() { name } else { format!("{}/{name}", plain(&class)) };
        let path = out.join(&file);
        if let Some(parent) = path.parent() {
            std::fs::create_dir_all(parent).map_err(denied(out))?;
        }
        save_png(&path, &grid(&image, 1, shape, 1, 0))?;
        let quoted = dataset.describe(index).replace('"', "\"\"");
        let _ = writeln!(table, "{file},{label},\"{class}\",\"{quoted}\"");
        bar.inc(1);
    }
    bar.finish_and_clear();
    crate::checkpoint::write_whole(&out.join("labels.csv"), |file| {
        std::io::Write::write_all(file, table.as_bytes())
    })?;
    print(&format!("{count} images: {}\n", out.display()))
}

/// A class name as a folder's name.
fn plain(class: &str) -> String {
    class.chars().map(|c| if c.is_alphanumeric() || "-_ ".contains(c) { c } else { '_' }).collect()
}
