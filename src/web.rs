//! A static page that samples a run in a browser by the same kernels: the recorded programs as data, the
//! kernels' text, the weights, and a small runtime in JavaScript that replays them with WebGPU.

mod told;

use std::borrow::Cow;
use std::fs;
use std::io::Write as _;
use std::path::Path;

use half::f16;
use safetensors::tensor::{Dtype, View};
use serde::Serialize;

use crate::checkpoint::{cannot_write, write_views, write_whole};
use crate::device::Precision;
use crate::error::{Error, Result, need};
use crate::program::Description;
use crate::sample::{Options, Recorded, Texts, Trained};
use told::Told;

/// The page itself, which is the same for every run.
const PAGE: [(&str, &str); 5] = [
    ("index.html", include_str!("web/page/index.html")),
    ("page.js", include_str!("web/page/page.js")),
    ("denoir.js", include_str!("web/page/denoir.js")),
    ("picture.js", include_str!("web/page/picture.js")),
    ("tokenizer.js", include_str!("web/page/tokenizer.js")),
];
const WEIGHTS: &str = "weights.safetensors";
const TOKENIZER: &str = "tokenizer.json";
/// Version of `program.json`.
const FORMAT: u32 = 1;

/// What a page offers.
pub struct Offer {
    /// Samples that are drawn together.
    pub count: usize,
    /// Samplers by name, each in so many steps; the page begins with the first.
    pub walks: Vec<(String, Options)>,
    /// Weights as 16-bit floats: half the bytes to load. They are computed with as 32-bit floats.
    pub half: bool,
    /// Of the programs: f32 or f16.
    pub precision: Precision,
}

/// `program.json`.
#[derive(Serialize)]
struct Page<'a> {
    format: u32,
    denoir: &'a str,
    name: &'a str,
    about: &'a str,
    parameters: usize,
    /// A whole number, as text: JSON's numbers are too short for it.
    seed: String,
    count: usize,
    /// `[h, w, c]` of a sample, and `[H, W, C]` of an image.
    sample: [usize; 3],
    image: [usize; 3],
    #[serde(flatten)]
    told: Told<'a>,
    /// The scale to begin with, of models that know guidance.
    guidance: Option<f64>,
    walks: Vec<Walk<'a>>,
    #[serde(flatten)]
    programs: &'a Description,
}

/// A sampler in a number of steps.
#[derive(Serialize)]
struct Walk<'a> {
    sampler: &'a str,
    steps: usize,
    /// Evaluations of the model: rows of its table.
    rows: usize,
    /// The table's tensor.
    table: String,
    /// Factor of the noise that it starts from.
    start: f64,
}

/// What was written, for a report.
pub struct Written {
    /// Dispatches of a reverse step.
    pub dispatches: usize,
    /// Files of kernels.
    pub kernels: usize,
    /// Memory that a browser needs on the GPU, in bytes.
    pub memory: u64,
    /// Bytes of the weights' file.
    pub weights: u64,
}

/// An error for a model that a page could not be asked by.
///
/// # Errors
/// Says what the model needs.
pub fn check(trained: &Trained) -> Result<()> {
    told::check(trained)
}

