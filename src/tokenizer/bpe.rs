//! Byte-pair encoding of one word (Sennrich et al. 2016, arXiv:1508.07909) over characters that stand for
//! bytes.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};

/// Marks a piece that ends a word.
pub(super) const END: &str = "</w>";

/// Tokens of a vocabulary. Ids are smaller than this.
pub(super) const MOST_TOKENS: usize = 1 << 24;

/// A vocabulary and its merges.
#[derive(Clone, Debug)]
pub(super) struct Bpe {
    /// By id.
    pub(super) tokens: Vec<String>,
    /// The pairs that are joined, the most urgent first.
    pub(super) merges: Vec<(u32, u32)>,
    ids: HashMap<String, u32>,
    /// Of a pair its place in `merges`.
    ranks: HashMap<(u32, u32), u32>,
    /// What each merge makes.
    pub(super) joined: Vec<u32>,
    /// The ids of each byte within a word and at its end.
    pub(super) within: [Option<u32>; 256],
    pub(super) last: [Option<u32>; 256],
}

impl Bpe {
    pub(super) fn new(tokens: Vec<String>, merges: Vec<(String, String)>) -> Result<Bpe, String> {
        let mut ids = HashMap::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            if let Some(other) = ids.insert(token.clone(), id as u32) {
                return Err(format!("the token {token:?} has two ids, {other} and {id}"));
            }
        }
        let mut ranks = HashMap::with_capacity(merges.len());
        let mut pairs = Vec::with_capacity(merges.len());
        let mut joined = Vec::with_capacity(merges.len());
        for (rank, (a, b)) in merges.iter().enumerate() {
            let id = |token: &str| {
                let missing = || format!("merge {} ({a} {b}): {token:?} is not in the vocabulary", rank + 1);
                ids.get(token).copied().ok_or_else(missing)
            };
            // `merges.txt` could not hold it.
            if [a, b].iter().any(|part| part.is_empty() || part.contains(char::is_whitespace)) {
                return Err(format!(
                    "merge {} ({a:?} {b:?}): a part is empty or holds white space",
                    rank + 1
                ));
            }
            let pair = (id(a)?, id(b)?);
            // Of a pair that is listed twice, the later place counts, as in the reference.
            ranks.insert(pair, rank as u32);
            joined.push(id(&format!("{a}{b}"))?);
            pairs.push(pair);
        }
        let chars = byte_chars();
        let within = chars.map(|c| ids.get(&*c.to_string()).copied());
        let last = chars.map(|c| ids.get(&format!("{c}{END}")).copied());
        Ok(Bpe { tokens, merges: pairs, ids, ranks, joined, within, last })
    }

    pub(super) fn id(&self, token: &str) -> Option<u32> {
        self.ids.get(token).copied()
    }

    /// Adds a token that no merge makes.
    pub(super) fn push(&mut self, token: String) -> Result<u32, String> {
        let id = self.tokens.len();
        if id >= MOST_TOKENS {
            return Err(format!("a vocabulary has at most {MOST_TOKENS} tokens"));
        }
        self.ids.insert(token.clone(), id as u32);
        self.tokens.push(token);
        Ok(id as u32)
    }

    /// Pushes the pieces of a word: of all pairs of neighbours the most urgent is joined, the leftmost of
    /// equals, until none is in the list. O(n log n) for n bytes.
    pub(super) fn split(&self, word: &str, unknown: u32, out: &mut Vec<u32>) {
        /// No piece, or no rank.
        const NONE: u32 = u32::MAX;
        let Some((&end, bytes)) = word.as_bytes().split_last() else { return };
        let id = |table: &[Option<u32>; 256], byte: u8| table[usize::from(byte)].unwrap_or(unknown);
        let mut ids: Vec<u32> = bytes.iter().map(|&byte| id(&self.within, byte)).collect();
        ids.push(id(&self.last, end));
        let count = ids.len();
        // Neighbours of a piece, which lies where its first byte does; `count` where there is none.
        let mut next: Vec<usize> = (1..=count).collect();
        let mut before: Vec<usize> = (0..count).map(|i| if i == 0 { count } else { i - 1 }).collect();
        let rank_of = |pair: (u32, u32)| self.ranks.get(&pair).copied().unwrap_or(NONE);
        // Of each piece with its next one.
        let mut ranks: Vec<u32> = ids.windows(2).map(|pair| rank_of((pair[0], pair[1]))).collect();
        ranks.push(NONE);
        let queued = |(i, &rank): (usize, &u32)| (rank != NONE).then_some(Reverse((rank, i)));
        let mut pairs: BinaryHeap<_> = ranks.iter().enumerate().filter_map(queued).collect();
        while let Some(Reverse((rank, i))) = pairs.pop() {
            // One of the two may have been joined to another since.
            if ranks[i] != rank {
                continue;
            }
            let j = next[i];
            ids[i] = self.joined[rank as usize];
            (ids[j], ranks[i], ranks[j]) = (NONE, NONE, NONE);
            next[i] = next[j];
            if next[i] < count {
                before[next[i]] = i;
            }
            for (left, right) in [(before[i], i), (i, next[i])] {
                if left < count && right < count {
                    ranks[left] = rank_of((ids[left], ids[right]));
                    pairs.extend(queued((left, &ranks[left])));
                }
            }
        }
        out.extend(ids.into_iter().filter(|&id| id != NONE));
    }
}

/// Whether a byte stands for itself as a character.
fn is_printed(byte: u8) -> bool {
    matches!(byte, 33..=126 | 161..=172 | 174..=255)
}

/// The character that stands for each byte: a printed one for itself, the others from U+0100 on.
fn byte_chars() -> [char; 256] {
    let mut others = '\u{100}'..;
    std::array::from_fn(|byte| match byte as u8 {
        byte if is_printed(byte) => char::from(byte),
        _ => others.next().unwrap_or_default(),
    })
}

/// The first 512 tokens of CLIP's vocabulary: printed bytes, the others, and all again at the end of a word.
pub(super) fn byte_tokens() -> Vec<String> {
    let chars = byte_chars();
    let (printed, others): (Vec<u8>, Vec<u8>) = (0..=255).partition(|&byte| is_printed(byte));
    let tokens = printed.into_iter().chain(others).map(|byte| chars[usize::from(byte)].to_string());
    let tokens: Vec<String> = tokens.collect();
    let ends = tokens.iter().map(|token| format!("{token}{END}"));
    tokens.iter().cloned().chain(ends).collect()
}

/// Pushes the bytes that a token stands for, and a space where it ends a word.
pub(super) fn spell(token: &str, bytes: &mut Vec<u8>) {
    let (text, end) = match token.strip_suffix(END) {
        Some(text) => (text, " "),
        None => (token, ""),
    };
    for c in text.chars() {
        // The characters from U+0100 on are the bytes that are not printed, in three runs.
        match c as u32 {
            code @ (33..=126 | 161..=172 | 174..=255) => bytes.push(code as u8),
            code @ 0x100..=0x120 => bytes.push((code - 0x100) as u8),
            code @ 0x121..=0x142 => bytes.push((code - 0x121 + 127) as u8),
            0x143 => bytes.push(173),
            _ => bytes.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    bytes.extend(end.bytes());
}
