//! What samples are drawn from beside noise, of models that see texts: prompts, and a picture to begin with.

use std::path::{Path, PathBuf};

use super::{any, note, number};
use crate::data::read_whole;
use crate::error::{Error, Result, need};
use crate::sample::{Options, Source, Texts, Trained};

/// Characters that are shown of a text that was cut.
const SHOWN: usize = 200;
/// Longest file of prompts that is read.
const MOST_BYTES: u64 = 64 << 20;

#[derive(clap::Args)]
pub struct Prompting {
    /// What to draw, of models that see texts; several: --count samples of each
    #[arg(long, value_name = "TEXT", conflicts_with = "noise")]
    prompt: Vec<String>,
    /// A file of prompts, one a line
    #[arg(long, value_name = "FILE", conflicts_with_all = ["noise", "prompt"])]
    prompts: Option<PathBuf>,
    /// What guidance leads away from: one text for all prompts, or one for each [default: the empty text]
    #[arg(long, value_name = "TEXT")]
    negative: Vec<String>,
    /// Width of the images in pixels, of models that see texts [default: the model's]
    #[arg(long, value_parser = any::<usize>)]
    width: Option<usize>,
    /// Height of the images in pixels, of models that see texts [default: the model's]
    #[arg(long, value_parser = any::<usize>)]
    height: Option<usize>,
    /// A picture that samples begin with, with noise as --strength says
    #[arg(long, value_name = "FILE", conflicts_with = "noise")]
    image: Option<PathBuf>,
    /// Share of the steps that are taken from --image: 1 keeps next to nothing of it, small numbers most
    /// [default: 0.8; with --mask 1]
    #[arg(long, value_name = "S", requires = "image")]
    strength: Option<f64>,
    /// Layers of the text encoder that are left out at its end
    #[arg(long, value_name = "N", value_parser = any::<usize>, default_value_t = 0)]
    clip_skip: usize,
    /// Steps between pictures of the samples as the model predicts them so far, beside --out
    #[arg(long, value_name = "M", value_parser = number::<usize>(1..=100_000))]
    pub save_every: Option<usize>,
}

impl Prompting {
    fn prompts(&self) -> Result<Vec<String>> {
        let Some(path) = &self.prompts else { return Ok(self.prompt.clone()) };
        let text = crate::weights::read_text(path, MOST_BYTES)?;
        let lines: Vec<String> =
            text.lines().map(str::trim).filter(|line| !line.is_empty()).map(str::to_owned).collect();
        let message = format!("{} holds no prompts", path.display());
        need(!lines.is_empty(), message, "write one on each line")?;
        Ok(lines)
    }

    /// Whether samples begin with a picture.
    pub fn begins(&self) -> bool {
        self.image.is_some()
    }

    /// The prompts that the flags say, embedded; `None`: the model sees no text. `each`: samples of a prompt.
    ///
    /// # Errors
    /// When a flag does not fit the model, a file cannot be read, or memory is too small.
    pub fn texts(&self, trained: &Trained, each: usize) -> Result<Option<Texts>> {
        let prompts = self.prompts()?;
        let asks = !prompts.is_empty() || !self.negative.is_empty() || self.clip_skip > 0;
        let Some(text) = trained.text() else {
            need(!asks, "the model sees no text", "leave --prompt, --negative and --clip-skip out")?;
            return Ok(None);
        };
        let shown = "give --prompt \"a text\", or --prompts FILE";
        need(!prompts.is_empty(), "the model draws what a text says", shown)?;
        let message = format!("{} prompts of {each} samples each", prompts.len());
        need(prompts.len().saturating_mul(each) <= 100_000, message, "draw at most 100000 at a time")?;
        let negatives = match self.negative.len() {
            0 => vec![String::new()],
            1 => self.negative.clone(),
            n if n == prompts.len() => self.negative.clone(),
            n => {
                let message = format!("{n} --negative for {} prompts", prompts.len());
                return Err(Error::usage(message).hint("give one for all, or one for each"));
            }
        };
        let layers = text.config().num_hidden_layers;
        let message = format!("--clip-skip {} of {layers} layers", self.clip_skip);
        need(self.clip_skip < layers, message, format!("it must be below {layers}"))?;
        let told = text.texts(&prompts, &negatives, each, self.clip_skip)?;
        let most = text.config().max_position_embeddings;
        for cut in &told.cut {
            let mut shown: String = cut.chars().take(SHOWN).collect();
            if shown.len() < cut.len() {
                shown += "...";
            }
            note(&format!("warning: the model sees {most} tokens of a text, and not this part: {shown}"));
        }
        Ok(Some(told.texts))
    }

    /// The source with all that the flags say.
    ///
    /// # Errors
    /// When a flag does not fit the model, a file cannot be read, or memory is too small.
    pub fn source<'a>(
        &self,
        mut source: Source<'a>,
        texts: Option<Texts>,
        options: &mut Options,
        mask: Option<&Path>,
    ) -> Result<Source<'a>> {
        if let Some(texts) = texts {
            if options.guidance.scale < 1.0 {
                note("note: guidance below 1 is 1 here, the prompt alone");
                options.guidance.scale = 1.0;
            }
            source = source.told(texts);
        }
        let [own_h, own_w, _] = source.image();
        if self.width.is_some() || self.height.is_some() {
            source = source.sized([self.height.unwrap_or(own_h), self.width.unwrap_or(own_w)])?;
        }
        if let Some(image) = &self.image {
            source = self.begin(source, options, image, mask)?;
        }
        Ok(source)
    }

    /// The source, whose samples begin with a picture.
    fn begin<'a>(
        &self,
        source: Source<'a>,
        options: &mut Options,
        image: &Path,
        mask: Option<&Path>,
    ) -> Result<Source<'a>> {
        let strength = self.strength.unwrap_or(if mask.is_some() { 1.0 } else { 0.8 });
        let [height, width, channels] = source.image();
        let unit = source.unit();
        // A picture keeps its size, but for what does not fill a square of the VAE.
        let keeps = unit > 1 && mask.is_none() && self.width.is_none() && self.height.is_none();
        let of = |[h, w]: [usize; 2]| match keeps {
            true => [h, w].map(|side| (side / unit * unit).max(unit)),
            false => [height, width],
        };
        let (picture, size) = read_whole(image, channels, of)?;
        let holes = mask.map(|mask| read_whole(mask, 1, |_| size)).transpose()?;
        let holes = holes.map(|(mask, _)| mask.iter().map(|&v| v > 0.0).collect::<Vec<bool>>());
        source.beginning_with(&picture, size, holes.as_deref(), strength, options)
    }
}
