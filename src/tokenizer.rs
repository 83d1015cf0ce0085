//! CLIP's tokenizer: text to the numbers that a text encoder reads. Byte-pair encoding of lower-cased words
//! (Radford et al. 2021, arXiv:2103.00020), as transformers 5 runs it.

mod bpe;
mod read;
mod tables;
mod write;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use regex::Regex;
use unicode_normalization::UnicodeNormalization;

use crate::error::{self, Error};
use bpe::Bpe;

/// What counts as a word; whatever lies between two is dropped. Digits stand alone.
const WORDS: &str =
    r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";
const BOS: &str = "<|startoftext|>";
const EOS: &str = "<|endoftext|>";

/// A vocabulary, its merges, and the tokens that stand for themselves.
#[derive(Clone, Debug)]
pub struct Tokenizer {
    bpe: Bpe,
    /// How many tokens the vocabulary itself has; those after it were added.
    own: usize,
    /// The tokens that are cut out of a text as they are, by their ids.
    whole: BTreeMap<u32, Whole>,
    bos: u32,
    eos: u32,
    pad: u32,
    /// Stands for a character that the vocabulary lacks.
    unknown: u32,
    /// Of a token that stands for itself and for those after it: how many these are.
    followed: BTreeMap<u32, u32>,
    words: Regex,
    /// Cuts the text as it was given, and the normalized text.
    given: Cutter,
    normalized: Cutter,
}

/// A special or added token, which is never split.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Whole {
    /// Looked for in the normalized text, so in any case of letters, instead of the text as it was given.
    normalized: bool,
    special: bool,
}

/// A text as a text encoder takes it.
#[derive(Clone, Debug, PartialEq)]
pub struct Prompt {
    /// Beginning, pieces, end, padding.
    pub ids: Vec<u32>,
    /// The end of the text that did not fit, as its pieces spell it.
    pub cut: Option<String>,
}

/// All that a folder says about a tokenizer; ids are places in `tokens`.
struct Parts {
    tokens: Vec<String>,
    /// How many of `tokens` the vocabulary itself has.
    own: usize,
    merges: Vec<(String, String)>,
    whole: BTreeMap<u32, Whole>,
    bos: u32,
    eos: u32,
    pad: u32,
    unknown: u32,
}

impl Tokenizer {
    /// Reads the `tokenizer` folder of a pipeline: `tokenizer.json`, or else `vocab.json` and `merges.txt`;
    /// with `tokenizer_config.json`, `special_tokens_map.json` and `added_tokens.json` where they are.
    ///
    /// # Errors
    /// Names the file that is missing or damaged, or that describes a tokenizer of another kind.
    pub fn open(folder: &Path) -> error::Result<Tokenizer> {
        let (path, parts) = read::parts(folder)?;
        Tokenizer::of(parts).map_err(|reason| read::wrong(&path, &reason))
    }

    /// The tokenizer of these merges, in the layout of CLIP's vocabulary: 256 characters that stand for
    /// bytes, the same at the end of a word, the merges, the beginning and the end of a text. No text is
    /// unknown to it. It pads with the end.
    ///
    /// # Panics
    /// Where a merge joins what no earlier one made, or makes what is there.
    #[track_caller]
    pub fn of_merges(merges: &[(&str, &str)]) -> Tokenizer {
        let mut tokens = bpe::byte_tokens();
        tokens.extend(merges.iter().map(|(a, b)| format!("{a}{b}")));
        let bos = tokens.len() as u32;
        let eos = bos + 1;
        tokens.extend([BOS, EOS].map(str::to_owned));
        let whole = [bos, eos].map(|id| (id, Whole { normalized: false, special: true })).into();
        let merges = merges.iter().map(|&(a, b)| (a.to_owned(), b.to_owned())).collect();
        let own = tokens.len();
        let parts = Parts { tokens, own, merges, whole, bos, eos, pad: eos, unknown: eos };
        Tokenizer::of(parts).unwrap_or_else(|reason| panic!("{reason}"))
    }

