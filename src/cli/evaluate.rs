//! `denoir evaluate`

mod judged;

use std::path::PathBuf;
use std::time::Instant;

use serde::Serialize;

use super::device_args::DeviceArgs;
use super::images::read_all;
use super::output::check_folder_of;
use super::sampling::Sampling;
use super::{any_text, bar, note, note_remarks, note_warnings, number, print_report, ticks};
use crate::classifier::{Classified, Classifier};
use crate::data::{Dataset, Options as DataOptions, Split, choice, numbered, open, open_for_evaluation};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::figures::{Drawing, Sheet};
use crate::philox::{Stream, fill_normal};
use crate::quality::{
    Confusion, Features, KernelDistance, Manifold, Neighbour, frechet, kernel_distance, manifold,
    memorisation,
};
use crate::run::save_png;
use crate::sample::Trained;

/// Neighbours of a point that make its ball (Kynkäänniemi et al. 2019, arXiv:1904.06991).
const NEIGHBOURS: usize = 3;
/// Of the kernel distance: subsets, and images of each.
const SUBSETS: u32 = 100;
const SUBSET: usize = 1000;
/// Probability of its class from which a sample counts as clear.
const CLEAR: f32 = 0.9;
/// Bytes of the training images in which copies are looked for, as f64.
const MOST_PIXELS: u64 = 256 << 20;
/// Pairs of the picture of neighbours.
const PAIRS: usize = 32;

#[derive(clap::Args)]
pub struct Arguments {
    /// Run folders, checkpoints, or folders of the diffusers library
    #[arg(required = true)]
    runs: Vec<PathBuf>,
    /// A classifier of the same images, as `denoir train digits-classifier` makes one: distances are measured
    /// in its last hidden layer, and hold for this classifier only. Without one, runs of `shapes-text` are
    /// judged by the shapes in their pictures
    #[arg(long, value_name = "RUN")]
    classifier: Option<PathBuf>,
    /// Images to compare with: digits, faces, shapes, mnist:DIR, cifar10:DIR or images:DIR [default: the
    /// classifier's]
    #[arg(long, value_parser = any_text())]
    data: Option<String>,
    /// How many samples of each run, and how many images
    #[arg(long, default_value_t = 1000, value_parser = number::<usize>(10..=100_000))]
    count: usize,
    #[command(flatten)]
    sampling: Sampling,
    /// A picture of the samples that are nearest to a training image, each beside it; of the first run
    #[arg(long, value_name = "FILE.png")]
    neighbours: Option<PathBuf>,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: DeviceArgs,
}

/// A set of images against the held-out ones.
#[derive(Serialize)]
struct Row {
    name: String,
    frechet: f64,
    kernel: KernelDistance,
    manifold: Manifold,
    /// How many samples, of 1, the classifier thinks are of the class that they were drawn for, or held-out
    /// images of the class that they have; none without classes.
    #[serde(skip_serializing_if = "Option::is_none")]
    accuracy: Option<f64>,
    /// `[class][class that the classifier finds]`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    confusion: Vec<Vec<usize>>,
    /// How many of 1 the classifier is sure of, by at least 0.9.
    clear: f64,
    /// How near they are to training images, against held-out ones: above 3, images were copied.
    #[serde(skip_serializing_if = "Option::is_none")]
    copies_z: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    images_per_s: Option<f64>,
}

#[derive(Serialize)]
struct Report {
    classifier: String,
    data: String,
    /// Whether training leaves out the images that samples are compared with.
    held_out: bool,
    images: usize,
    /// Training images in which copies were looked for.
    searched: u64,
    features: usize,
    rows: Vec<Row>,
}

/// The images that runs are compared with, as the classifier sees them.
struct Reference {
    held_out: Features,
    pixels: Features,
    /// Training images in which copies are looked for.
    searched_pixels: Features,
    searched: Vec<f32>,
    is_held_out: bool,
}

