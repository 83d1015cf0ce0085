//! A JPEG's scans, walked without making pixels of them (ITU-T T.81, F.2.2 and G.1.2): each must hold as many
//! blocks as the frame has, and together they must hold every bit of every coefficient.

use super::bits::{Bits, DAMAGED, Huffman};

/// A component of the frame.
struct Component {
    id: u8,
    /// Its blocks across and down in a unit of an interleaved scan.
    factors: [usize; 2],
    /// By coefficient: the lowest bit that the scans so far hold; none has come yet: `UNSENT`.
    low: [u8; 64],
    /// By block: its coefficients that are not zero, a bit each. They change how later scans are read.
    nonzero: Vec<u64>,
}

const UNSENT: u8 = 255;

/// What a file says of its blocks of 8 x 8, and how much of them its scans have held.
#[derive(Default)]
pub(super) struct Frame {
    progressive: bool,
    size: [usize; 2],
    components: Vec<Component>,
    /// Tables by number: of differences of the first coefficients, and of the others.
    tables: [[Huffman; 4]; 2],
    /// Units between restarts; 0: there are none.
    interval: usize,
}

/// A scan's part of the coefficients, and the bits of them that it adds.
struct Part {
    progressive: bool,
    first: usize,
    last: usize,
    is_first: bool,
}

fn word(bytes: &[u8], at: usize) -> usize {
    bytes.get(at..at + 2).map_or(0, |two| usize::from(u16::from_be_bytes([two[0], two[1]])))
}

impl Frame {
    /// Takes the segment of a start of frame (B.2.2).
    pub(super) fn describe(&mut self, progressive: bool, segment: &[u8]) {
        self.progressive = progressive;
        self.size = [word(segment, 3), word(segment, 1)];
        let component = |c: &[u8]| Component {
            id: c[0],
            factors: [c[1] >> 4, c[1] & 15].map(|factor| usize::from(factor).max(1)),
            low: [UNSENT; 64],
            nonzero: Vec::new(),
        };
        self.components = segment.get(6..).unwrap_or_default().chunks_exact(3).map(component).collect();
    }

    /// Takes a segment of Huffman tables (B.2.4.2).
    pub(super) fn define_tables(&mut self, mut segment: &[u8]) {
        while let [kind, rest @ ..] = segment
            && let Some((counts, rest)) = rest.split_at_checked(16)
        {
            let symbols = counts.iter().map(|count| usize::from(*count)).sum::<usize>().min(rest.len());
            let (symbols, rest) = rest.split_at(symbols);
            self.tables[usize::from(kind >> 4 & 1)][usize::from(kind & 3)] = Huffman::new(counts, symbols);
            segment = rest;
        }
    }

    /// Takes a segment that says how far restarts are apart (B.2.4.4).
    pub(super) fn define_restarts(&mut self, segment: &[u8]) {
        self.interval = word(segment, 0);
    }