    fn of(parts: Parts) -> Result<Tokenizer, String> {
        let Parts { tokens, own, merges, whole, bos, eos, pad, unknown } = parts;
        let bpe = Bpe::new(tokens, merges)?;
        let words = Regex::new(WORDS).map_err(|e| e.to_string())?;
        let (given, normalized) = cutters(&bpe, &whole)?;
        let followed = BTreeMap::new();
        Ok(Tokenizer { bpe, own, whole, bos, eos, pad, unknown, followed, words, given, normalized })
    }

    /// The pieces of a text, without beginning and end. Special and added tokens are cut out first, as they
    /// are; the rest is normalized (NFC, white space, lower case), cut into words and these into pieces.
    pub fn encode(&self, text: &str) -> Vec<u32> {
        let mut ids = Vec::new();
        self.given.cut(text, &mut ids, |text, ids| {
            self.normalized.cut(&normal(text), ids, |text, ids| {
                for word in self.words.find_iter(text).map(|found| found.as_str()) {
                    let mut split = |part: &str| self.bpe.split(part, self.unknown, ids);
                    match word {
                        // Names of special tokens that were not in lower case when those were cut out. The
                        // reference splits all words once more, as GPT-2 does, and these alone have parts.
                        BOS | EOS => {
                            let [from, to] = [2, word.len() - 2];
                            [&word[..from], &word[from..to], &word[to..]].into_iter().for_each(split);
                        }
                        _ => split(word),
                    }
                }
            });
        });
        if self.followed.is_empty() {
            return ids;
        }
        ids.into_iter().flat_map(|id| id..=id + self.followed.get(&id).copied().unwrap_or(0)).collect()
    }

    /// A text as exactly `length` ids: beginning, the pieces that fit, end, padding.
    pub fn prompt(&self, text: &str, length: usize) -> Prompt {
        let mut pieces = self.encode(text);
        let rest = pieces.split_off(pieces.len().min(length.saturating_sub(2)));
        let mut ids = vec![self.bos];
        ids.append(&mut pieces);
        ids.push(self.eos);
        ids.resize(length, self.pad);
        Prompt { ids, cut: (!rest.is_empty()).then(|| self.decode(&rest)) }
    }

    /// The text that ids spell: lower-case, with a space after each word. An id that is no token's is
    /// U+FFFD, as is what is no text.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        for &id in ids {
            match self.bpe.tokens.get(id as usize) {
                Some(token) if self.whole.contains_key(&id) => bytes.extend(token.bytes().chain([b' '])),
                Some(token) => bpe::spell(token, &mut bytes),
                None => bytes.extend("\u{fffd}".bytes()),
            }
        }
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    /// Adds a token that stands for itself, such as the word of a textual inversion, and returns its id,
    /// which is the next one. It is found in any case of letters, and within words.
    ///
    /// # Errors
    /// If the token is there already, or blank.
    pub fn add_token(&mut self, content: &str) -> error::Result<u32> {
        let refused = |reason: String| Error::usage(reason).hint("choose another word");
        if self.bpe.id(content).is_some() {
            return Err(refused(format!("the tokenizer has the token {content:?} already")));
        }
        if content.trim().is_empty() {
            return Err(refused(format!("{content:?} is blank, and no token")));
        }
        let mut more = self.clone();
        let id = more.bpe.push(content.to_owned()).map_err(refused)?;
        more.whole.insert(id, Whole { normalized: true, special: false });
        (more.given, more.normalized) = cutters(&more.bpe, &more.whole).map_err(refused)?;
        *self = more;
        Ok(id)
    }

    /// Adds the word of a textual inversion, its first token, which then stands for all of them: the
    /// library's pipelines put these into the prompt. Returns the id of the first; the others follow it.
    ///
    /// # Errors
    /// As [`Tokenizer::add_token`].
    pub fn add_word(&mut self, tokens: &[String]) -> error::Result<u32> {
        let first = self.size() as u32;
        for token in tokens {
            self.add_token(token)?;
        }
        if tokens.len() > 1 {
            self.followed.insert(first, tokens.len() as u32 - 1);
        }
        Ok(first)
    }

    /// Fills prompts up with this token, which is found as it is in texts from then on, as the library does.
    ///
    /// # Errors
    /// If there is no such token.
    pub fn pad_with(&mut self, id: u32) -> error::Result<()> {
        if id as usize >= self.size() {
            let message = format!("the tokenizer has no token {id} to fill texts up with");
            return Err(Error::new(message).hint("get it again from where it came from"));
        }
        self.pad = id;
        self.whole.entry(id).or_insert(Whole { normalized: false, special: true });
        let refused = |reason: String| Error::new(reason).hint("get it again from where it came from");
        (self.given, self.normalized) = cutters(&self.bpe, &self.whole).map_err(refused)?;
        Ok(())
    }

    /// Writes `vocab.json`, `merges.txt`, `special_tokens_map.json`, `tokenizer_config.json` and, with added
    /// tokens, `added_tokens.json`, as transformers reads them. `length` is that of the text encoder's
    /// prompts.
    ///
    /// # Errors
    /// Names the file that cannot be written, or the `tokenizer.json` that readers would prefer.
    pub fn save(&self, folder: &Path, length: usize) -> error::Result<()> {
        write::save(self, folder, length)
    }

    /// One more than the largest id: the rows of a text encoder's table.
    pub fn size(&self) -> usize {
        self.bpe.tokens.len()
    }

    /// The id at the beginning of a text.
    pub fn bos(&self) -> u32 {
        self.bos
    }

    /// The id at the end of a text.
    pub fn eos(&self) -> u32 {
        self.eos
    }

    /// The id that fills a prompt up: in Stable Diffusion 1 the end, in 2 that of "!".
    pub fn pad(&self) -> u32 {
        self.pad
    }
}