pub fn run(arguments: &Arguments) -> Result<()> {
    let device = arguments.device.open()?;
    let Some(path) = &arguments.classifier else { return judged::judge(arguments, &device) };
    let mut classifier = Classifier::open(path, &device)?;
    if let Some(path) = &arguments.neighbours {
        check_folder_of(path)?;
    }
    // Errors appear before the work begins.
    let trained: Vec<Trained> = open_all(arguments, &classifier, &device)?;
    let data = arguments.data.clone().unwrap_or_else(|| classifier.recipe().data.clone());
    let pictures = classifier.recipe().pictures(classifier.image()[2]);
    let (held_out, is_held_out) = open_for_evaluation(&data, &pictures)?;
    let training = open(&data, &DataOptions { split: Split::Train, ..pictures })?;
    let training = numbered(training, &classifier.recipe().class_names);
    if !is_held_out {
        note("warning: the data is too small to hold any out: samples are compared with training images");
    }
    let count = [&held_out, &training].iter().filter_map(|data| data.len()).min();
    let count = count.map_or(arguments.count, |least| arguments.count.min(least as usize));
    if count < 10 {
        return Err(Error::new(format!("{data} has {count} images to compare with")).hint("take more data"));
    }
    if count < arguments.count {
        note(&format!("note: {count} images, as many as there are"));
    }
    let images = |data: &dyn Dataset| {
        let read = read_all(data, choice(data, count as u64, 0).into_iter());
        note_warnings(data);
        read
    };
    let (real, _) = images(&*held_out)?;
    let (train_images, labels) = images(&*training)?;
    let size: usize = classifier.image().iter().product();
    // Copies are looked for in as many training images as 256 MiB hold.
    let most = (MOST_PIXELS / (8 * size as u64)).max(count as u64);
    let all = training.len().map_or(count as u64, |len| len.min(most));
    let (searched, _) = read_all(&*training, choice(&*training, all, 0).into_iter())?;
    let of_pixels = |images: &[f32]| Features::new(images, size);
    let width = classifier.recipe().classifier.features;
    let of_real = classifier.classify(&real)?;
    let reference = Reference {
        held_out: Features::new(&of_real.features, width)?,
        pixels: of_pixels(&real)?,
        searched_pixels: of_pixels(&searched)?,
        searched,
        is_held_out,
    };
    let class_names = classifier.recipe().class_names.clone();
    let (fingerprint, classes) = (classifier.fingerprint().to_owned(), classifier.classes());
    let mut measure = |name: String, images: &[f32], labels: Option<&[u32]>, images_per_s: Option<f64>| {
        let classified = classifier.classify(images)?;
        reference.row(name, images, &classified, labels, images_per_s)
    };
    let mut rows = Vec::new();
    for (path, trained) in arguments.runs.iter().zip(&trained) {
        if trained.recipe().data != data {
            let own = &trained.recipe().data;
            note(&format!("note: {} was trained on {own}, and is compared with {data}", path.display()));
        }
        let (samples, labels, rate) = draw(arguments, trained, count)?;
        if let Some(file) = arguments.neighbours.as_ref().filter(|_| rows.is_empty()) {
            save_png(file, &reference.nearest(&samples, trained.source().image())?)?;
        }
        let classes = trained.recipe().class_count();
        let labels = (classes > 0).then_some(&labels[..]);
        rows.push(measure(path.display().to_string(), &samples, labels, Some(rate))?);
    }
    // What no run can be better than, and what is no picture at all.
    let known =
        training.classes().len() == classes && (class_names.is_empty() || training.classes() == class_names);
    let labels = known.then_some(&labels[..]);
    rows.push(measure("training images".to_owned(), &train_images, labels, None)?);
    let mut noise = vec![0.0; count * size];
    for (i, image) in noise.chunks_exact_mut(size).enumerate() {
        fill_normal(image, 0, Stream::Start as u32, 0, i as u32, 0);
    }
    rows.push(measure("noise".to_owned(), &noise, None, None)?);
    let report = Report {
        classifier: fingerprint,
        data,
        held_out: is_held_out,
        images: count,
        searched: all,
        features: width,
        rows,
    };
    print_report(&report, arguments.json, describe)
}

/// Opens the runs, whose images must be those of the classifier.
fn open_all(arguments: &Arguments, classifier: &Classifier, device: &Device) -> Result<Vec<Trained>> {
    let opened = arguments.runs.iter().map(|path| {
        let trained = Trained::open(path, device)?;
        note_remarks(&trained);
        let (theirs, wanted) = (trained.source().image(), classifier.image());
        if theirs != wanted {
            let text = |[h, w, c]: [usize; 3]| format!("{h} x {w} pixels of {c} channels");
            return Err(Error::usage(format!(
                "{} draws images of {}, the classifier takes {}",
                path.display(),
                text(theirs),
                text(wanted)
            ))
            .hint("train a classifier on images of that size, with --image-size"));
        }
        let (classes, known) = (trained.recipe().class_count(), classifier.classes());
        if classes > 0 && classes != known {
            return Err(Error::usage(format!(
                "{} has {classes} classes, the classifier {known}",
                path.display()
            ))
            .hint("train a classifier on the run's data"));
        }
        let (ours, theirs) = (&trained.recipe().class_names, &classifier.recipe().class_names);
        if !ours.is_empty() && !theirs.is_empty() && ours != theirs {
            let other = "other classes than the classifier, or other numbers for them";
            return Err(Error::usage(format!("{} has {other}", path.display()))
                .hint("train a classifier on the run's data"));
        }
        arguments.sampling.options(trained.recipe(), None)?;
        Ok(trained)
    });
    opened.collect()
}

