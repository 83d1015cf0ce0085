//! Bits and Huffman codes of a JPEG's entropy-coded data (ITU-T T.81, annexes C and F.2.2).

// What is wrong with a file.
pub(super) const CUT: &str = "the file is cut: it has no end of image";
const MISSING: &str = "data is missing: a scan ends before its last block";
pub(super) const DAMAGED: &str = "data is damaged: a scan's codes do not make blocks of 64";

const LEFT: &str = "data is damaged: a scan goes on after its last block";

/// A Huffman table.
#[derive(Default)]
pub(super) struct Huffman {
    /// By the next 8 bits: length and symbol of the code that they begin with; length 0 if it is longer.
    short: Vec<(u32, u8)>,
    /// By length: the first 16 bits after all codes of that length, and the place of a symbol less its code.
    long: Vec<(u32, i32)>,
    symbols: Vec<u8>,
}

impl Huffman {
    /// The table of so many codes of 1, 2, ... 16 bits, and their symbols.
    pub(super) fn new(counts: &[u8], symbols: &[u8]) -> Self {
        let mut table = Self { short: vec![(0, 0); 256], long: Vec::new(), symbols: symbols.to_vec() };
        let (mut code, mut place) = (0, 0);
        for (length, &count) in (1..=16).zip(counts) {
            code <<= 1;
            table.long.push((0, place as i32 - code as i32));
            for &symbol in symbols.iter().skip(place).take(usize::from(count)) {
                if length <= 8 {
                    let same = table.short.iter_mut().skip(code << (8 - length)).take(1 << (8 - length));
                    same.for_each(|entry| *entry = (length, symbol));
                }
                (code, place) = (code + 1, place + 1);
            }
            table.long[length as usize - 1].0 = (code << (16 - length)) as u32;
        }
        table
    }
}

/// The bits of a scan, up to a marker.
pub(super) struct Bits<'a> {
    file: &'a [u8],
    /// Where the file goes on.
    at: usize,
    /// Bits that were read, the next one highest; zeros below them.
    bits: u64,
    count: u32,
}

impl<'a> Bits<'a> {
    pub(super) fn new(file: &'a [u8], at: usize) -> Self {
        Self { file, at, bits: 0, count: 0 }
    }

    fn fill(&mut self) {
        while self.count <= 56 {
            let (byte, length) = match self.file.get(self.at..) {
                Some([0xff, 0x00, ..]) => (0xff, 2),
                Some([byte, ..]) if *byte != 0xff => (*byte, 1),
                _ => return,
            };
            self.bits |= u64::from(byte) << (56 - self.count);
            (self.at, self.count) = (self.at + length, self.count + 8);
        }
    }

    /// What is wrong where the data has no more bits.
    fn ends(&self) -> &'static str {
        if self.at + 1 < self.file.len() { MISSING } else { CUT }
    }

    /// The next bits as a number; at most 16.
    pub(super) fn take(&mut self, count: u32) -> Result<u32, &'static str> {
        if self.count < count {
            self.fill();
        }
        let value = if count == 0 { 0 } else { self.bits >> (64 - count) };
        self.count = self.count.checked_sub(count).ok_or(self.ends())?;
        self.bits <<= count;
        Ok(value as u32)
    }

    /// The symbol of the next code.
    pub(super) fn symbol(&mut self, table: &Huffman) -> Result<u8, &'static str> {
        if self.count < 16 {
            self.fill();
        }
        // Ones alone are no code (C.2): after the end they make none that the data does not hold.
        let next = ((self.bits | u64::MAX.checked_shr(self.count).unwrap_or(0)) >> 48) as u32;
        let (mut length, mut symbol) = *table.short.get(next as usize >> 8).ok_or(DAMAGED)?;
        if length == 0 {
            let longer = table.long.iter().position(|(end, _)| next < *end);
            let at = longer.ok_or(if self.count < 16 { self.ends() } else { DAMAGED })?;
            length = at as u32 + 1;
            let place = (next >> (16 - length)) as i32 + table.long[at].1;
            symbol = *table.symbols.get(place as usize).ok_or(DAMAGED)?;
        }
        self.take(length)?;
        Ok(symbol)
    }

    /// Where the marker stands that ends the data, if nothing is left before it. Some cameras pad the last
    /// scan.
    pub(super) fn end(&mut self) -> Result<usize, &'static str> {
        self.take(self.count % 8)?;
        let mut has_padding = false;
        loop {
            self.fill();
            if self.count == 0 {
                break;
            }
            has_padding = true;
            if !matches!(self.take(8)?, 0x00 | 0xff) {
                return Err(LEFT);
            }
        }
        let is_last = self.file.get(self.at + 1) == Some(&0xd9);
        if has_padding && !is_last { Err(LEFT) } else { Ok(self.at) }
    }
}