/// NFC, each run of white space as one space, each character in lower case.
fn normal(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.nfc() {
        match c.is_whitespace() {
            true if out.ends_with(' ') => {}
            true => out.push(' '),
            // Of the character, not of the text: a sigma that ends a word stays one.
            false => out.extend(c.to_lowercase()),
        }
    }
    out
}

/// Finds tokens that stand for themselves: the first one, and of those that begin there the longest.
#[derive(Clone, Debug, Default)]
struct Cutter(Option<(Regex, HashMap<String, u32>)>);

impl Cutter {
    /// Calls `rest` for the text before, between and after the tokens, and pushes their ids.
    fn cut(&self, text: &str, ids: &mut Vec<u32>, rest: impl Fn(&str, &mut Vec<u32>)) {
        let mut from = 0;
        if let Some((pattern, tokens)) = &self.0 {
            for found in pattern.find_iter(text) {
                rest(&text[from..found.start()], ids);
                ids.extend(tokens.get(found.as_str()));
                from = found.end();
            }
        }
        rest(&text[from..], ids);
    }
}

/// Bytes of all whole tokens together: their automaton takes many times as much.
const MOST_WHOLE: usize = 1 << 20;

/// The cutters of the text as given, and of the normalized one.
fn cutters(bpe: &Bpe, whole: &BTreeMap<u32, Whole>) -> Result<(Cutter, Cutter), String> {
    let bytes: usize = whole.keys().map(|&id| bpe.tokens[id as usize].len()).sum();
    if bytes > MOST_WHOLE {
        return Err(format!("its added tokens are {bytes} bytes, and at most {MOST_WHOLE} are looked for"));
    }
    let cutter = |of_normalized: bool| -> Result<Cutter, String> {
        let mut tokens = HashMap::new();
        for (&id, _) in whole.iter().filter(|(_, whole)| whole.normalized == of_normalized) {
            let content = &bpe.tokens[id as usize];
            let content = if of_normalized { normal(content) } else { content.clone() };
            tokens.entry(content).or_insert(id);
        }
        tokens.remove("");
        if tokens.is_empty() {
            return Ok(Cutter::default());
        }
        // The first alternative that matches wins.
        let mut contents: Vec<&String> = tokens.keys().collect();
        contents.sort_by_key(|content| (std::cmp::Reverse(content.len()), *content));
        let pattern = contents.iter().map(|c| regex::escape(c)).collect::<Vec<_>>().join("|");
        let pattern = Regex::new(&pattern).map_err(|e| format!("its added tokens are too many: {e}"))?;
        Ok(Cutter(Some((pattern, tokens))))
    };
    Ok((cutter(false)?, cutter(true)?))
}
