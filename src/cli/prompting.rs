//! What samples are drawn from beside noise, of models that see texts: prompts, and a picture to begin with.

use std::path::{Path, PathBuf};

use super::{any, note, number};
use crate::data::read_whole;
use crate::error::{Error, Result, need};
use crate::recipe::Recipe;
use crate::sample::{Begin, Options, Source, Trained};

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
    fn texts(&self) -> Result<Vec<String>> {
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

    /// The source with all that the flags say, and how many samples it is to draw: `count` of each prompt.
    ///
    /// # Errors
    /// When a flag does not fit the model, a file cannot be read, or memory is too small.
    pub fn source<'a>(
        &self,
        mut source: Source<'a>,
        trained: &'a Trained,
        options: &mut Options,
        count: Option<usize>,
        mask: Option<&Path>,
    ) -> Result<(Source<'a>, usize)> {
        let recipe = trained.recipe();
        let prompts = self.texts()?;
        let asks = !prompts.is_empty() || !self.negative.is_empty() || self.clip_skip > 0;
        let mut each = count.unwrap_or(1);
        if let Some(text) = trained.text() {
            let shown = "give --prompt \"a text\", or --prompts FILE";
            need(!prompts.is_empty(), "the model draws what a text says", shown)?;
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
                note(&format!("warning: the model sees {most} tokens of a text, and not this part: {cut}"));
            }
            if options.guidance.scale < 1.0 {
                note("note: guidance below 1 is 1 here, the prompt alone");
                options.guidance.scale = 1.0;
            }
            source = source.told(told.texts);
        } else {
            need(!asks, "the model sees no text", "leave --prompt, --negative and --clip-skip out")?;
            each = count.unwrap_or(64);
        }
        let [own_h, own_w, _] = source.image();
        if self.width.is_some() || self.height.is_some() {
            source = source.sized([self.height.unwrap_or(own_h), self.width.unwrap_or(own_w)])?;
        }
        if let Some(image) = &self.image {
            source = self.begin(source, recipe, options, image, mask)?;
        } else {
            let hint = "give the picture by --image";
            let fills = recipe.condition.kind == crate::data::ConditionKind::MaskedLatents;
            need(!fills, "the model fills holes of a picture", hint)?;
        }
        Ok((source, each * prompts.len().max(1)))
    }

    /// The source, whose samples begin with a picture.
    fn begin<'a>(
        &self,
        mut source: Source<'a>,
        recipe: &Recipe,
        options: &mut Options,
        image: &Path,
        mask: Option<&Path>,
    ) -> Result<Source<'a>> {
        need(
            recipe.condition.kind == crate::data::ConditionKind::None || recipe.unet.sees_text(),
            "--image: the model draws from conditions",
            "give the picture by --condition",
        )?;
        let strength = self.strength.unwrap_or(if mask.is_some() { 1.0 } else { 0.8 });
        let message = format!("--strength {strength}");
        need((0.0..=1.0).contains(&strength), message, "it must be from 0 to 1")?;
        // As in the library.
        let taken = ((options.steps as f64 * strength) as usize).min(options.steps);
        let message = format!("--strength {strength} of {} steps takes none", options.steps);
        need(taken > 0, message, "raise one of them")?;
        options.first = options.steps - taken;
        let [height, width, channels] = source.image();
        let keeps_size = mask.is_none() && self.width.is_none() && self.height.is_none();
        let unit = {
            let [h, ..] = recipe.diffused();
            (source.image()[0] / h.max(1)).max(1)
        };
        // A picture keeps its size, but for what does not fill a square of the VAE.
        let of = |[h, w]: [usize; 2]| match keeps_size && recipe.unet.sees_text() {
            true => [h, w].map(|side| (side / unit * unit).max(unit)),
            false => [height, width],
        };
        let (picture, size) = read_whole(image, channels, of)?;
        if size != [height, width] {
            source = source.resized(size);
        }
        let mut begin = Begin {
            latents: source.latents_of(&picture)?,
            mask: None,
            masked: None,
            from_noise: mask.is_some() && taken == options.steps,
        };
        let fills = recipe.condition.kind == crate::data::ConditionKind::MaskedLatents;
        match mask {
            None => need(!fills, "the model fills holes of a picture", "say by --mask FILE where they are")?,
            Some(mask) => {
                let (mask, _) = read_whole(mask, 1, |_| size)?;
                let is_hole: Vec<f32> = mask.iter().map(|&v| if v > 0.0 { 1.0 } else { 0.0 }).collect();
                let known = picture.iter().enumerate().map(|(i, v)| v * (1.0 - is_hole[i / channels]));
                let known: Vec<f32> = known.collect();
                begin.masked = fills.then(|| source.latents_of(&known)).transpose()?;
                let [h, w] = source.sample_size();
                let nearest = |i: usize| is_hole[i / w * size[0] / h * size[1] + i % w * size[1] / w];
                begin.mask = Some((0..h * w).map(nearest).collect());
            }
        }
        Ok(source.beginning_with(begin))
    }
}
