//! The merges of a byte pair encoding for captions of `shapes`.

use super::caption::words;

/// The merges, the first of rank 0, by which each word of the captions becomes one token that ends in
/// `</w>`, in a vocabulary of CLIP's form: all bytes, all bytes that end a word, and these.
///
/// A word is encoded by the merges so far, and what is left of it is joined from its start. Later merges
/// change no earlier word, since the pair of lowest rank is merged first.
pub fn merges() -> Vec<(String, String)> {
    let mut merges = Vec::new();
    for word in words() {
        loop {
            let mut symbols = encode(word, &merges).into_iter();
            let (Some(first), Some(second)) = (symbols.next(), symbols.next()) else { break };
            merges.push((first, second));
        }
    }
    merges
}

/// The symbols of a word of ASCII letters.
pub(super) fn encode(word: &str, merges: &[(String, String)]) -> Vec<String> {
    let mut symbols: Vec<String> = word.chars().map(String::from).collect();
    if let Some(last) = symbols.last_mut() {
        last.push_str("</w>");
    }
    let rank = |pair: &[String]| merges.iter().position(|(a, b)| [a, b].into_iter().eq(pair));
    while let Some((_, at)) = symbols.windows(2).enumerate().filter_map(|(i, p)| Some((rank(p)?, i))).min() {
        let second = symbols.remove(at + 1);
        symbols[at] += &second;
    }
    symbols
}
