//! How a model is opened: what a file of Stable Diffusion does not say, and what is laid over a model.

use std::path::PathBuf;

use super::{any_text, named};
use crate::diffusers::{Extras, Unsaid};
use crate::diffusion::Prediction;
use crate::names::path_of;

/// Of one file of Stable Diffusion.
#[derive(clap::Args)]
pub struct FileArgs {
    /// Of one file of Stable Diffusion, which has no vocabulary: a folder with vocab.json and merges.txt
    #[arg(long, value_name = "FOLDER")]
    tokenizer: Option<PathBuf>,
    /// Of one file of Stable Diffusion, what it predicts [default: epsilon; of version 2 none]
    #[arg(long, value_parser = ["epsilon", "v_prediction"])]
    prediction: Option<String>,
}

impl FileArgs {
    pub fn unsaid(&self) -> Unsaid {
        let prediction = self.prediction.as_deref().and_then(|name| named::<Prediction>(name).ok());
        Unsaid { tokenizer: self.tokenizer.clone(), prediction }
    }
}

/// Files over a model that sees texts.
#[derive(clap::Args)]
pub struct ExtraArgs {
    /// Add a LoRA to a model that sees texts, times SCALE, 1 unless given; several add up
    #[arg(long, value_name = "FILE[:SCALE]", value_parser = any_text())]
    lora: Vec<String>,
    /// Add a word of textual inversion; prompts have it as the file names it
    #[arg(long, value_name = "FILE", value_parser = any_text())]
    embedding: Vec<String>,
}

impl ExtraArgs {
    pub fn extras(&self) -> Extras {
        let lora = |said: &String| {
            let (file, scale) = scaled(said);
            (path_of(file.to_owned()), scale)
        };
        Extras {
            loras: self.lora.iter().map(lora).collect(),
            embeddings: self.embedding.iter().map(path_of).collect(),
        }
    }
}

/// A file and the number behind its last colon; of a path on Windows that colon is none.
fn scaled(said: &str) -> (&str, f32) {
    let scale = |text: &str| text.parse().ok().filter(|scale: &f32| scale.is_finite());
    let split = said.rsplit_once(':').and_then(|(file, text)| Some((file, scale(text)?)));
    split.unwrap_or((said, 1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scale_is_a_number_behind_the_last_colon() {
        for (said, wanted) in [
            ("a.safetensors", ("a.safetensors", 1.0)),
            ("a.safetensors:0.5", ("a.safetensors", 0.5)),
            ("a:b:-1e-1", ("a:b", -0.1)),
            (r"C:\a.safetensors", (r"C:\a.safetensors", 1.0)),
            (r"C:\a.safetensors:2", (r"C:\a.safetensors", 2.0)),
            ("a:nan", ("a:nan", 1.0)),
            ("a:1e99", ("a:1e99", 1.0)),
        ] {
            assert_eq!(scaled(said), wanted, "{said}");
        }
    }
}