/// Writes the page into the empty folder `folder`.
///
/// # Errors
/// When the model cannot be asked by a page, needs more than browsers have, or a file cannot be written.
pub fn write(folder: &Path, trained: &Trained, offer: &Offer) -> Result<Written> {
    check(trained)?;
    let (recipe, text) = (trained.recipe(), trained.text());
    let mut source = trained.source();
    if text.is_some() {
        source = source.told(Texts::nothing(recipe));
    }
    let options: Vec<Options> = offer.walks.iter().map(|(_, options)| options.clone()).collect();
    let recorded = source.record_all(&options, offer.count, text)?;
    let programs = described(&recorded, offer.precision)?;
    let (tensors, walks) = tensors(&recorded, offer)?;
    let page = Page {
        format: FORMAT,
        denoir: env!("CARGO_PKG_VERSION"),
        name: &recipe.name,
        about: &recipe.about,
        parameters: recorded.parameters,
        seed: recipe.seed.to_string(),
        count: offer.count,
        sample: recipe.diffused(),
        image: source.image(),
        told: Told::of(trained),
        guidance: recorded.guided.is_some().then_some(recipe.guidance),
        walks,
        programs: &programs,
    };
    let json = serde_json::to_string(&page).map_err(|e| Error::new("cannot write JSON").caused_by(e))?;
    let write_text =
        |name: &str, text: &str| write_whole(&folder.join(name), |file| file.write_all(text.as_bytes()));
    let kernels = folder.join("kernels");
    fs::create_dir_all(&kernels).map_err(|e| cannot_write(&kernels, e))?;
    for kernel in programs.kernels() {
        write_text(&format!("kernels/{}", kernel.file), &kernel.text)?;
    }
    write_views(&folder.join(WEIGHTS), tensors, "denoir", "web")?;
    write_text("program.json", &json)?;
    if let Some(model) = text {
        write_text(TOKENIZER, &model.tokenizer().tables())?;
    }
    for (name, contents) in PAGE {
        write_text(name, contents)?;
    }
    Ok(Written {
        dispatches: programs.dispatches("step"),
        kernels: programs.kernels().count(),
        memory: programs.bytes(),
        weights: fs::metadata(folder.join(WEIGHTS)).map_or(0, |file| file.len()),
    })
}

fn described(recorded: &Recorded, precision: Precision) -> Result<Description> {
    let mut programs = Description::new(precision);
    programs.add("start", &recorded.start)?;
    programs.add("step", &recorded.step)?;
    let more = [("guided", &recorded.guided), ("decode", &recorded.decode), ("text", &recorded.text)];
    for (name, tape) in more {
        if let Some(tape) = tape {
            programs.add(name, tape)?;
        }
    }
    Ok(programs)
}

/// The tensors of the weights' file, and the walks whose tables are among them.
fn tensors<'a>(recorded: &Recorded, offer: &'a Offer) -> Result<(Vec<(String, Tensor)>, Vec<Walk<'a>>)> {
    let (mut tensors, mut walks) = (Vec::new(), Vec::new());
    for (name, values) in &recorded.weights {
        tensors.push(((*name).to_owned(), Tensor::of(vec![values.len()], values, offer.half)?));
    }
    let tables = recorded.tables.iter().zip(&recorded.starts);
    for ((sampler, options), ((rows, values), start)) in offer.walks.iter().zip(tables) {
        let (steps, rows, start) = (options.steps, *rows, *start);
        let table = format!("{sampler} {steps}");
        tensors.push((table.clone(), Tensor::of(vec![rows, values.len() / rows], values, false)?));
        walks.push(Walk { sampler, steps, rows, table, start });
    }
    Ok((tensors, walks))
}

/// A tensor of the weights' file.
struct Tensor {
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Vec<u8>,
}

impl Tensor {
    fn of(shape: Vec<usize>, values: &[f32], half: bool) -> Result<Tensor> {
        if !half {
            return Ok(Tensor { dtype: Dtype::F32, shape, bytes: bytemuck::cast_slice(values).to_vec() });
        }
        let halves: Vec<f16> = values.iter().map(|&v| f16::from_f32(v)).collect();
        let lost = halves.iter().zip(values).any(|(half, v)| v.is_finite() && !half.is_finite());
        need(!lost, "a weight is larger than a 16-bit float can be", "leave --f16 out")?;
        let bytes = halves.iter().flat_map(|half| half.to_le_bytes()).collect();
        Ok(Tensor { dtype: Dtype::F16, shape, bytes })
    }
}

impl View for Tensor {
    fn dtype(&self) -> Dtype {
        self.dtype
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn data(&self) -> Cow<'_, [u8]> {
        Cow::Borrowed(&self.bytes)
    }

    fn data_len(&self) -> usize {
        self.bytes.len()
    }
}
