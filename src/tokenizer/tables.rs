//! A tokenizer's tables as data, for a page in a browser (`src/web/page/tokenizer.js`).

use std::cmp::Reverse;
use std::collections::BTreeMap;

use serde::Serialize;

use super::{Cutter, Tokenizer};

/// All that cutting texts takes.
#[derive(Serialize)]
struct Tables<'a> {
    bos: u32,
    eos: u32,
    pad: u32,
    unknown: u32,
    /// The piece of each byte within a word and at its end; `null`: unknown.
    within: &'a [Option<u32>],
    last: &'a [Option<u32>],
    /// Two pieces and what they are joined to, the most urgent first.
    merges: Vec<[u32; 3]>,
    /// What is cut out of the text as it was given, and out of the normalized text: the first that fits.
    given: Vec<(&'a str, u32)>,
    normalized: Vec<(&'a str, u32)>,
    /// What these spell.
    whole: BTreeMap<u32, &'a str>,
    /// How many tokens follow a token.
    followed: &'a BTreeMap<u32, u32>,
}

impl Tokenizer {
    /// The tables that cutting texts takes, as JSON: numbers of tokens, and text only of those that are never
    /// split.
    pub fn tables(&self) -> String {
        let Tokenizer { bpe, bos, eos, pad, unknown, followed, given, normalized, .. } = self;
        let tables = Tables {
            bos: *bos,
            eos: *eos,
            pad: *pad,
            unknown: *unknown,
            within: &bpe.within,
            last: &bpe.last,
            merges: bpe.merges.iter().zip(&bpe.joined).map(|(&(a, b), &joined)| [a, b, joined]).collect(),
            given: given.in_order(),
            normalized: normalized.in_order(),
            whole: self.whole.keys().map(|&id| (id, &*bpe.tokens[id as usize])).collect(),
            followed,
        };
        serde_json::to_string(&tables).unwrap_or_else(|e| unreachable!("numbers and texts: {e}"))
    }
}

impl Cutter {
    /// The tokens, those that others begin with after these.
    fn in_order(&self) -> Vec<(&str, u32)> {
        let tokens = self.0.iter().flat_map(|(_, tokens)| tokens);
        let mut tokens: Vec<(&str, u32)> = tokens.map(|(token, &id)| (&**token, id)).collect();
        tokens.sort_by_key(|&(token, _)| (Reverse(token.len()), token));
        tokens
    }
}