/// Samples of a run, all classes in turn, with their labels and the number of a second.
fn draw(arguments: &Arguments, trained: &Trained, count: usize) -> Result<(Vec<f32>, Vec<u32>, f64)> {
    let source = trained.source_of(count, arguments.data.as_deref())?;
    let options = arguments.sampling.options(trained.recipe(), None)?;
    let labels = source.labels(0, count, None)?;
    let progress = bar(source.work(&options, count)?, "sampling {bar:30} {percent}% {eta} left");
    let began = Instant::now();
    let samples = source.draw(&options, count, None, ticks(&progress))?;
    progress.finish_and_clear();
    Ok((samples, labels, count as f64 / began.elapsed().as_secs_f64()))
}

fn classes_of(classified: &Classified, count: usize) -> usize {
    classified.probabilities.len() / count
}

fn confusion(classified: &Classified, labels: &[u32], classes: usize) -> Confusion {
    let labels: Vec<usize> = labels.iter().map(|&label| label as usize).collect();
    Confusion::of_logits(&labels, &classified.probabilities, classes)
}

impl Reference {
    fn row(
        &self,
        name: String,
        images: &[f32],
        classified: &Classified,
        labels: Option<&[u32]>,
        images_per_s: Option<f64>,
    ) -> Result<Row> {
        let features = Features::new(&classified.features, self.held_out.width())?;
        let (count, pixels) = (features.len(), Features::new(images, self.pixels.width())?);
        let classes = classes_of(classified, count);
        let top = |of: &[f32]| of.iter().copied().fold(0.0, f32::max);
        let clear = classified.probabilities.chunks(classes).filter(|of| top(of) >= CLEAR).count();
        let confusion = labels.map(|labels| confusion(classified, labels, classes));
        Ok(Row {
            name,
            frechet: frechet(&self.held_out, &features),
            kernel: kernel_distance(&self.held_out, &features, SUBSETS, SUBSET.min(count), 0),
            manifold: manifold(&self.held_out, &features, NEIGHBOURS),
            accuracy: confusion.as_ref().map(Confusion::accuracy),
            confusion: confusion
                .iter()
                .flat_map(|confusion| confusion.rows().map(<[usize]>::to_vec))
                .collect(),
            clear: clear as f64 / count as f64,
            copies_z: images_per_s
                .filter(|_| self.is_held_out)
                .map(|_| memorisation(&pixels, &self.pixels, &self.searched_pixels).z),
            images_per_s,
        })
    }

    /// The samples that are nearest to a training image, each to the left of it.
    fn nearest(&self, samples: &[f32], image: [usize; 3]) -> Result<image::RgbImage> {
        let size: usize = image.iter().product();
        let found = crate::quality::nearest(&Features::new(samples, size)?, &self.searched_pixels);
        let mut order: Vec<(usize, Neighbour)> = found.into_iter().enumerate().collect();
        order.sort_by(|(_, a), (_, b)| a.distance.total_cmp(&b.distance));
        let cells = order.iter().take(PAIRS).flat_map(|(i, neighbour)| {
            [&samples[i * size..][..size], &self.searched[neighbour.index * size..][..size]].concat()
        });
        let labels = ["sample", "training"].repeat(4).into_iter().map(str::to_owned).collect();
        let sheet = Sheet { column_labels: labels, ..Sheet::new(8) };
        Ok(Drawing { sheet, cells: cells.collect(), image }.draw(None))
    }
}

fn describe(report: &Report) -> String {
    let Report { classifier, data, held_out, images, searched, features, rows } = report;
    let of = if *held_out { "held-out" } else { "training" };
    let width = rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0);
    let mut text = format!(
        "{images} samples against {images} {of} images of {data}, in {features} features of classifier \
         {classifier}.\nNumbers of other classifiers, or of other numbers of images, cannot be compared with \
         these; they are no FID. Copies: of {searched} training images.\n\n{:width$}  Fréchet     kernel  \
         precision  recall  density  coverage  accuracy  clear  copies z  images/s\n",
        ""
    );
    for row in rows {
        let percent = |value: Option<f64>| value.map_or("-".to_owned(), |v| format!("{:.1}%", 100.0 * v));
        let kernel = format!("{:.3e}", row.kernel.mean);
        let Manifold { precision, recall, density, coverage } = row.manifold;
        let copies = row.copies_z.map_or("-".to_owned(), |z| format!("{z:.1}"));
        let rate = row.images_per_s.map_or("-".to_owned(), |rate| format!("{rate:.1}"));
        text += &format!(
            "{:width$} {:8.3} {kernel:>10} {precision:10.3} {recall:7.3} {density:8.3} {coverage:9.3} \
             {:>9} {:>6} {copies:>9} {rate:>9}\n",
            row.name,
            row.frechet,
            percent(row.accuracy),
            percent(Some(row.clear)),
        );
    }
    text
}