    /// Walks the scan whose segment (B.2.3) is given and whose data starts at a byte of the file. Gives the
    /// place of the marker after it, or what is wrong.
    pub(super) fn walk(&mut self, segment: &[u8], file: &[u8], at: usize) -> Result<usize, &'static str> {
        let header = segment.split_first().ok_or(DAMAGED)?;
        let (chosen, part) = header.1.split_at_checked(2 * usize::from(*header.0)).ok_or(DAMAGED)?;
        let [first, last, bits] = *part else { return Err(DAMAGED) };
        let (high, low) = (bits >> 4, bits & 15);
        let part = match self.progressive {
            true => Part { progressive: true, first: first.into(), last: last.into(), is_first: high == 0 },
            false => Part { progressive: false, first: 0, last: 63, is_first: true },
        };
        let is_band = !self.progressive || (part.last == 0) == (part.first == 0);
        let is_next = high == 0 || high == low + 1;
        if part.first > part.last
            || !is_next
            || part.last > 63
            || !is_band
            || (part.first > 0 && chosen.len() != 2)
        {
            return Err(DAMAGED);
        }
        // Allowed as well; zune-jpeg 0.5 makes wrong pictures of it.
        let first = self.components.first().map_or([1; 2], |component| component.factors);
        if self.components.iter().any(|component| (0..2).any(|axis| component.factors[axis] > first[axis])) {
            return Err("its first component has fewer samples than another, which is not supported");
        }
        // Allowed (A.2.2) and rare; zune-jpeg 0.5 makes wrong pictures of it.
        if !self.progressive && chosen.len() != 2 * self.components.len() {
            return Err("its components are in scans of their own, which is not supported");
        }
        let most = |axis: usize| self.components.iter().map(|c| c.factors[axis]).max().unwrap_or(1);
        let most = [most(0), most(1)];
        // Units of the scan (A.2), and what each of them holds: blocks of a component, with its tables.
        let mut units = [0, 1].map(|axis| self.size[axis].div_ceil(8 * most[axis]));
        let mut holds = Vec::new();
        for two in chosen.chunks_exact(2) {
            let index = self.components.iter().position(|c| c.id == two[0]).ok_or(DAMAGED)?;
            let component = &mut self.components[index];
            let mut blocks = component.factors[0] * component.factors[1];
            if chosen.len() == 2 {
                let own = |axis: usize| (self.size[axis] * component.factors[axis]).div_ceil(most[axis]);
                (units, blocks) = ([own(0), own(1)].map(|pixels| pixels.div_ceil(8)), 1);
            }
            for sent in &mut component.low[part.first..=part.last] {
                if *sent != if part.is_first { UNSENT } else { high } {
                    return Err("data is missing: a scan goes before another that is not there");
                }
                *sent = if self.progressive { low } else { 0 };
            }
            holds.push((index, blocks, [two[1] >> 4, two[1] & 15].map(|table| usize::from(table & 3))));
        }
        let units = units[0] * units[1];
        if part.progressive && part.first > 0 {
            self.components[holds[0].0].nonzero.resize(units, 0);
        }
        let (mut bits, mut run, mut none) = (Bits::new(file, at), 0, 0);
        for unit in 0..units {
            if unit > 0 && self.interval > 0 && unit % self.interval == 0 {
                let marker = bits.end()?;
                let number = (unit / self.interval - 1) % 8;
                if run > 0 || file.get(marker..marker + 2) != Some(&[0xff, 0xd0 + number as u8]) {
                    return Err("data is missing: its restarts are not where they should be");
                }
                bits = Bits::new(file, marker + 2);
            }
            for &(index, blocks, [dc, ac]) in &holds {
                let nonzero = self.components[index].nonzero.get_mut(unit).unwrap_or(&mut none);
                for _ in 0..blocks {
                    let tables = [&self.tables[0][dc], &self.tables[1][ac]];
                    part.block(&mut bits, tables, nonzero, &mut run)?;
                }
            }
        }
        if run > 0 {
            return Err(DAMAGED);
        }
        bits.end()
    }

    /// An error where the scans have left bits of a coefficient out.
    pub(super) fn is_whole(&self) -> Result<(), &'static str> {
        let whole = self.components.iter().all(|component| component.low == [0; 64]);
        if whole { Ok(()) } else { Err("data is missing: it has not all of its scans") }
    }
}

impl Part {
    /// Walks a block. `run`: how many blocks in a row, this one first, have nothing new (G.1.2.2).
    fn block(
        &self,
        bits: &mut Bits,
        [dc, ac]: [&Huffman; 2],
        nonzero: &mut u64,
        run: &mut u32,
    ) -> Result<(), &'static str> {
        if self.first == 0 {
            match self.is_first {
                true => {
                    let size = bits.symbol(dc)?;
                    bits.take(u32::from(size.min(16)))?
                }
                false => bits.take(1)?,
            };
        }
        let mut k = self.first.max(1);
        // Coefficients that earlier scans left other than zero are corrected on the way, and not counted.
        let corrected = if self.is_first { 0 } else { *nonzero };
        while k <= self.last && *run == 0 {
            let symbol = bits.symbol(ac)?;
            let (mut zeros, size) = (u32::from(symbol >> 4), u32::from(symbol & 15));
            if size == 0 && zeros < 15 {
                // The end of the block; in a progressive scan, of a run of them.
                if !self.progressive {
                    return Ok(());
                }
                *run = (1 << zeros) + bits.take(zeros)?;
                break;
            }
            bits.take(size)?;
            while k <= self.last && (zeros > 0 || corrected >> k & 1 == 1) {
                match corrected >> k & 1 {
                    0 => zeros -= 1,
                    _ => drop(bits.take(1)?),
                }
                k += 1;
            }
            if k > self.last || (size > 1 && !self.is_first) {
                return Err(DAMAGED);
            }
            *nonzero |= u64::from(size > 0) << k;
            k += 1;
        }
        if *run > 0 {
            *run -= 1;
            let left = corrected & (u64::MAX << k) & (u64::MAX >> (63 - self.last));
            for _ in 0..left.count_ones() {
                bits.take(1)?;
            }
        }
        Ok(())
    }
}
