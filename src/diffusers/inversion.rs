//! Textual inversion: rows of a text encoder's table for one new word.
//!
//! Source: Gal et al. 2022 (arXiv:2208.01618). The library's training script writes one tensor under the
//! word itself; other programs `emb_params` or, in a pickle, `string_to_param`.

use std::path::Path;

use crate::checkpoint::write_tensors;
use crate::error::{Error, Result};
use crate::models::clip::MOST_ROWS;
use crate::recipe::Recipe;
use crate::weights::Weights;

/// The rows that stand for a word.
#[derive(Clone, Debug, PartialEq)]
pub struct Embedding {
    /// The word, as prompts have it.
    pub token: String,
    /// Numbers in a row: the width of the text encoder.
    pub width: usize,
    /// Rows one behind the other.
    pub values: Vec<f32>,
}

impl Embedding {
    /// The tokens of the rows: the word, then the word with `_1`, `_2`, ... behind it.
    pub fn tokens(&self) -> Vec<String> {
        let rows = self.values.len() / self.width.max(1);
        let name = |row| if row == 0 { self.token.clone() } else { format!("{}_{row}", self.token) };
        (0..rows).map(name).collect()
    }

    /// The word that a run has learned, of the parameters `values`.
    pub(crate) fn of_run(recipe: &Recipe, values: &[f32]) -> Embedding {
        let width = recipe.text.hidden_size;
        let values = values[..recipe.num_vectors * width].to_vec();
        Embedding { token: recipe.placeholder_token.clone(), width, values }
    }

    /// Name and shape of its tensor in a file as the library's training script writes it.
    pub fn tensor(&self) -> (&str, [usize; 2]) {
        (&self.token, [self.values.len() / self.width.max(1), self.width])
    }
}

/// The embedding in a file for a text encoder of this width. Where the file does not name the word, it is
/// the file's own name without its ending.
///
/// # Errors
/// When the file holds something else, or the embedding is for another text encoder.
pub fn read(weights: &Weights, width: usize) -> Result<Embedding> {
    let path = weights.path();
    let wrong = |reason: String| {
        Error::new(format!("{}: {reason}", path.display()))
            .hint("give an embedding of textual inversion for this model's text encoder")
    };
    let tensors: Vec<(&str, &[usize])> = weights.shapes().collect();
    if tensors.iter().any(|(name, _)| ["clip_l", "clip_g"].contains(name)) {
        return Err(wrong("it is for Stable Diffusion XL, which has two text encoders".to_owned()));
    }
    let &[(name, shape)] = &tensors[..] else {
        return Err(wrong(format!("it holds {} tensors, and an embedding is one", tensors.len())));
    };
    let (rows, columns) = match *shape {
        [columns] => (1, columns),
        [rows, columns] => (rows, columns),
        _ => return Err(wrong(format!("{name} is {shape:?}, and an embedding is rows of numbers"))),
    };
    if columns != width {
        return Err(wrong(format!("its rows have {columns} numbers, and the text encoder takes {width}")));
    }
    if rows == 0 || rows > MOST_ROWS {
        return Err(wrong(format!("it has {rows} rows, and a text can hold 1 to {MOST_ROWS}")));
    }
    let token = match name {
        "emb_params" | "string_to_param.*" => {
            path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
        }
        name => name.to_owned(),
    };
    if token.trim().is_empty() || token.chars().any(char::is_whitespace) {
        return Err(wrong(format!("its word {token:?} is empty or has spaces")));
    }
    Ok(Embedding { token, width, values: weights.values(name)? })
}

/// Writes the file of a word as the library's training script does.
///
/// # Errors
/// When the file cannot be written.
pub(crate) fn write(path: &Path, word: &Embedding) -> Result<()> {
    let (name, shape) = word.tensor();
    write_tensors(path, &[(name, shape.to_vec(), &word.values)], "format", "pt".to_owned())
}

#[cfg(test)]
mod tests;
